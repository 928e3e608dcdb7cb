"""Compiled kernels do not outlive the sources they were made from."""

from fastkoop.kernels.cpu.jit import _drop_stale_cache


def test_an_edit_of_any_kernel_drops_all_compiled_ones(tmp_path):
    cache = tmp_path / "__pycache__"
    cache.mkdir()
    source, compiled, other = tmp_path / "algebra.py", cache / "fused.f-1.py311.1.nbc", cache / "algebra.pyc"
    source.write_text("a = 1")
    for path in (compiled, other):
        path.write_text("")
    _drop_stale_cache(tmp_path)
    assert not compiled.exists() and other.exists()
    compiled.write_text("")
    _drop_stale_cache(tmp_path)
    assert compiled.exists()
    source.write_text("a = 2")
    _drop_stale_cache(tmp_path)
    assert not compiled.exists()


def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path):
    (tmp_path / "__pycache__").write_text("a file where the folder would be")
    _drop_stale_cache(tmp_path)
