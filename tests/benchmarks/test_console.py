"""Results as text: whole tables in files, the terminal's width on a terminal."""

from io import StringIO

import pytest
from rich.panel import Panel
from rich.table import Table

from benchmarks.console import ResultConsole


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def wide() -> Table:
    table = Table(*(f"a column of many words {i}" for i in range(12)))
    table.add_row(*("x" * 40 for _ in range(12)))
    return table


@pytest.mark.parametrize("columns", ["80", "20", ""])
def test_a_table_in_a_file_is_whole(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    file = StringIO()
    console = ResultConsole(file=file)
    before = console.width
    console.print(wide())
    console.print(Panel("a panel"))
    text = file.getvalue()
    assert "…" not in text
    assert text.count("x" * 40) == 12
    assert any(all(f"many words {i}" in line for i in range(12)) for line in text.splitlines())
    assert console.width == before
    assert max(map(len, text.splitlines()[-3:])) <= before


def test_a_table_on_a_terminal_keeps_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Terminal()
    ResultConsole(file=file, width=80, color_system=None).print(wide())
    assert max(map(len, file.getvalue().splitlines())) <= 80
