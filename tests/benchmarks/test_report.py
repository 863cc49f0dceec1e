from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.curve import learning_curve
from benchmarks.metrics import paired_difference, wilson
from benchmarks.report import latex_table, stage_markdown, stage_rows, stage_table
from benchmarks.transcript import compare, improved, plain, transcript
from mathenv.errors import ConfigError, DataError
from mathenv.types import ExecutionStatus, Problem, Turn


def test_stage_rows_measure_gains_against_the_first(make_trajectory) -> None:
    before = [make_trajectory(str(i), i < 4) for i in range(10)]
    after = [make_trajectory(str(i), i < 9) for i in range(10)]
    rows = stage_rows([("SFT", before), ("iteration 1", after)])
    assert [row.score for row in rows] == [wilson(4, 10), wilson(9, 10)]
    assert rows[0].gain is None
    assert rows[1].gain == paired_difference(
        {str(i): (float(i < 4),) for i in range(10)}, {str(i): (float(i < 9),) for i in range(10)}
    )


def test_stage_tables_show_the_same_numbers(make_trajectory) -> None:
    before = [make_trajectory(str(i), i < 4) for i in range(10)]
    after = [make_trajectory(str(i), i < 9) for i in range(10)]
    rows = stage_rows([("SFT", before), ("iteration 1", after)])
    page = stage_markdown(rows).splitlines()
    assert page[2].startswith("| SFT | 40.0% | 16.8 to 68.7 |")
    assert page[3].startswith("| iteration 1 | 90.0% | 59.6 to 99.5 | +50.0 | +5.5 to +77.9 |")
    assert {line.count("|") for line in page} == {7}
    shown = plain(stage_table(rows))
    assert "iteration 1" in shown
    assert "+50.0" in shown


def test_stage_tables_count_what_they_leave_out_where_something_is(make_trajectory) -> None:
    before = [make_trajectory(str(i), i < 4) for i in range(10)]
    after = [make_trajectory(str(i), i < 9, infra=i in (0, 5)) for i in range(10)]
    rows = stage_rows([("SFT", before), ("iteration 1", after)])
    assert [row.excluded for row in rows] == [0, 2]
    assert rows[1].score == wilson(7, 8)
    head, _, first, second = stage_markdown(rows).splitlines()
    assert head.endswith("| p | excluded |")
    assert first.endswith("|  | 0 |")
    assert second.endswith("| 2 |")
    assert "excluded" in plain(stage_table(rows))
    assert "excluded" not in stage_markdown(rows[:1]), "nothing was"


def test_transcript_holds_everything(make_trajectory) -> None:
    run = make_trajectory("p", True, cells=(ExecutionStatus.OK, ExecutionStatus.TIMEOUT))
    text = plain(transcript(run))
    for part in ("What is p?", "print(4)", "turn 3", "output (timeout)", r"\boxed{4}", "CORRECT"):
        assert part in text
    assert "WRONG" in plain(transcript(make_trajectory("p", False)))
    assert "EXCLUDED" in plain(transcript(make_trajectory("p", False, infra=True)))


def test_transcript_defuses_hostile_text(make_trajectory) -> None:
    from dataclasses import replace

    run = replace(
        make_trajectory("p", True),
        problem=Problem("p", "[bold]2[/bold]?\x1b]0;title\x07", "4"),
        turns=(Turn("\x1b[2J[red]x[/red]\r\n```python\nprint('\x9b')\n```\n\ud800"),),
    )
    console = Console(record=True, force_terminal=True, width=80, file=StringIO())
    console.print(transcript(run))
    shown = console.export_text()
    assert "[bold]2[/bold]" in shown
    assert "[red]x[/red]" in shown
    assert "\\x1b[2J" in shown
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(plain(transcript(run)))


def test_compare_and_improved(make_trajectory) -> None:
    before = [make_trajectory("a", False, agent="sft"), make_trajectory("b", True, agent="sft")]
    after = [make_trajectory("a", True, agent="mdpo"), make_trajectory("b", True, agent="mdpo")]
    pairs = improved(before, after)
    assert [(x.problem.id, x.agent, y.agent) for x, y in pairs] == [("a", "sft", "mdpo")]
    text = plain(compare(*pairs[0]))
    assert text.index("before: sft") < text.index("WRONG") < text.index("after: mdpo")
    assert text.index("after: mdpo") < text.index("CORRECT")
    with pytest.raises(DataError, match="one problem"):
        compare(before[0], after[1])


def test_learning_curve_is_a_picture_with_every_line(tmp_path: Path) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    from benchmarks.curve import COLOURS

    points = [wilson(k, 100) for k in (60, 70, 80)]
    path = learning_curve(
        tmp_path / "plots" / "curve.png", {"mdpo": points, "dpo": points[:2]}, ["SFT", "1", "2"]
    )
    image = imread(path)[:, :, :3]
    for colour in COLOURS[:2]:
        assert (abs(image - to_rgb(colour)).max(axis=2) < 0.02).sum() > 200
    assert (abs(image - to_rgb(COLOURS[2])).max(axis=2) < 0.02).sum() == 0


def test_learning_curve_refuses_nonsense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one point"):
        learning_curve(tmp_path / "x.png", {"mdpo": []}, ["SFT"])
    with pytest.raises(ConfigError, match="more points"):
        learning_curve(tmp_path / "x.png", {"mdpo": [wilson(1, 2)] * 2}, ["SFT"])


def test_latex_is_escaped_and_rectangular() -> None:
    page = latex_table(("suite", "p"), [["gsm_hard & more", "< 0.1%"], ["a\\b", "~^"]])
    lines = page.splitlines()
    assert lines[0] == r"\begin{tabular}{lr}"
    assert lines[4] == r"gsm\_hard \& more & \textless{} 0.1\% \\"
    assert lines[5] == r"a\textbackslash{}b & \textasciitilde{}\textasciicircum{} \\"
    assert lines[-1] == r"\end{tabular}"
