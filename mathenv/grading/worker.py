"""The symbolic worker: a program, never imported. Compares LaTeX answers with math-verify.

Reads one JSON object a line from standard input (`id`, `gold`, `answer`, `cpu`, `wall`) and
writes one a line to standard output (`id`, `verdict`, `detail`). The process started by
`pool.py` imports math-verify once and then only forks: the child does the work, and a child
that overruns its limits dies by signal and is replaced in milliseconds, without importing
sympy again. Model text is parsed as LaTeX only, never by `sympify` or `eval`.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic, Float, MatrixBase, N, Tuple, UnevaluatedExpr
from sympy import FiniteSet as SympyFiniteSet
from sympy.external.gmpy import GROUND_TYPES

JOBS_PER_CHILD = 500  # sympy's caches only grow
DIGITS = 50  # of the independent numeric check
TOLERANCE_EXACT = 1e-30
TOLERANCE_FLOAT = 1e-6
_RECYCLE = 10  # exit status of a child that has done its jobs

IDLE, PARSING_GOLD, PARSING_ANSWER, COMPARING = range(4)
_STATE = struct.Struct("qq")  # job id, stage: shared with the parent across the fork

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


def _parse(text: str) -> list[Any]:
    config = _WITHOUT_UNITS if _LAST_VARIABLE.search(text) else _WITH_UNITS
    return parse(
        f"\\boxed{{{text}}}",
        extraction_config=[config],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )


def compare(gold: str, answer: str, state: mmap.mmap, job: int) -> tuple[str, str]:
    """Return (verdict, detail); verdicts: correct, incorrect, gold_error, unparsed."""
    state[:] = _STATE.pack(job, PARSING_GOLD)
    gold_parsed = _parse(gold)
    if not gold_parsed:
        return "gold_error", "math-verify cannot parse the reference answer"
    state[:] = _STATE.pack(job, PARSING_ANSWER)
    answer_parsed = _parse(answer)
    if not answer_parsed:
        return "unparsed", "math-verify cannot parse the answer"
    state[:] = _STATE.pack(job, COMPARING)
    equal = verify(gold_parsed, answer_parsed, timeout_seconds=None, allow_set_relation_comp=True)
    if equal and not numerically_close(gold_parsed[0], answer_parsed[0]):
        return "incorrect", "math-verify accepted it, a 50-digit evaluation does not"
    return ("correct" if equal else "incorrect"), ""


def numerically_close(gold: Any, answer: Any) -> bool:
    """Evaluate a symbol-free pair to 50 digits. True also where that says nothing.

    math-verify chops small differences (1/2004! equals 1/2006!) and rounds to 6 decimals.
    """
    containers = (Tuple, SympyFiniteSet)
    if isinstance(gold, containers) and isinstance(answer, containers):
        return _all_close(gold.args, answer.args)
    if isinstance(gold, MatrixBase) and isinstance(answer, MatrixBase):
        return _all_close(gold, answer, ordered=True)
    if not (isinstance(gold, Basic) and isinstance(answer, Basic)):
        return True
    try:
        if gold.free_symbols or answer.free_symbols:
            return True
        first, second = N(gold, DIGITS), N(answer, DIGITS)
        if not (first.is_number and second.is_number):
            return True
        if gold.has(UnevaluatedExpr) or answer.has(UnevaluatedExpr):
            return True  # a percentage: p% for p is accepted on purpose
        loose = gold.has(Float) or answer.has(Float)
        tolerance = TOLERANCE_FLOAT if loose else TOLERANCE_EXACT
        return bool(abs(first - second) <= tolerance * max(abs(first), abs(second)))
    except (MemoryError, RecursionError):
        raise
    except Exception:  # relations, sets and functions have no number to compare
        return True


def _all_close(gold: Iterable[Any], answer: Iterable[Any], ordered: bool = False) -> bool:
    gold_items, answer_items = list(gold), list(answer)
    if len(gold_items) != len(answer_items):
        return True
    if ordered:
        return all(map(numerically_close, gold_items, answer_items))
    return all(any(numerically_close(g, a) for a in answer_items) for g in gold_items)


def _limit_memory(megabytes: int) -> None:
    size = megabytes * 1024**2
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # nothing here writes files


def _work(replies: int, state: mmap.mmap) -> NoReturn:
    """Serve jobs until end of input or `JOBS_PER_CHILD`. Never returns."""
    with open(0, "rb", closefd=False) as jobs:
        for _ in range(JOBS_PER_CHILD):
            line = jobs.readline()
            if not line:
                os._exit(0)
            job = json.loads(line)
            # Default actions: the kernel ends the process even inside C code.
            signal.setitimer(signal.ITIMER_PROF, job["cpu"])
            signal.setitimer(signal.ITIMER_REAL, job["wall"])
            try:
                verdict, detail = compare(job["gold"], job["answer"], state, job["id"])
            except MemoryError:
                os._exit(1)
            except RecursionError:
                verdict, detail = "limit", "nested too deeply"
            except Exception as error:
                verdict, detail = "unparsed", f"{type(error).__name__}: {error}"[:200]
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            state[:] = _STATE.pack(0, IDLE)
            _reply(replies, {"id": job["id"], "verdict": verdict, "detail": detail})
    os._exit(_RECYCLE)


def _reply(replies: int, message: dict[str, Any]) -> None:
    os.write(replies, json.dumps(message).encode() + b"\n")  # below PIPE_BUF: atomic


def _obituary(status: int, state: mmap.mmap) -> dict[str, Any] | None:
    """Describe the job that the dead child was working on, if any."""
    job, stage = _STATE.unpack(state[:])
    if stage == IDLE:
        return None
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number == signal.SIGALRM:
        verdict, detail = "infra", "wall limit reached before the CPU limit: overloaded machine"
    elif stage == PARSING_GOLD:
        verdict, detail = "gold_error", "the reference answer takes too long to parse"
    elif number == signal.SIGPROF:
        verdict, detail = "timeout", "CPU limit reached"
    else:
        verdict, detail = "limit", f"memory limit or crash (signal {number})"
    return {"id": job, "verdict": verdict, "detail": detail}


def _warm_up() -> None:
    """Run the common paths once before forking, so that children inherit filled caches."""
    for gold, answer in (
        ("\\frac{1}{2}", "0.5"),
        ("(x+1)^2", "x^2+2x+1"),
        ("\\{1,2\\}", "2,1"),
        ("[0,1)", "[0,2)"),
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("x=1", "1"),
        ("\\sin^2 x", "1-\\cos^2 x"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\3\\end{pmatrix}"),
    ):
        verify(_parse(gold), _parse(answer), timeout_seconds=None)


def main() -> None:
    """Fork children until the input ends."""
    if GROUND_TYPES != "python":  # gmpy2 ignores signals inside (10^9)! and differs in numerics
        sys.exit("sympy runs on gmpy2: set SYMPY_GROUND_TYPES=python")
    replies = os.dup(1)
    os.dup2(2, 1)  # a stray print must not look like a reply
    _limit_memory(int(sys.argv[1]))
    _warm_up()
    state = mmap.mmap(-1, _STATE.size)
    _reply(replies, {"id": 0, "verdict": "ready", "detail": ""})
    while True:
        state[:] = _STATE.pack(0, IDLE)
        child = os.fork()
        if child == 0:
            _work(replies, state)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return
        message = _obituary(status, state)
        if message is not None:
            _reply(replies, message)


if __name__ == "__main__":
    main()
