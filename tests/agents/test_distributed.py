"""Collecting with Ray: nothing lost and nothing twice, whatever happens to the workers."""

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager, contextmanager

import pytest

from agents.base import Action, SamplingParams, WeightedAgent
from agents.collector import CollectConfig
from agents.distributed import (
    RayConfig,
    RayWorkers,
    Worker,
    WorkerSetup,
    collect_distributed,
)
from agents.episode_log import failed_path
from agents.oracle import OracleAgent
from agents.policy import load_policy
from agents.rollout import collect, jobs_of
from mathenv.errors import ConfigError, InfraError
from mathenv.problems import words
from mathenv.protocol import code_block
from mathenv.store import TrajectoryStore, read_trajectories

PROBLEMS = words.load("train", count=24)


class Quick:
    """Prints the reference answer in a cell, then boxes what it saw, after short waits."""

    def __init__(self, name="quick", answers=None):
        self.name = name
        self._answers = answers or {p.question: p.answer for p in PROBLEMS}

    @asynccontextmanager
    async def episode(self, question, *, sample, seed):
        yield QuickEpisode(self._answers[question])


class QuickEpisode:
    def __init__(self, answer):
        self._answer, self._turn = answer, 0

    async def act(self, observation):
        self._turn += 1
        await asyncio.sleep(0.02)
        if self._turn == 1:
            return Action(code_block(f"print({self._answer!r})"))
        return Action(rf"\boxed{{{observation.strip()}}}")

    def tokens(self):
        return None


@contextmanager
def mixture():
    """Two agents; the fact is the worker's process."""
    members = [WeightedAgent(Quick("current"), 3), WeightedAgent(Quick("previous"), 2)]
    yield WorkerSetup(members, {"pid": os.getpid()})


KEYS = sorted(job.key for job in jobs_of([("current", 3), ("previous", 2)], PROBLEMS))


# What needs no cluster.


def test_a_worker_streams_what_the_collector_plays(interpreter):
    """Two calls at a time; each gives back its own episodes."""

    async def main():
        worker = Worker(mixture)
        samples, facts = await worker.start()
        assert samples == [("current", 3), ("previous", 2)]
        assert facts == {"pid": os.getpid()}
        await worker.configure(CollectConfig(concurrency=4), interpreter)
        jobs = jobs_of(samples, PROBLEMS[:4])

        async def keys(part):
            return [trajectory.key async for trajectory in worker.play(part)]

        first, second = await asyncio.gather(keys(jobs[:10]), keys(jobs[10:]))
        assert sorted(first) == sorted(job.key for job in jobs[:10])
        assert sorted(second) == sorted(job.key for job in jobs[10:])
        await worker.stop()

    asyncio.run(main())


def test_a_worker_raises_what_an_agent_raises(interpreter):
    @contextmanager
    def wrong():
        yield WorkerSetup([WeightedAgent(Quick(answers={"other": "1"}), 1)])

    async def main():
        worker = Worker(wrong)
        await worker.configure(CollectConfig(retries=0), interpreter)
        return [t async for t in worker.play(jobs_of([("quick", 1)], PROBLEMS[:1]))]

    (trajectory,) = asyncio.run(main())
    assert trajectory.grade.detail.startswith("KeyError")


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"cpus": -1}, {"restarts": -1}, {"tries": 0}])
def test_clusters_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match="must be at least"):
        RayConfig(**wrong)


# On a real cluster of this machine.


@pytest.fixture(scope="module")
def cluster():
    if "ray" not in os.environ.get("MATHENV_TEST_ENGINES", "").split(","):
        pytest.skip("set MATHENV_TEST_ENGINES=ray to test on a real Ray cluster")
    ray = pytest.importorskip("ray", reason="needs Ray: pip install -e .[ray]")
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield ray
    ray.shutdown()


def stored(path):
    return sorted(t.key for t in read_trajectories(path))


def test_two_workers_share_the_work(cluster, tmp_path):
    seen = []
    with RayWorkers(mixture) as workers, TrajectoryStore(tmp_path) as store:
        assert workers.samples == [("current", 3), ("previous", 2)]
        assert workers.facts["pid"] != os.getpid()
        failed = collect_distributed(
            workers,
            PROBLEMS,
            store,
            CollectConfig(concurrency=10),
            progress=lambda _, done, total: seen.append((done, total)),
        )
    assert failed == 0
    assert stored(tmp_path) == KEYS
    assert seen == [(n, len(KEYS)) for n in range(1, len(KEYS) + 1)]
    assert all(t.reward == 1.0 for t in read_trajectories(tmp_path))


def test_the_same_episodes_as_the_collector_in_one_process(cluster, tmp_path, interpreter):
    with RayWorkers(mixture) as workers, TrajectoryStore(tmp_path / "many") as store:
        collect_distributed(workers, PROBLEMS[:6], store, CollectConfig(seed=3))
    with mixture() as setup, TrajectoryStore(tmp_path / "one") as store:
        collect(setup.members, PROBLEMS[:6], store, CollectConfig(seed=3), interpreter=interpreter)
    many, one = (
        sorted(read_trajectories(tmp_path / name), key=lambda t: t.key) for name in ("many", "one")
    )
    assert many == one


class Signed(Quick):
    """Writes its worker's process number into its cells."""

    @asynccontextmanager
    async def episode(self, question, *, sample, seed):
        yield SignedEpisode(self._answers[question])


class SignedEpisode(QuickEpisode):
    async def act(self, observation):
        action = await super().act(observation)
        return Action(action.text.replace("print", f"# {os.getpid()}\nprint"))


class Patient(Signed):
    """Waits in every turn until all workers that died have been replaced."""

    def __init__(self, name, started, died):
        super().__init__(name)
        self._started, self._died = started, died

    @asynccontextmanager
    async def episode(self, question, *, sample, seed):
        async with super().episode(question, sample=sample, seed=seed) as episode:
            yield PatientEpisode(episode, self._started, self._died)


class PatientEpisode:
    def __init__(self, episode, started, died):
        self._episode, self._started, self._died = episode, started, died

    async def act(self, observation):
        while len(list(self._started.iterdir())) < 2 + len(list(self._died.iterdir())):
            await asyncio.sleep(0.05)
        return await self._episode.act(observation)

    def tokens(self):
        return None


def worker_of(trajectory):
    return int(trajectory.turns[0].code.splitlines()[0].removeprefix("# "))


def test_a_worker_killed_in_the_middle_loses_nothing_and_repeats_nothing(cluster, tmp_path):
    """SIGKILL for one of two workers with work in flight, and later for another one."""
    started, died = tmp_path / "started", tmp_path / "died"
    started.mkdir()
    died.mkdir()

    @contextmanager
    def setup():
        (started / str(os.getpid())).touch()
        members = [
            WeightedAgent(Patient(name, started, died), n)
            for name, n in (("current", 3), ("previous", 2))
        ]
        yield WorkerSetup(members)

    filed, killed = [], []

    def kill(trajectory, done, total):
        filed.append(trajectory.key)
        pid = worker_of(trajectory)
        if len(killed) < (done >= 20) + (done >= 70) and pid not in killed:
            (died / str(pid)).touch()
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    with RayWorkers(setup) as workers, TrajectoryStore(tmp_path) as store:
        config = CollectConfig(concurrency=15)
        assert collect_distributed(workers, PROBLEMS, store, config, progress=kill) == 0
    assert len(killed) == 2
    assert sorted(filed) == KEYS
    assert stored(tmp_path) == KEYS
    found = list(read_trajectories(tmp_path))
    assert all(t.reward == 1.0 for t in found)
    assert len(list(started.iterdir())) == 2 + len(killed), "the dead were replaced"
    assert not failed_path(tmp_path / "trajectories.jsonl").exists()


def test_a_run_goes_on_where_it_stopped(cluster, tmp_path):
    class Stop(Exception):
        pass

    def stop(_, done, __):
        if done == 30:
            raise Stop

    config = CollectConfig(concurrency=10)
    with TrajectoryStore(tmp_path) as store:
        with RayWorkers(mixture) as workers, pytest.raises(Stop):
            collect_distributed(workers, PROBLEMS, store, config, progress=stop)
        kept = store.keys()
        # The other worker's episodes are filed until it hears of the end.
        assert 30 <= len(kept) < len(KEYS)
        with RayWorkers(mixture, RayConfig(workers=1)) as workers:
            assert collect_distributed(workers, PROBLEMS, store, config) == 0
        assert store.keys()[: len(kept)] == kept
    assert stored(tmp_path) == KEYS


class Deadly(Quick):
    """Kills its worker in one problem."""

    @asynccontextmanager
    async def episode(self, question, *, sample, seed):
        if question == PROBLEMS[5].question:
            await asyncio.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        async with super().episode(question, sample=sample, seed=seed) as episode:
            yield episode


def test_an_episode_that_kills_its_workers_is_given_up_and_the_others_are_not(cluster, tmp_path):
    @contextmanager
    def setup():
        yield WorkerSetup([WeightedAgent(Deadly(), 1)])

    with RayWorkers(setup, RayConfig(tries=2)) as workers, TrajectoryStore(tmp_path) as store:
        config = CollectConfig(concurrency=1)
        assert collect_distributed(workers, PROBLEMS, store, config) == 1
        assert len(store) == len(PROBLEMS) - 1
    (failed,) = read_trajectories(failed_path(tmp_path / "trajectories.jsonl"))
    assert failed.problem.id == PROBLEMS[5].id
    assert failed.grade.detail == "2 workers died while it was played"


def test_too_many_deaths_end_the_run_and_keep_what_is_finished(cluster, tmp_path):
    @contextmanager
    def setup():
        yield WorkerSetup([WeightedAgent(Deadly(), 1)])

    config = RayConfig(workers=1, restarts=0)
    with RayWorkers(setup, config) as workers, TrajectoryStore(tmp_path) as store:
        with pytest.raises(InfraError, match="1 workers died"):
            collect_distributed(workers, PROBLEMS, store, CollectConfig(concurrency=1))
        assert len(store) == 5


def test_errors_of_a_workers_setup_reach_the_caller_as_themselves(cluster, tmp_path):
    @contextmanager
    def wrong():
        with load_policy(tmp_path / "nowhere") as agent:
            yield WorkerSetup([WeightedAgent(agent)])

    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere"):
        RayWorkers(wrong).__enter__()


def test_errors_of_a_program_reach_the_caller_as_themselves(cluster, tmp_path):
    @contextmanager
    def ignorant():
        yield WorkerSetup([WeightedAgent(OracleAgent([]))])

    with RayWorkers(ignorant) as workers, TrajectoryStore(tmp_path) as store:
        with pytest.raises(Exception, match="was not given this problem") as caught:
            collect_distributed(workers, PROBLEMS, store, CollectConfig())
    assert type(caught.value).__name__ == "DataError"


def test_a_model_in_every_worker(cluster, tiny, tmp_path):
    path = str(tiny)

    @contextmanager
    def setup():
        with load_policy(path, SamplingParams(max_turn_tokens=8), name="tiny") as agent:
            yield WorkerSetup([WeightedAgent(agent, 4)])

    with RayWorkers(setup) as workers, TrajectoryStore(tmp_path) as store:
        assert collect_distributed(workers, PROBLEMS[:6], store, CollectConfig(horizon=2)) == 0
    found = list(read_trajectories(tmp_path))
    assert len(found) == 24
    assert len({t.tokens.ids for t in found}) == 24


def test_the_command_line(cluster, tmp_path, monkeypatch, capsys):
    from benchmarks.cli import main

    command = ["collect", "words", "--limit", "8", "--n", "2", "--out", str(tmp_path / "r")]
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--ray", "local", "--workers", "2"])
        assert ended.value.code == 0
    assert len(stored(tmp_path / "r")) == 16
    with pytest.raises(SystemExit) as ended:
        main(command)  # the same folder, without Ray: the same run
    assert ended.value.code == 0
    assert "16 trajectories, 100.0% right" in capsys.readouterr().out
