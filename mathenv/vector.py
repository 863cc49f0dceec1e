"""Many `MathToolEnv` side by side: `gymnasium.make_vec("MathTool-v0", num_envs=64)`.

Text has no fixed size, so a batch of it is a tuple of `str`; nothing is copied into shared
memory or into NumPy's fixed-width string arrays, which cut text and drop trailing NULs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from mathenv.env import MathToolEnv
from mathenv.errors import ConfigError, InfraError, whole
from mathenv.problems import load_problems
from mathenv.types import Problem

# Threads only wait for sandboxed processes, so more of them than cores keep the cores busy
# while cells sleep. Not one per environment: hundreds of cells on a few cores would each
# run into their limit of wall time.
_THREADS_PER_CPU = 8

Wrapper = Callable[[gymnasium.Env[str, str]], gymnasium.Env[str, str]]


@dataclass(frozen=True, slots=True)
class _Step:
    """What one sub-environment gave; `final` where a new episode began in the same step."""

    observation: str
    info: dict[str, Any]
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    final: dict[str, Any] | None = None


class MathToolVectorEnv(SyncVectorEnv):
    """`num_envs` environments whose cells run concurrently, in threads.

    Observations and actions are tuples of `num_envs` strings (any sequence of strings is
    taken as actions); rewards are float64, terminations and truncations bool arrays of
    shape `(num_envs,)`. `infos` is Gymnasium's: per key an array and a mask `_key`.

    The problems are loaded once, and all environments share one interpreter. Given the same
    arguments and seeds it does what `SyncVectorEnv` of the same environments does.

    Args:
        num_envs: how many, at least 1.
        problems, split, data, limit: as for `MathToolEnv`.
        autoreset_mode: `NEXT_STEP` (Gymnasium's default: the step after the last one starts
            the next episode and ignores its action), `SAME_STEP` (at once; the last
            observation and info are `infos["final_obs"]`, `infos["final_info"]`) or
            `DISABLED` (`reset(options={"reset_mask": ended})`).
        shard: give environment i only the problems i, i + num_envs, ... With
            `order="sequential"` all of them would play the same problem otherwise.
        max_episode_steps: puts `TimeLimit` around each environment.
        wrappers: put around each environment, in this order. (`make_vec` does not pass its
            own argument of this name on to registered vector environments.)
        threads: cells that run at once at most; default: 8 per CPU.
        settings: further arguments of each `MathToolEnv`.

    Raises:
        ConfigError: an argument is wrong, or there are fewer problems than shards.
    """

    def __init__(
        self,
        num_envs: int = 1,
        problems: str | Path | Sequence[Problem] = "words",
        split: str = "train",
        *,
        data: str | Path | None = None,
        limit: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        shard: bool = False,
        max_episode_steps: int | None = None,
        wrappers: Sequence[Wrapper] = (),
        threads: int | None = None,
        **settings: Any,
    ) -> None:
        num_envs = whole("num_envs", num_envs, 1)
        most = _THREADS_PER_CPU * (os.cpu_count() or 1)
        self._threads = min(num_envs, most if threads is None else whole("threads", threads, 1))
        loaded = load_problems(problems, split, data=data, limit=limit)
        if shard and len(loaded) < num_envs:
            raise ConfigError(f"{len(loaded)} problems cannot be sharded over {num_envs}")
        if max_episode_steps is not None:
            most_steps = whole("max_episode_steps", max_episode_steps, 1)
            wrappers = [partial(TimeLimit, max_episode_steps=most_steps), *wrappers]
        shards = [loaded[i::num_envs] if shard else loaded for i in range(num_envs)]
        super().__init__(
            [partial(_make, mine, settings, wrappers) for mine in shards],
            autoreset_mode=_autoreset(autoreset_mode),
        )
        self._pool = self._new_pool()
        self._texts = [""] * num_envs
        self._ended = np.ones(num_envs, dtype=np.bool_)
        self._begun = False

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, thread_name_prefix="mathenv-vector")

    def __getstate__(self) -> dict[str, Any]:
        """All but the threads: see `MathToolEnv` for what is copied with a running episode."""
        return {name: value for name, value in self.__dict__.items() if name != "_pool"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pool = self._new_pool()

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Start an episode in every environment, or in those of `options["reset_mask"]`.

        `seed` is one per environment, or one number from which environment i takes
        `seed + i`. Other options go to every environment's `reset`.

        Raises:
            ConfigError: the mask or the seeds do not fit.
        """
        rest = dict(options or {})  # not changed in place: wrappers look for the mask as well
        chosen = self._chosen(rest.pop("reset_mask", None))
        seeds = self._seeds(seed)

        def start(index: int) -> _Step:
            text, info = self.envs[index].reset(seed=seeds[index], options=rest or None)
            return _Step(text, info)

        infos: dict[str, Any] = {}
        for index, step in self._each(start, chosen):
            self._texts[index], self._ended[index] = step.observation, False
            infos = self._add_info(infos, step.info, index)
        self._begun = self._begun or len(chosen) == self.num_envs
        return tuple(self._texts), infos

    def step(
        self, actions: Sequence[str]
    ) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Play one turn in every environment, all cells at once.

        Raises:
            ConfigError: `actions` is not one string per environment.
            ResetNeeded: before `reset`; with autoreset off, for environments that ended.
            InfraError: as in `MathToolEnv.step`. Some of the others have taken their step by
                then, so `reset` comes next.
        """
        texts = self._checked(actions)
        if not self._begun:
            raise ResetNeeded("no episode yet: call reset() first")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            raise ResetNeeded(
                f"environments {np.flatnonzero(self._ended).tolist()} have ended: call "
                "reset(options={'reset_mask': terminations | truncations}) first"
            )
        rewards = np.zeros(self.num_envs)
        terminations, truncations = np.zeros((2, self.num_envs), dtype=np.bool_)
        infos: dict[str, Any] = {}
        steps = self._each(lambda i: self._advance(i, texts[i]), range(self.num_envs))
        for i, step in steps:
            self._texts[i], rewards[i] = step.observation, step.reward
            terminations[i], truncations[i] = step.terminated, step.truncated
            for info in (step.final, step.info):
                infos = self._add_info(infos, info or {}, i)
        self._ended = terminations | truncations
        return tuple(self._texts), rewards, terminations, truncations, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Wait for cells that run, then end all sessions."""
        if hasattr(self, "_pool"):  # not where the constructor failed
            self._pool.shutdown()
            super().close_extras(**kwargs)

    def _advance(self, index: int, action: str) -> _Step:
        env = self.envs[index]
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and self._ended[index]:
            return _Step(*env.reset())
        observation, reward, terminated, truncated, info = env.step(action)
        final = None
        if self.autoreset_mode is AutoresetMode.SAME_STEP and (terminated or truncated):
            final = {"final_obs": observation, "final_info": info}
            observation, info = env.reset()
        return _Step(observation, info, float(reward), terminated, truncated, final)

    def _each(
        self, function: Callable[[int], _Step], indices: Sequence[int]
    ) -> list[tuple[int, _Step]]:
        """Call for each index in the threads; an error is raised when all have come back.

        Where the machinery failed for one, those that have not begun fail with it: what takes a
        minute, such as a sandbox that does not start, would take one for each of them.
        """
        failures: list[InfraError] = []

        def call(index: int) -> _Step:
            if failures:
                raise failures[0]
            try:
                return function(index)
            except InfraError as error:
                failures.append(error)
                raise

        futures = [self._pool.submit(call, index) for index in indices]
        wait(futures)
        if failures:
            self._begun = False
        return [(i, future.result()) for i, future in zip(indices, futures, strict=True)]

    def _checked(self, actions: Sequence[str]) -> list[str]:
        if isinstance(actions, str):
            raise ConfigError(f"step() takes {self.num_envs} texts, not one string")
        texts = list(actions)
        wrong = [type(text).__name__ for text in texts if not isinstance(text, str)]
        if len(texts) != self.num_envs or wrong:
            given = f"a {wrong[0]}" if wrong else f"{len(texts)} values"
            raise ConfigError(f"step() takes {self.num_envs} texts (str), got {given}")
        return [str(text) for text in texts]  # of np.str_ as well

    def _chosen(self, mask: Any) -> Sequence[int]:
        if mask is None:
            return range(self.num_envs)
        flags = np.asarray(mask)
        if flags.shape != (self.num_envs,) or flags.dtype != np.bool_ or not flags.any():
            raise ConfigError(
                f"reset_mask must hold {self.num_envs} booleans, one of them True at least"
            )
        return [int(index) for index in np.flatnonzero(flags)]

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, Sequence | np.ndarray):
            if len(seed) != self.num_envs:
                raise ConfigError(f"{len(seed)} seeds for {self.num_envs} environments")
            return list(seed)
        first = whole("seed", seed, 0)
        return range(first, first + self.num_envs)


def _make(
    problems: Sequence[Problem], settings: Mapping[str, Any], wrappers: Sequence[Wrapper]
) -> gymnasium.Env[str, str]:
    env: gymnasium.Env[str, str] = MathToolEnv(problems, **settings)
    for wrapper in wrappers:
        env = wrapper(env)
    return env


def _autoreset(mode: AutoresetMode | str) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        known = ", ".join(repr(m.value) for m in AutoresetMode)
        raise ConfigError(f"autoreset_mode must be one of {known}, got {mode!r}") from None
