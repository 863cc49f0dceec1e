"""The reports of several seeds: what they say together, and what each says."""

from pathlib import Path

import pytest

from benchmarks.experiment import LearnerRun, pooled_curve, write_reports
from benchmarks.metrics import outcomes, pass_at_1
from learners.recipe import load_recipe

PROBLEMS = 100


@pytest.fixture
def run_of(make_trajectory):
    """A learner's run of one seed: how many problems SFT and the last iteration solve."""

    def make(learner: str, seed: int, before: int, after: int) -> LearnerRun:
        stages = [
            (name, [make_trajectory(str(i), i < right) for i in range(PROBLEMS)])
            for name, right in (("SFT", before), (f"{learner}, iteration 1", after))
        ]
        return LearnerRun(learner, seed, stages)

    return make


def tables(page: str) -> list[list[list[str]]]:
    """The cells of every markdown table, without its head."""
    found = []
    for part in page.split("\n\n"):
        if part.startswith("|"):
            lines = part.strip().splitlines()[2:]
            found.append([[cell.strip() for cell in line.split("|")[1:-1]] for line in lines])
    return found


def test_three_seeds_are_no_more_problems_than_one(run_of, tmp_path: Path) -> None:
    """Seeds that repeat each other say nothing new, so no interval gets narrower."""
    runs = [run_of("mdpo", seed, 40, 60) for seed in range(3)]
    write_reports(tmp_path, runs, load_recipe("tiny"))
    page = (tmp_path / "results.md").read_text()
    together, *each = tables(page)
    assert len(each) == 3
    assert together[1][4:6] == each[0][1][3:5]  # the gain and its interval
    for estimate, (_, episodes) in zip(pooled_curve(runs), runs[0].stages, strict=True):
        alone = pass_at_1(outcomes(episodes))
        assert estimate.n == alone.n == PROBLEMS
        assert estimate.low == pytest.approx(alone.low, abs=0.01)
        assert estimate.high == pytest.approx(alone.high, abs=0.01)


def test_seeds_stand_beside_what_they_say_together(run_of, tmp_path: Path) -> None:
    runs = [run_of("mdpo", s, 40 + s, 60 + s) for s in range(2)]
    runs += [run_of("raft", s, 40 + s, 60 + 5 * s) for s in range(2)]
    write_reports(tmp_path, runs, load_recipe("tiny"))
    page = (tmp_path / "results.md").read_text()
    sft, mdpo, raft = tables(page)[0]
    assert sft[0:2] == ["SFT", "40.5%"]
    assert sft[3:] == ["40.0, 41.0", *[""] * 6]
    assert (mdpo[1], mdpo[3], mdpo[4], mdpo[6]) == ("60.5%", "60.0, 61.0", "+20.0", "+20.0, +20.0")
    assert mdpo[7:] == ["", "", ""]
    assert (raft[7], raft[9]) == ("-2.0", "+0.0, -4.0")
    assert "a problem is resampled with its outcomes in all seeds. 2 seeds are few" in page


def test_one_seed_says_nothing_about_seeds(run_of, tmp_path: Path) -> None:
    write_reports(tmp_path, [run_of("mdpo", 3, 40, 40)], load_recipe("tiny"))
    page = (tmp_path / "results.md").read_text()
    assert "seeds are few" not in page
    ((_, row),) = tables(page)
    assert row[3:] == ["+0.0", "-3.7 to +3.7", "1.000"]  # no certainty where nothing changed
