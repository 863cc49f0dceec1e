"""From a model's final turn to the text of its answer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from mathenv.grading.policy import STRICT, GradePolicy
from mathenv.protocol import last_boxed, prose, with_braces

# How models mark their reasoning: most with <think>; Mistral, Kimi and Sky-T1 have brackets of
# their own, gpt-oss has channels, of which the next one ends the one for analysis.
_REASONING = r"think(?:ing)?|thoughts?|reasoning|seed:think"
_THINK_OPEN = re.compile(
    rf"<(?:{_REASONING})>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|channel\|>analysis\b"
)
_THINK_CLOSE = re.compile(
    rf"</(?:{_REASONING})>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>"
    r"|<\|channel\|>(?:final|commentary|analysis(?= to=))\b|\bto=[\w.]{1,40}<\|channel\|>\w+"
)
_ANSWER_IS = re.compile(r"answer\s*(?:is|:)[\s:*]*(.*)", re.IGNORECASE)
_CONCLUSION = re.compile(r"[\s$]*(?:Therefore|Thus|Hence|So)\b")
_SENTENCE_END = re.compile(r"\.(?=\s|$)|<\|")
_REASON = re.compile(
    r"(?<=\s)(?:because|since|as|so|which|and so|where|I hope)\s.*|,\s?as required.*",
    re.IGNORECASE,
)
_TEXT = re.compile(r"\\text\s*\{[^{}]*\}|\\[a-zA-Z]+|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])")
_BETWEEN = re.compile(r"(?<![a-zA-Z])(?:[a-zA-Z]++\s++){4}")  # linear in long runs
_CONDITION = re.compile(r"\$\s*(?:for (?:some|all|any|every)|where|with)\s")
_FORMULA = re.compile(r"\$\$?|\\[\[(]")  # opens one
_CLOSING = {"$$": "$$", "$": "$", "\\[": "\\]", "\\(": "\\)"}
_NUMBER = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?|-?\.[0-9]+")
_OUTPUT = re.compile(r"```output[^\S\n]*\n(.*?)\n?```", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_SEARCHED = 20_000  # characters from the end: an answer stands there


def visible_text(response: str) -> str:
    """Return `response` without its reasoning: a box in a scratchpad is not an answer."""
    start = max((found.end() for found in _THINK_CLOSE.finditer(response)), default=0)
    opening = _THINK_OPEN.search(response, start)
    return response[start : opening.start() if opening else None]


def extract_answer(response: str, policy: GradePolicy = STRICT) -> str | None:
    r"""Return the answer in the text after the last `</think>`, or None.

    It is what the last balanced `\boxed{}` holds; an empty box counts as no answer. Several
    boxes: the last one, because joining them rewards listing guesses, unless `policy.boxes`
    asks for all. No box: None, unless `policy.fallback` allows to guess.
    """
    text = visible_text(response)
    if policy.boxes == "all" and len(boxes := _all_boxed(text)) > 1:
        return ", ".join(boxes)
    return last_boxed(text) or _fallback(text, policy) or None


def _all_boxed(text: str) -> list[str]:
    """Return the contents of all balanced boxes that are not empty, in order, each once."""
    text = with_braces(prose(text))
    starts = [match.start() for match in _BOX.finditer(text)] + [len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(starts)]
    if any(_BETWEEN.search(_TEXT.sub("", piece.rpartition("}")[2])) for piece in pieces[:-1]):
        return []  # prose stands between them: each is an answer of its own
    contents = map(last_boxed, pieces)
    return list(dict.fromkeys(content for content in contents if content))


def _fallback(text: str, policy: GradePolicy) -> str:
    if policy.fallback == "none":
        return ""
    outputs = _OUTPUT.findall(text[-_SEARCHED:])
    text = prose(text)[-_SEARCHED:]
    stated = _ANSWER_IS.findall(text)
    if stated and stated[-1].strip(" *"):
        return _stated(stated[-1])
    if policy.fallback == "number" and outputs and outputs[-1].strip():
        return str(outputs[-1]).strip()
    if policy.fallback == "text" and "\n" not in text.strip() and _CONDITION.search(text):
        return text.strip()
    if policy.fallback == "text" and (value := _concluded(text)):
        return value
    if policy.fallback == "text" and (formulas := list(_formulas(text))):
        return formulas[-1].strip()
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else ""


def _stated(statement: str) -> str:
    """Return the value of a sentence that follows "answer is": 5 of "5, as required."."""
    sentence = _SENTENCE_END.split(statement.strip(" *"), maxsplit=1)[0].strip(" *")
    if sentence.startswith(("$", "\\(", "\\[")) and (formula := _first_formula(sentence)):
        return formula
    sentence = _REASON.sub("", sentence).rstrip(",;: *")
    tail = sentence.rpartition(" is ")[2]
    numbers = _NUMBER.findall(tail)
    if numbers and tail.startswith(numbers[0]) and " " not in tail:
        return tail
    numbers = _NUMBER.findall(sentence)
    if len(numbers) == 1 and " " in sentence and not _first_formula(sentence):
        return numbers[0]
    return _first_formula(sentence) or sentence


def _concluded(text: str) -> str:
    """Return the number of the last sentence that starts with "Therefore", if it has just one."""
    sentences = reversed(_SENTENCE_END.split(text))
    sentence = next((s.strip(" $\n") for s in sentences if _CONCLUSION.match(s)), "")
    numbers = _NUMBER.findall(sentence)
    if len(numbers) != 1 or "$" in sentence:
        return ""
    return numbers[0] + ("%" if f"{numbers[0]}%" in sentence else "")


def _formulas(text: str) -> Iterator[str]:
    r"""Yield what stands in `$$..$$`, `\[..\]`, `\(..\)` and `$..$`, in order.

    Linear, which one pattern is not: it looks for the end of each of many open `\[` again.
    """
    position = 0
    never_closed: set[str] = set()  # beyond `position`
    while match := _FORMULA.search(text, position):
        opening = match[0]
        position = match.start() + 1
        if opening in never_closed:
            continue
        end = text.find(_CLOSING[opening], match.end() + 1)  # never empty
        if end < 0:
            never_closed.add(opening)
        else:
            yield text[match.end() : end]
            position = end + len(_CLOSING[opening])


def _first_formula(text: str) -> str:
    return next(_formulas(text), "").strip()


def unwrap_box(text: str, policy: GradePolicy = STRICT) -> str:
    r"""Return the content of the last `\boxed{}` of a reference answer, or the text itself."""
    if "box" in text:
        if policy.boxes == "all" and len(boxes := _all_boxed(text)) > 1:
            return ", ".join(boxes)
        content = last_boxed(text)
        if content is not None:
            return content
    return text.strip()
