r"""Compare two single values. Runs in the worker process only (`worker.py`).

Formulas that our own grammar reads are compared by their values (`values.py`). math-verify is
asked only where they decide nothing and the caller allows its guess.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import math_verify.parser
from latex2sympy2_extended import NormalizationConfig
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from math_verify import LatexExtractionConfig, parse, verify
from sympy.external.gmpy import GROUND_TYPES

if TYPE_CHECKING:
    from mathenv.grading import values
else:
    values = sys.modules["_mathenv_values"]  # `worker.py` has loaded it

PARSING_GOLD, PARSING_ANSWER, COMPARING = 1, 2, 3
# A lone last letter is a variable: stripped as a unit, `16t` would equal 16 and `a+b+c`
# would not parse.
_LAST_VARIABLE = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]$")


def _config(units: bool) -> LatexExtractionConfig:
    return LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(
            basic_latex=True,
            units=units,
            malformed_operators=True,
            nits=True,
            boxed="all",
            equations=False,
        ),
    )


_WITH_UNITS, _WITHOUT_UNITS = _config(True), _config(False)


# By default R and r are one symbol.
_CASE_SENSITIVE = partial(latex2sympy, conversion_config=ConversionConfig(lowercase_symbols=False))


@lru_cache(maxsize=256)  # a gold is compared with many answers, a part with many parts
def _parse(text: str) -> list[Any]:
    config = _WITHOUT_UNITS if _LAST_VARIABLE.search(text) else _WITH_UNITS
    math_verify.parser.parse_latex_cached.cache_clear()
    math_verify.parser.latex2sympy = _CASE_SENSITIVE
    try:
        return list(
            parse(
                f"\\boxed{{{text}}}",
                extraction_config=[config],
                fallback_mode="no_fallback",
                extraction_mode="first_match",
                parsing_timeout=None,
            )
        )
    finally:
        math_verify.parser.latex2sympy = latex2sympy
        math_verify.parser.parse_latex_cached.cache_clear()


def compare(
    gold: str, answer: str, options: Mapping[str, Any], stage: Callable[[int], None]
) -> tuple[str, str]:
    """Return (verdict, detail); verdicts: correct, incorrect, gold_error, unparsed.

    Args:
        gold: LaTeX of the reference.
        answer: LaTeX of the answer.
        options: fields of `symbolic.Options`.
        stage: is told what is being done, for the report on a worker that dies.
    """
    if options.get("raw"):
        return _by_math_verify(gold, answer, options, stage, _parse_whole)
    reading = options.get("reading")
    stage(COMPARING)
    if reading is None:
        return _by_math_verify(gold, answer, options, stage, _parse)
    decided = values.compare(reading, options)
    if decided is None:
        return "incorrect", "no values that decide: only the same text would match"
    return ("correct" if decided else "incorrect"), "by value"


def _by_math_verify(
    gold: str,
    answer: str,
    options: Mapping[str, Any],
    stage: Callable[[int], None],
    read: Callable[[str], list[Any]],
) -> tuple[str, str]:
    stage(PARSING_GOLD)
    gold_parsed = read(gold)
    if not gold_parsed:
        if options.get("raw"):
            return "gold_error", "math-verify cannot parse the reference answer"
        return "incorrect", "only the same text matches the reference, which is no formula"
    stage(PARSING_ANSWER)
    answer_parsed = read(answer)
    if not answer_parsed:
        return "unparsed", "math-verify cannot parse the answer"
    stage(COMPARING)
    if options.get("raw"):
        equal = verify(gold_parsed, answer_parsed, timeout_seconds=None)
    else:
        equal = verify(
            gold_parsed,
            answer_parsed,
            timeout_seconds=None,
            strict=bool(options.get("same_symbols", True)),
            allow_set_relation_comp=True,
        )
    return ("correct" if equal else "incorrect"), "by math-verify"


def _parse_whole(text: str) -> list[Any]:
    """Parse as a user of math-verify would: the box of a response, a bare answer as LaTeX."""
    if "boxed" not in text and "$" not in text:
        text = f"${text}$"
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    return list(parse(text, extraction_config=config, parsing_timeout=None))


# --------------------------------------------------------------------------- start-up


def check_ground_types() -> None:
    """Refuse gmpy2: it ignores signals inside (10^9)! and differs in numerics."""
    if GROUND_TYPES != "python":
        sys.exit("sympy runs on gmpy2: set SYMPY_GROUND_TYPES=python")


def warm_up() -> None:
    """Run the common paths once before forking, so that children inherit filled caches."""
    for gold, answer in (
        ("\\frac{1}{2}", "0.5"),
        ("\\frac{\\sqrt{3}}{2}", "\\pi"),
        ("(x+1)^2", "x^2+2x+1"),
        ("\\sqrt{\\frac{1}{n}}", "\\frac{1}{\\sqrt{n}}"),
        ("\\{1,2\\}", "2,1"),
        ("[0,1)", "[0,2)"),
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("x=1", "1"),
        ("\\sin^2 x", "1-\\cos^2 x"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\3\\end{pmatrix}"),
    ):
        compare(gold, answer, {}, lambda _stage: None)
    _parse.cache_clear()
