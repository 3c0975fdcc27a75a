import csv
import os
from pathlib import Path

import pytest

from irstd_edge.data import DataError
from irstd_edge.files import check_writable, replacing, write_csv, write_text


def test_replacing_is_whole_or_nothing(tmp_path):
    path = tmp_path / "deep" / "x.json"
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert list(path.parent.iterdir()) == []
    with replacing(path) as temporary:
        assert temporary.parent == path.parent and temporary.suffix == ".json"
        temporary.write_text("whole")
    write_text(tmp_path / "a.md", "é")
    assert path.read_text() == "whole" and (tmp_path / "a.md").read_bytes() == "é".encode()
    for write in (replacing(path / "y.json").__enter__, lambda: write_text(path / "y.json", "")):
        with pytest.raises(DataError, match="cannot be written"):
            write()
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_an_error_of_the_block_keeps_its_words(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"input\.png"), replacing(tmp_path / "x.json"):
        (tmp_path / "input.png").read_bytes()
    assert list(tmp_path.iterdir()) == []


def test_a_rename_that_fails_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError(28, "no room")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match=r"x\.json: cannot be written \(no room\)"):
        write_text(tmp_path / "x.json", "text")
    assert list(tmp_path.iterdir()) == []


def test_rows_become_csv(tmp_path):
    path = tmp_path / "new" / "a.csv"
    write_csv(path, [{"name": "a,b", "é": 1}, {"name": 'say "c"'}])
    assert path.read_bytes() == 'name,é\n"a,b",1\n"say ""c""",\n'.encode()
    write_csv(path, [{"x": 1.5, "y": None}], ("y", "x", "z"))
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"y": "", "x": "1.5", "z": ""}]
    write_csv(path, [], ("x", "y"))
    assert path.read_text() == "x,y\n"
    with pytest.raises(ValueError, match="'w'"):  # a field that has no column
        write_csv(path, [{"x": 1, "y": 2}, {"w": 3}], ("x", "y"))
    assert path.read_text() == "x,y\n" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("write", [lambda path: write_text(path, "text"), lambda path: write_csv(path, [{"x": 1}])])
def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path, monkeypatch, write):
    def full(self, *arguments, **options):
        self.touch()
        raise OSError(28, "no room")

    (tmp_path / "x").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(DataError, match=r"x: cannot be written \(no room\)"):
            write(tmp_path / "x")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_what_cannot_be_written_is_known_before(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="name a file"):
        check_writable(tmp_path)
    with pytest.raises(DataError, match="file is a file"):
        check_writable(tmp_path / "file" / "y" / "z.json")
    with pytest.raises(DataError, match="device or pipe"):
        check_writable("/dev/null")
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "deeper" / "z.json")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match="no permission for"):
        check_writable(tmp_path / "z.json")
