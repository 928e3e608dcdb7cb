"""Compiled kernels are kept where they can be, never outlive their sources, and damaged ones are compiled again."""

import os
import pathlib
import shutil
import subprocess
import sys

import numba
import pytest

from fastkoop.kernels.cpu import cache
from fastkoop.kernels.cpu.jit import kernel


@pytest.fixture
def fresh(monkeypatch):
    """The places are looked for again, and afterwards once more."""
    cache.places.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    cache.places.cache_clear()


@pytest.fixture
def blocked(tmp_path):
    """A path under which no folder can be made, whoever tries."""
    path = tmp_path / "a file"
    path.write_text("")
    return path / "below"


class TestPlace:
    def test_the_variable_comes_first(self, fresh, tmp_path):
        fresh.setattr(numba.config, "CACHE_DIR", str(tmp_path))
        assert cache.cache_place() == str(tmp_path / f"fastkoop-{cache.DIGEST}")
        assert cache.places()[1] == (tmp_path / f"fastkoop-{cache.DIGEST}",)

    def test_then_beside_the_kernels_the_users_cache_the_temporary_folder_or_none(self, fresh, tmp_path, blocked):
        fresh.setattr(numba.config, "CACHE_DIR", str(blocked))
        beside = cache.KERNELS / "__pycache__"
        order = [*cache.bases()]
        assert order[0] == blocked and order[1] == beside and "fastkoop" in order[2].name
        assert order[3].name.startswith("fastkoop-numba-")
        for count in (1, 2, 3):
            folders = [blocked / str(k) for k in range(count)]
            fresh.setattr(cache, "bases", lambda folders=folders: [*folders, tmp_path])
            cache.places.cache_clear()
            assert cache.cache_place() == str(tmp_path / f"fastkoop-{cache.DIGEST}")
        fresh.setattr(cache, "bases", lambda: [blocked])
        cache.places.cache_clear()
        assert cache.cache_place() is None and cache.places() == (None, ())

    def test_a_folder_that_can_only_be_read_is_read(self, fresh, tmp_path):
        name = f"fastkoop-{cache.DIGEST}"
        image, mine = tmp_path / "image", tmp_path / "mine"
        (image / name).mkdir(parents=True)
        writable = cache._writable
        fresh.setattr(cache, "_writable", lambda folder: image not in folder.parents and writable(folder))
        fresh.setattr(cache, "bases", lambda: [image, mine])
        assert cache.places() == (mine / name, (mine / name, image / name))

    @pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
    def test_others_cannot_put_kernels_into_the_temporary_folder(self, fresh, tmp_path):
        fresh.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
        folder = cache._temporary()
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o777)
        assert cache._temporary() is None
        folder.rmdir()
        folder.symlink_to(tmp_path)
        assert cache._temporary() is None

    def test_no_temporary_folder_at_all(self, fresh, blocked):
        fresh.setattr(cache.tempfile, "gettempdir", lambda: str(blocked))
        assert cache._temporary() is None

    def test_old_folders_go_but_for_the_newest(self, tmp_path):
        for k in range(12):
            folder = tmp_path / f"fastkoop-{k:016x}"
            folder.mkdir()
            (folder / "f.nbi").write_text("")
            os.utime(folder, (k, k))
        cache._forget_old(tmp_path, f"fastkoop-{0:016x}")
        left = sorted(int(path.name[9:], 16) for path in tmp_path.iterdir())
        assert left == [0, *range(12 - cache.KEPT, 12)]

    def test_the_digest_is_of_every_source(self, fresh, tmp_path):
        shutil.copytree(cache.KERNELS, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
        fresh.setattr(cache, "KERNELS", tmp_path / "kernels")
        assert cache._digest() == cache.DIGEST
        source = tmp_path / "kernels" / "cutoffs.py"
        text = source.read_bytes()
        source.write_bytes(text + b"\n# a word\n")
        assert cache._digest() != cache.DIGEST
        source.write_bytes(text)
        source.rename(source.with_name("rules.py"))
        assert cache._digest() != cache.DIGEST
        fresh.setattr(cache.numba, "__version__", "0.0")
        fresh.setattr(cache, "KERNELS", tmp_path / "nowhere")
        assert cache._digest() is None


def doubled(x):
    return x + x


DAMAGES = {
    "empty": lambda content: b"",
    "halved": lambda content: content[: len(content) // 2],
    "random": lambda content: os.urandom(len(content)),
    "random, short": lambda content: os.urandom(7),
    "one bit": lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:],
    "text": lambda content: b"compiled kernel\n",
}


class TestDamage:
    @pytest.fixture
    def folder(self, fresh, tmp_path):
        fresh.setattr(cache, "bases", lambda: [tmp_path])
        function = kernel(doubled)
        assert function(2) == 4 and sum(function.stats.cache_misses.values()) == 1
        return pathlib.Path(cache.cache_place())

    def hits(self):
        function = kernel(doubled)
        assert function(2) == 4
        return sum(function.stats.cache_hits.values())

    @pytest.mark.parametrize("kind", ["nbi", "nbc"])
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_is_compiled_again(self, folder, kind, damage):
        assert self.hits() == 1
        for path in folder.glob(f"*.{kind}"):
            path.write_bytes(DAMAGES[damage](path.read_bytes()))
        assert self.hits() == 0
        assert self.hits() == 1

    def test_missing_files_and_folders(self, folder):
        for path in folder.glob("*.nbc"):
            path.unlink()
        assert self.hits() == 0
        shutil.rmtree(folder)
        assert self.hits() == 0
        assert self.hits() == 1

    def test_a_folder_where_a_file_should_be(self, folder):
        for path in folder.glob("*.nb[ic]"):
            path.unlink()
            path.mkdir()
        assert self.hits() == 0

    def test_a_disk_that_is_full(self, folder, fresh, caplog):
        shutil.rmtree(folder)

        def full(*arguments):
            raise OSError(28, "No space left on device")

        fresh.setattr(cache._Sealed, "_save_data", full)
        with caplog.at_level("DEBUG", "fastkoop"):
            assert self.hits() == 0
        assert "is not kept" in caplog.text and "No space left" in caplog.text

    def test_two_signatures_at_once_do_not_take_each_others_file(self, folder):
        """As of two processes, whose indices were read before either wrote."""
        first, second = kernel(doubled), kernel(doubled)
        index = first._cache._files[0]
        before = index._load_index()
        first(2.0)
        index._save_index(before)
        second(2j)
        names = set(index._load_index().values())
        assert len(names) == 2 and len(list(folder.glob("*.nbc"))) == 3
        assert kernel(doubled)(2.0) == 4.0 and kernel(doubled)(2j) == 4j

    def test_a_flushed_cache_is_empty(self, folder):
        kernel(doubled)._cache.flush()
        assert self.hits() == 0


SCRIPT = """
import os, pathlib, sys
blocked = {blocked!r}
{setup}
import numpy as np, fastkoop
from fastkoop.kernels.cpu import cache
print(fastkoop.predict(np.ones((1, 2)), 1)[0], cache.cache_place())
"""


@pytest.mark.parametrize(
    ("setup", "environment"),
    [
        ("", ("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME", "TMPDIR")),
        (
            "import tempfile\n"
            "def refuse(*arguments, **options): raise OSError(30, 'Read-only file system')\n"
            "os.mkdir = pathlib.Path.mkdir = tempfile.TemporaryFile = refuse",
            (),
        ),
    ],
    ids=["variables", "read-only"],
)
def test_importing_and_predicting_where_nothing_can_be_written(setup, environment, blocked, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(blocked=str(blocked), setup=setup))
    variables = {**os.environ, **dict.fromkeys(environment, str(blocked))}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=180, check=False, env=variables
    )
    assert done.returncode == 0, done.stderr
    value, place = done.stdout.split()
    assert value == "1.0" and (place == "None") == (not environment)
