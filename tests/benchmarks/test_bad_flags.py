"""Hostile command lines, each with words of the error that says what is wrong."""

import json
import shlex
import tomllib
from pathlib import Path

import pytest

from benchmarks import cli
from benchmarks.commands.train import TrainCommand
from learners.learner import LearnerConfig
from learners.methods.dpo import MultiTurnDPO
from learners.methods.grpo import GRPOConfig

CASES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").touch()
    Path("one.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    Path("traj").mkdir()
    Path("traj/trajectories.jsonl").touch()
    for model in ("p", "sft"):
        Path(model).mkdir()
        Path(model, "config.json").write_text("{}")
    Path("training").mkdir()
    Path("training/results.json").write_text(json.dumps({"recipe": {}, "runs": []}))
    Path("ignored.toml").write_text("[methods.sft.loss]\neta = 0.3\n")
    Path("reversed.toml").write_text("[methods.mdpo.loss]\neta = -0.1\n")


@pytest.mark.parametrize("line", CASES)
def test_what_is_wrong_is_said_in_one_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(shlex.split(line))
    errors = capsys.readouterr().err
    assert (stop.value.code, errors.count("\n")) == (cli.EXIT_ERROR, 1), errors
    assert CASES[line] in errors
    assert not Path("o").exists()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("grpo --trajectories t --policy p --out o", GRPOConfig),
        ("--trajectories a b mdpo --policy grpo --out o", LearnerConfig),
        ("--policy grpo mdpo --trajectories t --out o", LearnerConfig),
        ("--out=grpo --policy dmpo grpo --trajectories t", GRPOConfig),
        ("--wandb grpo --trajectories t --policy p --out o", GRPOConfig),
        ("--betas 0.9 0.99 grpo --policy mkto", GRPOConfig),
        ("--no-scale grpo --policy mkto", GRPOConfig),
        ("--dialect mkto --reference grpo", LearnerConfig),
        ("", LearnerConfig),
    ],
)
def test_only_the_learner_itself_selects_its_settings(line: str, expected: type) -> None:
    """A folder or a name that is a learner's as well does not."""
    assert type(TrainCommand.defaults(line.split()).loss) is expected
    assert MultiTurnDPO.Config is LearnerConfig


def test_an_installed_package_offers_no_study(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wheel holds none; what is offered there can be run there."""
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    said = {}
    for words in ("--help", "brew", "ablate --quick"):
        with pytest.raises(SystemExit):
            cli.main(shlex.split(words))
        said[words] = "".join(capsys.readouterr())
    for words in ("--help", "brew"):
        assert "iterate" in said[words]
        assert not any(study in said[words] for study in ("ablate", "throughput", "replay "))
    assert "run it from a copy of the repository" in said["ablate --quick"]
