"""Noisy observations: what the policy sees is wrong, what ran and what is trained is not."""

import random

import pytest

from benchmarks.studies.ablation.noise import NoisyInterpreter, corrupt
from mathenv.env import MathToolEnv, shared_interpreter
from mathenv.errors import ConfigError
from mathenv.interpreter import Interpreter, Limits, Session
from mathenv.types import ExecutionStatus, Problem

CELLS = ("x = 123\nx", "x + 1", "1 / 0", "print('none')", "print(x, 4.05)")


def local():
    return shared_interpreter("local", Limits())


def outputs(interpreter, seed=7, cells=CELLS):
    session = interpreter.session(seed=seed)
    try:
        return [session.run(cell) for cell in cells]
    finally:
        session.close()


def test_it_is_an_interpreter():
    noisy = NoisyInterpreter(local(), 0.5)
    session = noisy.session(seed=1)
    assert isinstance(noisy, Interpreter)
    assert isinstance(session, Session)
    session.close()
    assert noisy.description["noise"] == "0.5"
    assert noisy.description["host"] == "local"


def test_every_digit_is_wrong_and_nothing_else():
    clean, noisy = outputs(local()), outputs(NoisyInterpreter(local(), 1.0))
    assert [r.status for r in noisy] == [r.status for r in clean]
    assert noisy[2] == clean[2]  # an error is shown as it is
    assert noisy[2].status is ExecutionStatus.ERROR
    assert noisy[3] == clean[3]  # no digits
    for index in (0, 1, 4):
        before, after = clean[index].output, noisy[index].output
        assert len(before) == len(after)
        for a, b in zip(before, after, strict=True):
            assert (a != b and b.isdigit()) if a.isdigit() else a == b


def test_the_code_itself_runs_without_noise():
    session = NoisyInterpreter(local(), 1.0).session()
    session.run("x = 40\nx")
    assert session.run("'right' if x == 40 else 'wrong'").output == "'right'"
    session.close()


def test_without_noise_nothing_changes():
    assert outputs(NoisyInterpreter(local(), 0.0)) == outputs(local())


def test_it_is_repeatable_and_follows_the_seed():
    noisy = NoisyInterpreter(local(), 0.5)
    cells = ("12345678",) * 12
    assert outputs(noisy, 1, cells) == outputs(noisy, 1, cells)
    assert outputs(noisy, 1, cells) != outputs(noisy, 2, cells)


def test_the_share_is_a_share():
    cells = ("1000",) * 200
    wrong = sum(r.output != "1000" for r in outputs(NoisyInterpreter(local(), 0.3), 3, cells))
    assert 40 <= wrong <= 80  # binomial(200, 0.3): 60 +- 3 standard deviations


def test_a_fork_goes_on_with_the_same_noise():
    session = NoisyInterpreter(local(), 0.5).session(seed=5)
    session.run("x = 1234")
    copy = session.fork()
    assert [session.run("x") for _ in range(8)] == [copy.run("x") for _ in range(8)]
    copy.close()
    session.close()


def test_numbers_stay_numbers():
    rng = random.Random(0)
    for text in ("100", "7", "-40.05", "x=9"):
        found = corrupt(text, rng)
        assert all(a != b for a, b in zip(text, found, strict=True) if a.isdigit())
        assert not found.lstrip("-x=").startswith("0")


def test_an_episode_shows_what_was_corrupted():
    problem = Problem("p", "What is 20 + 22?", "42")
    env = MathToolEnv(problems=[problem], interpreter=NoisyInterpreter(local(), 1.0))
    env.reset(seed=0)
    observation, *_ = env.step("```python\n20 + 22\n```")
    assert observation != "42"
    assert env.turns[0].observation == observation
    _, reward, *_ = env.step(r"\boxed{42}")  # the grader is not fooled
    assert reward == 1
    env.close()


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_no_share(share):
    with pytest.raises(ConfigError, match="0 to 1"):
        NoisyInterpreter(local(), share)
