"""Bounded output: head, tail, and the count of what is missing."""

import pytest

from mathenv.interpreter.output import OutputBuffer, clean, clip


def test_buffer_keeps_everything_that_fits():
    buffer = OutputBuffer(10)
    for _ in range(4):
        buffer.add(b"abcde")
    assert buffer.pieces() == ["abcde" * 4]
    buffer.add(b"XYZ")
    assert buffer.pieces() == ["abcdeabcde", 3, "deabcdeXYZ"]
    assert buffer.total == 23


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_buffer_does_not_depend_on_chunks(chunk):
    data = bytes(i % 26 + 97 for i in range(500))
    buffer = OutputBuffer(100)
    for start in range(0, len(data), chunk):
        buffer.add(data[start : start + chunk])
    assert buffer.pieces() == [data[:100].decode(), 300, data[-100:].decode()]


def test_clip_keeps_short_text_and_trims_newlines():
    assert clip(["a\n", "b\n\n"], 10) == ("a\nb", False)
    assert clip([""], 10) == ("", False)


@pytest.mark.parametrize("length", [101, 150, 5000])
def test_clip_counts_what_it_cuts(length):
    text = "".join(chr(97 + i % 26) for i in range(length))
    output, truncated = clip([text], 100)
    head, notice, tail = output.split("\n")
    assert truncated
    assert len(output) <= 100
    assert text.startswith(head)
    assert text.endswith(tail)
    assert notice == f"[... {length - len(head) - len(tail)} characters cut ...]"


def test_clip_never_joins_across_a_gap():
    output, truncated = clip(["head" * 10, 1000, "tail" * 10, "end"], 100)
    assert truncated
    head, notice, tail = output.split("\n")
    assert set(head) == set("head")
    assert tail.endswith("tailend")
    assert "cut" in notice
    assert clip(["ab", 5, "cd"], 100)[0] == "ab\n[... 5 characters cut ...]\ncd"


def test_clean():
    assert clean("\x1b]0;open\nshown") == "\nshown"  # to the end of its line
    assert clean("a\r\nb\rc\x1b[1;31md\x1b]0;title\x07e\x00\x9f\ud800\tf") == "a\nb\ncde\\ud800\tf"
