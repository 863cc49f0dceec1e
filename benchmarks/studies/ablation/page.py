"""The report of a run folder, finished or not: markdown, pictures, HTML."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.comparison import p_text
from benchmarks.studies.ablation import plots, sections
from benchmarks.studies.ablation.document import (
    Block,
    Heading,
    Items,
    Paragraph,
    Picture,
    Table,
    html,
    markdown,
)
from benchmarks.studies.ablation.findings import Finding, Verdict, findings
from benchmarks.studies.ablation.measure import FEW
from benchmarks.studies.ablation.record import record
from benchmarks.studies.ablation.results import Policy, Results, is_share, load_results
from benchmarks.studies.ablation.sections import capital, writers
from benchmarks.studies.ablation.variants import GROUPS, VARIANTS
from mathenv.errors import ConfigError
from mathenv.store import write_atomic

TITLE = "The paper's tables on the embedded model"


def write_pages(out: Path, page: Path) -> list[Path]:
    """Write the report of the run folder `out` as `page`; HTML, JSON and pictures beside it.

    Returns:
        The files written, the markdown first.

    Raises:
        ConfigError: `page` is no markdown file, or nothing is measured yet.
        DataError: a file of the run is damaged.
    """
    if page.suffix != ".md":
        raise ConfigError(f"the page is a markdown file (.md), not {page}")
    results = load_results(out)
    if not results.measured:
        raise ConfigError(f"{out} holds no finished variant yet: let mathenv ablate run on")
    page.parent.mkdir(parents=True, exist_ok=True)
    blocks = list(_blocks(results, page))
    pictures = [block.path for block in blocks if isinstance(block, Picture)]
    write_atomic(page, markdown(blocks))
    other = page.with_suffix(".html")
    write_atomic(other, html(blocks, TITLE))
    data = page.with_suffix(".json")
    write_atomic(data, json.dumps(record(results, findings(results)), separators=(",", ":")) + "\n")
    return [page, other, data, *pictures]


def _blocks(results: Results, page: Path) -> Iterator[Block]:
    judged = findings(results)

    def picture(name: str, text: str, draw: Callable[[Path], Path]) -> Picture:
        return Picture(draw(page.with_name(f"{page.stem}-{name}.png")), text)

    yield Heading(TITLE, 1)
    yield from _introduction(results)
    yield from _verdicts(judged)
    shown = [f for f in judged if f.difference is not None and is_share(f.claim.measure)]
    if shown:
        text = "Difference of every finding about accuracy, with its 95% interval and seeds"
        yield picture("findings", text, lambda path: plots.forest(path, shown))
    yield from _evidence(judged)
    for group, title in GROUPS.items():
        yield from sections.group_table(results, group, title)
        if group == "main":
            yield from sections.method_curves(results, picture)
        if group == "noise":
            yield from sections.noise_curves(results, picture)
    yield from sections.out_of_distribution(results, picture)
    yield from sections.pass_at_k_section(results, picture)
    yield from sections.diversity_section(results, picture)
    yield from sections.training_section(results)
    yield from _not_there(results)
    yield from _settings(results)


def _introduction(results: Results) -> Iterator[Block]:
    sizes, recipe = results.config["sizes"], results.config["recipe"]
    machine = results.config["environment"]
    seeds = ", ".join(map(str, results.seeds))
    hours = sum(m.get("seconds", 0.0) for m in results.measured.values()) / 3600
    yield Paragraph(_made_with(results))
    yield Paragraph(
        f"The model is the embedded one ({recipe['tiny']['layers']} layers, "
        f"{recipe['tiny']['hidden']} wide), the problems are `words`. Seeds {seeds}: each has its "
        "own initial weights, SFT and sampling. "
        f"{sizes['iterations']} iterations of {sizes['prompts']} prompts (the paper: 3 of "
        "20,000), one where the last list says so; "
        f"{sizes['test']} test problems, greedy, the same for all. Where nothing else is said "
        "6 samples per prompt, 4 of the current policy and 2 of the one before. "
        f"{machine['platform']}, torch {machine['packages'].get('torch', '?')}; the variants took "
        f"{hours:.1f} h, SFT not counted, on a machine that had other work."
    )
    yield Paragraph(
        "Intervals are 95%. Differences are paired: both policies have played the same problems, "
        "and problems are resampled with all their seeds (10,000 times). A finding **holds** if "
        "the interval of the difference lies on the paper's side of 0, no seed points the other "
        "way, and the exact sign test over problems (McNemar's, with the mean over seeds) agrees; "
        "it **does not hold** if all that is so on the other side. Else it **cannot be told**. "
        "That two things are the same holds if the interval lies within the margin named, and "
        "does not hold if it lies outside of it. Where "
        "no problem differs at all, the interval is widened to what so many problems could have "
        "missed (Wilson's or the exact bound). The seeds are few, so what another seed would "
        "give is known less well than an interval over problems says."
    )


def _made_with(results: Results) -> str:
    recipe = results.config["recipe"]
    seeds = " ".join(map(str, results.seeds))
    command = f"mathenv ablate --out RUN --seeds {seeds} --threads {recipe['threads']}"
    command += " --quick" * (recipe["sft"]["epochs"] < 8) + " --sft SFT" * bool(results.taken)
    text = f"Made with `{command}`, written with `mathenv ablate --out RUN --page PAGE`."
    if results.taken:
        seeds = " ".join(map(str, sorted(results.taken)))
        threads = ", ".join(map(str, sorted(set(results.taken.values()))))
        text += (
            f" SFT is that of `mathenv iterate --recipe tiny --seeds {seeds} --out SFT` "
            f"(threads: {threads})."
        )
    return text


def _verdicts(judged: Sequence[Finding]) -> Iterator[Block]:
    for title, part in (
        ("What the paper found", [f for f in judged if f.claim.source]),
        ("What the paper leaves open", [f for f in judged if not f.claim.source]),
    ):
        counts = Counter(finding.verdict for finding in part)
        yield Heading(title)
        told = [f"{counts[verdict]} {_COUNTED[verdict]}" for verdict in Verdict if counts[verdict]]
        yield Paragraph(f"Of {len(part)}: {', '.join(told)}.")
        yield Items([sentence(finding) for finding in part])


_COUNTED = {
    Verdict.HOLDS: "hold here",
    Verdict.FAILS: "do not",
    Verdict.OPEN: "cannot be told",
    Verdict.MISSING: "not run",
}


def sentence(finding: Finding) -> str:
    """Say what was found about a claim, with the numbers it rests on."""
    claim = finding.claim
    where = f" ({claim.source})" if claim.source else ""
    begin = f"{claim.text}{where}: **{finding.verdict}**"
    if finding.difference is None:
        return f"{begin}: {finding.reason}."
    write, change = writers(claim.measure)
    d = finding.difference
    why = f": {finding.reason}" if finding.reason else ""
    within = "" if claim.same_within is None else f", to lie within {change(claim.same_within)[1:]}"
    return (
        f"{begin}{why}. {capital(_measure_name(claim.measure))}: {_name(claim.better)} "
        f"{write(finding.better)}, {_name(claim.worse)} {write(finding.worse)}, difference "
        f"{change(d.value)} ({change(d.low)} to {change(d.high)}{within})."
    )


def _evidence(judged: Sequence[Finding]) -> Iterator[Block]:
    rows = []
    for finding in (f for f in judged if f.difference is not None):
        _, change = writers(finding.claim.measure)
        d = finding.difference
        assert d is not None
        rows.append(
            [
                finding.claim.text,
                finding.verdict,
                change(d.value),
                f"{change(d.low)} to {change(d.high)}",
                ", ".join(map(change, finding.seeds)),
                str(d.n),
                _p(finding.sign_p),
                ", ".join(map(_p, finding.mcnemar)),
            ]
        )
    if rows:
        yield Heading("Evidence")
        columns = (
            "finding", "here", "difference", "interval", "by seed", "problems",
            "sign test p", "McNemar p by seed",
        )  # fmt: skip
        yield Table(columns, rows)


def _p(value: float) -> str:
    return p_text(value).removeprefix("p ").removeprefix("= ")


def _measure_name(measure: str) -> str:
    names = {
        "test": "test pass@1",
        "ood": "pass@1 out of distribution",
        "correct": "share of right samples",
        "programs": f"different programs among {FEW} samples",
    }
    return names.get(measure, measure)


def _name(policy: Policy) -> str:
    if policy.iteration is None:
        return f"`{policy.variant}`"
    return f"`{policy.variant}` " + (
        f"after iteration {policy.iteration}" if policy.iteration else "at its start"
    )


def _not_there(results: Results) -> Iterator[Block]:
    lacking = []
    for variant in VARIANTS:
        have = set(results.seeds_of(variant.name))
        broken = {seed: why for (name, seed), why in results.failed.items() if name == variant.name}
        lacking += [
            f"`{variant.name}`, seed {s}: failed. {why}" for s, why in sorted(broken.items())
        ]
        missing = [str(s) for s in results.seeds if s not in have and s not in broken]
        if missing:
            which = f"seed {', '.join(missing)} not run" if have else "not run"
            lacking.append(f"`{variant.name}` (group `{variant.group}`): {which}")
    if lacking:
        yield Heading("Failed or missing")
        yield Items(lacking)


def _settings(results: Results) -> Iterator[Block]:
    yield Heading("What was tuned")
    yield Paragraph(
        "The settings of SFT, M-DPO and RAFT are the recipe `tiny`'s, found on validation "
        "problems with three iterations of 300 prompts (`learners/README.md`). Its M-DPO has an "
        "NLL term of weight 1, which the paper's main table has not, and half of RAFT's learning "
        "rate and epochs; `mdpo-as-raft` has RAFT's. Single-turn DPO, M-KTO and single-turn KTO "
        "have M-DPO's settings (KTO in batches of as many trajectories) and were not tuned; nor "
        "was any ablation. Validation decides after every iteration whether the new policy is "
        "kept, so a harmful setting shows as no gain rather than as a loss."
    )
    methods = results.config["recipe"]["methods"]
    rows = [
        [
            f"`{name}`",
            f"{method['train']['lr']:g}",
            str(method["train"]["epochs"]),
            str(method["train"]["batch_size"]),
            f"{method['loss']['eta']:g}",
            f"{method['loss']['nll_coef']:g}",
            str(method["loss"]["pairs"]["per_problem"]),
        ]
        for name, method in methods.items()
        if any(variant.learner == name for variant in VARIANTS)
    ]
    columns = ("learner", "rate", "epochs", "batch", "eta", "NLL", "pairs per prompt")
    yield Table(columns, rows)
    yield Paragraph("What each variant changes:")
    yield Items(
        [
            f"`{v.name}`: "
            + (
                ", ".join(
                    [
                        *(f"`{name} = {value!r}`" for name, value in v.changes.items()),
                        *([f"starts after {v.start:g} of SFT"] if v.start != 1 else []),
                        *([f"{v.noise:.0%} of outputs corrupted"] if v.noise else []),
                    ]
                )
                or f"learner `{v.learner}`, nothing else"
            )
            for v in VARIANTS
        ]
    )
