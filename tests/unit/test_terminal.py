import io
import subprocess
import sys

from irstd_edge import terminal


def test_tables_are_not_cut_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    table = terminal.table("layer", "bytes", title="what they take")
    table.add_row("x" * 150, "7")
    table.add_row("short", "1234")
    terminal.console().print(table)
    title, _, head, _, *rows = (line.rstrip() for line in sys.stdout.getvalue().splitlines())
    assert (title, head.split()) == ("what they take", ["layer", "bytes"])
    assert [row.split() for row in rows if row] == [["x" * 150, "7"], ["short", "1234"]]
    # The first column begins at one place, the others end at one.
    assert len(rows[0]) == len(rows[1]) == len(head) and rows[0].index("x") == rows[1].index("short")


def test_rich_is_imported_where_something_is_shown():
    code = "import sys, irstd_edge.terminal, irstd_edge.runtimes.cli; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
