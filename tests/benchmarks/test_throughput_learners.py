"""Speed is measured, not asserted: what is tested is that both sides do the same work."""

import importlib.util
import json

import pytest

from benchmarks.studies.throughput import learners
from benchmarks.studies.throughput.learner_steps import Job, Workload, make_pairs, singles
from benchmarks.studies.throughput.learners import (
    DEFAULTS,
    DPO,
    KTO,
    LOWEST,
    MEMORY,
    OURS,
    STOCK,
    Shapes,
)

TINY = Workload(hidden=64, layers=1, vocabulary=600, pairs=2, tokens=120, steps=2)


def test_trajectories_are_repeatable_and_of_the_shape_they_claim():
    pairs = make_pairs(Workload(pairs=50))
    assert pairs == make_pairs(Workload(pairs=50))
    assert pairs != make_pairs(Workload(pairs=50, seed=1))
    samples = [s for e in pairs for s in e.samples]
    assert 440 < sum(len(s.ids) for s in samples) / len(samples) < 540
    for pair in pairs:
        begins = {s.ids[: s.mask.index(True)] for s in pair.samples}
        assert len(begins) == 1
        for sample in pair.samples:
            after = sample.mask[sample.mask.index(True) :]
            assert 0.1 < 1 - sum(after) / len(after) < 0.25
            assert sample.mask[-1]


def test_single_trajectories_have_the_completion_of_another_prompt_as_control():
    pairs = make_pairs(Workload(pairs=3))
    examples = singles(pairs)
    assert [e.score for e in examples] == [1, 0] * 3
    for i, example in enumerate(examples):
        begin = example.samples[0].mask.index(True)
        assert example.control.ids[:begin] == example.samples[0].ids[:begin]
        assert example.control.targets == examples[i - 2].samples[0].targets


def test_a_job_survives_its_file():
    job = Job(Workload(pairs=3, seed=2), "folder", learner="mkto", batch=1)
    assert Job.read(job.text()) == job


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_both_sides_end_with_the_same_weights(tmp_path):
    calls = []
    report = learners.measure(
        quick=True,
        advance=lambda done, total: calls.append((done, total)),
        shapes=Shapes(TINY, TINY),
    )
    rows = {(m.quantity, m.subject): m for m in report.measurements}
    assert {(DPO, OURS), (KTO, OURS), (MEMORY, OURS)} <= set(rows)
    assert all(v > 0 for m in rows.values() for v in m.values)
    report.write(tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["workloads"][0]["padded tokens over tokens"] >= 1
    if importlib.util.find_spec("trl") is None:
        assert calls[-1] == (4, 4)
        assert learners.TRL_MISSING in report.remarks
        return
    assert calls[-1] == (10, 10)
    assert {(DPO, DEFAULTS), (DPO, STOCK), (KTO, DEFAULTS), (MEMORY, LOWEST)} <= set(rows)
    equality = written["equality"]
    assert len(equality) == 7
    for row in equality:
        assert row["loss"] < 1e-4, row
        assert row["grad_norm"] < 1e-4, row
        assert row["weights"] < 1e-4, row
