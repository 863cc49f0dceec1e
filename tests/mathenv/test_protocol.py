r"""What counts as code and what as an answer in a turn's text."""

import json
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mathenv.env import read_turn
from mathenv.errors import ConfigError
from mathenv.fences import split
from mathenv.grading.extract import visible_text
from mathenv.protocol import (
    check_protocol,
    code_block,
    extract_code,
    last_boxed,
    output_block,
    prose,
    read,
)
from mathenv.types import StopReason

HERE = Path(__file__).parent
CASES = [json.loads(line) for line in (HERE / "turns.jsonl").read_text().splitlines()]
DATA = HERE.parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="shared data are not here")


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{n}: {case['source']}" for n, case in enumerate(CASES, start=1)]
)
def test_turns_as_models_write_them(case):
    """`turns.jsonl`: a text, and the code, the answer, or a part of what the model is told."""
    text = case["text"]
    reading = read_turn(text, last=False, finished=case.get("finished", True))
    assert reading.code == case.get("code")
    assert reading.answer == case.get("answer")
    assert reading.stop == ("answered" if "answer" in case else case.get("stop"))
    assert case.get("says", "") in reading.complaint
    assert bool(reading.complaint) == ("says" in case)
    strict = read_turn(text, last=False, protocol="paper")
    assert {"code": strict.code, "answer": strict.answer} == case["paper"]
    assert not strict.complaint
    assert (strict.stop is None) == (strict.answer is None and strict.code is not None)


def test_a_turn_that_cannot_be_read_ends_the_last_turn_at_the_horizon():
    reading = read_turn("```bash\nls\n```", last=True)
    assert (reading.stop, reading.code) == (StopReason.HORIZON, None)


# --- a second computation: CommonMark by markdown-it-py

# Lines of programs that hold no fence, which a block must give back as they are.
LINES = st.sampled_from(
    ["x = 1", "if x:", "    y = 2", "\tz = 3", "", "  ", "# a `word`", "s = 'a' + \"b\"", "~x",
     "print('``')", "\u00e9 = 'é'", "        deep", "- 1", "> 1", "1. x", "+ y", "</s>", "* 2"]
)  # fmt: skip
PROSE = st.sampled_from(
    ["Let us see.", "a `b` c", "# Heading", "", "So ~ x", "1 < 2", "Use ``` no", "\\boxed{1}"]
)
OTHER = ["", "text", "output", "bash", "json x", "text {a=1}"]
MARKED = ["python", " python ", "Python", "py", 'python title="a"', "{.python}", "python3.11"]


@st.composite
def _block(draw):
    character = draw(st.sampled_from("`~"))
    length = draw(st.integers(3, 6))
    inner = draw(LINES)
    lines = draw(st.lists(LINES, max_size=6))
    if length > 3:  # a shorter fence, in a string
        lines += ['s = """', character * (length - 1), inner, character * 3, '"""']
    if draw(st.booleans()):  # and one of the other kind
        lines += ["t = '''", ("~" if character == "`" else "`") * length, "'''"]
    info = draw(st.sampled_from([*MARKED, *MARKED, *OTHER]))
    indent = " " * draw(st.integers(0, 3))
    closing = character * (length + draw(st.integers(0, 2))) + draw(
        st.sampled_from(["", " ", "\t"])
    )
    lines = [line and indent + line for line in lines]
    return [indent + character * length + info, *lines, indent + closing]


@st.composite
def _part(draw):
    """Return prose or a block, at the margin or in a list, a list of lists or a quote."""
    lines = draw(st.one_of(st.lists(PROSE, max_size=3), _block(), _block()))
    for container in draw(st.lists(st.sampled_from(["- ", "3. ", "10) ", "> "]), max_size=2)):
        if container == "> ":
            lines = ["> " + line for line in lines]
        else:
            gap = draw(st.booleans())  # a paragraph first, or the block in the marker's line
            first = ["so", "", *lines] if gap or not lines or not lines[0].strip() else lines
            margin = " " * len(container)
            tail = [line and margin + line for line in first[1:]]
            lines = [container + first[0], *tail]
    return [*lines, ""]


@given(st.lists(_part(), max_size=5))
def test_well_formed_blocks_are_read_as_commonmark_reads_them(parts):
    text = "\n".join(line for part in parts for line in [*part, "----", ""])
    expected = [
        token.content.rstrip("\n")
        for token in MarkdownIt().parse(text)
        if token.type == "fence" and token.info.strip().lower().lstrip("{.").startswith("py")
    ]
    found = [b.body.rstrip("\n") for b in split(text).blocks if b.kind == "python"]
    assert found == expected


def test_the_second_computation_can_tell():
    """The parser sees what the property is about: containers, indentation, lengths."""
    text = "- a\n\n  ````python\n    x\n  ```\n  ````\n\n> ~~~py\n> y\n> ~~~\n"
    tokens = [t.content for t in MarkdownIt().parse(text) if t.type == "fence"]
    assert tokens == ["  x\n```\n", "y\n"]
    assert [b.body for b in split(text).blocks] == ["  x\n```", "y"]


@given(
    st.lists(st.sampled_from([*"`~ \t\n>-1.x'\"#\\", "```", "~~~", "python", "```python\n", "\n"]))
)
def test_any_mixture_of_fences_is_read(pieces):
    for protocol in ("lenient", "paper"):
        assert read("".join(pieces), protocol).prose is not None


def test_an_unknown_protocol_is_refused():
    with pytest.raises(ConfigError, match=r"one of \('lenient', 'paper'\), got 'strict'"):
        check_protocol("strict")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nprint(1)\n```", "print(1)"),
        ("First.\n```python\nx = 1\n```\nthen\n```python\nprint(x)\n```\n", "x = 1\nprint(x)"),
        ("```Python \nprint(1)\n``` ", "print(1)"),
        ("```py\nif x:\n    y\n```", "if x:\n    y"),
        ("  ```python\n  x\n  ```", "  x"),
        ("```output\n3\n```", None),
        ("```\nprint(1)\n```", None),
        ("```python\n\n```", None),
        ("```python\nprint(1)", None),  # cut off: half a cell is not run
        ("say ```python in passing", None),
        ("```python\r\nx\r\n```\r\nand", "x"),
        ("", None),
    ],
)
def test_extract_code(text, code):
    assert extract_code(text, "paper") == code


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{1} no, \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        (r"\fbox{3}", "3"),
        (r"\boxed {3}", "3"),
        (r"\boxed 1, no: \boxed{2}", "2"),
        (r"\boxed 3/4", None),
        (r"\boxed 12.5\pi", None),
        (r"\boxed 2^{10}", None),
        (r"I use \boxed a few times", None),
        (r"then write \boxed", None),
        ("```python\nprint(r'\\boxed 3')\n```", None),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\text{a\}b}}", r"\text{a\}b}"),
        (r"\boxed{}", ""),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{2", None),
        ("42", None),
        ("```python\nprint(r'\\boxed{3}')\n```", None),
        ("```output\n\\boxed{3}\n```", None),
        ("```python\nprint(1)\n```\n\\boxed{3}", "3"),
        ("```python\nprint(r'\\boxed{3}')", None),  # cut off, still code
        ("```output\n3\n```\n```\nSo \\boxed{3}", "3"),  # a stray fence hides nothing
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == last_boxed(text, "paper") == answer


@pytest.mark.parametrize(
    ("text", "answer", "paper"),
    [
        (r"So $\boxed 5$.", "5", None),
        (r"\boxed5", "5", None),
        (r"\fbox -2.5 is it", "-2.5", None),
        (r"\boxed{1}, no: $\boxed x$", "x", "1"),
        (r"\framebox{7}", "7", None),
        (r"\boxed 1,250.5 dollars", "1,250.5", None),
    ],
)
def test_boxes_that_the_paper_does_not_know(text, answer, paper):
    assert (last_boxed(text), last_boxed(text, "paper")) == (answer, paper)


@given(st.text(alphabet=st.characters(blacklist_characters="`\r", blacklist_categories=["Cs"])))
def test_code_block_is_read_back(code):
    expected = code.rstrip("\n")
    assert extract_code(code_block(code), "paper") == (expected if expected.strip() else None)
    assert prose(code_block(code)) == prose(code_block(code), "paper") == ""


@pytest.mark.parametrize("path", sorted(HERE.glob("*.py")), ids=lambda path: path.name)
def test_a_program_is_read_back(path):
    """Real Python: strings with fences, boxes, odd blanks and prompts stay as they are."""
    program = path.read_text().rstrip("\n")
    if "```" in program:  # three backticks in a string at a line's beginning need a longer fence
        program = program.replace("\n```", "\n ```")
    assert extract_code(code_block(program)) == program
    indented = textwrap.indent(code_block(program), "    ", lambda line: bool(line.strip()))
    assert extract_code(f"1. See:\n\n{indented}\nDone.") == program


@given(st.text())
def test_reading_never_fails_and_agrees_with_itself(text):
    for last in (False, True):
        for protocol in ("lenient", "paper"):
            reading = read_turn(text, last=last, protocol=protocol)
            assert (reading.stop is StopReason.ANSWERED) == (reading.answer is not None)
            tried = reading.code is not None or bool(reading.complaint)
            assert (reading.stop is None) == (reading.answer is None and tried and not last)


@pytest.mark.parametrize(
    ("text", "last", "stop"),
    [
        ("```python\n1\n```", False, None),
        ("```python\n1\n```", True, StopReason.HORIZON),
        ("```python\n1\n```\n\\boxed{1}", False, StopReason.ANSWERED),
        ("\\boxed{1}", True, StopReason.ANSWERED),
        ("\\boxed{}", False, StopReason.ANSWERED),
        ("I think", False, StopReason.NO_ACTION),
        ("I think", True, StopReason.NO_ACTION),
        ("", False, StopReason.NO_ACTION),
    ],
)
def test_read_turn(text, last, stop):
    assert read_turn(text, last=last).stop is stop


def test_output_block():
    assert output_block("3") == "```output\n3\n```"


REPETITIVE = [
    r"\boxed{", "```python\n", "{", "```\n", " ", "\n\n", "`", "~", "``` ", "```python ", "x```",
    "~~~\n", "```python\nx\n", "> ", ">", "- ", "1. ", "\t", "\u00a0", "> ```python\n", "'", '"',
    "```text\n", "\\", "```python\n\\'''\n```\n", '```python\n\\"""\n```\n', "```python\n'''\n",
    "```\n~~~\n", "“", "‘a", ">>> ", "```python\n    ```\n", "```python\n~~~\n", "In [1]: ", "#",
    "<think>", "</think>", "a`", "{python}", "```bash\n", "- ```python\n", "\u200b", "\r", "\f",
]  # fmt: skip
FENCES = ["`", "```\n", "```python\n", "```python\nx\n```\n", "~~~\n```\n"]


@pytest.mark.parametrize("piece", REPETITIVE)
@pytest.mark.parametrize("before", ["", "```python\n", "````python\n\ufeff"])
def test_repetitive_text_is_read_in_linear_time(before, piece):
    """A model stuck in a loop until its token limit must not stall the collector."""
    text = before + piece * (200_000 // len(piece))
    start = time.process_time()
    read_turn(text, last=False)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    "piece", ["`", "```\n", "```python\n", "```python\nx\n```\n", "~~~\n```\n"]
)
def test_a_megabyte_of_fences_is_read_in_seconds(piece):
    start = time.process_time()
    read_turn(piece * (1_000_000 // len(piece)), last=False)
    assert time.process_time() - start < 5.0


@pytest.mark.parametrize("character", "`~")
def test_fences_of_falling_length_are_read_in_linear_time(character):
    """Each could end the one before it, if nothing better comes."""
    text = "\n".join(character * length + "python" for length in range(1000, 2, -1))
    start = time.process_time()
    read_turn(text + "\n" * 300_000, last=False)
    assert time.process_time() - start < 3.0


def test_deep_quotes_are_read_in_linear_time():
    line = ">" * 300_000
    start = time.process_time()
    read_turn(f"{line}```python\n{line}x\n{line}\n>", last=False)
    assert time.process_time() - start < 3.0


@needs_data
def test_recorded_turns_read_the_same_under_both_protocols():
    """ToRA's texts whole and turn by turn, and all cells of ToRA and MathCoder."""
    texts = []
    for line in (DATA / "trajectories_tora.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        texts += [row["text"], *row["text"].split("```output")]
        texts += [f"See.\n{code_block(code)}" for code in row["code_blocks"]]
    for line in (DATA / "replay_mathcoder.jsonl").open(encoding="utf-8"):
        texts += [f"See.\n{code_block(step['code'])}" for step in json.loads(line)["steps"]]
    assert len(texts) == 2000 + 3998 + 1999 + 6169
    for text in texts:
        strict, lenient = read(visible_text(text), "paper"), read(visible_text(text))
        assert (lenient.code, lenient.prose) == (strict.code, strict.prose)
