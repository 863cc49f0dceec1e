"""Pages as data: what stands in the file, and that hostile text stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import webbrowser
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.oracle import OracleAgent
from benchmarks.cli import main
from benchmarks.pages.charts import read_steps, training_charts
from benchmarks.pages.data import PageOptions, build
from benchmarks.pages.highlight import CLASSES, code_runs, utf16
from benchmarks.pages.index import CHOSEN, MEASURED, REJECTED, SHOWN, mask_runs
from benchmarks.pages.page import render, write_report
from benchmarks.pages.sources import find_run
from benchmarks.runner import run_bench
from benchmarks.suites import find_suite
from mathenv.errors import ConfigError, DataError


def test_a_training_run_is_told_apart_by_its_files(training_run) -> None:
    found = find_run(training_run.path)
    assert [(s.phase, s.learner, s.iteration) for s in found.sources] == [
        ("demonstrations", "", 0),
        ("test", "", 0),
        ("rollouts", "mdpo", 1),
        ("validation", "mdpo", 1),
        ("test", "mdpo", 1),
    ]
    one_seed = find_run(training_run.path / "seed-0")
    assert [s.path for s in one_seed.sources] == [s.path for s in found.sources]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give the --out folder"):
        build(tmp_path)
    with pytest.raises(ConfigError, match="limit must be at least 1"):
        PageOptions(limit=0)


def test_the_tables_and_curves_of_a_training_run(training_run) -> None:
    summary = build(training_run.path, PageOptions(ratios=0)).summary
    (table,) = summary["tables"]
    assert [row[:3] for row in table["rows"]] == [
        ["SFT", "20", "25.0%"],
        ["mdpo, iteration 1", "20", "75.0%"],
    ]
    assert table["rows"][1][4] == "+50.0"
    overview, run = summary["charts"]
    test, rollouts = overview["charts"]
    assert test["ticks"] == ["SFT", "iteration 1"]
    assert test["series"][0]["y"] == [0.25, 0.75]
    assert test["series"][0]["low"][0] < 0.25 < test["series"][0]["high"][0]
    assert rollouts["series"][0] | {"low": [], "high": []} == {
        "name": "mdpo",
        "x": [0],
        "y": [0.5],
        "low": [],
        "high": [],
    }
    titles = [chart["title"] for chart in run["charts"]]
    assert titles == ["Validation pass@1", "Reward margin", "Log-likelihood", "Loss"]
    assert run["charts"][1]["series"][0]["y"] == pytest.approx([1 / 9, 2 / 9], rel=1e-4)
    assert ["problems.source", "words"] in summary["settings"][0]["rows"]


def test_seeds_are_not_more_problems(training_run, tmp_path: Path) -> None:
    """A seed that repeats another says nothing new: no interval gets narrower."""
    for seed in range(3):
        folder = tmp_path / "run" / f"seed-{seed}"
        shutil.copytree(training_run.path / "seed-0", folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["recipe"]["seed"] = seed
        (folder / "manifest.json").write_text(json.dumps(manifest))
    alone = build(training_run.path, PageOptions(ratios=0)).summary
    summary = build(tmp_path / "run", PageOptions(ratios=0)).summary
    together, *each = summary["tables"]
    assert together["title"].startswith("3 seeds together; intervals resample problems")
    assert [table["title"] for table in each] == [f"mdpo, seed {seed}" for seed in range(3)]
    expected = alone["tables"][0]["rows"][1]
    row = together["rows"][1]
    assert row[1:3] == expected[1:3] == ["20", "75.0%"]
    assert row[4:7] == expected[4:7]  # the gain, its interval and p
    before, after = (s["charts"][0]["charts"][0] for s in (alone, summary))
    assert "each with its outcomes in all seeds" in after["about"]
    for one, three in zip(before["series"][0]["high"], after["series"][0]["high"], strict=True):
        assert three == pytest.approx(one, abs=0.07)  # 20 problems: Wilson's and a bootstrap's


def test_ratios_are_those_of_the_two_models(training_run) -> None:
    """Against a forward pass over each sequence alone, without batches or masks."""
    import torch

    from agents.models.hf import load_causal_lm

    page = build(training_run.path)
    details = [detail for chunk in page.chunks for detail in chunk]
    roles = page.summary["rows"]["role"]
    rows = [row for row, role in enumerate(roles) if role & MEASURED]
    assert len(rows) == len(training_run.rollouts) == 8
    policy, reference = (load_causal_lm(p) for p in (training_run.policy, training_run.reference))
    for row, rollout in zip(rows, training_run.rollouts, strict=True):
        ids = torch.tensor([rollout.tokens.ids])
        with torch.no_grad():
            new, old = (
                m(input_ids=ids).logits[0, :-1].log_softmax(-1) for m in (policy, reference)
            )
        every = (new - old).gather(-1, ids[0, 1:, None])[:, 0].tolist()
        wanted = [r for r, on in zip(every, rollout.tokens.action_mask[1:], strict=True) if on]
        assert details[row]["tokens"]["ratios"] == pytest.approx(wanted, abs=2e-3)
        assert max(map(abs, wanted)) > 0.1  # the two models differ


def test_pairs_are_those_of_the_selection(training_run) -> None:
    summary = build(training_run.path, PageOptions(ratios=0)).summary
    problem, role = summary["rows"]["problem"], summary["rows"]["role"]
    assert len(summary["pairs"]) == 4
    for chosen, rejected in summary["pairs"]:
        assert problem[chosen] == problem[rejected]
        assert (role[chosen], role[rejected]) == (CHOSEN, REJECTED)
    assert role[0] == SHOWN  # the demonstration


@pytest.mark.parametrize(("learner", "observations"), [("mdpo", False), ("dpo", True)])
def test_the_trained_tokens_are_the_learners(tmp_path, run_of, learner, observations) -> None:
    page = build(run_of(tmp_path / "run", learner, problems=1).path, PageOptions(ratios=0))
    row = page.summary["pairs"][0][0]
    tokens = page.chunks[0][row]["tokens"]
    kinds, start = [], 0
    for kind, _, end in zip(*(tokens["spans"][i::3] for i in range(3)), strict=True):
        kinds += [page.summary["kinds"][kind]] * (end - start)
        start = end
    edges = [0, *accumulate(tokens["trained"])]
    trained = {
        kind
        for number, (first, last) in enumerate(pairwise(edges))
        if number % 2
        for kind in kinds[first:last]
    }
    assert trained == ({"sampled", "scaffold", "observation"} if observations else {"sampled"})


def test_a_training_that_cannot_be_repeated_is_said(tmp_path, run_of) -> None:
    run = run_of(tmp_path / "run", problems=1)
    file = run.policy / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "learner": "of another package"}))
    summary = build(run.path).summary
    (source,) = (s for s in summary["sources"] if s["phase"] == "rollouts")
    assert "cannot be found again" in source["note"]
    assert len(summary["pairs"]) == 1  # the selection itself is on file


def test_what_was_trained_on_stays_when_a_page_is_cut(training_run) -> None:
    page = build(training_run.path, PageOptions(limit=20, ratios=1))
    rows = page.summary["rows"]
    kept = {s["phase"]: (s["kept"], s["total"]) for s in page.summary["sources"]}
    assert kept["rollouts"] == (5, 8)
    assert len(rows["role"]) <= 20
    assert sum(role & MEASURED > 0 for role in rows["role"]) == 2
    assert page.summary["notes"][0].startswith("18 of 51 trajectories")
    assert build(training_run.path, PageOptions(limit=51, ratios=0)).summary["notes"] == []


def test_tokens_are_text_only_with_their_own_tokenizer(training_run, tmp_path) -> None:
    file = training_run.path / "seed-0" / "mdpo" / "iteration-1" / "rollouts.jsonl"
    alone = build(file).summary
    assert set(alone["pieces"]["texts"]) == {None}
    assert "--tokenizer" in alone["notes"][0]
    page = build(file, PageOptions(tokenizer=training_run.reference))
    texts = page.summary["pieces"]["texts"]
    written = "".join(texts[i] for i in page.chunks[0][0]["tokens"]["ids"])
    assert "So: ```python\ntotal = 2 + 2  # a sum\nprint(total)\n```" in written
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        build(file, PageOptions(tokenizer=tmp_path))


def test_a_benchmark_has_its_tables(tmp_path: Path) -> None:
    run_bench(find_suite("words"), OracleAgent, tmp_path / "words", limit=4)
    for folder in (tmp_path, tmp_path / "words"):  # the folder of all suites, and of one
        summary = build(folder).summary
        assert summary["tables"][0]["rows"][0][4] == "100.0%"
        assert len(summary["rows"]["problem"]) == 4
        assert summary["charts"] == []


def test_hostile_text_stays_text(tmp_path, write_episodes, hostile, parse) -> None:
    file = tmp_path / "<img src=x onerror=alert(1)>.jsonl"
    write_episodes(file, hostile)
    html = render(build(file))
    parsed = parse(html)
    clean = tmp_path / "clean.jsonl"
    write_episodes(clean, [])
    assert parsed.tags.count("script") == parse(render(build(clean))).tags.count("script") + 1
    assert not {"img", "svg", "base", "object", "iframe"} & set(parsed.tags)
    assert html.count("</script>") == parsed.tags.count("script")
    problems = parsed.data("summary")["problems"]
    assert problems["question"] == [one.problem.question for one in hostile]
    for detail, one in zip(parsed.details, hostile, strict=True):
        assert detail["turns"][0]["action"] == one.turns[0].action
        assert detail["turns"][0]["output"] == one.turns[0].execution.output


def test_only_the_pages_own_script_may_run(training_run, tmp_path, parse) -> None:
    page = write_report(training_run.path, tmp_path / "page.html", PageOptions(ratios=0))
    html = page.read_text()
    parsed = parse(html)
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(parsed.blocks[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in parsed.policy
    assert parsed.policy.startswith("default-src 'none'")
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert forbidden not in parsed.blocks["script"]
    again = write_report(training_run.path, tmp_path / "again.html", PageOptions(ratios=0))
    assert again.read_bytes() == page.read_bytes()


@given(st.text(alphabet=st.sampled_from("ab1 \n\r\t'\"#\\(){}=😀é\u2028\ud800def"), max_size=60))
def test_highlighting_tiles_the_code(code: str) -> None:
    runs = code_runs(code)
    assert sum(runs[1::2]) == utf16(code)
    assert all(0 <= number < len(CLASSES) for number in runs[::2])


def test_highlighting_knows_python() -> None:
    code = 'def f(x):\n    return print("😀") + 1  # done'
    runs, at, found = code_runs(code), 0, {}
    units = code.encode("utf-16-le")
    for number, length in zip(runs[::2], runs[1::2], strict=True):
        found.setdefault(CLASSES[number], []).append(
            units[2 * at : 2 * (at + length)].decode("utf-16-le")
        )
        at += length
    assert found["keyword"] == ["def", "return"]
    assert found["function"] == ["f"]
    assert found["builtin"] == ["print"]
    assert found["string"] == ['"😀"']
    assert found["number"] == ["1"]
    assert found["comment"] == ["# done"]


@given(st.lists(st.booleans(), max_size=40))
def test_masks_survive_as_runs(mask: list[bool]) -> None:
    rebuilt = [bool(i % 2) for i, length in enumerate(mask_runs(mask)) for _ in range(length)]
    assert rebuilt == mask


def test_long_curves_are_averaged_within_an_iteration(training_run, tmp_path, run_of) -> None:
    run = run_of(tmp_path / "run", problems=1)
    learner = run.path / "seed-0" / "mdpo"
    for number in (1, 2):
        file = learner / f"iteration-{number}" / "train" / "metrics.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"step": n, "loss": 10.0 * number + n % 2} for n in range(1, 502)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 502, "lo')
    seed = find_run(run.path).seeds[0]
    (chart,) = training_charts(seed, "mdpo")
    assert [mark["x"] for mark in chart["breaks"]] == [0, 501]
    line = chart["series"][0]
    assert len(line["x"]) <= 240
    assert all(y < 11.1 if x <= 501 else y > 19 for x, y in zip(line["x"], line["y"], strict=True))
    assert (min(line["low"]), max(line["high"])) == (10.0, 21.0)


def test_damaged_metrics_are_named(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 0.5}\n[]\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2"):
        read_steps(file)


@pytest.mark.parametrize("content", ['{"recipe": {"se', "[]", '{"recipe": [], "counts": 1}'])
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("manifest.json", "restore it from a copy"),
        ("mdpo/iteration-1/selection.json", "remove it to choose again"),
        ("mdpo/iteration-1/train/metrics.jsonl", "move it away"),
    ],
)
def test_damaged_files_of_a_run_are_named_with_what_to_do(
    training_run, tmp_path, capsys, name: str, remedy: str, content: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(training_run.path, run)
    file = run / "seed-0" / name
    assert file.exists()
    file.write_text(content + "\n")
    with pytest.raises(SystemExit) as ended:
        main(["view", str(run), "--no-open"])
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert name in said
    assert "damaged" in said
    assert remedy in said


def test_view_writes_the_page_and_opens_it(
    training_run, tmp_path, monkeypatch, capsys, write_episodes, make_episode
) -> None:
    file = tmp_path / "some.jsonl"
    write_episodes(file, [make_episode("a", True)])
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    for words, target in (
        (["view", str(file), "--no-open"], tmp_path / "some.html"),
        (["view", str(file), "--out", str(tmp_path / "b.html")], tmp_path / "b.html"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        assert target.read_text().startswith("<!doctype html>")
        assert str(target) in capsys.readouterr().out
    assert opened == [(tmp_path / "b.html").resolve().as_uri()]
