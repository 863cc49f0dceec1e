"""Trajectories to training samples: pure, seeded, with provenance and counts.

Nothing is guessed from text: which tokens are trained comes from the spans recorded at
sampling. Episodes in which machinery failed enter nothing (`Trajectory.counts`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field

from mathenv.errors import ConfigError, TrainingError
from mathenv.settings import Count, check_settings
from mathenv.types import (
    ExecutionStatus,
    FinishReason,
    SpanKind,
    StopReason,
    TokenRecord,
    Trajectory,
)

Pair = tuple[Trajectory, Trajectory]  # winner, loser
ToSample = Callable[[Trajectory], "Sample"]
_TRUNCATED = ("allow", "exclude", "refuse")


@dataclass(frozen=True, slots=True)
class Sample:
    """One token sequence and the positions trained on. `ids` and `mask` have one length.

    `mask[t]` is True where token `t` is a target: its log-probability given all tokens
    before it counts. `weights` has one factor per target for sums of log-probs; empty
    means 1 for each. `fingerprint` names tokenizer and template, where they are known.
    """

    key: str
    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    weights: tuple[float, ...] = ()
    fingerprint: str = ""

    @property
    def targets(self) -> int:
        return sum(self.mask)


@dataclass(frozen=True, slots=True)
class Example:
    """What a loss sees as one unit: a demonstration (1 sample) or a pair (chosen, rejected).

    Args:
        samples: in the order that the learner's loss expects.
        score: how good a single sample is: 1 or 0 for M-KTO, the advantage for GRPO.
        control: a sequence whose log-ratio enters the baseline of the step (M-KTO's z0).
    """

    samples: tuple[Sample, ...]
    score: float = 0.0
    control: Sample | None = None

    @property
    def tokens(self) -> int:
        return sum(len(s.ids) for s in self.samples)

    @property
    def targets(self) -> int:
        return sum(s.targets for s in self.samples)


@dataclass(frozen=True, slots=True)
class PairRules:
    """Which trajectories may be paired. Defaults are the paper's (section 3.1).

    Args:
        per_problem: pairs per problem at most (RAFT: winners), no trajectory twice.
        drop_error_winners: drop winners whose last interpreter answer was an error
            (pairs only).
        max_tokens: longer trajectories are dropped, winners and losers alike.
        truncated: what becomes of trajectories of which a token limit cut off a turn or the
            rest: "allow" (they count as wrong unless they answered), "exclude", or "refuse",
            which is an error.
    """

    per_problem: Count = 1
    drop_error_winners: bool = True
    max_tokens: Count = 2048
    truncated: str = "allow"

    def __post_init__(self) -> None:
        check_settings(self)
        if self.truncated not in _TRUNCATED:
            raise ConfigError(
                f"truncated is one of {', '.join(_TRUNCATED)}, not {self.truncated!r}"
            )


@dataclass(slots=True)
class Selection:
    """How many problems and trajectories a selection used and why others were left out.

    `all_right` and `all_wrong` count problems by their usable trajectories; `unusable` are
    problems of which nothing usable was left, or no winner but those that ended in an
    error. For pairs, used + all_right + all_wrong + unusable = problems.
    """

    problems: int = 0
    problems_used: int = 0
    all_right: int = 0
    all_wrong: int = 0
    unusable: int = 0
    trajectories: int = 0
    excluded_infra: int = 0
    truncated: int = 0  # cut off by a token limit, used or not
    excluded_long: int = 0
    excluded_empty: int = 0  # no turn fitted into the token budget
    excluded_error_winner: int = 0
    excluded_truncated: int = 0
    excluded_off_policy: int = 0  # sampled by another agent (GRPO only)
    examples: int = 0
    provenance: list[dict[str, str]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        return {k: v for k, v in asdict(self).items() if k != "provenance"}


# Why trajectories were left out, and what to do where it was most of them.
_LEFT_OUT = {
    "excluded_infra": (
        "failed in the machinery, not by the model",
        "See what failed (mathenv doctor), and sample again",
    ),
    "excluded_long": (
        "are longer than pairs.max_tokens = {max_tokens}",
        "Raise pairs.max_tokens, or sample with a lower max_tokens",
    ),
    "excluded_empty": ("have no turn: no token fitted", "Raise max_tokens of sampling"),
    "excluded_truncated": (
        "were cut off by a token limit",
        'Raise the limit of sampling, or set truncated = "allow"',
    ),
    "excluded_error_winner": (
        "are right, but their last cell failed",
        "Set drop_error_winners = false, or sample more",
    ),
    "excluded_off_policy": ("were sampled by another agent", "Set `agent` to the one that sampled"),
}


def why_none(learner: str, selection: Selection, rules: PairRules) -> str:
    """Return the sentence for a selection without examples: which case it was, and what to do."""
    start = f"{learner} has nothing to train on: "
    if not selection.trajectories:
        return f"{start}there are no trajectories. Sample some (mathenv collect)"
    counts = selection.counts()
    reasons = {name: count for name in _LEFT_OUT if (count := counts[name])}
    told = [
        f"{count} {_LEFT_OUT[name][0].format(max_tokens=rules.max_tokens)}"
        for name, count in reasons.items()
    ]
    advice = "Sample more per problem"
    if reasons and 2 * sum(reasons.values()) >= selection.trajectories:
        advice = _LEFT_OUT[max(reasons, key=lambda name: reasons[name])][1]
    elif selection.all_wrong > selection.all_right:
        advice = "Sample more per problem, take easier problems, or begin with a better policy"
    elif selection.all_right:
        advice = "Sample more per problem, or take harder problems"
    return (
        f"{start}of {selection.problems} problems {selection.all_right} were always right, "
        f"{selection.all_wrong} never, {selection.unusable} had no trajectory that could be used; "
        f"of {selection.trajectories} trajectories {', '.join(told) or 'none was left out'}. "
        f"{advice}"
    )


def action_sample(trajectory: Trajectory) -> Sample:
    """Mask of the multi-turn learners: the model's own tokens, all turns, nothing else.

    Raises:
        TrainingError: no tokens were recorded, or none was sampled.
    """
    record = _tokens(trajectory)
    return checked(_sample(trajectory.key, record, record.action_mask))


def completion_sample(trajectory: Trajectory) -> Sample:
    """Mask of the single-turn baselines: everything after the prompt, observations too.

    What follows the last sampled token is left out, as a completion ends with the model.
    """
    record = _tokens(trajectory)
    last = max((s.end for s in record.spans if s.kind is SpanKind.SAMPLED), default=0)
    first = record.prompt_length
    mask = tuple(first <= t < last for t in range(len(record.ids)))
    return checked(_sample(trajectory.key, record, mask))


def pair_example(winner: Trajectory, loser: Trajectory, to_sample: ToSample) -> Example:
    """Return (chosen, rejected), checked to be answers to one prompt.

    Only then does V_1(s_1), term (B) of equation 13, cancel.

    Raises:
        TrainingError: the problems or the prompts' tokens differ.
    """
    example = Example((to_sample(winner), to_sample(loser)))
    if winner.problem.id != loser.problem.id:
        raise TrainingError(f"{winner.key} and {loser.key} answer different problems")
    if prompt(winner) != prompt(loser):
        raise TrainingError(
            f"{winner.key} and {loser.key} were sampled from different prompts: another "
            "instruction, template or tokenizer. Pair what one configuration sampled"
        )
    return example


def prompt(trajectory: Trajectory) -> tuple[int, ...]:
    """Return the tokens before the first sampled one."""
    record = _tokens(trajectory)
    return record.ids[: record.prompt_length]


def _sample(key: str, record: TokenRecord, mask: Sequence[bool]) -> Sample:
    return Sample(key, record.ids, tuple(mask), fingerprint=record.fingerprint)


def _tokens(trajectory: Trajectory) -> TokenRecord:
    if trajectory.tokens is None:
        raise TrainingError(
            f"{trajectory.key}: no tokens were recorded at sampling, so it cannot be trained on. "
            "`mathenv convert --from trajectories` renders them anew, at the risk that they "
            "differ from those that were sampled"
        )
    return trajectory.tokens


def checked(sample: Sample) -> Sample:
    """Return the sample if it can be trained on.

    Raises:
        TrainingError: the mask is empty, of another length, or on the first token.
    """
    if len(sample.ids) != len(sample.mask):
        raise TrainingError(f"{sample.key}: mask and tokens differ in length")
    if not any(sample.mask):
        raise TrainingError(f"{sample.key}: the mask is empty, nothing would be trained")
    if sample.mask[0]:
        raise TrainingError(f"{sample.key}: the first token has nothing before it to predict it")
    return sample


def in_order(winners: Sequence[Trajectory], losers: Sequence[Trajectory]) -> list[Pair]:
    """Match the first winner with the first loser and so on: at random, once shuffled."""
    return list(zip(winners, losers, strict=False))


def preference_pairs(
    trajectories: Iterable[Trajectory],
    rules: PairRules,
    *,
    seed: int,
    match: Callable[[Sequence[Trajectory], Sequence[Trajectory]], list[Pair]] = in_order,
) -> tuple[list[Pair], Selection]:
    """Return (winner, loser) pairs of the same problem, and the counts.

    Problems whose usable trajectories are all right or all wrong give no pair. Winners
    and losers are shuffled and matched by `match`, reproducibly for a seed and a set of
    trajectories, whatever order they come in.
    """
    report = Selection()
    pairs: list[Pair] = []
    for problem_id, group in by_problem(trajectories, rules, report).items():
        winners = [t for t in group if t.grade.correct]
        losers = [t for t in group if not t.grade.correct]
        report.all_right += bool(winners) and not losers
        report.all_wrong += bool(losers) and not winners
        if rules.drop_error_winners:
            kept = [t for t in winners if not _ends_in_error(t)]
            report.excluded_error_winner += len(winners) - len(kept)
            report.unusable += bool(losers and winners) and not kept
            winners = kept
        report.unusable += not group
        rng = random.Random(f"{seed}/{problem_id}")
        rng.shuffle(winners)
        rng.shuffle(losers)
        matched = match(winners, losers)[: rules.per_problem]
        report.unusable += bool(winners and losers) and not matched
        report.problems_used += bool(matched)
        pairs += matched
    report.examples = len(pairs)
    report.provenance = [{"chosen": w.key, "rejected": r.key} for w, r in pairs]
    return pairs, report


def winners(
    trajectories: Iterable[Trajectory], rules: PairRules, *, seed: int
) -> tuple[list[Trajectory], Selection]:
    """Return up to `per_problem` distinct correct trajectories per problem (RAFT, k = 1)."""
    report = Selection()
    chosen: list[Trajectory] = []
    for problem_id, group in by_problem(trajectories, rules, report).items():
        distinct: dict[tuple[str, ...], Trajectory] = {}
        for trajectory in group:
            if trajectory.grade.correct:
                distinct.setdefault(tuple(t.action for t in trajectory.turns), trajectory)
        right = list(distinct.values())
        report.all_right += bool(group) and all(t.grade.correct for t in group)
        report.all_wrong += bool(group) and not right
        report.unusable += not group
        random.Random(f"{seed}/{problem_id}").shuffle(right)
        report.problems_used += bool(right)
        chosen += right[: rules.per_problem]
    report.examples = len(chosen)
    report.provenance = [{"chosen": t.key} for t in chosen]
    return chosen, report


def demonstrations(
    trajectories: Iterable[Trajectory], rules: PairRules
) -> tuple[list[Trajectory], Selection]:
    """Return every usable trajectory, in the order of keys: whoever gives them vouches for them."""
    report = Selection()
    groups = by_problem(trajectories, rules, report).values()
    kept = sorted((t for group in groups for t in group), key=lambda t: t.key)
    report.problems_used = sum(bool(group) for group in groups)
    report.unusable = report.problems - report.problems_used
    report.examples = len(kept)
    report.provenance = [{"chosen": t.key} for t in kept]
    return kept, report


def by_problem(
    trajectories: Iterable[Trajectory], rules: PairRules, report: Selection
) -> dict[str, list[Trajectory]]:
    """Return the usable trajectories of each problem, in the order of keys, and count.

    Raises:
        TrainingError: two questions have one problem id, or the rules refuse a trajectory.
    """
    groups: dict[str, list[Trajectory]] = {}
    first: dict[str, Trajectory] = {}
    for trajectory in sorted(trajectories, key=lambda t: t.key):
        report.trajectories += 1
        group = groups.setdefault(trajectory.problem.id, [])
        other = first.setdefault(trajectory.problem.id, trajectory)
        if other.problem.question != trajectory.problem.question:
            raise TrainingError(
                f"{other.key} and {trajectory.key} have one problem id but different questions: "
                "give the problems of each source ids of their own"
            )
        truncated = trajectory.counts and _is_truncated(trajectory)
        report.truncated += truncated
        if not trajectory.counts:
            report.excluded_infra += 1
        elif trajectory.tokens and len(trajectory.tokens.ids) > rules.max_tokens:
            report.excluded_long += 1
        elif not trajectory.turns:
            report.excluded_empty += 1
        elif truncated and rules.truncated != "allow":
            if rules.truncated == "refuse":
                raise TrainingError(
                    f"{trajectory.key} was cut off by a token limit: raise the limit, or set "
                    'truncated = "exclude" or "allow"'
                )
            report.excluded_truncated += 1
        else:
            group.append(trajectory)
    report.problems = len(groups)
    return groups


def on_policy(
    groups: dict[str, list[Trajectory]], agent: str, report: Selection
) -> dict[str, list[Trajectory]]:
    """Return what one agent sampled of each problem's trajectories, and count the rest.

    Raises:
        TrainingError: there are trajectories, and none is this agent's.
    """
    own = {problem: [t for t in group if t.agent == agent] for problem, group in groups.items()}
    report.excluded_off_policy = sum(map(len, groups.values())) - sum(map(len, own.values()))
    others = {t.agent: t for group in groups.values() for t in group}
    if others and agent not in others:
        raise TrainingError(
            f"no trajectory was sampled by agent {agent!r}, only by {', '.join(sorted(others))} "
            f"({next(iter(others.values())).key}): set `agent` to the one whose samples are "
            "the policy's own"
        )
    return own


def _is_truncated(trajectory: Trajectory) -> bool:
    return trajectory.stop_reason is StopReason.TOKEN_LIMIT or any(
        turn.finish is FinishReason.LENGTH for turn in trajectory.turns
    )


def _ends_in_error(trajectory: Trajectory) -> bool:
    executions: Sequence[ExecutionStatus] = [
        t.execution.status for t in trajectory.turns if t.execution is not None
    ]
    return bool(executions) and executions[-1] is not ExecutionStatus.OK
