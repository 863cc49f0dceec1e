"""The recipes of the paper, and what they need of a run."""

import re
from dataclasses import replace
from importlib.resources import files

import pytest

from agents.models.hf import load_tokenizer
from agents.rendering import ChatRenderer
from learners.learner import make_learner
from learners.planning.plan import make_plan
from learners.planning.shapes import DEVICES, shape_of
from learners.recipe import load_recipe
from learners.reporter import Reporter
from learners.run import fine_tune, problem_sets
from learners.training.checkpoint import step_folders
from mathenv.errors import ConfigError

PAPER = ("gemma-1.1-it-7b", "codegemma-1.1-it-7b", "mistral-7b-v0.3", "gemma-2-it-9b")
METHODS = ("raft", "dpo", "kto", "mdpo", "mkto")


@pytest.mark.parametrize(
    ("name", "sft", "epochs", "preference", "raft"),
    [
        ("gemma-1.1-it-7b", 5e-6, 3, 4e-7, (5e-6, 2)),
        ("codegemma-1.1-it-7b", 5e-6, 3, 4e-7, (5e-6, 2)),
        ("mistral-7b-v0.3", 1e-5, 2, 2e-7, (1e-6, 1)),
        ("gemma-2-it-9b", 5e-6, 3, 2e-7, (5e-6, 2)),
    ],
)
def test_what_differs_between_the_models(name, sft, epochs, preference, raft):
    recipe = load_recipe(name)
    assert (recipe.sft.lr, recipe.sft.epochs) == (sft, epochs)
    assert {recipe.methods[m].train.lr for m in ("dpo", "kto", "mdpo", "mkto")} == {preference}
    assert (recipe.methods["raft"].train.lr, recipe.methods["raft"].train.epochs) == raft


@pytest.mark.parametrize("name", PAPER)
def test_what_the_paper_has_for_all_models(name):
    recipe = load_recipe(name)
    assert recipe.learner == "mdpo"
    assert set(METHODS) <= set(recipe.methods)
    iterate = recipe.iterate
    assert (iterate.iterations, iterate.current_samples, iterate.previous_samples) == (3, 20, 10)
    assert iterate.reference == "last"
    assert (iterate.sampling.temperature, iterate.sampling.top_p) == (1.0, 1.0)
    assert (iterate.sampling.max_turn_tokens, iterate.sampling.max_tokens) == (512, 2048)
    assert iterate.collect.horizon == 6
    assert (recipe.problems.prompts, recipe.problems.validation) == (60_000, 1_000)
    for method in METHODS:
        settings = recipe.methods[method]
        assert settings.train.batch_size == 32
        assert settings.loss.pairs.per_problem == 1
        assert settings.loss.pairs.max_tokens == 2048
        if method != "raft":
            assert (settings.loss.eta, settings.loss.nll_coef) == (0.1, 0.0)
            assert settings.train.epochs == 1
        assert make_learner(method, settings.loss).name == method


@pytest.mark.parametrize("name", PAPER)
def test_single_turn_baselines_differ_by_their_mask_alone(name):
    methods = load_recipe(name).methods
    assert methods["dpo"] == methods["mdpo"]
    assert methods["kto"] == methods["mkto"]


@pytest.mark.parametrize("name", PAPER)
def test_warm_up_is_the_number_of_steps_that_the_paper_has(name):
    recipe = load_recipe(name)
    steps = recipe.problems.demonstrations * recipe.sft.epochs / recipe.sft.batch_size
    assert recipe.sft.warmup * steps == pytest.approx(100, rel=0.02)
    for method, examples in (("mdpo", 17_500), ("mkto", 35_000)):
        train = recipe.methods[method].train
        assert train.warmup * examples / train.batch_size == pytest.approx(40, rel=0.02)


@pytest.mark.parametrize("name", PAPER)
def test_every_value_says_where_it_comes_from(name):
    lines = (files("learners") / "recipes" / f"{name}.toml").read_text().splitlines()
    values = [line for line in lines if re.match(r"[a-z_]+ = ", line)]
    assert len(values) > 60
    assert [v for v in values if not re.search(r"  # (P|C|ours)\b", v)] == []


@pytest.mark.parametrize("name", PAPER)
def test_every_method_fits_the_papers_machine(name):
    recipe = load_recipe(name)
    assert 7e9 < shape_of(recipe).parameters < 9.5e9
    for method in ("sft", *METHODS):
        assert make_plan(recipe, 8, DEVICES["A100-80G"], learner=method).refusals == ()


# --- demonstrations from a file, and the first mixture


@pytest.fixture
def from_file(micro):
    """The micro recipe shown demonstrations that lie in a file."""
    file = micro.run / "sft" / "demonstrations.jsonl"
    problems = replace(micro.recipe.problems, demonstrations=15, demonstration_file=str(file))
    sft = replace(micro.recipe.sft, epochs=3, checkpoints=3)
    return replace(micro.recipe, problems=problems, sft=sft)


def test_demonstrations_come_from_the_file(micro, from_file, tmp_path):
    sets = problem_sets(from_file.problems)
    assert not sets.demonstrations
    assert len(sets.prompts) == len(micro.sets.prompts)
    start = fine_tune(tmp_path, from_file, sets, Reporter())
    assert list(start.demonstrations) == list(micro.start.demonstrations)[:15]
    renderer = ChatRenderer(load_tokenizer(start.policy))
    assert {t.tokens.fingerprint for t in start.demonstrations} == {renderer.fingerprint}
    assert not (tmp_path / "sft" / "demonstrations.jsonl").exists()


def test_too_few_demonstrations_are_an_error(micro, from_file, tmp_path):
    recipe = replace(from_file, problems=replace(from_file.problems, demonstrations=21))
    with pytest.raises(ConfigError, match=r"20 right demonstrations, 21 are needed"):
        fine_tune(tmp_path, recipe, micro.sets, Reporter())


@pytest.mark.parametrize(("back", "place"), [(0, 2), (1, 1), (2, 0), (9, 0)])
def test_the_first_mixtures_second_member(micro, from_file, tmp_path, back, place):
    recipe = replace(from_file, first_previous=back)
    start = fine_tune(tmp_path, recipe, micro.sets, Reporter())
    checkpoints = [path for _, path in step_folders(tmp_path / "sft" / "train")]
    assert len(checkpoints) == 3
    assert start.policy == checkpoints[-1]
    assert start.previous == checkpoints[place]
