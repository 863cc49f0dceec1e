import json

import pytest

from learners.diagnose import diagnose


@pytest.fixture
def metrics(tmp_path):
    def write(*rows):
        file = tmp_path / "metrics.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write


def row(loss=0.6, chosen=-5.0, **more):
    return {"loss": loss, "logps/chosen": chosen, "rewards/accuracies": 0.5, **more}


def test_a_gain_is_silent(metrics):
    assert diagnose({"before": 0.6, "step-3": 0.7}, 200, metrics(row(), row())) == []


def test_a_collapse_is_named_first_and_says_what_to_try(metrics):
    file = metrics(row(), row(chosen=-80))
    found = diagnose({"before": 0.9, "step-1": 0.91, "step-3": 0.4}, 200, file)
    assert found[0].startswith("COLLAPSE: validation fell from 90.0% to 40.0%")
    assert "learning rate" in found[0]
    assert "dived by 75 nats" in found[1]


def test_a_fall_within_the_noise_is_no_collapse(metrics):
    # Two standard errors of a difference at 50% on 200 problems: 10 points.
    file = metrics(row(), row())
    assert not any("COLLAPSE" in w for w in diagnose({"before": 0.5, "step-1": 0.41}, 200, file))
    assert any("COLLAPSE" in w for w in diagnose({"before": 0.5, "step-1": 0.39}, 200, file))
    assert not any("COLLAPSE" in w for w in diagnose({"before": 0.5, "step-1": 0.39}, 20, file))


@pytest.mark.parametrize("after", [0.5, 0.49])
def test_no_gain_says_that_the_policy_stays(metrics, after):
    found = diagnose({"before": 0.5, "step-1": after}, 200, metrics(row(), row()))
    assert len(found) == 1
    assert "no gain" in found[0]
    assert "the policy stays" in found[0]


def test_a_dive_of_the_chosen_log_probs_is_seen_even_with_a_gain(metrics):
    found = diagnose({"before": 0.5, "step-1": 0.6}, 200, metrics(row(), row(chosen=-25.1)))
    assert len(found) == 1
    assert "dived by 20 nats (-5.0 to -25.1)" in found[0]
    file = metrics(row(), row(chosen=-24.9))
    assert diagnose({"before": 0.5, "step-1": 0.6}, 200, file) == []


def test_memorised_pairs(metrics):
    file = metrics(row(), row(loss=0.01))
    found = diagnose({"before": 0.5, "step-1": 0.5}, 200, file)
    assert "memorised" in found[-1]
    assert diagnose({"before": 0.5, "step-1": 0.6}, 200, file) == []


def test_a_small_nll_is_not_memorised_pairs(metrics):
    file = metrics({"loss": 0.5, "logps/chosen": -5}, {"loss": 0.01, "logps/chosen": -1})
    assert not any("memorised" in w for w in diagnose({"before": 0.5, "s": 0.5}, 200, file))


def test_nothing_measured_is_nothing_found(metrics):
    assert diagnose({"before": 0.5}, 200, metrics(row())) == []
    assert diagnose({"before": 0.5, "step-1": 0.6}, 200, metrics()) == []
