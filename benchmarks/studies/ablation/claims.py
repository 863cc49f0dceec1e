"""The findings that are looked for, as data: which of two policies is better, or that none is."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.studies.ablation.results import SFT, Policy


@dataclass(frozen=True, slots=True)
class Claim:
    """A finding, as a comparison of two policies.

    Args:
        group: the group of variants it needs (`variants.GROUPS`).
        text: the finding as a sentence.
        source: where the paper has it; empty for a question that the paper leaves open.
        better: the policy that is better (or has more) if the finding holds.
        worse: the other one.
        measure: what is compared, see `Results.scores`.
        same_within: the finding is that the two differ by less than this, in either direction.
    """

    group: str
    text: str
    source: str
    better: Policy
    worse: Policy
    measure: str = "test"
    same_within: float | None = None


def _p(variant: str, iteration: int | None = None) -> Policy:
    return Policy(variant, iteration)


_MDPO, _ONCE = _p("mdpo"), _p("mdpo", 1)  # after the last iteration, after the first
_THREE, _FIVE = _p("mdpo-sft-3"), _p("mdpo-sft-5")

CLAIMS: tuple[Claim, ...] = (
    Claim("main", "M-DPO improves on the SFT policy", "table 1", _MDPO, SFT),
    Claim("main", "M-KTO improves on the SFT policy", "table 1", _p("mkto"), SFT),
    Claim("main", "RAFT improves on the SFT policy", "table 1", _p("raft"), SFT),
    Claim("main", "M-DPO is better than RAFT", "table 1", _MDPO, _p("raft")),
    Claim("main", "M-KTO is better than RAFT", "table 1", _p("mkto"), _p("raft")),
    Claim(
        "main",
        "Masking observations helps: M-DPO is better than single-turn DPO",
        "table 1",
        _MDPO,
        _p("dpo"),
    ),
    Claim(
        "main",
        "Masking observations helps: M-KTO is better than single-turn KTO",
        "table 1",
        _p("mkto"),
        _p("kto"),
    ),
    Claim("main", "A second iteration of M-DPO adds to the first", "table 1", _MDPO, _ONCE),
    Claim(
        "main",
        "The share of right samples grows with M-DPO",
        "section 3 (47% to 76%)",
        _MDPO,
        SFT,
        "correct",
    ),
    Claim("main", "M-DPO raises pass@2", "figure 2", _MDPO, SFT, "pass@2"),
    Claim(
        "main",
        "At 32 samples SFT and M-DPO solve the same problems",
        "figure 2",
        _MDPO,
        SFT,
        "pass@32",
        0.03,
    ),
    Claim(
        "reference",
        "Updating the reference is better than keeping the first",
        "tables 1 and 2",
        _MDPO,
        _p("mdpo-fixed"),
    ),
    Claim("eta", "eta 0.1 is better than 0.01", "table 2", _MDPO, _p("mdpo-eta-0.01")),
    Claim("eta", "eta 0.1 is better than 0.5", "table 2", _MDPO, _p("mdpo-eta-0.5")),
    Claim(
        "eta",
        "eta 0.01 is the better one after the first iteration",
        "figure 3",
        _p("mdpo-eta-0.01", 1),
        _ONCE,
    ),
    Claim(
        "eta",
        "eta 0.01 ends with fewer different programs than 0.1",
        "section 3",
        _MDPO,
        _p("mdpo-eta-0.01"),
        "programs",
    ),
    Claim(
        "nll",
        "From a good start, M-DPO is better without the NLL term",
        "table 5",
        _p("mdpo-no-nll"),
        _ONCE,
    ),
    Claim(
        "nll",
        "Masking observations helps without the NLL term, as the paper trains",
        "table 1",
        _p("mdpo-no-nll"),
        _p("dpo-no-nll"),
    ),
    Claim(
        "sampling",
        "More samples help: 6 per prompt are better than 3",
        "table 3 (12 against 6)",
        _MDPO,
        _p("mdpo-n3"),
    ),
    Claim(
        "sampling",
        "Still more hardly do: 12 per prompt are as good as 6",
        "table 3 (30 against 12)",
        _p("mdpo-n12"),
        _MDPO,
        same_within=0.02,
    ),
    Claim(
        "sampling",
        "A mixture with the previous policy is better than on-policy samples only",
        "table 3",
        _MDPO,
        _p("mdpo-on-policy"),
    ),
    Claim("sft", "M-DPO improves on 3 of 8 epochs of SFT", "table 4", _THREE, _p("mdpo-sft-3", 0)),
    Claim("sft", "M-DPO improves on 5 of 8 epochs of SFT", "table 4", _FIVE, _p("mdpo-sft-5", 0)),
    Claim("sft", "M-DPO ends higher from 5 epochs of SFT than from 3", "table 4", _FIVE, _THREE),
    Claim("sft", "M-DPO ends higher from 8 epochs of SFT than from 5", "table 4", _ONCE, _FIVE),
    Claim(
        "sft",
        "From an under-fitted start the NLL term helps",
        "table 5",
        _THREE,
        _p("mdpo-sft-3-no-nll"),
    ),
    # What the paper leaves open.
    Claim(
        "main",
        "M-DPO beats RAFT at RAFT's learning rate and epochs",
        "",
        _p("mdpo-as-raft"),
        _p("raft"),
    ),
    Claim("main", "What M-DPO learns carries over out of distribution", "", _MDPO, SFT, "ood"),
    Claim("main", "What RAFT learns carries over out of distribution", "", _p("raft"), SFT, "ood"),
    Claim("main", "M-DPO writes fewer different programs than SFT", "", SFT, _MDPO, "programs"),
    Claim(
        "main", "RAFT writes fewer different programs than M-DPO", "", _MDPO, _p("raft"), "programs"
    ),
    Claim(
        "reference",
        "The first reference is better out of distribution",
        "",
        _p("mdpo-fixed"),
        _MDPO,
        "ood",
    ),
    Claim(
        "noise",
        "M-DPO still improves on SFT with 30% of outputs corrupted",
        "",
        _p("mdpo-noise-0.3"),
        SFT,
    ),
    Claim(
        "less-noise",
        "Corrupting 10% of outputs costs M-DPO accuracy",
        "",
        _ONCE,
        _p("mdpo-noise-0.1"),
    ),
    Claim(
        "noise", "Corrupting 30% of outputs costs M-DPO accuracy", "", _ONCE, _p("mdpo-noise-0.3")
    ),
    Claim(
        "less-noise",
        "Masking observations helps with 10% of outputs corrupted",
        "",
        _p("mdpo-noise-0.1"),
        _p("dpo-noise-0.1"),
    ),
    Claim(
        "noise",
        "Masking observations helps with 30% of outputs corrupted",
        "",
        _p("mdpo-noise-0.3"),
        _p("dpo-noise-0.3"),
    ),
)
