"""Verdicts follow from the numbers, whichever they are."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.studies.ablation import sections
from benchmarks.studies.ablation.claims import CLAIMS, Claim
from benchmarks.studies.ablation.command import Ablate
from benchmarks.studies.ablation.document import Picture, Table
from benchmarks.studies.ablation.findings import Verdict, findings, judge
from benchmarks.studies.ablation.page import sentence
from benchmarks.studies.ablation.results import SFT, Policy, Results
from benchmarks.studies.ablation.variants import (
    GROUPS,
    QUICK,
    VARIANTS,
    Sizes,
    base_recipe,
    chosen,
    override,
    recipe_of,
)
from learners.learner import make_learner
from mathenv.errors import ConfigError

CLAIM = Claim("main", "A is better than B", "table 1", Policy("a"), Policy("b"))
SAME = Claim("main", "A is as good as B", "table 1", Policy("a"), Policy("b"), same_within=0.05)


def results(a, b, *, problems=200, failed=()):
    """Accuracies of two variants by seed; right answers are drawn, so they are not nested."""

    def measured(share, seed, name):
        rng = random.Random(f"{name}/{seed}")
        right = {str(i): [float(rng.random() < share)] for i in range(problems)}
        return {"test": {"2": right}, "ood": {}, "samples": {}, "diversity": {}}

    found = {("a", s): measured(share, s, "a") for s, share in enumerate(a)}
    found |= {("b", s): measured(share, s, "b") for s, share in enumerate(b)}
    return Results({}, found, dict(failed))


@pytest.mark.parametrize(
    ("claim", "a", "b", "verdict", "reason"),
    [
        (CLAIM, (0.9, 0.9, 0.9), (0.5, 0.5, 0.5), Verdict.HOLDS, ""),
        (CLAIM, (0.5, 0.5, 0.5), (0.9, 0.9, 0.9), Verdict.FAILS, "the other way"),
        (CLAIM, (0.7, 0.7, 0.7), (0.7, 0.7, 0.7), Verdict.OPEN, "includes 0"),
        (CLAIM, (0.9, 0.9, 0.4), (0.5, 0.5, 0.6), Verdict.OPEN, "different directions"),
        (CLAIM, (0.01, 0.01, 0.01), (0.0, 0.0, 0.0), Verdict.OPEN, "too small"),
        (CLAIM, (0.5,), (0.5,), Verdict.OPEN, "includes 0"),
        (SAME, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), Verdict.HOLDS, ""),
        (SAME, (0.9, 0.9, 0.9), (0.5, 0.5, 0.5), Verdict.FAILS, "differ"),
        (SAME, (0.57, 0.57), (0.5, 0.5), Verdict.OPEN, "over the margin"),
        (SAME, (0.5,), (0.5,), Verdict.OPEN, "over the margin"),
    ],
)
def test_verdicts_come_from_the_numbers(claim, a, b, verdict, reason):
    found = judge(claim, results(a, b))
    assert found.verdict is verdict
    assert reason in found.reason
    told = sentence(found)
    assert f"**{verdict}**" in told
    assert f"{100 * found.difference.low:+.1f} to {100 * found.difference.high:+.1f}" in told


def outcomes(*shares):
    """Results of a and b in which the first so many problems are right."""
    right = [{str(i): [float(i < n)] for i in range(200)} for n in shares]
    empty = {"ood": {}, "samples": {}, "diversity": {}}
    found = zip("ab", right, strict=True)
    return Results({}, {(name, 0): {"test": {"1": r}, **empty} for name, r in found}, {})


def test_few_problems_that_differ_are_no_evidence():
    """Four problems gained and none lost may be chance, six may not."""
    found = judge(CLAIM, outcomes(104, 100))
    assert found.difference.low < 0
    assert found.sign_p == found.mcnemar[0] == 0.125
    assert found.verdict is Verdict.OPEN
    assert judge(CLAIM, outcomes(106, 100)).verdict is Verdict.HOLDS


def test_no_difference_at_all_is_no_certainty():
    found = judge(SAME, outcomes(100, 100))
    assert found.difference.value == 0
    assert found.difference.high == -found.difference.low == pytest.approx(0.01885, abs=1e-4)
    assert judge(replace(SAME, same_within=0.01), outcomes(100, 100)).verdict is Verdict.OPEN


def test_no_difference_out_of_distribution_is_no_certainty_either(tmp_path: Path):
    """The table says of a comparison what the findings say of it."""
    played = {"test": {"1": {"t": [1.0], "u": [0.0]}}, "ood": {str(i): [0.0] for i in range(40)}}
    measured = {(name, s): {**played, "samples": {}} for name in ("sft", "mdpo") for s in range(3)}
    found = Results({"sizes": {"ood": 40}}, measured, {})
    blocks = sections.out_of_distribution(
        found, lambda name, text, draw: Picture(draw(tmp_path / f"{name}.png"), text)
    )
    (table,) = (block for block in blocks if isinstance(block, Table))
    (row,) = (row for row in table.rows if row[0] == "`mdpo`")
    assert row[-2:] == ["+0.0", "-8.8 to +8.8"]
    (claim,) = (c for c in CLAIMS if c.text == "What M-DPO learns carries over out of distribution")
    difference = judge(claim, found).difference
    assert f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}" == row[-1]


def test_only_seeds_that_both_have_are_compared():
    found = judge(CLAIM, results((0.9, 0.9), (0.5,)))
    assert len(found.seeds) == len(found.mcnemar) == 1
    assert found.difference.n == 200


def test_what_is_missing_is_not_judged():
    assert judge(CLAIM, results((0.9,), ())).verdict is Verdict.MISSING
    found = judge(CLAIM, results((0.9,), (), failed={("b", 0): "loss nan"}.items()))
    assert "`b` failed: loss nan" in found.reason
    assert "loss nan" in sentence(found)


def test_seeds_of_a_problem_are_resampled_together():
    """Three seeds over the same problems are not three times as many problems."""
    found = judge(CLAIM, results((0.9, 0.9, 0.9), (0.5, 0.5, 0.5)))
    assert found.difference.n == 200
    assert len(found.seeds) == 3


def test_pass_at_k_and_counts():
    samples = {str(i): [1.0, 0.0, 0.0, 0.0] for i in range(4)}
    measured = {
        ("a", 0): {
            "test": {},
            "ood": {},
            "samples": samples,
            "diversity": {"programs": {"0": 3, "1": 2}},
        }
    }
    found = Results({}, measured, {})
    assert found.estimate(Policy("a"), "pass@2").value == pytest.approx(0.5)
    assert found.estimate(Policy("a"), "pass@4").value == 1
    assert found.estimate(Policy("a"), "pass@8") is None
    assert found.estimate(Policy("a"), "programs").value == 2.5
    assert found.estimate(Policy("a", 1), "test") is None


# --- the table


def test_names_are_folders_and_differ():
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(names)
    assert all(name.replace("-", "").replace(".", "").isalnum() for name in names)
    assert not set(names) & {"base", "sft", "shared", "test", "ood", "samples"}
    assert {variant.group for variant in VARIANTS} == set(GROUPS)


def test_groups_stand_together_in_the_order_of_the_run():
    groups = [variant.group for variant in VARIANTS]
    assert list(dict.fromkeys(groups)) == list(GROUPS)
    assert groups == sorted(groups, key=list(GROUPS).index)


@pytest.mark.parametrize("sizes", [Sizes(), QUICK], ids=["full", "quick"])
def test_every_variant_is_a_recipe(sizes):
    base = base_recipe(sizes, quick=sizes is QUICK, threads=1)
    for variant in VARIANTS:
        recipe = recipe_of(variant, base, seed=3)
        assert recipe.seed == 3
        learner = make_learner(recipe.learner, recipe.methods[recipe.learner].loss)
        assert learner.name == variant.learner
        assert (recipe != replace_learner(base, variant)) == bool(variant.changes)


def replace_learner(base, variant):
    return override(base, {"learner": variant.learner, "seed": 3})


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.text)
def test_claims_are_about_what_is_run(claim):
    known = {variant.name: variant for variant in VARIANTS}
    for policy in (claim.better, claim.worse):
        if policy != SFT:
            variant = known[policy.variant]
            assert policy.iteration in (None, 0, 1)
            assert policy.iteration != 1 or variant.every
            assert policy.iteration != 0 or variant.start < 1
    groups = {known[p.variant].group for p in (claim.better, claim.worse) if p != SFT}
    assert claim.group in groups
    assert groups <= {claim.group, "main"}


def test_without_results_nothing_is_said():
    assert {f.verdict for f in findings(Results({}, {}, {}))} == {Verdict.MISSING}


@pytest.mark.parametrize("name", ["nothing", "iterate.nothing", "methods.none.loss.eta"])
def test_a_change_of_what_there_is_not(name):
    base = base_recipe(Sizes(), quick=False, threads=1)
    with pytest.raises(ConfigError, match="no setting"):
        override(base, {name: 1})


def test_groups_by_name():
    assert all(f"{group}," in Ablate.__doc__.replace(".", ",") for group in GROUPS)
    assert {v.group for v in chosen(["eta", "noise"])} == {"eta", "noise"}
    assert chosen([]) == VARIANTS
    with pytest.raises(ConfigError, match="no group is called 'etas'"):
        chosen(["etas"])
