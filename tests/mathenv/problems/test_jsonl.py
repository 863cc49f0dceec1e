import json

import pytest

from mathenv.errors import ConfigError, DataError
from mathenv.problems import load_problems


def write(path, *lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_columns(tmp_path):
    path = write(
        tmp_path / "mine.jsonl",
        {"question": "1+1?", "answer": 2, "tag": "easy"},
        "",
        {
            "id": "b",
            "problem": "½ of 3?",
            "answer": "1.5",
            "type": "halves",
            "level": 1,
            "split": "dev",
            "source": "me",
            "solution": ["x = 3", "print(x / 2)"],
        },
        {"question": "2?", "answer": "2", "solution": "It is two."},
    )
    first, second, third = load_problems(path)
    assert (first.id, first.answer, first.source, first.split) == ("mine/0", "2", "mine", "test")
    assert first.metadata == {"tag": "easy"}
    assert (second.id, second.subject, second.level) == ("b", "halves", "1")
    assert (second.question, second.split, second.source) == ("½ of 3?", "dev", "me")
    assert second.solution == ("x = 3", "print(x / 2)")
    assert third.solution == ()
    assert third.metadata == {"solution": "It is two."}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", r":2: not valid JSON"),
        ("[1, 2]", r":2: expected a JSON object, found list"),
        ({"question": "?"}, r":2: no column 'answer'; found \['question'\]"),
        ({"answer": "1"}, r":2: no column 'question' or 'problem'"),
        ({"question": "?", "answer": ""}, r":2: column 'answer' is empty"),
        ({"question": "?", "answer": True}, r":2: column 'answer' must be text"),
        ({"question": "?", "answer": ["1"]}, r":2: column 'answer' must be text"),
        ({"question": "?", "answer": "1", "solution": [1]}, r":2: a solution given as a list"),
    ],
)
def test_errors_name_file_and_line(tmp_path, line, message):
    path = write(tmp_path / "mine.jsonl", {"question": "1+1?", "answer": "2"}, line)
    with pytest.raises(DataError, match=r"mine\.jsonl" + message):
        load_problems(path)


def test_text_that_is_not_unicode(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"question": "\xff", "answer": "1"}\n')
    with pytest.raises(DataError, match=r"mine\.jsonl: cannot be read"):
        load_problems(path)


def test_duplicate_ids(tmp_path):
    row = {"id": "a", "question": "?", "answer": "1"}
    with pytest.raises(DataError, match="two problems have the id 'a'"):
        load_problems(write(tmp_path / "mine.jsonl", row, row))


def test_an_empty_file(tmp_path):
    with pytest.raises(DataError, match="holds no problem"):
        load_problems(write(tmp_path / "mine.jsonl", ""))


def test_a_folder_holds_splits(tmp_path):
    write(tmp_path / "train.jsonl", {"question": "?", "answer": "1"})
    (problem,) = load_problems(tmp_path, "train")
    assert problem.split == "train"
    with pytest.raises(ConfigError, match=r"has no test\.jsonl; it holds \['train\.jsonl'\]"):
        load_problems(str(tmp_path), "test")


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_problems(str(tmp_path / "mine.jsonl"))


def test_a_path_takes_no_data(tmp_path):
    path = write(tmp_path / "mine.jsonl", {"question": "?", "answer": "1"})
    with pytest.raises(ConfigError, match="is a path already"):
        load_problems(path, data=tmp_path)
