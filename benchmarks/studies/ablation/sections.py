"""The tables of the report, one function each: results in, blocks out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import hypot
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.intervals import Difference, Estimate
from benchmarks.metrics import mean_estimate, paired_difference
from benchmarks.report import interval, percent, points
from benchmarks.studies.ablation import plots
from benchmarks.studies.ablation.document import Block, Heading, Paragraph, Picture, Table
from benchmarks.studies.ablation.measure import FEW
from benchmarks.studies.ablation.results import SFT, Policy, Results, is_share, pooled
from benchmarks.studies.ablation.variants import BASE, VARIANTS, Variant

Draw = Callable[[str, str, Callable[[Path], Path]], Picture]  # name, what it shows, the drawing
_HERE = {variant.name: variant for variant in VARIANTS}


def group_table(results: Results, group: str, title: str) -> Iterator[Block]:
    """Return the table of one group, with the paper's numbers beside ours."""
    rows = [v for v in VARIANTS if v.group == group and results.seeds_of(v.name)]
    if not rows:
        return
    yield Heading(title)
    columns = (
        "policy", "what", "paper GSM8K", "paper MATH", "test pass@1", "interval",
        "gain", "interval", "by seed", "steps", "iterations kept",
    )  # fmt: skip
    table = [] if group == "sft" else [_row(results, SFT, "SFT", (77.5, 46.1))]
    if group != "main" and results.seeds_of(BASE):
        once = all(v.changes.get("iterate.iterations") == 1 for v in rows)
        base = Policy(BASE, 1) if once else Policy(BASE)
        about = "M-DPO, " + (f"iteration {base.iteration}" if once else "last iteration")
        table.append(_row(results, base, about, None if once else _HERE[BASE].paper, _HERE[BASE]))
    for v in rows:
        if v.start != 1:
            table.append(_row(results, Policy(v.name, 0), "where it starts", None))
        table.append(_row(results, Policy(v.name), v.about, v.paper, v))
    yield Table(columns, table)
    if group == "main":
        yield Paragraph(
            "Paper: Gemma-1.1-it-7B, one run. Gain: over the policy that the variant started "
            "from. Steps: of the optimizer, mean over seeds; variants have the same prompts, but "
            "not the same number of pairs. Iterations kept: of all iterations and seeds, those "
            "whose new policy was better on validation than the one before; else the policy stays."
        )
    if any(v.noise for v in rows):
        yield Paragraph(
            "A corrupted output makes a right sample wrong, so more prompts have both kinds and "
            "there are more pairs: steps and noise change together."
        )


def _row(
    results: Results,
    policy: Policy,
    about: str,
    paper: tuple[float, float] | None,
    variant: Variant | None = None,
) -> list[str]:
    scores = results.scores(policy, "test")
    found = results.estimate(policy, "test")
    if found is None:
        return [policy.variant, about, *[""] * 9]
    told = [f"{value:.1f}" for value in paper] if paper else ["", ""]
    row = [f"`{policy.variant}`", about, *told, percent(found.value), interval(found)]
    row += _gain(results, variant, policy) if variant else ["", ""]
    row.append(", ".join(f"{100 * fmean(scores[s].values()):.1f}" for s in sorted(scores)))
    if variant is None:
        return [*row, "", ""]
    rounds = [
        r
        for r in _rounds(results, variant.name)
        if r[0] <= (policy.iteration or iterations(results))
    ]
    steps = sum(r["steps"] for _, r in rounds) / len(scores)
    kept = sum(r["moved"] for _, r in rounds)
    return [*row, f"{steps:.0f}", f"{kept} of {len(rounds)}"]


def _gain(results: Results, variant: Variant, policy: Policy) -> list[str]:
    start = SFT if variant.start == 1 else Policy(variant.name, 0)
    change = _difference(results, start, policy, "test")
    return ["", ""] if change is None else [points(change.value), _bounds(change)]


def _difference(results: Results, first: Policy, second: Policy, measure: str) -> Difference | None:
    before, after = results.scores(first, measure), results.scores(second, measure)
    seeds = sorted(set(before) & set(after))
    if not seeds:
        return None
    return paired_difference(pooled(before, seeds), pooled(after, seeds))


def _bounds(change: Difference) -> str:
    return f"{points(change.low)} to {points(change.high)}"


def _rounds(results: Results, variant: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the iterations of all seeds with their numbers."""
    for seed in results.seeds_of(variant):
        yield from enumerate(results.measured[variant, seed]["iterations"], start=1)


def iterations(results: Results) -> int:
    """Return how many rounds of the online loop a variant has."""
    return int(results.config["sizes"]["iterations"])


def method_curves(results: Results, picture: Draw) -> Iterator[Block]:
    """Draw test accuracy by stage, of the methods of the main table."""
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    for variant in (v for v in VARIANTS if v.group == "main"):
        stages = [SFT, *(Policy(variant.name, i) for i in range(1, iterations(results) + 1))]
        found = [results.estimate(policy, "test") for policy in stages]
        line = [(float(i), e) for i, e in enumerate(found) if e is not None]
        if len(line) > 1:
            curves[variant.name] = line
    if curves:
        ticks = ["SFT", *(f"iteration {i}" for i in range(1, iterations(results) + 1))]
        yield picture(
            "methods",
            "Test pass@1 of the methods after SFT and each iteration",
            lambda path: plots.lines(path, curves, x="", y="test pass@1", ticks=ticks),
        )


def noise_curves(results: Results, picture: Draw) -> Iterator[Block]:
    """Draw test accuracy after one iteration by share of corrupted outputs."""
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    for learner in dict.fromkeys(v.learner for v in VARIANTS if v.noise):
        levels = {v.noise: Policy(v.name) for v in VARIANTS if v.noise and v.learner == learner}
        policies = {0.0: Policy(learner, 1), **levels}
        found = {noise: results.estimate(p, "test") for noise, p in sorted(policies.items())}
        curves[learner] = [(noise, e) for noise, e in found.items() if e is not None]
    if any(len(line) > 1 for line in curves.values()):
        yield picture(
            "noise",
            "Test pass@1 after one iteration, by share of outputs corrupted in its rollouts",
            lambda path: plots.lines(
                path, curves, x="share of outputs corrupted in training", y="test pass@1"
            ),
        )


def _policies(results: Results) -> Iterator[Policy]:
    """Yield SFT and the last policy of every variant that has been measured."""
    yield from (
        p for p in (SFT, *(Policy(v.name) for v in VARIANTS)) if results.seeds_of(p.variant)
    )


def out_of_distribution(results: Results, picture: Draw) -> Iterator[Block]:
    """Compare every policy with itself on `words_ood`."""
    rows, drawn = [], {}
    for policy in _policies(results):
        test, ood = results.estimate(policy, "test"), results.estimate(policy, "ood")
        if test is None or ood is None:
            continue
        gap = test.value - ood.value
        # Newcombe's hybrid interval (1998, method 10): the problem sets are independent.
        low = gap - hypot(test.value - test.low, ood.high - ood.value)
        high = gap + hypot(test.high - test.value, ood.value - ood.low)
        gain = None if policy == SFT else _difference(results, SFT, policy, "ood")
        rows.append(
            [
                f"`{policy.variant}`",
                percent(test.value),
                percent(ood.value),
                interval(ood),
                points(gap),
                f"{points(low)} to {points(high)}",
                "" if gain is None else points(gain.value),
                "" if gain is None else _bounds(gain),
            ]
        )
        drawn[policy.variant] = {"words": test, "words_ood": ood}
    if not rows:
        return
    yield Heading("Out of distribution")
    yield Paragraph(
        f"{results.config['sizes']['ood']} problems of `words_ood`: other sentences, names and "
        "things, numbers from 100 to 999, 6 and 7 operations instead of 1 to 5. Greedy."
    )
    columns = (
        "policy",
        "words",
        "words_ood",
        "interval",
        "gap",
        "interval",
        "over SFT",
        "interval",
    )
    yield Table(columns, rows)
    text = "Test pass@1 in and out of distribution, by policy"
    yield picture("ood", text, lambda path: plots.bars(path, drawn, y="pass@1, greedy"))


def pass_at_k_section(results: Results, picture: Draw) -> Iterator[Block]:
    """Show what several samples solve, before and after training."""
    many = int(results.config["sizes"]["many"])
    ks = [2**i for i in range(many.bit_length()) if 2**i <= many]
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    for policy in _policies(results):
        found = [(float(k), results.estimate(policy, f"pass@{k}")) for k in ks]
        curves[policy.variant] = [(k, e) for k, e in found if e is not None]
    if not any(curves.values()):
        return
    yield Heading("pass@k before and after")
    yield Paragraph(
        f"The first {results.config['sizes']['sampled']} test problems at temperature "
        f"{results.config['recipe']['iterate']['sampling']['temperature']:g} (the paper: 0.7); "
        "the unbiased estimator (Chen et al., 2021)."
    )
    rows = [
        [f"`{name}`", *(percent(e.value) for _, e in line), *[""] * (len(ks) - len(line))]
        for name, line in curves.items()
    ]
    yield Table(("policy", *(f"pass@{k}" for k in ks)), rows)
    full = {name: line for name, line in curves.items() if len(line) == len(ks)}
    if full:
        text = "pass@k of SFT and of M-DPO with dynamic and fixed reference"
        yield picture(
            "pass-at-k",
            text,
            lambda path: plots.lines(path, full, x="k", y="pass@k", log=True),
        )


def diversity_section(results: Results, picture: Draw) -> Iterator[Block]:
    """Count different programs and answers, by iteration."""
    curves = {
        v.name: line
        for v in VARIANTS
        if v.start == 1 and not v.noise and (line := _programs(results, v.name))
    }
    if not curves:
        return
    yield Heading("Diversity over iterations")
    yield Paragraph(
        f"Among {FEW} samples of the current policy per problem, temperature 1: different "
        "programs (all cells together; none is one, too). Before training and after an iteration "
        "they are those of the prompts it samples next, after the last iteration of test problems."
    )
    last = iterations(results)
    columns = ("policy", *(f"after {i} iterations" for i in range(last + 1)))
    rows = [
        [
            f"`{name}`",
            *(f"{e.value:.2f} ({e.low:.2f} to {e.high:.2f})" for _, e in line),
            *[""] * (last + 1 - len(line)),
        ]
        for name, line in curves.items()
    ]
    yield Table(columns, rows)
    answers = [[f"`{policy.variant}`", *_figures(results, policy)] for policy in _policies(results)]
    yield Table(
        ("last policy, test problems", "programs", "answers", "right samples", "use the tool"),
        answers,
    )
    wanted = ("mdpo", "raft", "mkto", "mdpo-fixed", "mdpo-eta-0.01", "mdpo-eta-0.5", "mdpo-as-raft")
    drawn = {name: curves[name] for name in wanted if name in curves}
    if drawn:
        text = "Different programs among four samples, by iteration"
        yield picture(
            "diversity",
            text,
            lambda path: plots.lines(
                path,
                drawn,
                x="iterations of training",
                y=f"different programs among {FEW} samples",
                shares=False,
                ticks=[str(i) for i in range(last + 1)],
            ),
        )


def _figures(results: Results, policy: Policy) -> list[str]:
    found = []
    for measure in ("programs", "answers", "correct", "tool"):
        estimate = results.estimate(policy, measure)
        write, _ = writers(measure)
        found.append("" if estimate is None else write(estimate.value))
    return found


def _programs(results: Results, variant: str) -> list[tuple[float, Estimate]]:
    """Return different programs by number of iterations trained, pooled over seeds."""
    seeds = results.seeds_of(variant)
    line = []
    trained = {s: results.measured[variant, s]["iterations"] for s in seeds}
    for i in range(min((len(rounds) for rounds in trained.values()), default=0)):
        rollouts = {s: rounds[i]["rollouts"]["programs"] for s, rounds in trained.items()}
        line.append((float(i), mean_estimate(pooled(rollouts, seeds))))
    last = results.estimate(Policy(variant), "programs")
    return [*line, (float(len(line)), last)] if last is not None else line


def training_section(results: Results) -> Iterator[Block]:
    """Say what was sampled and how training went."""
    rows = []
    for variant in VARIANTS:
        for number in range(iterations(results)):
            trained = [
                results.measured[variant.name, seed]["iterations"]
                for seed in results.seeds_of(variant.name)
            ]
            found = [rounds[number] for rounds in trained if number < len(rounds)]
            if found:
                rows.append([f"`{variant.name}`", str(number + 1), *_stage(found)])
    if not rows:
        return
    yield Heading("Training")
    yield Paragraph(
        "Means over seeds. Right: share of the sampled trajectories. Covered: prompts with at "
        "least one right sample. Examples: pairs, single trajectories for RAFT and (M-)KTO. "
        "The last three are of the last optimizer step: mean log-probability of a chosen and of "
        "a rejected trajectory, and how much larger the chosen one's implicit reward is."
    )
    columns = (
        "policy", "iteration", "right", "covered", "examples", "steps",
        "log p chosen", "log p rejected", "margin",
    )  # fmt: skip
    yield Table(columns, rows)


def _stage(found: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [
        percent(fmean(f["correct"] for f in found)),
        percent(fmean(f["covered"] for f in found)),
    ]
    cells += [
        f"{fmean(f['selection']['examples'] for f in found):.0f}",
        f"{fmean(f['steps'] for f in found):.0f}",
    ]
    for name in ("logps/chosen", "logps/rejected", "rewards/margins"):
        values = [f["last_step"][name] for f in found if name in f["last_step"]]
        cells.append(f"{fmean(values):.2f}" if values else "")
    return cells


def writers(measure: str) -> tuple[Callable[[float], str], Callable[[float], str]]:
    """Return how a value and how a difference of this measure is written."""
    if is_share(measure):
        return percent, points
    return (lambda value: f"{value:.2f}"), (lambda value: f"{value:+.2f}")


def capital(text: str) -> str:
    """Return the text with its first letter as at the start of a sentence."""
    return text[:1].upper() + text[1:]
