import tomllib
from importlib.resources import files

import pytest

from learners.learner import learner_names
from learners.recipe import Recipe, load_recipe, recipe_names
from mathenv.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write


def test_tiny_ships():
    assert "tiny" in recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_ships_loads_and_says_what_its_file_says(name):
    recipe = load_recipe(name)
    assert recipe.learner in learner_names()
    table = tomllib.loads((files("learners") / "recipes" / f"{name}.toml").read_text())
    compare(table, recipe)


def compare(table, value):
    for key, expected in table.items():
        found = value[key] if isinstance(value, dict) else getattr(value, key)
        if isinstance(expected, dict):
            compare(expected, found)
        else:
            assert found == (tuple(expected) if isinstance(expected, list) else expected), key


def test_a_file_is_loaded_by_path_and_what_it_leaves_out_has_the_default(write):
    path = write(
        """
        learner = "raft"
        [sft]
        lr = 1
        betas = [0.8, 0.95]
        [iterate.sampling]
        temperature = 0.7
        [methods.raft.loss.pairs]
        per_problem = 4
        """
    )
    recipe = load_recipe(path)
    assert load_recipe(str(path)) == recipe
    assert recipe.sft.betas == (0.8, 0.95)
    assert recipe.sft.lr == 1.0
    assert isinstance(recipe.sft.lr, float)
    assert recipe.iterate.sampling.temperature == 0.7
    assert recipe.methods["raft"].loss.pairs.per_problem == 4
    assert recipe.problems == Recipe().problems


def test_an_empty_file_is_the_default_recipe(write):
    assert load_recipe(write("")) == Recipe()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lr = 1", "lr"),
        ("[sft]\nlearning_rate = 1.0", r"learning_rate.*sft"),
        ("[iterate.collect]\nhorizonn = 3", r"horizonn.*iterate\.collect"),
        ("[methods.mdpo.loss.pairs]\nper_problm = 2", r"per_problm.*mdpo"),
        ('[sft]\nlr = "3e-3"', r"float.*sft\.lr"),
        ("[sft]\nepochs = 2.7", r"int.*sft\.epochs"),
        ("[sft]\nepochs = true", r"int.*sft\.epochs"),
        ("[sft]\nbetas = [0.9]", r"sft\.betas"),
        ('[sft]\nbetas = [0.9, "a"]', r"float.*sft\.betas\[1\]"),
        ("learner = 5", r"str.*learner"),
        ("sft = 5", r"TrainConfig.*sft"),
        ("methods = 4", r"mapping.*methods"),
        ("[problems]\ndata = 3", r"problems\.data"),
        ("[methods.mdpo.loss.pairs]\ndrop_error_winners = 1", r"bool.*drop_error_winners"),
        ('[sft]\nschedule = "step"', r"schedule.*'step'.*cosine.*sft"),
        ('[iterate]\nreference = "newest"', r"'last', 'first' or.*iterate"),
        ('learner = "ppo"', r"'ppo'.*mdpo"),
        ("[methods.mpdo.loss]\neta = 0.1", r"'mpdo'.*mdpo"),
        ("a = ", "not valid TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(write, text, named):
    with pytest.raises(ConfigError, match=rf"(?s)mine\.toml.*{named}"):
        load_recipe(write(text))


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no recipe nope.*tiny"):
        load_recipe("nope")
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        load_recipe(tmp_path / "missing.toml")
