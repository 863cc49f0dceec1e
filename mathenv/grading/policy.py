r"""What counts as equal: a named, frozen set of choices. A run records the one it used.

grade(gold, response)                                    # strict
grade(gold, response, policy="paper")
grade(gold, response, policy=replace(STRICT, name="mine", tolerance=1e-4))
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from mathenv.errors import ConfigError, did_you_mean

Percent = Literal["either", "hundredth", "exact", "factor"]
Units = Literal["strip", "agree", "require"]
Order = Literal["brackets", "ordered", "unordered"]
Brackets = Literal["match", "ignore"]
Boxes = Literal["last", "all"]
Fallback = Literal["none", "text", "number"]
Symbols = Literal["same", "any"]
Engine = Literal["cascade", "math_verify"]

_SWITCHES = ("round_to_gold", "require_reduced", "decimal_comma")
_TOLERANCES = ("tolerance", "float_noise", "exact_tolerance", "absolute_tolerance")


@dataclass(frozen=True, slots=True)
class GradePolicy:
    r"""Every choice on which graders differ. The defaults are the preset `strict`.

    Attributes:
        name: what a run's manifest shows.
        tolerance: largest relative difference between a decimal and an exact value (a fraction,
            a root, pi): 0.3333333 for 1/3.
        float_noise: the same between two decimals, or a decimal and an integer: what could have
            been given exactly is forgiven the noise of binary floating point only.
        exact_tolerance: the same between two exact values, however large: 0, equality.
        absolute_tolerance: largest absolute difference between two numbers, one of them a
            decimal; 0 for none. MathCoder's recorded scores used 0.01.
        round_to_gold: an answer that rounds to the decimals of a decimal reference matches it
            (100/3 for 33.3).
        percent: `either`: with a percent sign on one side only, p and p/100 are both right;
            `hundredth`: only p/100; `exact`: both sides need the sign, or none; `factor`:
            x, x/100 and 100x are equal without any sign, between two decimals or integers.
        units: `strip`: a unit, degrees and currency signs are dropped where one side has none;
            different units of measure never agree, but 5 km is 5000 m; `agree`: two units that
            are not the same are wrong; `require`: a missing unit is wrong as well.
        order: `brackets`: (..) and [..] are ordered, {..} and bare lists are not; `ordered`:
            all are ordered; `unordered`: none is.
        brackets: `match`: (1,2), [1,2] and {1,2} differ; `ignore`: they do not.
        require_reduced: fractions must be in lowest terms, and where the reference is a number
            the answer must be one too, not arithmetic that remains to be done.
        boxes: of several `\boxed{}` grade the `last` one, or `all` of them as a list.
        fallback: where there is no box: `none`, no answer; `text`, what follows "answer is",
            else the last formula, else the last number; `number`, what follows "answer is",
            else the last output block, else the last number. Both guess: not for rewards.
        decimal_comma: 2,74 may be read as 2.74.
        symbols: `same`: variables must have the same names; `any`: names do not matter.
        engine: `cascade`, this package's rules; `math_verify`, that library alone.

    Raises:
        ConfigError: for a value outside of these choices.
    """

    name: str = "custom"
    tolerance: float = 1e-6
    float_noise: float = 1e-10
    exact_tolerance: float = 0.0
    absolute_tolerance: float = 0.0
    round_to_gold: bool = False
    percent: Percent = "either"
    units: Units = "strip"
    order: Order = "brackets"
    brackets: Brackets = "match"
    require_reduced: bool = False
    boxes: Boxes = "last"
    fallback: Fallback = "none"
    decimal_comma: bool = False
    symbols: Symbols = "same"
    engine: Engine = "cascade"

    def __post_init__(self) -> None:
        for field, hint in _CHOICES.items():
            if getattr(self, field) not in list(hint):
                _refuse(field, getattr(self, field), " or ".join(map(repr, hint)))
        if not isinstance(self.name, str):
            _refuse("name", self.name, "a text")
        for field in _SWITCHES:
            if not isinstance(getattr(self, field), bool):
                _refuse(field, getattr(self, field), "True or False")
        for field in _TOLERANCES:
            value = getattr(self, field)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value < 1:
                _refuse(field, value, "a number, at least 0 and below 1")

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits of all fields but the name."""
        fields = {name: value for name, value in asdict(self).items() if name != "name"}
        text = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def record(self) -> dict[str, Any]:
        """Return what a run's manifest keeps: every field and the digest, plain JSON values."""
        return {**asdict(self), "digest": self.digest}


def _refuse(field: str, value: object, allowed: str) -> None:
    raise ConfigError(f"grading policy: {field} must be {allowed}, got {value!r}")


_CHOICES: dict[str, tuple[str, ...]] = {
    field: get_args(hint) for field, hint in get_type_hints(GradePolicy).items() if get_args(hint)
}

_KINDS: dict[str, Any] = {
    field: hint if hint in (str, float, bool) else str
    for field, hint in get_type_hints(GradePolicy).items()
}

STRICT = GradePolicy(name="strict")
# The authors' grader (their eval/grader.py, after ToRA's): relative 1e-4 between decimals, 1e-3
# otherwise, the factor 100, brackets removed before comparing, lists in order.
PAPER = GradePolicy(
    name="paper",
    tolerance=1e-3,
    float_noise=1e-4,
    exact_tolerance=1e-4,
    percent="factor",
    order="ordered",
    brackets="ignore",
    fallback="number",
)
MATH_VERIFY = GradePolicy(name="math_verify", engine="math_verify")

POLICIES: dict[str, GradePolicy] = {p.name: p for p in (STRICT, PAPER, MATH_VERIFY)}


def find_policy(policy: str | GradePolicy) -> GradePolicy:
    """Return the preset of that name, or the policy itself.

    A name may be followed by changes: `strict,tolerance=1e-4,boxes=all`. The name of such a
    policy is the whole text.

    Raises:
        ConfigError: neither a name nor a policy, no preset has this name, or a change names no
            field or no allowed value.
    """
    if isinstance(policy, GradePolicy):
        return policy
    if not isinstance(policy, str):
        raise ConfigError(
            f"a grading policy is a preset's name or a GradePolicy, got {type(policy).__name__}"
        )
    name, *changes = policy.split(",")
    if name not in POLICIES:
        known, near = ", ".join(POLICIES), did_you_mean(name, POLICIES)
        raise ConfigError(f"no grading policy is called {name!r}{near}: use {known}")
    if not changes:
        return POLICIES[name]
    return replace(POLICIES[name], name=policy, **dict(map(_read_change, changes)))


def _read_change(change: str) -> tuple[str, Any]:
    field, _, text = change.partition("=")
    kind = _KINDS.get(field)
    if kind is None or field in ("name", "engine"):
        known = ", ".join(sorted(_KINDS.keys() - {"name", "engine"}))
        raise ConfigError(f"grading policy: {change!r} changes no known field: use {known}")
    try:
        return field, {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise ConfigError(f"grading policy: {change!r} is no {kind.__name__}") from None
