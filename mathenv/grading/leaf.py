r"""What a worker does with one pair. Runs in the worker process only (`worker.py`).

Formulas that the caller has read are compared by their values (`values.py`). Texts without a
reading are given to math-verify as they are: the policy `math_verify`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy.external.gmpy import GROUND_TYPES

if TYPE_CHECKING:
    from mathenv.grading import values
else:
    values = sys.modules["_mathenv_values"]  # `worker.py` has loaded it

PARSING_GOLD, PARSING_ANSWER, COMPARING = 1, 2, 3


def compare(
    gold: str, answer: str, options: Mapping[str, Any], stage: Callable[[int], None]
) -> tuple[str, str]:
    """Return (verdict, detail); verdicts: correct, incorrect, gold_error, unparsed.

    Args:
        gold: the reference's text.
        answer: the answer's text.
        options: fields of `symbolic.Options`, and the `reading` of both (`reading.py`).
        stage: is told what is being done, for the report on a worker that dies.
    """
    reading = options.get("reading")
    if reading is None:
        return _by_math_verify(gold, answer, stage)
    stage(COMPARING)
    decided = values.compare(reading, options)
    if decided is None:
        return "incorrect", "no values that decide: only the same text would match"
    return ("correct" if decided else "incorrect"), "by value"


def _by_math_verify(gold: str, answer: str, stage: Callable[[int], None]) -> tuple[str, str]:
    stage(PARSING_GOLD)
    gold_parsed = _parse(gold)
    if not gold_parsed:
        return "gold_error", "math-verify cannot parse the reference answer"
    stage(PARSING_ANSWER)
    answer_parsed = _parse(answer)
    if not answer_parsed:
        return "unparsed", "math-verify cannot parse the answer"
    stage(COMPARING)
    equal = verify(gold_parsed, answer_parsed, timeout_seconds=None)
    return ("correct" if equal else "incorrect"), "by math-verify"


@lru_cache(maxsize=256)  # a gold is compared with many answers
def _parse(text: str) -> list[Any]:
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
        ("\\{1,2\\}", "2,1"),
        ("[0,1)", "[0,2)"),
        ("x=1", "1"),
        ("\\sin^2 x", "1-\\cos^2 x"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\3\\end{pmatrix}"),
    ):
        compare(gold, answer, {}, lambda _stage: None)
    _parse.cache_clear()
