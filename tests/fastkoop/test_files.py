"""Results appear whole or not at all, and a folder that cannot be written into is named."""

import json
import math

import pytest

from fastkoop import InputError
from fastkoop.files import plain, prepare_out, write, write_json


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    assert write_json(path, {"a": [1.0, math.inf, math.nan]}) == path
    assert json.loads(path.read_text()) == {"a": [1.0, None, None]}

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"b": 2})
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    assert json.loads(path.read_text()) == {"a": [1.0, None, None]}


def test_a_value_that_json_cannot_say_leaves_the_old_file(tmp_path):
    path = write(tmp_path / "results.json", b"old")
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"a": object()})
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_numbers_keep_seven_digits():
    assert plain((1.23456789e-5, 3, "x", None, {"b": -math.inf})) == [1.234568e-05, 3, "x", None, {"b": None}]


def test_a_folder_is_made_and_left_empty(tmp_path):
    folder = prepare_out(str(tmp_path / "new" / "folder"))
    assert folder.is_dir() and list(folder.iterdir()) == []


def test_an_unwritable_out_is_refused(tmp_path):
    taken = tmp_path / "file"
    taken.write_text("")
    with pytest.raises(InputError, match=r"out: cannot write into .*file.*name another folder with --out"):
        prepare_out(str(taken / "below"))
