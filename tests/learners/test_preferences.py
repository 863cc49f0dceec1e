import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from learners import make_learner
from learners.learner import LearnerConfig
from learners.preferences import (
    PairRules,
    action_sample,
    completion_sample,
    demonstrations,
    pair_example,
    preference_pairs,
    why_none,
    winners,
)
from mathenv.errors import ConfigError, TrainingError
from mathenv.types import (
    ExecutionStatus,
    FinishReason,
    Span,
    SpanKind,
    StopReason,
    TokenRecord,
    Turn,
)

ERROR, OK = ExecutionStatus.ERROR, ExecutionStatus.OK
quiet = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


def keys(pairs):
    return [(w.key, r.key) for w, r in pairs]


# --- masks


def test_the_trained_tokens_are_exactly_the_sampled_ones(make_trajectory):
    trajectory = make_trajectory(turns=3, dangling=True)
    sample = action_sample(trajectory)
    sampled = {
        t
        for s in trajectory.tokens.spans
        if s.kind is SpanKind.SAMPLED
        for t in range(s.start, s.end)
    }
    assert sample.ids == trajectory.tokens.ids
    assert {t for t, on in enumerate(sample.mask) if on} == sampled
    assert sample.targets == len(sampled)


def test_the_single_turn_mask_is_everything_from_the_prompt_to_the_last_sampled_token(
    make_trajectory,
):
    trajectory = make_trajectory(turns=3, dangling=True)
    spans = trajectory.tokens.spans
    last = max(s.end for s in spans if s.kind is SpanKind.SAMPLED)
    mask = completion_sample(trajectory).mask
    on = [t for t, value in enumerate(mask) if value]
    assert on == list(range(spans[0].end, last))
    assert last < len(mask)


def test_the_masks_agree_where_there_is_one_turn(make_trajectory):
    trajectory = make_trajectory(turns=1)
    assert action_sample(trajectory) == completion_sample(trajectory)


@pytest.mark.parametrize("sample", [action_sample, completion_sample])
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (None, "no tokens were recorded"),
        (TokenRecord((7, 8), (Span(SpanKind.PROMPT, 0, 0, 2),)), "mask is empty"),
        (TokenRecord((), ()), "mask is empty"),
        (TokenRecord((7, 8), (Span(SpanKind.SAMPLED, 0, 0, 2),)), "first token"),
    ],
)
def test_what_cannot_be_trained_on_is_an_error_that_names_the_trajectory(
    make_trajectory, sample, tokens, message
):
    with pytest.raises(TrainingError, match=f"p#current#0.*{message}"):
        sample(make_trajectory(tokens=tokens))


# --- pairs


def test_a_pair_is_a_right_and_a_wrong_answer_to_the_same_problem(make_trajectory):
    given_ = [
        make_trajectory("a", True, sample=0),
        make_trajectory("a", False, sample=1),
        make_trajectory("b", True, sample=0),
        make_trajectory("c", False, sample=0),
    ]
    pairs, report = preference_pairs(given_, PairRules(), seed=0)
    assert keys(pairs) == [("a#current#0", "a#current#1")]
    assert report.provenance == [{"chosen": "a#current#0", "rejected": "a#current#1"}]
    counts = report.counts()
    assert counts["problems"] == 3
    assert (counts["problems_used"], counts["all_right"], counts["all_wrong"]) == (1, 1, 1)
    assert "provenance" not in counts


def test_per_problem_bounds_the_pairs_and_no_trajectory_is_used_twice(make_trajectory):
    given_ = [make_trajectory("a", i < 4, sample=i) for i in range(10)]
    for limit, expected in ((1, 1), (3, 3), (99, 4)):
        pairs, _ = preference_pairs(given_, PairRules(per_problem=limit), seed=0)
        used = [key for pair in keys(pairs) for key in pair]
        assert len(pairs) == expected
        assert len(set(used)) == len(used)


def test_infrastructure_failures_enter_nothing_and_are_counted(make_trajectory):
    given_ = [
        make_trajectory("a", True, sample=0),
        make_trajectory("a", False, sample=1, infra=True),
        make_trajectory("b", False, sample=0, infra=True),
    ]
    pairs, report = preference_pairs(given_, PairRules(), seed=0)
    assert pairs == []
    assert (report.excluded_infra, report.all_right, report.all_wrong) == (2, 1, 0)
    assert report.unusable == 1  # b: it was not "never right", it was never measured


def test_winners_that_end_in_an_error_are_dropped_losers_are_not(make_trajectory):
    winner = make_trajectory("a", True, sample=0, statuses=[OK, ERROR])
    loser = make_trajectory("a", False, sample=1, statuses=[OK, ERROR])
    pairs, report = preference_pairs([winner, loser], PairRules(), seed=0)
    assert pairs == []
    assert (report.excluded_error_winner, report.unusable, report.all_wrong) == (1, 1, 0)
    pairs, _ = preference_pairs([winner, loser], PairRules(drop_error_winners=False), seed=0)
    assert len(pairs) == 1
    mended = make_trajectory("a", True, sample=2, statuses=[ERROR, OK])
    pairs, _ = preference_pairs([winner, loser, mended], PairRules(per_problem=9), seed=0)
    assert keys(pairs) == [("a#current#2", "a#current#1")]


def test_long_and_empty_trajectories_are_dropped_from_both_sides(make_trajectory):
    right, wrong = make_trajectory("a", True), make_trajectory("a", False, sample=1)
    longest = max(len(t.tokens.ids) for t in (right, wrong))
    rules = PairRules(max_tokens=longest)
    assert len(preference_pairs([right, wrong], rules, seed=0)[0]) == 1
    pairs, report = preference_pairs([right, wrong], replace(rules, max_tokens=longest - 1), seed=0)
    assert pairs == []
    assert report.excluded_long >= 1
    empty = make_trajectory("a", False, sample=2, turns=0)
    pairs, report = preference_pairs([right, empty], PairRules(), seed=0)
    assert pairs == []
    assert report.excluded_empty == 1


CUT = {
    "trajectory": {"stop_reason": StopReason.TOKEN_LIMIT},
    "turn": {"turns": (Turn("print(", finish=FinishReason.LENGTH), Turn("\\boxed{5}"))},
}


@pytest.mark.parametrize("what", CUT)
def test_truncated_trajectories_are_allowed_left_out_or_refused(make_trajectory, what):
    right = make_trajectory("a", True)
    cut = replace(make_trajectory("a", False, sample=1), **CUT[what])
    pairs, report = preference_pairs([right, cut], PairRules(), seed=0)
    assert len(pairs) == 1
    assert (report.truncated, report.excluded_truncated) == (1, 0)
    assert report.counts()["truncated"] == 1, "said where they are used, too"
    broken = replace(make_trajectory("a", False, sample=2, infra=True), turns=cut.turns)
    assert preference_pairs([right, cut, broken], PairRules(), seed=0)[1].truncated == 1
    pairs, report = preference_pairs([right, cut], PairRules(truncated="exclude"), seed=0)
    assert pairs == []
    assert (report.excluded_truncated, report.all_right) == (1, 1)
    assert report.truncated == 1
    with pytest.raises(TrainingError, match=r"a#current#1 was cut off by a token limit"):
        preference_pairs([right, cut], PairRules(truncated="refuse"), seed=0)
    with pytest.raises(ConfigError, match=r"truncated.*'drop'"):
        PairRules(truncated="drop")


def test_questions_with_one_id_are_not_one_problem(make_trajectory):
    """As happens when two sources both count their problems from 0."""
    right, wrong = make_trajectory("a", True), make_trajectory("a", False, sample=1)
    other = replace(wrong, problem=replace(wrong.problem, question="Another question?"))
    for select in (preference_pairs, winners):
        with pytest.raises(TrainingError, match=r"a#current#0 and a#current#1.*one problem id"):
            select([right, other], PairRules(), seed=0)


def test_a_pair_answers_one_prompt(make_trajectory):
    winner, loser = make_trajectory("a", True), make_trajectory("a", False, sample=1)
    example = pair_example(winner, loser, action_sample)
    assert [s.key for s in example.samples] == [winner.key, loser.key]
    stranger = make_trajectory("b", False, sample=1)
    with pytest.raises(TrainingError, match=r"a#current#0 and b#current#1.*different problems"):
        pair_example(winner, stranger, action_sample)
    ids = (299 - loser.tokens.ids[0], *loser.tokens.ids[1:])
    elsewhere = replace(loser, tokens=replace(loser.tokens, ids=ids))
    with pytest.raises(TrainingError, match=r"a#current#0 and a#current#1.*different prompts"):
        pair_example(winner, elsewhere, action_sample)


def test_the_seed_chooses_the_pairs(make_trajectory):
    given_ = [make_trajectory("a", i < 8, sample=i) for i in range(16)]
    found = {tuple(keys(preference_pairs(given_, PairRules(), seed=s)[0])) for s in range(10)}
    assert len(found) > 3


trajectory_lists = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.booleans(),
        st.sampled_from(["", "", "", "infra", "error", "empty", "long"]),
    ),
    max_size=24,
)


def build(make, rows):
    found = []
    for sample, (problem, correct, flaw) in enumerate(rows):
        trajectory = make(
            problem,
            correct,
            sample=sample,
            infra=flaw == "infra",
            turns=0 if flaw == "empty" else 2,
            statuses=[ERROR] if flaw == "error" else None if flaw != "empty" else [],
        )
        if flaw == "long":
            record = TokenRecord((9,) * 3000, (Span(SpanKind.SAMPLED, 0, 1, 3000),))
            trajectory = replace(trajectory, tokens=record)
        found.append(trajectory)
    return found


@quiet
@given(trajectory_lists, st.randoms(use_true_random=False), st.integers(1, 3))
def test_pairs_do_not_depend_on_order_and_counts_add_up(make_trajectory, rows, shuffler, limit):
    given_ = build(make_trajectory, rows)
    rules = PairRules(per_problem=limit)
    pairs, report = preference_pairs(given_, rules, seed=3)
    shuffled = list(given_)
    shuffler.shuffle(shuffled)
    assert preference_pairs(shuffled, rules, seed=3) == (pairs, report)
    assert report.examples == len(pairs) == len(report.provenance)
    assert report.trajectories == len(given_)
    assert report.problems == (
        report.problems_used + report.all_right + report.all_wrong + report.unusable
    )
    for winner, loser in pairs:
        assert winner.problem.id == loser.problem.id
        assert winner.grade.correct
        assert not loser.grade.correct
        assert winner.counts
        assert loser.counts


@quiet
@given(trajectory_lists, st.integers(1, 3))
def test_a_problem_does_not_change_the_pairs_of_another(make_trajectory, rows, limit):
    given_ = build(make_trajectory, rows)
    rules = PairRules(per_problem=limit)
    every = keys(preference_pairs(given_, rules, seed=3)[0])
    for problem in "abcd":
        own = [t for t in given_ if t.problem.id == problem]
        alone = keys(preference_pairs(own, rules, seed=3)[0])
        assert alone == [pair for pair in every if pair[0].startswith(f"{problem}#")]


# --- winners and demonstrations


@quiet
@given(trajectory_lists, st.integers(1, 3))
def test_winners_are_right_distinct_and_at_most_so_many(make_trajectory, rows, limit):
    given_ = build(make_trajectory, rows)
    chosen, report = winners(given_, PairRules(per_problem=limit), seed=0)
    assert all(t.grade.correct and t.counts for t in chosen)
    for problem in "abcd":
        assert sum(t.problem.id == problem for t in chosen) <= limit
    assert report.examples == len(chosen) == len(report.provenance)
    assert report.problems == report.problems_used + report.all_wrong + report.unusable
    random.Random(0).shuffle(given_)
    assert winners(given_, PairRules(per_problem=limit), seed=0)[0] == chosen


def test_the_same_answer_twice_is_one_winner(make_trajectory):
    given_ = [make_trajectory("a", True, sample=i, text="same") for i in range(3)]
    chosen, _ = winners(given_, PairRules(per_problem=5), seed=0)
    assert len(chosen) == 1


def test_demonstrations_are_all_kept_but_what_machinery_broke(make_trajectory):
    given_ = [
        make_trajectory("b", True),
        make_trajectory("a", False),
        make_trajectory("c", True, infra=True),
    ]
    kept, report = demonstrations(given_, PairRules())
    assert [t.problem.id for t in kept] == ["a", "b"]
    assert (report.problems, report.problems_used, report.excluded_infra) == (3, 2, 1)


# --- why a selection has nothing


def told(trajectories, name="mdpo", **rules):
    learner = make_learner(name, LearnerConfig(pairs=PairRules(**rules)))
    examples, selection = learner.examples(trajectories, seed=0)
    assert examples == []
    said = why_none(name, selection, learner.config.pairs)
    assert said.startswith(f"{name} has nothing to train on: ")
    return said


@pytest.mark.parametrize("name", ["mdpo", "mkto", "raft", "grpo"])
def test_that_nothing_was_sampled_is_said(name):
    assert "there are no trajectories. Sample some" in told([], name)


def test_to_ask_for_no_example_is_refused():
    with pytest.raises(ConfigError, match="per_problem must be at least 1"):
        PairRules(per_problem=0)


@pytest.mark.parametrize(
    ("options", "rules", "parts"),
    [
        ({"correct": True}, {}, ["of 3 problems 3 were always right, 0 never", "harder problems"]),
        ({"correct": False}, {}, ["0 were always right, 3 never", "easier problems"]),
        (
            {"correct": False},
            {"max_tokens": 3},
            ["3 had no trajectory", "6 are longer than pairs.max_tokens = 3", "Raise pairs.max"],
        ),
        (
            {"correct": False, "infra": True},
            {},
            ["of 6 trajectories 6 failed in the machinery", "mathenv doctor"],
        ),
    ],
    ids=["all right", "all wrong", "too long", "machinery"],
)
def test_the_case_is_named_with_its_counts(make_trajectory, options, rules, parts):
    trajectories = [make_trajectory(p, sample=n, **options) for p in "abc" for n in range(2)]
    said = told(trajectories, **rules)
    assert all(part in said for part in parts), said


def test_of_several_cases_all_are_counted(make_trajectory):
    failed = [ExecutionStatus.ERROR]
    trajectories = [
        make_trajectory("a", True, statuses=failed),
        make_trajectory("a", False, sample=1),
        make_trajectory("b", True),
        make_trajectory("c", False),
        make_trajectory("c", False, sample=1, infra=True),
    ]
    said = told(trajectories)
    assert "of 3 problems 1 were always right, 1 never, 1 had no trajectory that could be" in said
    assert "of 5 trajectories 1 failed in the machinery" in said
    assert "1 are right, but their last cell failed" in said
