r"""What counts as code and what as an answer in a turn's text."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathenv.env import read_turn
from mathenv.protocol import code_block, extract_code, last_boxed, output_block, prose
from mathenv.types import StopReason


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
    assert extract_code(text) == code


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{1} no, \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
        (r"\fbox{3}", "3"),
        (r"\boxed {3}", "3"),
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
    assert last_boxed(text) == answer


@given(st.text(alphabet=st.characters(blacklist_characters="`\r", blacklist_categories=["Cs"])))
def test_code_block_is_read_back(code):
    expected = code.rstrip("\n")
    assert extract_code(code_block(code)) == (expected if expected.strip() else None)
    assert prose(code_block(code)) == ""


@given(st.text())
def test_reading_never_fails_and_agrees_with_itself(text):
    for last in (False, True):
        reading = read_turn(text, last=last)
        assert (reading.stop is StopReason.ANSWERED) == (reading.answer is not None)
        assert (reading.stop is None) == (
            reading.answer is None and reading.code is not None and not last
        )


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


@pytest.mark.parametrize("piece", [r"\boxed{", "```python\n", "{", "```\n", " ", "\n\n"])
def test_repetitive_text_is_read_fast(piece):
    """A model stuck in a loop until its token limit must not stall the collector."""
    text = (piece * 10_000)[:20_000]
    start = time.process_time()
    read_turn(text, last=False)
    assert time.process_time() - start < 1.0
