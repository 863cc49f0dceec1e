"""The loop samples with the engine and writes with the dialect that its recipe names.

vLLM and Ray are tested where MATHENV_TEST_ENGINES names them (`make test-engines`).
"""

import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from importlib.util import find_spec

import pytest

from agents.models.hf import load_tokenizer
from agents.policy import EngineOptions, RenderOptions
from learners import iterate as loop
from learners.planning import preflight
from learners.recipe import load_recipe
from learners.reporter import Reporter
from learners.run import fine_tune, prepare, run_iterations
from learners.training.checkpoint import step_folders
from mathenv import env
from mathenv.errors import ConfigError, InfraError, MathEnvError
from mathenv.interpreter import Limits
from mathenv.store import read_trajectories

ENGINES = os.environ.get("MATHENV_TEST_ENGINES", "").split(",")
NO_DOCKER = "no Docker engine answers|needs the docker package"


def needs(engine):
    reason = f"MATHENV_TEST_ENGINES does not name {engine} (make test-engines)"
    return pytest.mark.skipif(engine not in ENGINES, reason=reason)


def once(micro, **changes):
    """Return the micro recipe for one iteration of RAFT, with changes to the loop.

    With one checkpoint: engines take long to start.
    """
    method = replace(micro.method, train=replace(micro.method.train, checkpoints=1))
    return replace(
        micro.recipe,
        learner="raft",
        iterate=replace(micro.recipe.iterate, iterations=1, **changes),
        methods={"raft": method},
    )


def rollouts(run):
    return list(read_trajectories(run / "raft/iteration-1/rollouts.jsonl"))


def test_a_dialect_is_spoken_from_the_base_model_to_the_last_checkpoint(micro, tmp_path):
    """A base model without a template; system text goes before every question."""
    base = tmp_path / "base"
    shutil.copytree(micro.run / "base", base)
    for name in ("chat_template.jinja", "checksums.json"):  # on purpose, so both
        (base / name).unlink()
    assert load_tokenizer(base).chat_template is None
    rendering = RenderOptions("gemma2", system="Use Python.")
    recipe = replace(once(micro, rendering=rendering), model=str(base))
    run = tmp_path / "run"
    prepare(run, recipe)
    start = fine_tune(run, recipe, micro.sets, Reporter())
    (result,) = run_iterations(run, recipe, micro.sets, start, Reporter())

    spoken = rendering.renderer(load_tokenizer(base))
    greedy = list(read_trajectories(run / "raft/iteration-1/validation/before.jsonl"))
    played = [*start.demonstrations, *rollouts(run), *greedy]
    assert len(played) == 20 + 12 * (4 + 2) + 6
    assert {t.tokens.fingerprint for t in played} == {spoken.fingerprint}
    for t in played:
        assert t.tokens.ids[: t.tokens.prompt_length] == tuple(
            spoken.prompt_ids(t.problem.question)
        )
    # What comes after needs no dialect to be named.
    trained = [path for _, path in step_folders(run / "raft/iteration-1/train")]
    for policy in (start.policy, start.previous, *trained, result.policy):
        assert RenderOptions().renderer(load_tokenizer(policy)).fingerprint == spoken.fingerprint


def test_the_engine_is_the_one_that_was_asked_for(micro, tmp_path):
    """The same weights in another precision: other log-probabilities, nearly the same."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        config = once(micro, engine=EngineOptions(dtype=dtype, max_batch=8)).iterate
        found[dtype] = loop.evaluate(
            micro.start.policy, micro.sets.validation, tmp_path / f"{dtype}.jsonl", config
        )
    exact, rounded = ([t.tokens.logprobs[0] for t in found[d]] for d in ("float32", "bfloat16"))
    assert exact != rounded
    assert exact == pytest.approx(rounded, abs=0.2)


@pytest.fixture
def no_engine(monkeypatch, tmp_path):
    """Leave Docker no engine to ask."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.delitem(env._shared, ("docker", Limits()), raising=False)


def test_every_stage_runs_its_code_where_the_recipe_says(micro, tmp_path, no_engine):
    """There is no engine, so each stage that would ask it fails, and by its name."""
    recipe = once(micro, interpreter="docker")
    with pytest.raises(MathEnvError, match=NO_DOCKER):
        prepare(tmp_path / "new", recipe)
    shutil.copytree(micro.run / "base", tmp_path / "run" / "base")
    with pytest.raises(MathEnvError, match=NO_DOCKER):
        fine_tune(tmp_path / "run", recipe, micro.sets, Reporter())
    with pytest.raises(MathEnvError, match=NO_DOCKER):
        run_iterations(tmp_path / "run", recipe, micro.sets, micro.start, Reporter())
    assert not list((tmp_path / "run" / "raft").rglob("selection.json")), "it failed in sampling"
    file = tmp_path / "greedy.jsonl"
    with pytest.raises(MathEnvError, match=NO_DOCKER):
        loop.evaluate(micro.start.policy, micro.sets.validation, file, recipe.iterate)


def test_no_stage_runs_code_in_a_seccomp_than_the_recipe_allows(micro, tmp_path, seccomp):
    recipe = once(micro, min_tier="namespaces")
    shutil.copytree(micro.run / "base", tmp_path / "run" / "base")
    file = tmp_path / "greedy.jsonl"
    for stage in (
        lambda: prepare(tmp_path / "new", recipe),
        lambda: fine_tune(tmp_path / "run", recipe, micro.sets, Reporter()),
        lambda: run_iterations(tmp_path / "run", recipe, micro.sets, micro.start, Reporter()),
        lambda: loop.evaluate(micro.start.policy, micro.sets.validation, file, recipe.iterate),
    ):
        with pytest.raises(InfraError, match="weaker than min_tier='namespaces'"):
            stage()
    assert not [path for path in tmp_path.rglob("*.jsonl") if path.read_text()]
    enough = replace(recipe.iterate, min_tier="seccomp")
    assert len(loop.evaluate(micro.start.policy, micro.sets.validation, file, enough)) == 6


@needs("docker")
def test_a_whole_run_plays_in_docker(micro, tmp_path):
    recipe, run = once(micro, interpreter="docker"), tmp_path / "run"
    prepare(run, recipe)
    assert json.loads((run / "manifest.json").read_text())["interpreter"]["host"] == "docker"
    start = fine_tune(run, recipe, micro.sets, Reporter())
    played, here = (
        sorted([(turn.action, turn.observation) for turn in t.turns] for t in demonstrations)
        for demonstrations in (start.demonstrations, micro.start.demonstrations)
    )
    assert played == here
    run_iterations(run, recipe, micro.sets, start, Reporter())
    assert len(rollouts(run)) == 12 * (4 + 2)


def test_a_run_that_an_earlier_version_began_goes_on(micro, tmp_path):
    """Its manifest lacks the settings that came since."""
    shutil.copy(micro.run / "manifest.json", tmp_path)
    file = tmp_path / "manifest.json"
    manifest = json.loads(file.read_text())
    assert manifest["recipe"]["iterate"]["engine"]["kind"] == "transformers"
    newer = ("engine", "rendering", "interpreter", "min_tier")
    for name in (*newer, "ray", "workers", "worker_cpus", "worker_gpus"):
        del manifest["recipe"]["iterate"][name]
    file.write_text(json.dumps(manifest))
    prepare(tmp_path, micro.recipe)
    changed = replace(micro.recipe.iterate, rendering=RenderOptions("gemma2"))
    with pytest.raises(ConfigError, match=r"another recipe \(differs in iterate\)"):
        prepare(tmp_path, replace(micro.recipe, iterate=changed))


def test_a_run_from_before_there_was_a_protocol_was_the_papers(micro, tmp_path):
    shutil.copy(micro.run / "manifest.json", tmp_path)
    file = tmp_path / "manifest.json"
    manifest = json.loads(file.read_text())
    assert manifest["recipe"]["iterate"]["collect"]["protocol"] == "lenient"
    for name in ("protocol", "say_empty"):
        del manifest["recipe"]["iterate"]["collect"][name]
    file.write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"another recipe \(differs in iterate\)"):
        prepare(tmp_path, micro.recipe)
    iterate = micro.recipe.iterate
    strict = replace(iterate, collect=replace(iterate.collect, protocol="paper"))
    prepare(tmp_path, replace(micro.recipe, iterate=strict))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[iterate.engine]\nkind = "sglang"', r"'sglang' is none of 'transformers', 'vllm'"),
        ("[iterate.engine]\nmax_batch = 0", r"must be at least 1"),
        ('[iterate.rendering]\ndialect = "latin"', r"no dialect is called 'latin': use gemma"),
        ('[iterate]\ninterpreter = "podman"', r"'podman' is none of 'local', 'docker'"),
        ('[iterate]\nmin_tier = "docker"', r"'docker' is none of 'namespaces', 'seccomp'"),
        ('[iterate.rendering]\ntool_role = "system"', r"'system' is none of 'user', 'tool'"),
        ('[iterate.rendering]\nstop_strings = "abc"', r"rendering\.stop_strings"),
    ],
)
def test_what_no_engine_or_renderer_can_be_is_named_with_the_file(tmp_path, text, message):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)mine\.toml.*{message}"):
        load_recipe(file)


def test_a_recipe_that_names_engine_and_dialect_is_read(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        """
        [iterate.engine]
        kind = "vllm"
        dtype = "bfloat16"
        [iterate.rendering]
        dialect = "mistral-v0.3"
        tool_role = "tool"
        stop_strings = ["Observation:"]
        """
    )
    iterate = load_recipe(file).iterate
    assert iterate.engine == EngineOptions("vllm", dtype="bfloat16")
    assert iterate.rendering == RenderOptions("mistral-v0.3", "tool", "", ("Observation:",))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_an_engine_that_is_not_installed_is_missed_before_anything_runs(micro):
    with pytest.raises(ConfigError, match=r"lacks.*the package vllm \(pip install"):
        preflight.require(once(micro, engine=EngineOptions("vllm")))


@needs("vllm")
@pytest.mark.timeout(1800)
def test_the_loop_samples_with_vllm_and_closes_it_before_it_trains(micro, tmp_path, monkeypatch):
    recipe = once(micro, engine=EngineOptions("vllm", max_batch=16))
    running, real = [], loop.train

    def train(*args, **kwargs):
        running.append(multiprocessing.active_children())
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train", train)
    (result,) = run_iterations(tmp_path, recipe, micro.sets, micro.start, Reporter())
    assert running == [[]]  # no engine's process beside the training
    played = rollouts(tmp_path)
    assert len(played) == 12 * (4 + 2)
    assert {t.agent for t in played} == {"current", "previous"}
    assert all(t.tokens.logprobs for t in played)
    assert 0 < sum(t.reward for t in played) < len(played)
    assert set(result.scores) == {"before", *(p.name for _, p in checkpoints(tmp_path))}
    ours = loop.evaluate(  # the same greedy episodes as with the other engine
        micro.start.policy, micro.sets.validation, tmp_path / "ours.jsonl", micro.recipe.iterate
    )
    theirs = read_trajectories(tmp_path / "raft/iteration-1/validation/before.jsonl")
    same = [t.tokens.ids in {o.tokens.ids for o in ours} for t in theirs]
    assert sum(same) >= len(same) - 1


def checkpoints(run):
    return step_folders(run / "raft/iteration-1/train")


@needs("ray")
@pytest.mark.timeout(600)
def test_the_loop_samples_with_workers_on_a_cluster(micro, tmp_path):
    recipe = once(micro, ray="local", workers=2)
    (result,) = run_iterations(tmp_path, recipe, micro.sets, micro.start, Reporter())
    assert len({t.key for t in rollouts(tmp_path)}) == len(rollouts(tmp_path)) == 12 * (4 + 2)
    assert result.scores["before"] > 0
