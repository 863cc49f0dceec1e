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
    sides = {"rewards/chosen": 0.1, "rewards/rejected": -0.1, "rewards/accuracies": 0.5}
    return {"loss": loss, "logps/chosen": chosen, **sides, **more}


def unpaired(loss, **more):
    """What M-KTO logs."""
    return {"loss": loss, "logps/chosen": -5.0, "rewards/chosen": 0.1, "kl": 0.0, **more}


def falling(start, end, steps=20, noise=0.0):
    """Rows whose chosen log-probs fall in a line, and swing from batch to batch."""
    line = [start + (end - start) * i / (steps - 1) for i in range(steps)]
    return [row(chosen=value + (-noise if i % 2 else noise)) for i, value in enumerate(line)]


def test_a_gain_is_silent(metrics):
    assert diagnose({"before": 0.6, "step-3": 0.7}, 200, metrics(row(), row())) == []


def test_a_collapse_is_named_first_and_says_what_to_try(metrics):
    file = metrics(*falling(-5, -80))
    found = diagnose({"before": 0.9, "step-1": 0.91, "step-3": 0.4}, 200, file)
    assert found[0].startswith("COLLAPSE: validation fell from 90.0% to 40.0%")
    assert "learning rate" in found[0]
    assert "dived by 71 nats (-7.0 to -78.0)" in found[1]  # means of two steps each


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


# --- log-probs of the chosen side


def test_a_dive_of_the_chosen_log_probs_is_seen_even_with_a_gain(metrics):
    found = diagnose({"before": 0.5, "step-1": 0.6}, 200, metrics(*falling(-5, -27)))
    assert len(found) == 1
    assert "dived by 21 nats (-5.6 to -26.4)" in found[0]
    assert diagnose({"before": 0.5, "step-1": 0.6}, 200, metrics(*falling(-5, -25))) == []


@pytest.mark.parametrize("steps", [9, 19])
def test_batches_that_differ_are_no_dive(metrics, steps):
    """The first and the last step are 60 nats apart, and so are all that follow each other."""
    chosen = [-100.0 + 30 * (-1) ** i for i in range(steps - 1)]
    file = metrics(*(row(chosen=c) for c in [*chosen, -130.0]))
    assert diagnose({"before": 0.5, "step-1": 0.6}, 200, file) == []


def test_a_dive_is_seen_through_batches_that_differ(metrics):
    file = metrics(*falling(-100, -180, steps=40, noise=15))
    found = diagnose({"before": 0.5, "step-1": 0.6}, 200, file)
    assert len(found) == 1
    assert "dived by 74 nats" in found[0]


def test_batches_without_a_chosen_side_say_nothing_of_it(metrics):
    rows = falling(-5, -80)
    del rows[0]["logps/chosen"], rows[-1]["logps/chosen"]
    found = diagnose({"before": 0.5, "step-1": 0.6}, 200, metrics(*rows))
    assert len(found) == 1
    assert "dived by 67 nats (-8.9 to -76.1)" in found[0]


# --- a loss near zero


def test_memorised_pairs(metrics):
    file = metrics(row(), row(loss=0.01))
    found = diagnose({"before": 0.5, "step-1": 0.5}, 200, file)
    assert "memorised" in found[-1]
    assert diagnose({"before": 0.5, "step-1": 0.6}, 200, file) == []


def test_memorised_samples_of_a_learner_without_accuracies(metrics):
    file = metrics(unpaired(0.5), unpaired(0.01))
    assert "memorised" in diagnose({"before": 0.5, "step-1": 0.5}, 200, file)[-1]


def test_one_easy_last_batch_is_not_memorised(metrics):
    file = metrics(*([row(loss=0.4)] * 19), row(loss=0.01))
    found = diagnose({"before": 0.5, "step-1": 0.5}, 200, file)
    assert not any("memorised" in w for w in found)


@pytest.mark.parametrize(("make", "nll"), [(row, 0.3), (unpaired, 0.6)])
def test_the_nll_term_hides_no_memorised_pairs(metrics, make, nll):
    """What is logged as the loss holds it: every pair's, and half of M-KTO's samples."""
    file = metrics(*[make(loss=0.32, nll_loss=nll)] * 20)
    scores = {"before": 0.5, "step-20": 0.5}
    assert not any("memorised" in w for w in diagnose(scores, 200, file))
    checkpoint = file.parent / "step-20"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").write_text(json.dumps({"loss": {"nll_coef": 1.0}}))
    assert "memorised" in diagnose(scores, 200, file)[-1]


def test_a_small_nll_is_not_memorised_pairs(metrics):
    file = metrics({"loss": 0.5, "logps/chosen": -5}, {"loss": 0.01, "logps/chosen": -1})
    assert not any("memorised" in w for w in diagnose({"before": 0.5, "s": 0.5}, 200, file))


# --- forgetting


def solved(*problems, of=100):
    return {f"p{i}": float(i in problems) for i in range(of)}


def test_forgetting_is_seen_through_a_gain(metrics):
    before, after = solved(*range(50)), solved(*range(7, 80))
    scores = {"before": 0.5, "step-1": 0.73}
    (found,) = diagnose(scores, 100, metrics(row()), before=before, after=after)
    assert found.startswith("FORGETTING: 7 of the 50 validation problems that were solved before")
    assert "lost (p0, p1, p2 and others), 30 were gained" in found
    assert "learning rate" in found


@pytest.mark.parametrize(("lost", "of", "said"), [(2, 20, False), (3, 20, True), (4, 99, False)])
def test_a_few_problems_change_between_any_two_policies(metrics, lost, of, said):
    before, after = solved(*range(of)), solved(*range(lost, 100))
    scores = {"before": 0.2, "step-1": 0.9}
    found = diagnose(scores, 100, metrics(row()), before=before, after=after)
    assert bool(found) == said


def test_problems_that_failed_to_run_are_not_forgotten(metrics):
    before, after = solved(*range(50)), solved(*range(20, 80))
    after = {problem: reward for problem, reward in after.items() if reward}
    scores = {"before": 0.5, "step-1": 0.6}
    assert diagnose(scores, 100, metrics(row()), before=before, after=after) == []


# --- nothing to go by


def test_nothing_measured_is_nothing_found(metrics):
    assert diagnose({"before": 0.5}, 200, metrics(row())) == []
    assert diagnose({"before": 0.5, "step-1": 0.6}, 200, metrics()) == []
