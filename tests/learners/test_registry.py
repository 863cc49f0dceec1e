import os
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

from learners import (
    KTOConfig,
    LearnerConfig,
    learner_names,
    make_learner,
    register_learner,
    registry,
    settings_type,
)
from learners.methods.sft import SFT
from learners.recipe import load_recipe
from mathenv.errors import ConfigError

ROOT = Path(__file__).parents[2]

MODULE = '''
"""A learner of somebody else's, with a setting of its own."""
from dataclasses import dataclass

from learners import LearnerConfig, MultiTurnDPO


@dataclass(frozen=True, slots=True)
class Settings(LearnerConfig):
    temper: float = 1.0


class Curious(MultiTurnDPO):
    name = "curious"
    Config = Settings

    def pair_losses(self, sides):
        return super().pair_losses(sides) / self.config.temper
'''

# Adds the package's folder as site-packages are added, and uses the learner as a recipe does.
SCRIPT = """
import site, sys
from pathlib import Path
site.addsitedir(sys.argv[1])
from learners import LearnerConfig, learner_names, make_learner
from learners.recipe import load_recipe
assert "curious" in learner_names(), learner_names()
learner = make_learner("curious", LearnerConfig(eta=0.7))
assert (learner.name, learner.config.eta, learner.config.temper) == ("curious", 0.7, 1.0)
assert type(learner).__module__ == "their_package"
recipe = load_recipe(sys.argv[2])
assert recipe.learner == "curious"
assert recipe.methods["curious"].loss.temper == 0.5
"""


def test_ours_are_there():
    ours = {"sft", "raft", "dpo", "kto", "mdpo", "mkto", "ipo", "simpo", "dmpo", "stepdpo", "grpo"}
    assert ours <= set(learner_names())
    assert learner_names() == tuple(sorted(learner_names()))


def test_a_name_builds_a_learner_with_its_settings():
    config = LearnerConfig(eta=0.3)
    assert make_learner("mdpo", config).config is config
    assert make_learner("mdpo").config == LearnerConfig()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'ppo'.*dpo, .*mdpo, .*raft, sft"):
        make_learner("ppo")


def test_a_decorator_registers(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register_learner("mine")
    class Mine(SFT):
        name = "mine"

    assert isinstance(make_learner("mine"), Mine)
    assert "mine" in learner_names()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A wheel of somebody else's package, installed by pip into a folder of its own."""
    folder = tmp_path_factory.mktemp("theirs")
    wheel = folder / "their_package-1.0-py3-none-any.whl"
    info = "their_package-1.0.dist-info"
    files = {
        "their_package.py": MODULE,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[mathenv.learners]\ncurious = their_package:Curious\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    done = subprocess.run(
        [*command, "--target", str(folder / "site"), str(wheel)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_an_installed_package_adds_a_learner_and_its_settings(installed, tmp_path):
    recipe = tmp_path / "their.toml"
    recipe.write_text('learner = "curious"\n[methods.curious.loss]\ntemper = 0.5\n')
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(installed), str(recipe)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_settings_that_a_learner_lacks_are_refused_and_defaults_are_its_own():
    assert settings_type("mkto") is KTOConfig
    assert settings_type("mdpo") is LearnerConfig
    assert make_learner("simpo", LearnerConfig(nll_coef=0.5)).config.eta == 2.0
    with pytest.raises(ConfigError, match=r"mdpo has no setting called kl$"):
        make_learner("mdpo", KTOConfig(kl="none"))


def test_swapping_the_learner_of_a_recipe_is_one_word(tmp_path):
    text = (files("learners") / "recipes" / "tiny.toml").read_text()
    for name in learner_names():
        path = tmp_path / f"{name}.toml"
        path.write_text(text.replace('learner = "mdpo"', f'learner = "{name}"'))
        recipe = load_recipe(path)
        assert make_learner(recipe.learner).name == name


@pytest.mark.parametrize("name", sorted(registry.OURS))
def test_settings_known_without_import_are_those_of_the_learner(name: str) -> None:
    assert make_learner(name).config == settings_type(name)()
    assert make_learner(name).name == name
    assert getattr(registry.find_factory(name), "Config", LearnerConfig) is settings_type(name)
