"""The command as users run it: a process of its own, on small data."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import cli
from mathenv.grading import STRICT
from mathenv.interpreter.local import TIERS
from mathenv.store import read_trajectories

COMMAND = [sys.executable, "-c", "from benchmarks.cli import main; main()"]
TINY_TOKENS = ("--max-turn-tokens", "24", "--max-tokens", "200")


def mathenv(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "own.jsonl"
    lines = [{"question": f"What is {i} * {i}?", "answer": str(i * i)} for i in range(5)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from agents.tiny import TinyConfig, make_tiny

    config = TinyConfig(hidden=64, layers=2, heads=2, intermediate=96)
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny", config=config)


def test_help_is_quick_and_teaches(tmp_path: Path) -> None:
    top = mathenv(tmp_path, "--help")
    assert top.returncode == 0
    assert all(name in top.stdout for name in cli.COMMANDS)
    # 0.3 s where nobody else works; torch alone would take longer than 2 s.
    code = "import sys, benchmarks.cli as c, benchmarks.commands.bench as b; c._print_help()"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_has_help_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"usage: mathenv {name}" in text
    assert cli.COMMANDS[name].example.split("--")[0].strip() in text


def test_bench_with_the_oracle(rows: Path, tmp_path: Path) -> None:
    done = mathenv(tmp_path, "bench", "own.jsonl", "--agent", "oracle", "--out", "results")
    assert done.returncode == 0, done.stderr
    assert "100.0%" in done.stdout
    assert "5/5" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    result = json.loads((tmp_path / "results" / "own-oracle" / "results.json").read_text())
    assert result["metrics"]["pass_at_1"]["value"] == 1.0
    assert result["metrics"]["tool_use"]["code_turns"]["value"] == 1.0


@pytest.mark.parametrize("command", ["demo", "iterate"])
def test_the_main_job_asks_for_docker_where_it_is_told_to(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    done = mathenv(tmp_path, command, "--interpreter", "docker", "--out", "run")
    assert done.returncode != 0
    assert re.search("no Docker engine answers|needs the docker package", done.stderr)
    assert "Traceback" not in done.stderr


def test_bench_several_suites(tmp_path: Path) -> None:
    done = mathenv(tmp_path, "bench", "words,words_ood", "--limit", "3", "--out", "r")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == [
        "words-oracle",
        "words_ood-oracle",
    ]
    again = mathenv(tmp_path, "bench", "words", "--limit", "4", "--out", "r")
    assert again.returncode == 2
    assert "problems was 3, now 4" in again.stderr


def test_a_model_is_loaded_once_for_all_suites(
    rows: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agents import policy

    loaded = []
    load = policy.load_policy

    def count(path, *args, **kwargs):
        loaded.append(path)
        return load(path, *args, **kwargs)

    monkeypatch.setattr(policy, "load_policy", count)
    words = ["bench", f"{rows},words", "--limit", "2", "--n", "2", "--out", str(tmp_path / "r")]
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--agent", "transformers", "--model", str(tiny), *TINY_TOKENS])
    assert stop.value.code == 0
    assert loaded == [str(tiny)]
    folders = ["own-tiny", "own-tiny-greedy", "words-tiny", "words-tiny-greedy"]
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == folders


def _start_bench(cwd: Path) -> subprocess.Popen[str]:
    words = ["bench", "words", "--limit", "200", "--out", "r", "--concurrency", "2"]
    return subprocess.Popen(
        [*COMMAND, *words], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _wait_for_lines(file: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not file.exists() or file.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_bench_goes_on_after_it_was_stopped(end: signal.Signals, tmp_path: Path) -> None:
    file = tmp_path / "r" / "words-oracle" / "trajectories.jsonl"
    process = _start_bench(tmp_path)
    _wait_for_lines(file, 10, process)
    os.kill(process.pid, end)
    _, errors = process.communicate(timeout=60)
    before = file.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    assert before.count(b"\n") < 200, "it had finished: nothing was tested"
    if end is signal.SIGINT:
        assert process.returncode == cli.EXIT_INTERRUPTED
        assert "the same command continues" in errors
        assert "Traceback" not in errors
    again, _ = _start_bench(tmp_path).communicate(timeout=100)
    assert "100.0%" in again
    assert file.read_bytes().startswith(before)
    assert len({t.problem.id for t in read_trajectories(file)}) == 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "gsm9k"], "no suite is called 'gsm9k'"),
        (["bench", "gsm8k", "--data", "nowhere"], "nowhere does not exist"),
        (["bench", "bad.jsonl"], "bad.jsonl:2"),
        (["bench", "words", "--n", "0"], "n must be at least 1"),
        (["bench", "words", "--limit", "0"], "limit must be at least 1"),
        (["bench", "words", "--agent", "transformers"], "needs --model"),
        (["bench", "words", "--agent", "replay"], "needs --trajectories"),
        (["bench", "words", "--model", "x"], "the oracle takes no --model"),
        (["bench", "words", "--temperature", "-1"], "temperature must be at least 0"),
        (["solve", "--question", "2+2?"], "needs --answer"),
        (["solve", "--index", "5000"], "--index must lie in 0 to 999"),
        (["solve", "--problem-id", "nope"], "no problem 'nope'"),
        (["collect", "words", "--out", "o", "--split", "dev"], "train, validation, test"),
        (["train", "nope", "--trajectories", "t", "--policy", "p", "--out", "o"], "mdpo, mkto"),
        (["brew"], "no command is called 'brew'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"question": "a", "answer": "1"}\n{"question": "b"}\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    errors = capsys.readouterr().err
    assert stop.value.code == cli.EXIT_ERROR
    assert message in errors
    assert errors.startswith("mathenv: ")
    assert errors.count("\n") == 1


def test_errors_in_a_process_show_no_traceback(tmp_path: Path) -> None:
    done = mathenv(tmp_path, "bench", "gsm8k", "--data", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mathenv: nowhere does not exist")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["train", "sft", "--trajectories", "t", "--policy", "p", "--out", "o"],
        ["bench", "words", "--agent", "transformers", "--model", "./m"],
    ],
)
def test_without_torch_the_extra_is_named(words: list[str], tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules['torch'] = None\nfrom benchmarks.cli import main; main({words})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert 'pip install -e ".[train]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_solve_prints_turn_by_turn(tmp_path: Path) -> None:
    done = mathenv(tmp_path, "solve", "--suite", "words", "--index", "3", "--out", "one")
    assert done.returncode == 0, done.stderr
    (run,) = read_trajectories(tmp_path / "one")
    order = [done.stdout.index(part) for part in ("problem words/test/0/3", "turn 1", "output")]
    assert order == sorted(order)
    assert f"CORRECT  answer {run.problem.answer}" in done.stdout
    again = mathenv(tmp_path, "solve", "--suite", "words", "--index", "3", "--out", "one")
    assert (again.returncode, "holds this problem already" in again.stderr) == (2, True)


def test_solve_does_not_mind_a_reader_that_leaves(tmp_path: Path) -> None:
    command = " ".join([sys.executable, "-c", "'from benchmarks.cli import main; main()'"])
    done = subprocess.run(
        ["bash", "-c", f"{command} solve --index 3 | head -1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "problem words" in done.stdout
    assert done.stderr == ""


@pytest.fixture
def inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process, where torch is loaded once for all tests."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert isinstance(stop.value.code, int)
        return stop.value.code, *capsys.readouterr()

    return run


def test_solve_with_a_model_and_no_reference_answer(inside, tiny: Path) -> None:
    words = ["--question", "What is 2 + 2?", "--agent", "transformers", "--model", str(tiny)]
    code, text, errors = inside("solve", *words, *TINY_TOKENS)
    assert code == 0, errors
    assert "turn 1" in text
    assert "NOT GRADED" in text


def test_collect_then_train(inside, tmp_path: Path, tiny: Path) -> None:
    """Demonstrations by the oracle train SFT; a model's samples carry its tokens."""
    code, text, errors = inside("collect", "words", "--limit", "8", "--out", "demos")
    assert (code, "8 trajectories, 100.0% right" in text) == (0, True), errors
    model = ("--agent", "transformers", "--model", str(tiny), *TINY_TOKENS)
    sizes = ("--limit", "3", "--n", "2")
    code, _, errors = inside("collect", "words", *sizes, "--out", "samples", *model)
    assert code == 0, errors
    runs = list(read_trajectories(tmp_path / "samples"))
    assert len(runs) == 6
    assert all(run.tokens is not None and any(run.tokens.action_mask) for run in runs)
    code, text, errors = inside(
        *("train", "sft", "--trajectories", "demos", "--policy", str(tiny), "--out", "sft"),
        *("--batch-size", "4", "--lr", "1e-3", "--checkpoints", "1"),
    )
    assert (code, text.split()) == (0, ["sft/step-2"]), errors
    losses = [json.loads(x)["loss"] for x in (tmp_path / "sft" / "metrics.jsonl").open()]
    assert len(losses) == 2
    assert losses[1] < losses[0]


def test_collect_notes_what_it_played_with(inside, tmp_path: Path) -> None:
    words = ("collect", "words", "--limit", "2", "--out", "demos")
    for more in ((), ("--n", "2", "--min-tier", "rlimits")):
        assert inside(*words, *more)[0] == 0
        (played,) = json.loads((tmp_path / "demos" / "played.json").read_text())
    assert played["interpreter"]["host"] == "local"
    assert played["interpreter"]["tier"] in TIERS
    assert played["grading"] == STRICT.record()
    assert played["environment"]["python"]


@pytest.mark.parametrize("command", ["bench words", "collect words", "solve", "iterate", "demo"])
def test_no_command_runs_code_in_a_seccomp_than_is_asked_for(
    command: str, inside, seccomp: object
) -> None:
    code, _, errors = inside(*command.split(), "--out", "out", "--min-tier", "namespaces")
    assert code != 0
    assert "weaker than min_tier='namespaces'" in " ".join(errors.split())


def test_bench_with_a_model_notices_other_weights(inside, tmp_path: Path, tiny: Path) -> None:
    from agents.tiny import TinyConfig, make_tiny

    model = tmp_path / "tiny"
    make_tiny(model, config=TinyConfig(hidden=64, layers=2, heads=2, intermediate=96))
    words = ["bench", "words", "--limit", "2", "--out", "r", "--agent", "transformers"]
    words += ["--model", str(model), *TINY_TOKENS]
    code, text, errors = inside(*words)
    assert (code, "tiny" in text) == (0, True), errors
    make_tiny(model, config=TinyConfig(hidden=64, layers=2, heads=2, intermediate=96), seed=1)
    code, _, errors = inside(*words)
    assert (code, "model_sha256" in errors) == (2, True)
    assert inside(*words, "--n", "2", "--temperature", "0")[0] == 2


def test_preference_learners_refuse_what_no_model_sampled(inside, tiny: Path) -> None:
    assert inside("collect", "words", "--limit", "2", "--out", "demos")[0] == 0
    code, _, errors = inside(
        "train", "mdpo", "--trajectories", "demos", "--policy", str(tiny), "--out", "out"
    )
    assert (code, "holds no tokens" in errors) == (2, True)
