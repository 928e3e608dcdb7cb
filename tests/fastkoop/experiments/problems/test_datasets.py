"""Data sets: the fixed split of the digits, the IDX reader's every refusal, and where MNIST is looked for."""

import gzip
import hashlib
import http.server
import os
import re
import struct
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pooch
import pytest

from fastkoop.checks import InputError
from fastkoop.experiments.problems import idx as idx_module
from fastkoop.experiments.problems import mnist_files
from fastkoop.experiments.problems.datasets import NAMES, Dataset, load
from fastkoop.experiments.problems.mnist_files import DATA_DIR, SHA256

REAL = os.environ.get(DATA_DIR)  # read here, because every test below runs without it
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = SHA256


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of this test's own, no environment variable, and a mirror where nobody answers."""
    monkeypatch.delenv(DATA_DIR, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(mnist_files, "MIRROR", "http://127.0.0.1:9/")
    return tmp_path / "cache" / "fastkoop" / "mnist"


def idx(array, magic=None):
    """The bytes of an IDX file that holds `array`."""
    array = np.asarray(array, dtype=np.uint8)
    return struct.pack(f">{1 + array.ndim}I", magic or 0x800 + array.ndim, *array.shape) + array.tobytes()


def small(seed=0, train=12, test=5, side=3):
    """The bytes of four small files; the first training image starts with the pixels 0 and 255."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (train, side, side))
    images[0, 0, :2] = 0, 255
    return {
        TRAIN_IMAGES: idx(images),
        TRAIN_LABELS: idx(np.arange(train) % 10),
        TEST_IMAGES: idx(rng.integers(0, 256, (test, side, side))),
        TEST_LABELS: idx(np.arange(test) % 10),
    }


def write(folder, files, packed=()):
    """Put `files` into `folder`, those named in `packed` as .gz."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, data in files.items():
        if stem in packed:
            (folder / f"{stem}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / stem).write_bytes(data)
    return folder


def same(left: Dataset, right: Dataset):
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    return all(np.array_equal(getattr(left, part), getattr(right, part)) for part in parts)


# The digits


def test_digits_are_split_into_fixed_stratified_parts():
    digits = load("digits")
    assert (digits.name, digits.features, digits.classes) == ("digits", 64, 10)
    assert digits.train_images.shape == (1437, 64) and digits.test_images.shape == (360, 64)
    assert digits.train_images.dtype == digits.test_images.dtype == np.float32
    assert digits.train_labels.dtype == digits.test_labels.dtype == np.int64
    assert digits.train_images.min() == -1 and digits.train_images.max() == 1
    test = np.bincount(digits.test_labels)
    share = (np.bincount(digits.train_labels) + test) * 360 / 1797
    assert np.abs(test - share).max() < 1


def test_digits_parts_are_the_bundled_images_each_once_in_file_order():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    digits = load("digits")
    numbered = {row.tobytes(): i for i, row in enumerate((pixels / 8 - 1).astype(np.float32))}
    assert len(numbered) == 1797
    train = [numbered[row.tobytes()] for row in digits.train_images]
    test = [numbered[row.tobytes()] for row in digits.test_images]
    assert train == sorted(train) and test == sorted(test)
    assert sorted(train + test) == list(range(1797))
    by_label = sorted(range(1797), key=lambda i: (labels[i], i))
    assert test == sorted(by_label[::5])
    assert np.array_equal(labels[train], digits.train_labels)
    assert np.array_equal(labels[test], digits.test_labels)


def test_digits_do_not_depend_on_a_seed():
    np.random.seed(1)  # noqa: NPY002 (the global state is what must not matter)
    first = load("digits")
    np.random.seed(2)  # noqa: NPY002
    assert same(first, load("digits"))


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r'needs scikit-learn .*pip install "fastkoop\[mnist\]"'):
        load("digits")


# Names and what the module costs to import


@pytest.mark.parametrize("name", ["cifar", "MNIST", "", None, 3])
def test_an_unknown_name_is_answered_with_the_known_ones(name):
    with pytest.raises(InputError, match=rf"dataset.*'digits', 'mnist'.*got {name!r}"):
        load(name)
    assert NAMES == ("digits", "mnist")


def test_importing_the_module_imports_no_optional_package(tmp_path):
    code = "import sys, fastkoop.experiments.problems.datasets; print({'sklearn', 'pooch', 'rich'} & set(sys.modules))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert (done.stdout.strip(), done.returncode) == ("set()", 0), done.stderr


def test_classes_count_to_the_largest_label_of_either_part():
    images = np.zeros((2, 4), np.float32)
    assert Dataset("some", images, np.array([0, 1]), images, np.array([2, 0])).classes == 3


# Reading MNIST


PACKINGS = {"raw": (), "gz": tuple(SHA256), "mixed": (TRAIN_IMAGES, TEST_LABELS)}


@pytest.mark.parametrize("packed", PACKINGS.values(), ids=PACKINGS)
def test_small_files_are_read_and_scaled(tmp_path, packed):
    files = small()
    data = load("mnist", write(tmp_path / "data", files, packed))
    pixels = np.frombuffer(files[TRAIN_IMAGES], np.uint8, offset=16).reshape(12, 9)
    np.testing.assert_allclose(data.train_images, pixels / 127.5 - 1, rtol=0, atol=np.finfo(np.float32).eps)
    assert data.train_images[0, 0] == -1 and data.train_images[0, 1] == 1
    assert data.train_images.dtype == data.test_images.dtype == np.float32
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.test_labels.tolist() == [0, 1, 2, 3, 4]
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert (data.name, data.features, data.classes, data.test_images.shape) == ("mnist", 9, 10, (5, 9))


def test_raw_wins_over_gz(tmp_path):
    raw = load("mnist", write(tmp_path / "raw", small(seed=2)))
    both = write(write(tmp_path / "both", small(seed=1), packed=tuple(SHA256)), small(seed=2))
    assert same(load("mnist", both), raw)


def test_a_string_and_a_home_are_paths_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    folder = write(tmp_path / "data", small())
    assert same(load("mnist", str(folder)), load("mnist", "~/data"))


def test_loading_makes_no_float64_copy_of_the_images(tmp_path):
    folder = write(tmp_path, small(train=4000, side=28))
    bytes_float32 = 4 * 4000 * 28 * 28
    tracemalloc.start()
    load("mnist", folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bytes_float32 < peak < 1.5 * bytes_float32  # the float32 images and the file's bytes, a quarter


IMAGES_3x3 = small()[TRAIN_IMAGES]
DAMAGED = {
    "magic of images": (TRAIN_IMAGES, idx(np.zeros(12)), r"0x00000803 \(images\), found 0x00000801"),
    "magic of labels": (TEST_LABELS, idx(np.zeros((5, 3, 3))), r"0x00000801 \(labels\), found 0x00000803"),
    "magic of int32": (TRAIN_IMAGES, idx(np.zeros((12, 3, 3)), 0xC03), r"0x00000803 .*found 0x00000c03"),
    "empty file": (TRAIN_IMAGES, b"", "a header of 16 bytes, found a file truncated to 0"),
    "cut in the magic": (TRAIN_LABELS, b"\0\0\10", "a header of 8 bytes, found a file truncated to 3"),
    "cut in the header": (TEST_IMAGES, IMAGES_3x3[:15], "a header of 16 bytes, found a file truncated to 15"),
    "cut in the pixels": (TRAIN_IMAGES, IMAGES_3x3[:-1], "124 bytes for 12 x 3 x 3 images.*truncated to 123"),
    "cut in the labels": (TRAIN_LABELS, idx(np.zeros(12))[:-5], "20 bytes for 12 labels, .*truncated to 15"),
    "a header that promises too much": (
        TRAIN_IMAGES,
        struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1),
        rf"{16 + (2**32 - 1) ** 3} bytes for .*truncated to 16",
    ),
    "trailing bytes": (TRAIN_IMAGES, IMAGES_3x3 + b"\0", "124 bytes .*with trailing bytes"),
    "trailing label": (TEST_LABELS, idx(np.zeros(5)) + b"\1", "13 bytes .*with trailing bytes"),
    "no images": (TRAIN_IMAGES, idx(np.zeros((0, 3, 3))), "at least one of the images.*found 0 x 3 x 3"),
    "images of no rows": (TEST_IMAGES, idx(np.zeros((5, 0, 3))), "none of them empty, found 5 x 0 x 3"),
    "no labels": (TEST_LABELS, idx(np.zeros(0)), "at least one of the labels.*found 0"),
    "fewer labels": (TRAIN_LABELS, idx(np.zeros(11)), rf"12 labels, one per .*{TRAIN_IMAGES}, found 11"),
    "more labels": (TEST_LABELS, idx(np.zeros(6)), rf"5 labels, one per .*{TEST_IMAGES}, found 6"),
    "label 10": (TRAIN_LABELS, idx([0] * 7 + [10, 11] + [0] * 3), "labels 0 to 9, found 10 at index 7"),
    "label 255": (TEST_LABELS, idx([255, 0, 0, 0, 0]), "labels 0 to 9, found 255 at index 0"),
    "other image size": (TEST_IMAGES, idx(np.zeros((5, 3, 4))), rf"3 x 3 like .*{TRAIN_IMAGES}, found 3 x 4"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gz"])
@pytest.mark.parametrize("stem, data, finding", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named_with_the_finding_and_the_cure(tmp_path, stem, data, finding, packed):
    folder = write(tmp_path, small() | {stem: data}, packed=[stem] * packed)
    path = folder / (stem + ".gz" * packed)
    match = rf"^{re.escape(str(path))}: expected .*{finding}.*; replace it by an intact {path.name}"
    with pytest.raises(InputError, match=match):
        load("mnist", folder)


PACKED = gzip.compress(IMAGES_3x3)
CORRUPT = {
    "not gzip": (IMAGES_3x3, "Not a gzipped file"),
    "cut": (PACKED[:-12], "ended before the end-of-stream marker"),
    "cut in the header": (PACKED[:5], "ended before the end-of-stream marker"),
    "bad checksum": (PACKED[:-8] + bytes(4) + PACKED[-4:], "CRC check failed"),
    "bad stream": (PACKED[:10] + b"\xff" * 20 + PACKED[30:], "invalid block type"),
    "trailing bytes": (PACKED + b"more", "Not a gzipped file"),
}


@pytest.mark.parametrize("data, finding", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_gzip_is_named_with_the_finding_and_the_cure(tmp_path, data, finding):
    folder = write(tmp_path, small())
    (folder / TRAIN_IMAGES).unlink()
    path = folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(data)
    match = rf"^{re.escape(str(path))}: expected a readable gzip file of images, found .*{finding}.*; replace"
    with pytest.raises(InputError, match=match):
        load("mnist", folder)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_directory_in_place_of_a_file_is_named(tmp_path, suffix):
    folder = write(tmp_path, small())
    (folder / TEST_LABELS).unlink()
    (folder / f"{TEST_LABELS}{suffix}").mkdir()
    match = rf"{TEST_LABELS}{suffix}: expected a readable .*file of labels, found Is a directory; replace it"
    with pytest.raises(InputError, match=match):
        load("mnist", folder)


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    folder = write(tmp_path, small())

    def refuse(path, mode):  # the superuser reads a file of mode 000, so the refusal is made here
        if Path(path).name == TRAIN_LABELS:
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, mode)

    monkeypatch.setattr(idx_module, "open", refuse, raising=False)
    match = rf"{TRAIN_LABELS}: expected a readable file of labels, found Permission denied; replace it"
    with pytest.raises(InputError, match=match):
        load("mnist", folder)


def test_a_dangling_link_is_unreadable_and_not_absent(cache):
    write(cache, small())
    (cache / TRAIN_LABELS).unlink()
    (cache / TRAIN_LABELS).symlink_to(cache / "gone")
    with pytest.raises(InputError, match=rf"{TRAIN_LABELS}: expected a readable file .*found No such file"):
        load("mnist")


# Where MNIST is looked for


def test_data_dir_goes_before_the_variable_and_that_before_the_cache(tmp_path, monkeypatch, cache):
    first, second, third = (load("mnist", write(tmp_path / str(seed), small(seed))) for seed in (1, 2, 3))
    write(cache, small(3))
    assert same(load("mnist"), third) and not same(first, third)
    monkeypatch.setenv(DATA_DIR, str(tmp_path / "2"))
    assert same(load("mnist"), second) and not same(second, third)
    assert same(load("mnist", tmp_path / "1"), first) and not same(first, second)


def test_an_empty_variable_counts_as_unset(monkeypatch, cache):
    write(cache, small())
    monkeypatch.setenv(DATA_DIR, "")
    assert load("mnist").features == 9


@pytest.mark.parametrize("given", ["argument", "variable"])
def test_a_missing_file_is_an_error_and_never_taken_from_the_cache(tmp_path, monkeypatch, cache, given):
    write(cache, small())
    folder = write(tmp_path / "data", small())
    (folder / TRAIN_LABELS).unlink()
    (folder / TEST_IMAGES).unlink()
    if given == "variable":
        monkeypatch.setenv(DATA_DIR, str(folder))
    source = {"argument": r"data_dir \(--data-dir\)", "variable": DATA_DIR}[given]
    match = rf"^{source}: {re.escape(str(folder))} lacks the MNIST files {TRAIN_LABELS}, {TEST_IMAGES}; put "
    with pytest.raises(InputError, match=match):
        load("mnist", folder if given == "argument" else None)
    assert sorted(path.name for path in folder.iterdir()) == sorted((TRAIN_IMAGES, TEST_LABELS))


@pytest.mark.parametrize("given", ["argument", "variable"])
@pytest.mark.parametrize("kind, finding", [("absent", "No such file"), ("file", "Not a directory")])
def test_a_data_dir_that_is_no_folder_is_an_error(tmp_path, monkeypatch, cache, given, kind, finding):
    write(cache, small())
    folder = tmp_path / "data"
    if kind == "file":
        folder.write_text("not a folder")
    if given == "variable":
        monkeypatch.setenv(DATA_DIR, str(folder))
    match = rf"expected a folder .*got {re.escape(str(folder))} \({finding}.*; put "
    with pytest.raises(InputError, match=match):
        load("mnist", folder if given == "argument" else None)


def test_a_data_dir_that_is_no_path_is_a_type_error():
    with pytest.raises(TypeError, match="int"):
        load("mnist", 3)


def test_a_given_folder_needs_no_pooch(tmp_path, monkeypatch):
    folder = write(tmp_path, small())
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert load("mnist", folder).features == 9
    with pytest.raises(InputError, match=r'needs pooch .*pip install "fastkoop\[mnist\]"'):
        load("mnist")


# Downloading


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror on this machine: its folder of small files, what it was asked for, what it breaks off."""
    folder = write(tmp_path / "mirror", small(seed=7), packed=tuple(SHA256))
    mirror = SimpleNamespace(folder=folder, asked=[], broken=set())

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def do_GET(self):
            name = self.path.strip("/")
            mirror.asked.append(name)
            if name not in mirror.broken:
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"half")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(mnist_files, "MIRROR", f"http://127.0.0.1:{server.server_port}/")
    for stem in SHA256:
        digest = hashlib.sha256((folder / f"{stem}.gz").read_bytes()).hexdigest()
        monkeypatch.setitem(mnist_files.SHA256, stem, digest)
    yield mirror
    server.shutdown()
    thread.join()
    server.server_close()


def leftovers(cache):
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def test_the_cache_is_filled_once(mirror, cache, capfd):
    data = load("mnist")
    assert same(data, load("mnist", mirror.folder))
    assert leftovers(cache) == sorted(mirror.asked) == sorted(f"{stem}.gz" for stem in SHA256)
    assert same(data, load("mnist")) and len(mirror.asked) == 4
    assert capfd.readouterr() == ("", "")


def test_only_what_the_cache_lacks_is_downloaded(mirror, cache):
    files = small(seed=7)
    write(cache, {TRAIN_IMAGES: files[TRAIN_IMAGES], TEST_LABELS: files[TEST_LABELS]}, packed=[TEST_LABELS])
    assert load("mnist").features == 9
    assert mirror.asked == [f"{TRAIN_LABELS}.gz", f"{TEST_IMAGES}.gz"]


def test_raw_files_in_the_cache_are_the_user_s(mirror, cache):
    write(cache, small(seed=8))
    assert same(load("mnist"), load("mnist", cache)) and mirror.asked == []


def test_cached_files_are_hashed_again(mirror, cache):
    """A file that is no longer the published one is fetched anew, and it alone."""
    data = load("mnist")
    damaged = cache / f"{TRAIN_LABELS}.gz"
    damaged.write_bytes(gzip.compress(idx(np.zeros(12))))
    mirror.asked.clear()
    assert same(load("mnist"), data) and mirror.asked == [damaged.name]


def test_a_killed_download_is_cleaned_up_by_the_next(mirror, cache):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for number in (dead.pid, os.getpid()):
        folder = cache / f"{mnist_files.PARTIAL}{number}"
        folder.mkdir(parents=True)
        (folder / "tmp12345").write_bytes(b"half")
    write(cache, small())
    load("mnist")
    assert [path.name for path in cache.glob(".*")] == [
        f"{mnist_files.PARTIAL}{os.getpid()}"
    ]  # a live download's stays


BOMB = idx(np.zeros((2, 2, 2))) + bytes(1 << 22)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("data", [BOMB, BOMB[:16] + bytes(1 << 22), gzip.decompress(gzip.compress(BOMB))])
def test_a_file_is_read_no_further_than_its_header_says(tmp_path, monkeypatch, data, packed):
    folder, seen = write(tmp_path, small() | {TEST_IMAGES: data}, packed=[TEST_IMAGES] * packed), []
    exactly = idx_module._exactly
    monkeypatch.setattr(idx_module, "_exactly", lambda stream, count: seen.append(count) or exactly(stream, count))
    with pytest.raises(InputError, match=r"24 bytes for 2 x 2 x 2 images, found a file with trailing bytes"):
        load("mnist", folder)
    assert max(seen) < 1000


def test_a_header_that_asks_for_more_than_memory_should_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(idx_module, "LARGEST", 100)
    folder = write(tmp_path, small(train=20))
    with pytest.raises(InputError, match="at most 100 bytes of images, found a header that asks for 20 x 3 x 3"):
        load("mnist", folder)


def test_progress_shows_every_file_on_stderr(mirror, cache, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    load("mnist", progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    for stem in SHA256:
        size = (cache / f"{stem}.gz").stat().st_size
        assert re.search(rf"{stem}\.gz .*{size}/{size} bytes", shown.err), shown.err
    assert "Downloading" not in shown.err


def test_progress_without_rich_names_the_extra(mirror, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(InputError, match=r'needs rich .*pip install "fastkoop\[mnist\]"'):
        load("mnist", progress=True)
    assert leftovers(cache) == []


@pytest.fixture
def pooch_log(caplog):
    """pooch's logger, which hangs on no other, heard by `caplog`."""
    logger = pooch.get_logger()
    logger.addHandler(caplog.handler)
    yield logger
    logger.removeHandler(caplog.handler)


def test_pooch_is_quiet_while_downloading_and_only_then(mirror, cache, pooch_log, caplog):
    pooch_log.info("before")
    load("mnist")
    pooch_log.info("after")
    assert caplog.messages == ["before", "after"]


def test_pooch_speaks_again_after_a_failed_download(cache, pooch_log, caplog):
    with pytest.raises(InputError, match="cannot download"):
        load("mnist")
    pooch_log.info("after")
    assert caplog.messages == ["after"]


@pytest.mark.parametrize("progress", [False, True])
def test_without_a_network_the_message_says_what_to_do_and_nothing_stays(cache, progress):
    with pytest.raises(InputError) as caught:
        load("mnist", progress=progress)
    text = str(caught.value)
    assert "http://127.0.0.1:9/train-images-idx3-ubyte.gz" in text and "connection failed" in text
    assert all(stem in text for stem in SHA256)
    assert "--data-dir" in text and "FASTKOOP_DATA_DIR" in text and "\n" not in text
    assert leftovers(cache) == []


def test_a_wrong_checksum_leaves_nothing_behind(mirror, cache):
    (mirror.folder / f"{TRAIN_LABELS}.gz").write_bytes(b"a hotel's login page")
    match = rf"{TRAIN_LABELS}.gz into .*\(its SHA-256 checksum is not the published one\); .*--data-dir"
    with pytest.raises(InputError, match=match):
        load("mnist")
    assert leftovers(cache) == [f"{TRAIN_IMAGES}.gz"]  # whole and checked: the next run need not fetch it


def test_a_file_that_the_mirror_lacks_leaves_nothing_behind(mirror, cache):
    (mirror.folder / f"{TRAIN_IMAGES}.gz").unlink()
    with pytest.raises(InputError, match=rf"{TRAIN_IMAGES}.gz into .*\(the server answered 404\)"):
        load("mnist")
    assert leftovers(cache) == []


def test_a_connection_that_breaks_leaves_nothing_behind(mirror, cache):
    mirror.broken.add(f"{TRAIN_IMAGES}.gz")
    match = rf"{TRAIN_IMAGES}.gz into .*\(connection failed: ChunkedEncodingError\)"
    with pytest.raises(InputError, match=match):
        load("mnist")
    assert leftovers(cache) == []


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_download_that_stops_half_way_leaves_nothing_behind(cache, monkeypatch, fault):
    def half(self, url, output_file, pooch):
        with open(output_file, "wb") as stream:
            stream.write(b"half")
        raise fault

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", half)
    expected = pytest.raises(KeyboardInterrupt)
    if isinstance(fault, OSError):
        expected = pytest.raises(InputError, match=r"cannot download .*\(No space left on device\)")
    with expected:
        load("mnist")
    assert leftovers(cache) == []


def test_a_cache_that_cannot_be_made_is_an_error(mirror, cache):
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder should be")
    with pytest.raises(InputError, match=rf"cannot download .* into {re.escape(str(cache))} \(.*--data-dir"):
        load("mnist")


# The real files


@pytest.mark.mnist
@pytest.mark.skipif(not REAL, reason=f"{DATA_DIR} is not set")
def test_the_real_files():
    mnist = load("mnist", REAL)
    assert mnist.train_images.shape == (60000, 784) and mnist.test_images.shape == (10000, 784)
    assert (mnist.features, mnist.classes) == (784, 10)
    for images in (mnist.train_images, mnist.test_images):
        assert images.dtype == np.float32 and images.min() == -1 and images.max() == 1
    assert np.bincount(mnist.train_labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949
    ]  # fmt: skip
    assert np.bincount(mnist.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # 0.1307 is the mean pixel in [0, 1] that everybody normalises MNIST with.
    assert (mnist.train_images.mean(dtype=np.float64) + 1) / 2 == pytest.approx(0.1307, abs=5e-5)
