"""`mathenv ablate` on a micro world: sharing, resuming, failing, and the pages."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agents.base import SamplingParams
from agents.rollout import CollectConfig
from agents.tiny import TinyConfig
from benchmarks.cli import main
from benchmarks.pages.sources import find_run
from benchmarks.studies.ablation.page import write_pages
from benchmarks.studies.ablation.results import SFT, Policy, load_results
from benchmarks.studies.ablation.run import CONFIG, FAILED, MEASURED, pin, run_all
from benchmarks.studies.ablation.sft import adopt
from benchmarks.studies.ablation.variants import VARIANTS, Sizes
from learners.iterate import IterateConfig, Method
from learners.learner import LearnerConfig
from learners.preferences import PairRules
from learners.recipe import ProblemsConfig, Recipe
from learners.reporter import Reporter
from learners.training.train import TrainConfig
from mathenv.errors import ConfigError
from mathenv.store import read_trajectories

SIZES = Sizes(2, prompts=6, validation=6, test=4, ood=2, sampled=2, samples=4, many=4)
NAMES = (
    "mdpo",
    "raft",
    "mdpo-fixed",
    "mdpo-noise-0.3",
    "mdpo-on-policy",
    "mdpo-n3",
    "mdpo-sft-5",
)


def micro_problems(folder: Path) -> Path:
    """Write a world of sums of small digits."""
    folder.mkdir(parents=True)
    for split, count in (("train", 40), ("test", 4)):
        rows = []
        for i in range(count):
            a, b = 1 + i % 3, 1 + i // 3 % 3
            row = {"id": f"{split}/{i}", "question": f"What is {a} + {b}?", "answer": str(a + b)}
            rows.append(json.dumps({**row, "solution": [f"{a} + {b}"]}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(rows))
    return folder


def micro_recipe(problems: Path) -> Recipe:
    method = Method(
        LearnerConfig(nll_coef=1.0, pairs=PairRules(per_problem=2)),
        TrainConfig(lr=3e-3, batch_size=4, checkpoints=1),
    )
    return Recipe(
        tiny=TinyConfig(
            hidden=32, layers=1, heads=1, intermediate=64, vocab=320, max_positions=256
        ),
        problems=ProblemsConfig(str(problems), None, 20, prompts=12, validation=6, test=4),
        sft=TrainConfig(lr=1e-2, epochs=32, batch_size=5, checkpoints=2),
        iterate=IterateConfig(
            iterations=2,
            current_samples=4,
            previous_samples=2,
            sampling=SamplingParams(max_turn_tokens=24, max_tokens=120),
            collect=CollectConfig(horizon=3, concurrency=16, threads=2),
        ),
        methods=dict.fromkeys(("mdpo", "raft"), method),
        threads=1,
    )


def variants():
    """Some of the table, one of them with a learning rate that breaks it."""
    rows = [v for v in VARIANTS if v.name in NAMES]
    broken = next(v for v in VARIANTS if v.name == "mdpo-eta-0.5")
    broken = replace(broken, changes={"methods.mdpo.train.lr": 1e30})
    return [rows[0], broken, *rows[1:]]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    recipe = micro_recipe(micro_problems(folder / "problems"))
    run_all(variants(), recipe, SIZES, (0,), folder / "run", Reporter())
    return recipe, folder / "run"


def rollouts(run, variant, number=1):
    file = run / "seed-0" / variant / f"iteration-{number}" / "rollouts.jsonl"
    # Not the log-probs: their last digits depend on what else was in the batch.
    return {t.key: replace(t, tokens=replace(t.tokens, logprobs=())) for t in stored(file)}


def stored(file):
    return list(read_trajectories(file))


def measured(run):
    found = {}
    for file in run.glob(f"seed-0/**/{MEASURED}"):
        found[file.parent.name] = json.loads(file.read_text())
        found[file.parent.name].pop("seconds", None)
    return found


# --- what is run


def test_every_variant_is_measured_or_said_to_have_failed(world):
    _, run = world
    assert set(measured(run)) == {*NAMES, "sft"}
    reason = json.loads((run / "seed-0" / "mdpo-eta-0.5" / FAILED).read_text())["reason"]
    assert "Lower the learning rate" in reason


def test_first_rollouts_are_shared_by_what_begins_alike(world):
    _, run = world
    first = rollouts(run, "mdpo")
    assert len(first) == 6 * 6
    assert rollouts(run, "raft") == rollouts(run, "mdpo-fixed") == first
    few = rollouts(run, "mdpo-n3")
    assert len(few) == 3 * 6
    assert few.items() <= first.items()
    on_policy = rollouts(run, "mdpo-on-policy")
    assert len(on_policy) == 6 * 6
    assert {t.agent for t in on_policy.values()} == {"current"}
    shared = {k: t for k, t in first.items() if t.agent == "current"}
    assert shared.items() <= on_policy.items()
    assert rollouts(run, "mdpo-sft-5") != first


def test_sharing_changes_nothing(world, tmp_path):
    """Alone, without the variants that want more samples, a variant does the same."""
    recipe, run = world
    alone = [v for v in variants() if v.name == "raft"]
    run_all(alone, recipe, SIZES, (0,), tmp_path / "run", Reporter())
    assert rollouts(tmp_path / "run", "raft") == rollouts(run, "raft")
    assert measured(tmp_path / "run")["raft"] == measured(run)["raft"]


def test_prompts_of_iterations_are_disjoint(world):
    _, run = world
    for name in ("mdpo", "raft", "mdpo-fixed", "mdpo-on-policy", "mdpo-n3"):
        prompts = [{t.problem.id for t in rollouts(run, name, n).values()} for n in (1, 2)]
        assert [len(p) for p in prompts] == [6, 6]
        assert not prompts[0] & prompts[1]


def test_noise_is_in_the_training_data_only(world):
    """What the interpreter showed differs from what the code gives; masks are as ever."""
    _, run = world
    noisy = rollouts(run, "mdpo-noise-0.3")
    clean = rollouts(run, "mdpo") | rollouts(run, "mdpo", 2)

    def wrong(trajectories):
        cells = [t for x in trajectories for t in x.turns if t.execution and t.observation]
        shown = [(t.code, t.observation) for t in cells if t.code and t.code.count("+") == 1]
        sums = [(code, seen) for code, seen in shown if code.replace(" ", "")[::2].isdigit()]
        assert sums
        return sum(sum(map(int, code.split("+"))) != int(seen) for code, seen in sums) / len(sums)

    assert wrong(clean.values()) == 0
    assert 0.1 < wrong(noisy.values()) < 0.5
    played = stored(run / "seed-0" / "mdpo-noise-0.3" / "iteration-1" / "rollouts.jsonl")
    sampled = {t.key: len(t.tokens.logprobs) for t in played}
    for trajectory in noisy.values():
        record = trajectory.tokens
        kinds = [span.kind.value for span in record.spans]
        assert kinds.count("observation") == sum(t.observation != "" for t in trajectory.turns[:-1])
        assert sum(record.action_mask) == sampled[trajectory.key]
    tests = read_trajectories(run / "seed-0" / "test" / "mdpo-noise-0.3-1.jsonl")
    assert wrong(list(tests)) == 0


def test_what_is_measured_is_what_was_played(world):
    _, run = world
    results = load_results(run)
    found = results.scores(Policy("mdpo"), "test")[0]
    played = read_trajectories(run / "seed-0" / "test" / "mdpo-2.jsonl")
    assert found == {t.problem.id: t.reward for t in played}
    assert results.scores(Policy("mdpo-sft-5", 0), "test")[0].keys() == found.keys()
    assert len(results.scores(SFT, "ood")[0]) == 2
    assert set(results.failed) == {("mdpo-eta-0.5", 0)}


# --- resuming and refusing


def test_the_same_command_changes_nothing(world):
    recipe, run = world
    stamps = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    run_all(variants(), recipe, SIZES, (0,), run, Reporter())
    after = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    changed = {p.name for p in after if stamps.get(p) != after[p]}
    assert changed == set()


class Interrupting(Reporter):
    """Raises when a stage begins, the n-th time."""

    def __init__(self, number: int) -> None:
        self.left = number

    @contextmanager
    def stage(self, name, total, unit):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        with super().stage(name, total, unit) as advance:
            yield advance


def test_interrupted_anywhere_it_ends_the_same(world, tmp_path):
    recipe, run = world
    some = [v for v in variants() if v.name in ("mdpo", "mdpo-noise-0.3")]
    stops = 0
    for number in (1, 3, 6, 8, 10):
        try:
            run_all(some, recipe, SIZES, (0,), tmp_path / "run", Interrupting(number))
        except KeyboardInterrupt:
            stops += 1
    run_all(some, recipe, SIZES, (0,), tmp_path / "run", Reporter())
    assert stops >= 3
    found = measured(tmp_path / "run")
    assert set(found) == {"mdpo", "mdpo-noise-0.3", "sft"}
    assert found == {name: measured(run)[name] for name in found}


def test_another_configuration_is_refused(world):
    recipe, run = world
    changed = replace(recipe, sft=replace(recipe.sft, epochs=1))
    sizes = replace(SIZES, test=3)
    with pytest.raises(ConfigError, match=r"recipe\.sft, sizes\.test"):
        run_all(variants(), changed, sizes, (0,), run, Reporter())


def test_another_variant_of_the_same_name_is_refused(world):
    recipe, run = world
    changed = [replace(variants()[0], changes={"methods.mdpo.loss.eta": 0.2})]
    with pytest.raises(ConfigError, match="another variant"):
        run_all(changed, recipe, SIZES, (0,), run, Reporter())


def test_a_folder_with_something_else_is_refused(world, tmp_path):
    recipe, _ = world
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something else"):
        run_all(variants(), recipe, SIZES, (0,), tmp_path, Reporter())
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_sft_of_an_earlier_run_is_taken(world, tmp_path):
    recipe, run = world
    taken = tmp_path / "run" / "seed-0"
    adopt(run / "seed-0", taken, recipe)
    for part in ("base", "sft"):
        old, new = (sorted((f / part).rglob("*.safetensors")) for f in (run / "seed-0", taken))
        assert old
        assert [p.read_bytes() for p in old] == [p.read_bytes() for p in new]
    with pytest.raises(ConfigError, match=r"another SFT \(differs in sft, seed, problems"):
        adopt(
            run / "seed-0",
            tmp_path / "other",
            replace(
                recipe,
                seed=1,
                sft=replace(recipe.sft, lr=1.0),
                problems=replace(recipe.problems, demonstrations=10),
            ),
        )
    with pytest.raises(ConfigError, match="seed-1 holds no finished SFT"):
        run_all(variants(), recipe, SIZES, (0, 1), tmp_path / "two", Reporter(), sft=run)
    assert not (tmp_path / "two").exists()


def test_the_folder_is_a_run_like_others(world):
    """`mathenv view` shows its trajectories."""
    found = find_run(world[1])
    assert set(NAMES) <= set(found.seeds[0].learners)
    phases = {(s.phase, s.learner, s.iteration) for s in found.sources}
    assert {("rollouts", "mdpo-fixed", 2), ("test", "mdpo", 1), ("test", "raft", 2)} <= phases


# --- pages


@pytest.fixture(scope="module")
def pages(world, tmp_path_factory):
    return write_pages(world[1], tmp_path_factory.mktemp("docs") / "ablations.md")


def test_the_page_says_what_is_there_and_what_is_not(pages):
    text = pages[0].read_text()
    for heading in (
        "What the paper found",
        "Methods",
        "Out of distribution",
        "pass@k",
        "Diversity",
    ):
        assert f"## {heading}" in text
    assert "`mdpo-eta-0.5`, seed 0: failed." in text
    assert "`kto` (group `main`): not run" in text
    assert "M-KTO improves on the SFT policy (table 1): **was not run**" in text
    assert "M-DPO improves on the SFT policy (table 1): **" in text
    rows = [line for line in text.splitlines() if line.startswith("| `mdpo-fixed`")]
    assert any("79.9" in row for row in rows)


def test_the_html_stands_alone(pages):
    text = pages[1].read_text()
    assert 'src="data:image/png;base64,' in text
    assert "http://" not in text
    assert "https://" not in text
    assert "<script" not in text


def test_pictures_are_pictures(pages):
    pictures = pages[3:]
    assert len(pictures) == 6
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert all(f"]({path.name})" in pages[0].read_text() for path in pictures)


def test_the_data_are_all_there(world, pages):
    data = json.loads(pages[2].read_text())
    results = load_results(world[1])
    found = results.scores(Policy("mdpo"), "test")[0]
    told = dict(zip(data["problems"]["test"], data["variants"]["mdpo/0"]["test"]["2"], strict=True))
    assert {problem: float(outcome) for problem, outcome in told.items()} == found
    assert data["config"] == results.config
    verdicts = {f["claim"]["text"]: f["verdict"] for f in data["findings"]}
    assert all(f"{text}" in pages[0].read_text() for text in verdicts)
    assert verdicts["M-KTO improves on the SFT policy"] == "was not run"
    assert list(data["failed"]) == ["mdpo-eta-0.5/0"]


def test_the_same_run_gives_the_same_page(world, pages, tmp_path):
    again = write_pages(world[1], tmp_path / "ablations.md")
    for before, after in zip(pages, again, strict=True):
        assert before.read_bytes() == after.read_bytes()


def test_a_page_needs_results_and_a_markdown_name(world, tmp_path):
    with pytest.raises(ConfigError, match="holds no ablations"):
        write_pages(tmp_path, tmp_path / "page.md")
    with pytest.raises(ConfigError, match="markdown"):
        write_pages(world[1], tmp_path / "page.html")


# --- the command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--only", "etas"), "no group is called 'etas' (did you mean 'eta'?): there are main"),
        (("--threads", "0"), "threads must be at least 1"),
        (("--seeds", "1", "1"), "--seeds: a seed is named twice"),
        (("--page", "page.md"), "holds no ablations"),
    ],
)
def test_wrong_use_is_said_at_once(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["ablate", "--out", str(tmp_path / "run"), *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_page_of_a_run_that_goes_on(world, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["ablate", "--out", str(world[1]), "--page", str(tmp_path / "docs" / "page.md")])
    assert ended.value.code == 0
    assert str(tmp_path / "docs" / "page.html") in capsys.readouterr().out
    assert (tmp_path / "docs" / "page-findings.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_quick_runs_everything(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "benchmarks", "ablate", "--quick", "--out", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3500)
    assert done.returncode == 0, done.stderr
    results = load_results(run)
    finished = {name for name, _ in (*results.measured, *results.failed)}
    assert finished == {SFT.variant, *(v.name for v in VARIANTS)}
    text = (run / "ablations.md").read_text()
    left_out = [line for line in text.splitlines() if "**was not run**" in line]
    # Few problems and one short SFT: some variants find nothing to train on, and say so.
    assert all("failed" in line or "has no pass@32" in line for line in left_out)
    assert (run / "ablations.html").exists()


def test_a_folder_begun_before_a_setting_existed_goes_on(tmp_path: Path) -> None:
    recipe = micro_recipe(tmp_path / "problems")
    out = tmp_path / "out"
    pin(out, recipe, Sizes())
    file = out / CONFIG
    config = json.loads(file.read_text())
    del config["recipe"]["iterate"]["interpreter"]
    file.write_text(json.dumps(config))
    pin(out, recipe, Sizes())
    with pytest.raises(ConfigError, match=r"differs in recipe\.iterate"):
        pin(out, replace(recipe, iterate=replace(recipe.iterate, interpreter="docker")), Sizes())
