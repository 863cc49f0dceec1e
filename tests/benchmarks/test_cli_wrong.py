"""Whatever a user gets wrong is one sentence and an exit status, and never a traceback."""

import json
import os
import stat
import tomllib
from pathlib import Path

import pytest

from benchmarks import cli
from benchmarks.cli import COMMANDS

CASES = tomllib.loads((Path(__file__).parent / "cli_cases.toml").read_text())["case"]
GARBLED = bytes(range(160, 256)) * 8 + b"\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from agents.tiny import TinyConfig, make_tiny

    config = TinyConfig(hidden=32, layers=1, heads=1, intermediate=64)
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny", config=config)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    with pytest.raises(SystemExit) as stop:
        cli.main(["collect", "words", "--limit", "2", "--out", str(folder)])
    assert stop.value.code == 0
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("empty", "dir", "model", "run-list", "run-part", "cfg"):
        (tmp_path / name).mkdir()
    for name in ("file", "bin.jsonl", "dir/trajectories.jsonl", "model/config.json"):
        (tmp_path / name).write_bytes(GARBLED)
    for name, text in {
        "empty.jsonl": "",
        "text.jsonl": "hello\n",
        "list.jsonl": "[1, 2]\n",
        "obj.jsonl": '{"a": 1}\n',
        "wrong.toml": "model = 3\n",
        "run-list/results.json": "[]",
        "run-part/results.json": '{"schema": 2}',
        "cfg/config.json": "[]",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rows(folder: Path) -> dict[str, str]:
    """Files that are right, by the names that the cases have for them."""
    gsm8k, openai = folder / "gsm8k.jsonl", folder / "openai.jsonl"
    gsm8k.write_text(json.dumps({"question": "1 + 1?", "answer": "1+1=<<1+1=2>>2\n#### 2"}) + "\n")
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": r"\boxed{2}"}]
    openai.write_text(json.dumps({"messages": messages, "answer": "2"}) + "\n")
    return {"GSM8K": str(gsm8k), "OPENAI": str(openai)}


@pytest.mark.parametrize("case", CASES, ids=[case["words"] for case in CASES])
def test_one_sentence_and_no_traceback(
    case: dict,
    rows: dict[str, str],
    tiny: Path,
    store: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"TINY": str(tiny), "STORE": str(store), **rows}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([places.get(word, word) for word in case["words"].split()])
    errors = capsys.readouterr().err
    assert stop.value.code == case.get("status", 2), errors
    assert "Traceback" not in errors
    for words in case["says"]:
        assert words in errors
    if case.get("status", 2):
        assert errors.splitlines()[-1].startswith("mathenv: ")


def test_a_device_that_is_written_to_stays_one() -> None:
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"demo", "iterate", "ablate", "doctor"}))
def test_a_command_without_its_arguments_says_which(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name])
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert stop.value.code == (0 if name == "solve" else 2)  # which has a problem of its own
    assert name == "solve" or "mathenv" in errors


def test_an_error_of_the_program_shows_where_and_asks_for_a_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("benchmarks.commands.tables.Tables.run", broken)
    with pytest.raises(SystemExit) as stop:
        cli.main(["tables", "x"])
    errors = capsys.readouterr().err
    assert stop.value.code == 1
    assert "Traceback" in errors
    assert "ZeroDivisionError: a bug" in errors
    assert errors.splitlines()[-1].startswith("mathenv: this is an error in mathenv itself")


def test_wandb_without_a_key_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = pytest.importorskip("wandb", reason="an extra")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    asked: list[dict] = []
    monkeypatch.setattr(wandb, "login", lambda **how: asked.append(how))
    for words in (["demo"], ["iterate"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([*words, "--wandb", "--out", str(tmp_path / "run")])
        errors = capsys.readouterr().err
        assert stop.value.code == 2
        assert "has no key here" in errors
        assert "WANDB_MODE=offline" in errors
        assert errors.count("\n") == 1
    assert asked == [{"prompt": False}] * 2
    assert not (tmp_path / "run").exists()
