"""The rollout benchmark: that its clock, its engine and its two ways are what they say."""

import asyncio
import math
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from agents.base import CompletionRequest
from agents.collector import CollectConfig, Collector
from agents.models.scripted import Said, ScriptedModel
from agents.rollout import jobs_of
from benchmarks.studies.throughput.modelled import (
    Load,
    ModelledAgent,
    ModelledEngine,
    ModelledEpisode,
    ModelledInterpreter,
    Timing,
    VirtualLoop,
    VirtualThreads,
)
from benchmarks.studies.throughput.rollouts import (
    COLLECTOR,
    LOOP,
    Metered,
    Usage,
    measure,
    run_modelled,
    turn_synchronous,
)
from mathenv.types import Problem

SMALL = Load(problems=6, samples=8, slots=8, concurrency=16, threads=4)


def on_virtual_time(work):
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        started = time.monotonic()
        value = runner.run(work())
        assert time.monotonic() - started < 30, "hours on the clock are not waited for"
        return value


def test_the_clock_jumps_over_waiting_and_stands_still_for_work():
    async def work():
        loop = asyncio.get_running_loop()
        with VirtualThreads(loop, 2) as threads:

            def cell(seconds):
                time.sleep(0.02)  # real work: the clock stands
                loop.sleep(seconds)
                time.sleep(0.02)
                return seconds

            calls = [loop.run_in_executor(threads, cell, s) for s in (3600.0, 1800.0, 1800.0)]
            assert await asyncio.gather(asyncio.sleep(100), *calls) == [None, 3600, 1800, 1800]
        return loop.time()

    assert on_virtual_time(work) == pytest.approx(3600, abs=0.01)


def test_an_error_in_a_thread_comes_through():
    async def work():
        loop = asyncio.get_running_loop()
        with VirtualThreads(loop, 1) as threads:
            with pytest.raises(ZeroDivisionError):
                await loop.run_in_executor(threads, lambda: 1 / 0)
            await asyncio.sleep(10)
        return loop.time()

    assert on_virtual_time(work) == pytest.approx(10)


@pytest.mark.parametrize(("requests", "waves"), [(1, 1), (4, 1), (12, 3)])
def test_the_engine_takes_as_long_as_its_model_says(requests, waves):
    """`slots` sequences advance together, the others wait for a whole wave."""

    async def work():
        engine = ModelledEngine(slots=4)
        serving = asyncio.create_task(engine.run())
        await asyncio.gather(*(engine.generate(0, 0, 100) for _ in range(requests)))
        serving.cancel()
        return engine.now(), engine.busy

    seconds, busy = on_virtual_time(work)
    step = Timing().step(min(4, requests), 50)
    assert seconds == pytest.approx(waves * 100 * step, rel=0.01)
    assert busy == pytest.approx(min(4, requests) * seconds, rel=1e-6)


def test_a_step_costs_what_was_counted_for_a_7b_model():
    """Tokens per second against the table of measured rates: 10.9k, 20.1k, 27.0k."""
    for batch, rate in ((64, 10_900), (128, 20_100), (256, 27_000)):
        assert batch / Timing().step(batch, 500) == pytest.approx(rate, rel=0.1)


def test_episodes_have_the_lengths_of_the_load():
    load, agent = Load(), ModelledAgent(Load(), None, 0)
    episodes = [ModelledEpisode(agent, None, "q", random.Random(seed)) for seed in range(3000)]
    turns = [len(episode._lengths) for episode in episodes]
    tokens = [length for episode in episodes for length in episode._lengths]
    assert statistics.fmean(turns) == pytest.approx(2.67, rel=0.05)
    assert statistics.fmean(tokens) == pytest.approx(load.turn_tokens, rel=0.08)
    assert max(tokens) == load.most_tokens


def test_both_ways_play_the_same_episodes():
    """Same seeds, same turns, same ends; only the order differs."""
    problems = [Problem(f"p{n}", f"Question {n}?", "42") for n in range(4)]
    jobs = jobs_of([("modelled", 3)], problems)
    config, found = CollectConfig(), {COLLECTOR: {}, LOOP: {}}

    async def main(way):
        agent, cells = ModelledAgent(SMALL, None, len(jobs)), ModelledInterpreter(SMALL, None)

        def file(trajectory):
            found[way][trajectory.key] = (trajectory.stop_reason, len(trajectory.tokens.ids))

        if way == COLLECTOR:
            with Collector([agent], config, cells) as collector:
                await collector.play(jobs, file)
        else:
            with ThreadPoolExecutor(2) as threads:
                await turn_synchronous(agent, jobs, config, cells, threads, file)

    for way in found:
        asyncio.run(main(way))
    assert found[COLLECTOR] == found[LOOP]
    assert len(found[LOOP]) == 12


def test_without_waiting_for_each_other_episodes_end_sooner_and_slots_stay_busy():
    load = replace(SMALL, late_share=0.0, cell_seconds=0.5)
    loop, collector = run_modelled(LOOP, load), run_modelled(COLLECTOR, load)
    assert collector.turns == loop.turns
    assert collector.seconds < loop.seconds
    assert collector.busy > loop.busy


def test_usage_is_the_integral_between_its_marks():
    """Two slots: one in use for 2 s, both for 4 s, one for 2 s; then the last episode begins."""
    usage = Usage(slots=2)
    usage.change(1, 10.0)
    usage.change(1, 12.0)
    usage.change(-1, 16.0)
    assert usage.full == (12.0, 2.0)
    usage.begin(18.0)
    usage.change(-1, 20.0)
    assert usage.total == 2 + 8 + 2 + 2
    assert usage.steady() == (8 + 2) / (6 * 2)
    assert math.isnan(Usage(slots=2).steady())


@pytest.mark.parametrize(("concurrency", "expected"), [(8, 1.0), (4, 0.8), (2, None)])
def test_the_meter_counts_slots_in_use_while_there_is_work(concurrency, expected):
    """Episodes ask for 2 s, run a cell for 1 s, and ask for 2 s again."""
    request = CompletionRequest([5], 2, temperature=1.0, top_p=1.0, seed=0)

    async def work():
        model = ScriptedModel(lambda _: Said([8, 9]), seconds_per_token=1.0)
        engine, episodes = Metered(model, slots=4), iter(range(80))

        async def seat():
            for _ in episodes:
                async with engine.session() as session:
                    await session.complete(request)
                    await asyncio.sleep(1.0)
                    await session.complete(request)

        await asyncio.gather(*(seat() for _ in range(concurrency)))
        return engine.usage

    usage = on_virtual_time(work)
    assert usage.total == pytest.approx(80 * 4, abs=0.1)
    if expected is None:
        assert math.isnan(usage.steady())  # its slots were never all in use
    else:
        assert usage.steady() == pytest.approx(expected, abs=0.03)


def test_the_report_names_goals_and_loads():
    steps = []
    report = measure(quick=True, advance=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert {row.subject for row in report.measurements} == {COLLECTOR, LOOP}
    assert len(report.remarks) == 2
    assert all("slots busy" in remark for remark in report.remarks)
