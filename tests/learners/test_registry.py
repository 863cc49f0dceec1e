import os
import subprocess
import sys
from pathlib import Path

import pytest

from learners import LearnerConfig, learner_names, make_learner, register_learner
from learners import learner as registry
from learners.sft import SFT
from mathenv.errors import ConfigError

ROOT = Path(__file__).parents[2]

MODULE = '''
"""A learner of somebody else's."""
from learners.sft import SFT


class Curious(SFT):
    name = "curious"
    from_demonstrations = False
'''

SCRIPT = """
from learners import LearnerConfig, learner_names, make_learner
from learners.recipe import load_recipe
import sys
assert "curious" in learner_names(), learner_names()
learner = make_learner("curious", LearnerConfig(eta=0.7))
assert (learner.name, learner.config.eta) == ("curious", 0.7)
assert type(learner).__module__ == "their_package"
assert load_recipe(sys.argv[1]).methods["curious"].loss.eta == 0.5
"""


def test_ours_are_there():
    assert {"mdpo", "dpo", "raft", "sft"} <= set(learner_names())
    assert learner_names() == tuple(sorted(learner_names()))


def test_a_name_builds_a_learner_with_its_settings():
    config = LearnerConfig(eta=0.3)
    assert make_learner("mdpo", config).config is config
    assert make_learner("mdpo").config == LearnerConfig()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'ppo'.*dpo, mdpo, raft, sft"):
        make_learner("ppo")


def test_a_decorator_registers(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register_learner("mine")
    class Mine(SFT):
        name = "mine"

    assert isinstance(make_learner("mine"), Mine)
    assert "mine" in learner_names()


def test_an_installed_package_adds_a_learner_through_an_entry_point(tmp_path):
    (tmp_path / "their_package.py").write_text(MODULE)
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mathenv.learners]\ncurious = their_package:Curious\n")
    (tmp_path / "their.toml").write_text("[methods.curious.loss]\neta = 0.5\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "their.toml")],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
