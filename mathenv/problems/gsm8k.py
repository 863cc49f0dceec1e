"""GSM8K (Cobbe et al., 2021): grade-school word problems. Hub: openai/gsm8k, config main."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

from mathenv.errors import DataError
from mathenv.problems.base import read_rows, register_problems
from mathenv.problems.files import Row
from mathenv.types import Problem

HUB_ID = "openai/gsm8k"
CONFIGS = ("main",)

_ANNOTATION = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")
_EXPRESSION = re.compile(r"[0-9+\-*/(). ]+")
_PERCENT = re.compile(r"([0-9]*\.?[0-9]+)%")
_LEADING_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@register_problems("gsm8k")
def load(
    split: str, *, data: Path | None = None, limit: int | None = None, seed: int = 0
) -> Iterator[Problem]:
    """Load GSM8K rows as published ({question, answer with `#### 72`}) or {problem, answer}."""
    for _, row in read_rows(split, data, HUB_ID, CONFIGS):
        yield _problem(row, split)


def _problem(row: Row, split: str) -> Problem:
    text = row.text("answer")
    prose = text if "####" in text else row.optional("solution")
    answer = text.rsplit("####", 1)[-1].strip().replace(",", "")
    if not answer:
        raise DataError(f"{row.where}: nothing follows '####' in the answer")
    return Problem(
        id=row.optional("id") or f"gsm8k/{split}/{row.index}",
        question=row.text("question", "problem"),
        answer=answer,
        source="gsm8k",
        split=row.optional("split") or split,
        solution=solution_cells(prose, answer),
        metadata={"solution": prose} if prose else {},
    )


def solution_cells(solution: str, answer: str) -> tuple[str, ...]:
    """Turn the calculator annotations `<<48/2=24>>` into code cells, one each.

    Returns an empty tuple unless every annotation is plain arithmetic that gives exactly
    its stated value and the last value is the answer; the last cell prints the answer.
    """
    annotations = _ANNOTATION.findall(solution)
    if not annotations or len(annotations) != solution.count("<<"):
        return ()
    steps = [(_clean(expression), _clean(value)) for expression, value in annotations]
    try:
        if any(evaluate(expression) != evaluate(value) for expression, value in steps):
            return ()
        if evaluate(steps[-1][1]) != evaluate(_clean(answer)):
            return ()
    except (ValueError, ZeroDivisionError):
        return ()
    cells = [f"print({expression})" for expression, _ in steps[:-1]]
    return (*cells, _final_cell(steps[-1][0], _clean(answer)))


def _clean(text: str) -> str:
    text = _PERCENT.sub(r"(\1/100)", text.replace(",", "").replace("$", "").strip())
    return _LEADING_ZEROS.sub("", text)


def _final_cell(expression: str, answer: str) -> str:
    """Print the value as the answer is written: 18, not 18.0 or 17.999999999999996."""
    if expression.translate(str.maketrans("", "", "+-*() ")).isdigit():
        return f"print({expression})"
    places = len(answer.partition(".")[2])
    return f"print(round({expression}, {places}))" if places else f"print(round({expression}))"


def evaluate(expression: str) -> Fraction:
    """Evaluate `+ - * / ( )` over decimals exactly. Raises `ValueError` for anything else."""
    if not _EXPRESSION.fullmatch(expression) or len(expression) > 200:
        raise ValueError(f"not plain arithmetic: {expression!r:.80}")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body, expression.strip())
    except SyntaxError as error:
        raise ValueError(f"not plain arithmetic: {expression!r}") from error


def _value(node: ast.expr, source: str) -> Fraction:
    if isinstance(node, ast.Constant):
        literal = ast.get_source_segment(source, node) or ""
        return Fraction(literal.rstrip(".") or literal)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand, source)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, source), _value(node.right, source)
        return _OPERATORS[type(node.op)](left, right)
    raise ValueError(f"not plain arithmetic: {source!r}")
