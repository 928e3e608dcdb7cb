"""Results appear whole or not at all, and a folder that cannot be written into is named."""

import json
import math
import os
import pathlib
import signal
import stat
import subprocess
import sys

import pytest

from fastkoop import InputError
from fastkoop.files import _prefix, plain, prepare_out, read_json, write, write_json, write_with


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    assert write_json(path, {"a": [1.0, math.inf, math.nan]}) == path
    assert json.loads(path.read_text()) == {"a": [1.0, None, None]}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(InputError, match=r"cannot write '.*results.json' \(No space left on device\); make room"):
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
    for out in (taken / "below", taken, tmp_path / ("x" * 300), f"{tmp_path}/nul\0", tmp_path / "link" / "on"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(taken)
        with pytest.raises(InputError, match=r"(?s)out: cannot write into .*name another folder with --out"):
            prepare_out(str(out))


@pytest.mark.parametrize("out", ["", "  "])
def test_an_empty_name_is_not_the_current_folder(out):
    with pytest.raises(InputError, match=r"out: expected a folder, got '"):
        prepare_out(out)


@pytest.mark.parametrize(
    ("text", "says"), [(None, "No such file"), ("{", "is not JSON"), ("[" * 200_000, "nested too deeply")]
)
def test_json_that_cannot_be_read_is_named(tmp_path, text, says):
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=rf"results\.json.*{says}"):
        read_json(path)


class TestWriting:
    """Modes, links, devices, names and what killed runs leave."""

    def test_the_mode_of_an_existing_file_is_kept(self, tmp_path):
        path = write(tmp_path / "a", b"old")
        path.chmod(0o600)
        write(path, b"new")
        assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o600

    def test_a_new_file_has_the_mode_of_any_other(self, tmp_path):
        (tmp_path / "plain").touch()
        assert write(tmp_path / "a", b"").stat().st_mode == (tmp_path / "plain").stat().st_mode

    @pytest.mark.parametrize("there", [True, False])
    def test_a_link_stays_one(self, tmp_path, there):
        (tmp_path / "real").mkdir()
        target, link = tmp_path / "real" / "a", tmp_path / "link"
        if there:
            target.write_bytes(b"old")
        link.symlink_to(target)
        assert write(link, b"new") == link
        assert link.is_symlink() and target.read_bytes() == b"new"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]

    def test_a_planted_link_is_not_followed(self, tmp_path, monkeypatch):
        monkeypatch.setattr("secrets.token_hex", lambda count: "planted")
        victim, target = tmp_path / "victim", tmp_path / "a"
        victim.write_bytes(b"mine")
        (tmp_path / f"{_prefix(target)}planted.partial").symlink_to(victim)
        with pytest.raises(FileExistsError):
            write(target, b"new")
        assert victim.read_bytes() == b"mine" and not target.exists()

    @pytest.mark.parametrize("kind", ["pipe", "folder", "null"])
    def test_what_is_no_file_is_refused(self, tmp_path, kind):
        path = tmp_path / "a"
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path = pathlib.Path(os.devnull)
        before = path.stat().st_mode
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
            write(path, b"new")
        assert path.stat().st_mode == before

    @pytest.mark.parametrize("length", [1, 200, 255])
    def test_names_as_long_as_the_system_takes(self, tmp_path, length):
        assert write(tmp_path / ("n" * length), b"new").read_bytes() == b"new"

    def test_folder_and_file_are_synced(self, tmp_path, monkeypatch):
        kinds = []
        monkeypatch.setattr("os.fsync", lambda descriptor: kinds.append(stat.S_IFMT(os.fstat(descriptor).st_mode)))
        write(tmp_path / "a", b"new")
        assert kinds == [stat.S_IFREG, stat.S_IFDIR]

    def test_what_a_killed_run_left_is_removed_by_the_next(self, tmp_path):
        script = (
            "import os, signal, sys, pathlib\nfrom fastkoop.files import write_with\n"
            "write_with(pathlib.Path(sys.argv[1]), lambda file: os.kill(os.getpid(), signal.SIGKILL))\n"
        )
        for name in ("a", "a", "b"):
            assert subprocess.run([sys.executable, "-c", script, str(tmp_path / name)]).returncode == -signal.SIGKILL
        left = {path.name for path in tmp_path.iterdir()}
        assert len(left) == 2  # the second run for "a" removed what the first had left
        write(tmp_path / "a", b"new")
        remaining = {path.name for path in tmp_path.iterdir()}
        assert "a" in remaining and len(remaining) == 2 and len(remaining & left) == 1  # b's own stays

    def test_a_run_that_still_writes_is_left_alone(self, tmp_path):
        def fill(file):
            file.write(b"slow")
            write(tmp_path / "a", b"fast")

        assert write_with(tmp_path / "a", fill).read_bytes() == b"slow"
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
