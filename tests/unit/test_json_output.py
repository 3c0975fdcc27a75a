"""Where --json writes: a file, whole or not at all, or standard output alone."""

import json
import sys

import click
import pytest

from irstd_edge.data import DataError
from irstd_edge.json_output import JsonFile, json_option


@click.command()
@json_option("the answer")
def command(json_file):
    print("a table")
    if json_file is not None:
        json_file.write({"answer": 42})


def run(*arguments):
    command.main(arguments, standalone_mode=False)


def test_nothing_a_file_or_standard_output(tmp_path, capsys):
    run()
    assert capsys.readouterr().out == "a table\n"
    run("--json", str(tmp_path / "deep" / "x.json"))
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"answer": 42}
    assert capsys.readouterr().out == "a table\n"
    run("--json", "-")
    printed, out = capsys.readouterr(), sys.stdout
    assert json.loads(printed.out) == {"answer": 42} and printed.err == "a table\n" and sys.stdout is out


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path, capsys):
    with pytest.raises(DataError, match="name a file"):
        run("--json", str(tmp_path))
    assert capsys.readouterr().out == ""


def test_numbers_that_json_has_not_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        JsonFile(tmp_path / "x.json").write({"x": float("nan")})
    assert not (tmp_path / "x.json").exists()
