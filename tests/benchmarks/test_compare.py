"""Two runs compared: the numbers by hand, the sentence, and the command on real runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agents.oracle import OracleAgent, ReplayAgent
from benchmarks import cli
from benchmarks.commands.compare import Compare, find_runs
from benchmarks.comparable import check_comparable, settings_that_differ
from benchmarks.comparison import compare_runs
from benchmarks.metrics import mcnemar, outcomes, paired_difference
from benchmarks.results import read_result
from benchmarks.runner import run_bench
from benchmarks.suites import Suite, find_suite
from mathenv.errors import ConfigError, DataError
from mathenv.store import read_trajectories
from mathenv.types import Turn


def runs(make_trajectory, right: str, *, of: int = 20):
    """One episode per problem; `right` has a 1 where it is right."""
    return [make_trajectory(str(i), right[i] == "1") for i in range(of)]


def test_the_numbers_are_those_of_the_tests(make_trajectory) -> None:
    first = runs(make_trajectory, "1" * 4 + "0" * 16)
    second = runs(make_trajectory, "0" + "1" * 13 + "0" * 6)
    result = compare_runs(first, second, names=("sft", "mdpo"))
    assert (result.gained, result.lost, result.unshared) == (10, 1, 0)
    assert result.difference == paired_difference(outcomes(first), outcomes(second))
    assert result.mcnemar == mcnemar(outcomes(first), outcomes(second))
    assert result.p_value == pytest.approx(result.mcnemar)
    assert result.decided
    assert result.sentence() == (
        "On the same 20 problems mdpo scores 45.0 points more than sft (95% interval "
        f"{100 * result.difference.low:+.1f} to {100 * result.difference.high:+.1f}, "
        "McNemar's exact test p = 0.012): more than chance explains."
    )


def test_a_small_difference_is_not_sold(make_trajectory) -> None:
    result = compare_runs(
        runs(make_trajectory, "11" + "0" * 18), runs(make_trajectory, "011" + "0" * 17)
    )
    assert not result.decided
    assert "0.0 points more" in result.sentence()
    assert "do not show which is better" in result.sentence()
    fewer = compare_runs(runs(make_trajectory, "1" * 20), runs(make_trajectory, "1" * 18 + "00"))
    assert "10.0 points fewer" in fewer.sentence()
    same = compare_runs(runs(make_trajectory, "1" * 20), runs(make_trajectory, "1" * 20))
    assert "scored the same on every one" in same.sentence()


def test_an_interval_that_the_test_denies_is_said(make_trajectory) -> None:
    """Nine of 20 gained and two lost: the interval excludes 0, McNemar's test does not."""
    first = runs(make_trajectory, "11" + "0" * 18)
    result = compare_runs(first, runs(make_trajectory, "00" + "1" * 9 + "0" * 9))
    assert result.difference.low > 0
    assert result.mcnemar == result.p_value == pytest.approx(0.0654, abs=1e-4)
    assert not result.decided
    assert result.sentence() == (
        "On the same 20 problems the second run scores 35.0 points more than the first run "
        f"(95% interval +{100 * result.difference.low:.1f} to {100 * result.difference.high:+.1f}, "
        "McNemar's exact test p = 0.065): interval and test do not agree (11 problems differ), and "
        "chance alone may explain it, so these runs do not show which is better."
    )


def test_few_problems_gained_are_no_evidence(make_trajectory) -> None:
    """Four of 1,319 gained and none lost, which a bootstrap would have called certain."""
    first = runs(make_trajectory, "0" * 1319, of=1319)
    result = compare_runs(first, runs(make_trajectory, "1111" + "0" * 1315, of=1319))
    assert result.difference.low < 0 < result.difference.high
    assert result.mcnemar == 0.125


@pytest.mark.parametrize("lost", range(4))
@pytest.mark.parametrize("gained", range(13))
def test_what_is_said_is_what_interval_and_test_both_say(make_trajectory, gained, lost) -> None:
    first = runs(make_trajectory, "1" * lost + "0" * (40 - lost), of=40)
    second = runs(make_trajectory, "0" * (40 - gained) + "1" * gained, of=40)
    result = compare_runs(first, second)
    excludes = not result.difference.low <= 0 <= result.difference.high
    sentence = result.sentence()
    assert result.decided == (excludes and result.mcnemar < 0.05)
    if gained or lost:
        assert ("more than chance explains" in sentence) == result.decided
        assert ("do not agree" in sentence) == (excludes != (result.mcnemar < 0.05))


def test_several_samples_leave_it_to_the_bootstrap(make_trajectory) -> None:
    first = [make_trajectory(str(i), s == 0, sample=s) for i in range(10) for s in range(2)]
    second = [make_trajectory(str(i), True, sample=s) for i in range(10) for s in range(2)]
    result = compare_runs(first, second)
    assert result.mcnemar is None
    assert result.p_value == result.difference.p_value
    assert result.gained == 10
    assert "McNemar" not in result.sentence()


def test_problems_of_one_run_alone_are_left_out(make_trajectory) -> None:
    first = runs(make_trajectory, "1" * 20)
    second = [*runs(make_trajectory, "1" * 20)[:15], make_trajectory("other", True)]
    second.append(make_trajectory("15", False, infra=True))
    result = compare_runs(first, second)
    assert (result.difference.n, result.unshared) == (15, 6)
    assert result.first_score.n == 15
    with pytest.raises(ConfigError, match="no problem"):
        compare_runs(first, second[15:16])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one suite: the oracle, and one that says 100 times the answer to most."""
    folder = tmp_path_factory.mktemp("bench")
    rows = [{"question": f"{i} + {i}?", "answer": str(2 * i)} for i in range(1, 13)]
    file = folder / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = find_suite(str(file))
    run_bench(suite, OracleAgent, folder / "a" / "own-oracle")
    stored = list(read_trajectories(folder / "a" / "own-oracle"))
    wrong = [
        replace(t, turns=(Turn(rf"\boxed{{{100 * int(t.problem.answer)}}}"),)) for t in stored[:9]
    ]
    replay = ReplayAgent([*wrong, *stored[9:]], name="factor")
    run_bench(suite, replay, folder / "b" / "own-factor")
    return folder


def test_the_command_compares_and_writes(bench: Path, tmp_path: Path, capsys) -> None:
    words = ["compare", str(bench / "a"), str(bench / "b"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "own: On the same 12 problems factor scores 75.0 points fewer than oracle" in shown
    assert "more than chance explains" in shown
    (row,) = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (row["suite"], row["gained"], row["lost"]) == ("own", 0, 9)
    assert row["mcnemar"] == pytest.approx(2 / 2**9)
    assert (
        "| own | 12 | 100.0% | 25.0% | -75.0 |" in (tmp_path / "out" / "comparison.md").read_text()
    )
    assert r"100.0\% & 25.0\%" in (tmp_path / "out" / "comparison.tex").read_text()


def test_another_policy_scores_both_again(bench: Path, capsys) -> None:
    """The paper's grader takes 100 times the answer for the answer."""
    Compare(bench / "a" / "own-oracle", bench / "b" / "own-factor", policy="paper").run()
    assert "scored the same on every one" in capsys.readouterr().out


def test_runs_scored_differently_are_not_compared(bench: Path, tmp_path: Path) -> None:
    suite = Suite("own", str(bench / "own.jsonl"))
    paper = run_bench(suite, OracleAgent, tmp_path / "own-oracle", policy="paper")
    assert paper.policy["name"] == "paper"
    with pytest.raises(ConfigError, match=r"grading: strict .* against paper"):
        Compare(bench / "a", tmp_path / "own-oracle").run()


def test_errors_say_what_is_missing(bench: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no finished run"):
        find_runs(tmp_path)
    suite = Suite("other", str(bench / "own.jsonl"))
    run_bench(suite, OracleAgent, tmp_path / "other-oracle")
    with pytest.raises(ConfigError, match="no suite is in both"):
        Compare(bench / "a", tmp_path).run()
    run_bench(suite, OracleAgent, tmp_path / "other-again")
    with pytest.raises(ConfigError, match="has two runs of other"):
        find_runs(tmp_path)


def test_results_are_read_back_as_they_were(bench: Path, tmp_path: Path) -> None:
    suite = Suite("own", str(bench / "own.jsonl"))
    written = run_bench(suite, OracleAgent, tmp_path / "run", samples=2)
    assert list(written.metrics.pass_at_k) == [1, 2]
    assert read_result(tmp_path / "run") == written
    file = tmp_path / "run" / "results.json"
    file.write_text(file.read_text().replace('"schema": 2', '"schema": 1'))
    with pytest.raises(DataError, match="repeat the bench command"):
        read_result(tmp_path / "run")


def test_tables_of_several_runs(bench: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["tables", str(bench / "a"), str(bench / "b" / "own-factor")])
    page = capsys.readouterr().out
    assert page.splitlines()[0].startswith("| suite | agent | problems | pass@1 |")
    assert "| own | factor | 12 | 25.0% | 6.8 to 53.2 |" in page
    with pytest.raises(SystemExit):
        cli.main(["tables", str(bench / "a"), "--format", "latex"])
    assert capsys.readouterr().out.startswith("\\begin{tabular}{lrrrrrr}\n\\toprule\nsuite & ")


@pytest.mark.parametrize(
    ("name", "config", "environment"),
    [
        ("samples", {"samples": 8}, {}),
        ("horizon", {"horizon": 3}, {}),
        ("problems", {"problems_sha256": "0123"}, {}),
        ("problems", {"split": "train"}, {}),
        ("protocol", {"protocol": "paper"}, {}),
        ("temperature", {"agent": {"sampling": {"temperature": 1.0}}}, {}),
        ("top_p", {"agent": {"sampling": {"top_p": 0.9}}}, {}),
        ("max_tokens", {"agent": {"sampling": {"max_tokens": 99}}}, {}),
        ("prompt", {"agent": {"system": "Think."}}, {}),
        ("prompt", {"agent": {"instruction": "Think."}}, {}),
        ("template", {"agent": {"tokenizer": "other"}}, {}),
        ("interpreter", {}, {"interpreter": {"host": "docker"}}),
        ("limits", {}, {"limits": {"cell_seconds": 1.0}}),
    ],
)
def test_what_runs_should_share_is_refused_by_name(bench, name, config, environment) -> None:
    oracle = read_result(bench / "a" / "own-oracle")
    sampling = {"temperature": 0.0, "top_p": 1.0, "max_turn_tokens": 512, "max_tokens": 2048}
    agent = {"kind": "LLMAgent", "sampling": sampling, "tokenizer": "t"}
    known = {**oracle.config, "agent": agent, "protocol": "own"}
    first = replace(oracle, config=known)
    assert settings_that_differ(first, first) == []
    changed = {**known, **config}
    if "agent" in config:
        inner = config["agent"]
        changed["agent"] = {**agent, **inner}
        changed["agent"]["sampling"] = {**sampling, **inner.get("sampling", {})}
    second = replace(first, config=changed, environment={**oracle.environment, **environment})
    found = settings_that_differ(first, second)
    assert [setting.name for setting in found if setting.matters] == [name]
    with pytest.raises(ConfigError, match=rf"{name}: .* against .*--despite {name}$"):
        check_comparable(found, ())
    check_comparable(found, (name,))
    # One side of an earlier version, which did not record it: said, and no reason to refuse.
    del changed["agent"], known["agent"]
    blank = {k: v for k, v in second.environment.items() if k in ("packages",)}
    unknown = settings_that_differ(replace(first, environment=blank), second)
    assert all("not recorded" in str(s) for s in unknown if not s.matters)


def test_scripted_agents_neither_sample_nor_read_a_prompt(bench) -> None:
    oracle = read_result(bench / "a" / "own-oracle")
    agent = {"kind": "LLMAgent", "sampling": {"temperature": 1.0}, "system": "Think."}
    model = replace(oracle, config={**oracle.config, "agent": agent})
    assert settings_that_differ(oracle, model) == []


def test_versions_are_noted_and_unknown_names_refused(bench) -> None:
    oracle = read_result(bench / "a" / "own-oracle")
    packages = {**oracle.environment["packages"], "sympy": "1.0"}
    other = replace(oracle, environment={**oracle.environment, "packages": packages})
    (found,) = settings_that_differ(oracle, other)
    assert (found.name, found.matters) == ("version of sympy", False)
    check_comparable([found], ())
    with pytest.raises(ConfigError, match="no such setting; there are problems, samples"):
        check_comparable([], ("weather",))


def test_the_command_refuses_and_goes_on_where_it_is_told_to(bench, tmp_path, capsys) -> None:
    suite = Suite("own", str(bench / "own.jsonl"))
    other = tmp_path / "other"
    run_bench(suite, OracleAgent, other, protocol="paper")
    with pytest.raises(ConfigError, match=r"protocol: lenient against paper.*--despite protocol"):
        Compare(bench / "a", other).run()
    Compare(bench / "a", other, despite=("protocol",)).run()
    assert "the runs differ in protocol: lenient against paper" in capsys.readouterr().out


def test_a_script_has_the_horizon_that_it_needs(bench, tmp_path, capsys) -> None:
    run_bench(Suite("own", str(bench / "own.jsonl")), OracleAgent, tmp_path / "o", horizon=9)
    Compare(bench / "a", tmp_path / "o").run()
    assert "horizon" not in capsys.readouterr().out


def test_one_id_with_two_contents_is_no_pair(make_trajectory) -> None:
    first = [make_trajectory("a", True)]
    changed = replace(first[0], problem=replace(first[0].problem, answer="5"))
    with pytest.raises(ConfigError, match="problem a has another question or answer"):
        compare_runs(first, [changed])
