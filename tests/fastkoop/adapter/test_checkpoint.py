"""Resume: a run that was killed goes on bit by bit; files that are damaged or foreign are refused."""

import copy
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

import fastkoop as fk  # noqa: E402
from fastkoop.adapter.digest import digest  # noqa: E402
from fastkoop.torch_adapter import KoopmanPhase, KoopmanSchedule, load_checkpoint, save_checkpoint  # noqa: E402

KILLED = pathlib.Path(__file__).with_name("killed.py")


def bits(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).view(torch.int32).numpy().copy()


def recorded(iterations=9, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    phase = KoopmanPhase(model, **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    phase.attach(optimizer)
    for _ in range(iterations):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
    return model, phase, optimizer


def again(model, phase, optimizer, **options):
    """A second phase on the same model from the first one's state."""
    other = KoopmanPhase(model, **options)
    other.attach(optimizer)
    other.detach()
    other.load_state_dict(phase.state_dict())
    return other


OPTIONS = [
    {}, {"capacity": 4}, {"window": 2}, {"every": 2, "capacity": 3}, {"storage_dtype": torch.bfloat16},
    {"storage_dtype": torch.bfloat16, "window": 3}, {"partition": "layer"}, {"partition": "quasi-node", "q": 3},
    {"observables": (fk.Affine(), fk.Delay(2))}, {"observables": fk.Momentum(), "capacity": 5},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
class TestState:
    def test_goes_on_recording(self, options):
        model, phase, optimizer = recorded(11, **options)  # in the middle of a window, past the ring's turn
        phase.detach()
        other = again(model, phase, optimizer, **options)
        for _ in range(4):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.01)
            phase.record()
            other.record()
        assert (phase.snapshots, phase.iterations) == (other.snapshots, other.iterations)
        start = bits(model)
        phase.jump(4 * phase.every)
        expected = bits(model)
        phase.rollback()
        assert np.array_equal(bits(model), start)
        other.jump(4 * phase.every)
        assert np.array_equal(bits(model), expected)

    @pytest.mark.parametrize("moves", [(1,), (1, 3, 1), (1, "jump", 1), ("jump",), (1, 1, "jump", "jump", 2, 1)])
    def test_goes_on_walking(self, options, moves):
        model, phase, optimizer = recorded(12, **options)

        def go(one, move):
            one.jump(70 * one.every) if move == "jump" else one.step(ahead=move)

        for move in moves:
            go(phase, move)
        there = bits(model)
        other = again(model, phase, optimizer, **options)
        kept = [p.detach().clone() for p in model.parameters()]
        for move in (1, 1, "jump", 1):
            go(phase, move)
        expected = bits(model)
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), kept, strict=True):
                parameter.copy_(value)
        assert np.array_equal(bits(model), there)
        for move in (1, 1, "jump", 1):
            go(other, move)
        assert np.array_equal(bits(model), expected)
        other.rollback()
        phase.rollback()
        expected = bits(model)
        assert not np.array_equal(expected, there)
        assert other.position == phase.position == 0

    def test_goes_through_a_file(self, options, tmp_path):
        model, phase, optimizer = recorded(9, **options)
        phase.step()
        file = save_checkpoint(tmp_path / "phase.pt", phase=phase)
        expected = phase.state_dict()["checksum"]
        other = KoopmanPhase(model, **options)
        other.attach(optimizer)
        other.detach()
        load_checkpoint(file, phase=other)
        assert other.state_dict()["checksum"] == expected


def test_a_killed_run_ends_where_it_would_have(tmp_path):
    """Killed while recording, after a jump, recording again, and walking."""

    def run(folder, at):
        environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(
            [sys.executable, str(KILLED), str(folder), str(at)], capture_output=True, text=True, timeout=200,
            env=environment,
        )  # fmt: skip
        assert done.returncode in (0, -9), done.stderr[-3000:]
        return done

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    expected = run(whole, -1).stdout
    for at in (12, 19, 30, 46):
        assert run(cut, at).returncode == -9
    assert run(cut, -1).stdout == expected != ""


def test_a_departure_ends_with_its_recording():
    """A guarded jump over nothing, saved; then training goes on: rolling back must not reach behind it."""
    model, phase, optimizer = recorded(6)
    phase.jump(0)
    other = again(model, phase, optimizer)
    for _ in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1
        other.record()
    with pytest.raises(ValueError, match="there was no step or jump since the last snapshot"):
        other.rollback()
    assert other.snapshots == 5
    before = bits(model)
    other.step()
    other.rollback()
    assert np.array_equal(bits(model), before)


def test_an_earlier_state_goes_into_a_buffer_that_has_grown():
    model, phase, _ = recorded(10)
    state = copy.deepcopy(phase.state_dict())
    for _ in range(80):
        phase.record()
    phase.load_state_dict(state)
    assert phase.snapshots == 10
    expected = recorded(10)[1]
    expected.jump(3)
    phase.jump(3)
    assert np.isfinite(bits(model).view(np.float32)).all()
    for _ in range(70):
        phase.record()
    assert phase.snapshots == 70


class TestFiles:
    def save(self, tmp_path):
        _, phase, _ = recorded(6)
        return phase, save_checkpoint(tmp_path / "last.pt", phase=phase, epoch=3, order=[1, 2])

    def test_plain_values_come_back(self, tmp_path):
        phase, file = self.save(tmp_path)
        assert load_checkpoint(file, phase=phase) == {"epoch": 3, "order": [1, 2]}

    def test_generators_go_on(self, tmp_path):
        import random

        def draw():
            return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

        file = save_checkpoint(tmp_path / "last.pt")
        expected = draw()
        draw()
        load_checkpoint(file)
        assert draw() == expected

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.99])
    def test_a_file_cut_short_is_noticed(self, share, tmp_path):
        phase, file = self.save(tmp_path)
        contents = file.read_bytes()
        file.write_bytes(contents[: int(share * len(contents))])
        with pytest.raises(ValueError, match="expected a FastKoop checkpoint"):
            load_checkpoint(file, phase=phase)

    def test_foreign_files_are_refused(self, tmp_path):
        phase, _ = self.save(tmp_path)
        foreign = tmp_path / "foreign.pt"
        torch.save({"phase": torch.ones(3)}, foreign)
        with pytest.raises(ValueError, match="something else that PyTorch saved"):
            load_checkpoint(foreign, phase=phase)
        foreign.write_text(json.dumps({"phase": 1}))
        with pytest.raises(ValueError, match="expected a FastKoop checkpoint"):
            load_checkpoint(foreign, phase=phase)
        with pytest.raises(ValueError, match=r"missing\.pt: cannot be read \(No such file"):
            load_checkpoint(tmp_path / "missing.pt", phase=phase)
        with pytest.raises(ValueError, match="cannot be read"):
            load_checkpoint(tmp_path, phase=phase)

    def test_a_part_that_is_not_there(self, tmp_path):
        phase, file = self.save(tmp_path)
        with pytest.raises(ValueError, match="holds 'phase', 'epoch', 'order', not 'model'"):
            load_checkpoint(file, model=phase)

    def test_a_write_that_fails_leaves_the_old_file(self, tmp_path):
        phase, file = self.save(tmp_path)
        before = file.read_bytes()
        for broken in (lambda: 0, object(), pathlib.Path("x"), np.ones(3)):
            with pytest.raises(ValueError, match="pass what has a state_dict, tensors, numbers"):
                save_checkpoint(file, phase=phase, broken=broken)
            assert file.read_bytes() == before
            assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]

    def test_numpy_scalars_come_back_as_numbers(self, tmp_path):
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=np.logspace(-3, -1, 3)[1])
        file = save_checkpoint(tmp_path / "last.pt", optimizer=optimizer, best=np.float32(0.5), at=[np.int64(3)])
        assert load_checkpoint(file, optimizer=optimizer) == {"best": 0.5, "at": [3]}
        assert optimizer.param_groups[0]["lr"] == 0.01

    def test_a_module_keeps_its_versions(self, tmp_path):
        norm = nn.BatchNorm1d(3)
        norm(torch.randn(4, 3))
        file = save_checkpoint(tmp_path / "last.pt", norm=norm)
        other = nn.BatchNorm1d(3)
        load_checkpoint(file, norm=other)
        assert other.num_batches_tracked == 1

    def test_paths_that_cannot_be_written(self, tmp_path):
        for path in (tmp_path / "missing" / "last.pt", tmp_path):
            with pytest.raises(ValueError, match="cannot be written"):
                save_checkpoint(path, epoch=1)

    def test_parts_that_cannot_load(self, tmp_path):
        file = save_checkpoint(tmp_path / "last.pt", scheduler=None)
        with pytest.raises(TypeError, match="scheduler: expected something with load_state_dict, got NoneType"):
            load_checkpoint(file, scheduler=None)

    def test_threads_do_not_meet_in_one_file(self, tmp_path):
        def write(epoch):
            for _ in range(10):
                save_checkpoint(tmp_path / "last.pt", epoch=epoch)
                assert load_checkpoint(tmp_path / "last.pt")["epoch"] in (0, 1)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(write, range(2)))

    def test_another_phase_is_refused_and_named(self, tmp_path):
        model, phase, _ = recorded(6)
        file = save_checkpoint(tmp_path / "last.pt", phase=phase)
        for options, name in (
            ({"every": 2}, "every 2"), ({"partition": "layer"}, "groups"), ({"cutoff": "jax"}, "cutoff jax"),
            ({"capacity": 9}, "capacity 9"), ({"exclude": "0.*"}, "parameters"), ({"window": 3}, "every 3"),
            ({"observables": fk.Affine()}, r"observables Affine\(\)"), ({"stabilize": "clip"}, "stabilize 1.0"),
            ({"storage_dtype": torch.bfloat16}, "groups"), ({"out_of_span": "carry"}, "out_of_span carry"),
        ):  # fmt: skip
            other = KoopmanPhase(model, **options)
            with pytest.raises(ValueError, match=f"state: expected {name}"):
                load_checkpoint(file, phase=other)
            assert other.snapshots == 0

    def test_states_of_other_things_are_refused(self):
        model, phase, optimizer = recorded(6)
        phase.detach()
        schedule = KoopmanSchedule(KoopmanPhase(model), optimizer, burn_in=0, record=4, jump=2)
        for state in (model.state_dict(), optimizer.state_dict(), schedule.state_dict(), None, [], {}):
            with pytest.raises(ValueError, match="state: expected the state of a KoopmanPhase, got"):
                phase.load_state_dict(state)
        damaged = phase.state_dict()
        damaged["recording"]["buffers"][0][0, 0, 0] += 1.0
        with pytest.raises(ValueError, match="is damaged, its checksum does not fit"):
            phase.load_state_dict(damaged)
        with pytest.raises(ValueError, match="expected version 1"):
            phase.load_state_dict({**phase.state_dict(), "version": 0})
        with pytest.raises(ValueError, match="expected the state of a KoopmanSchedule, got KoopmanPhase"):
            schedule.load_state_dict(phase.state_dict())


class TestDamage:
    """Format 2: a bit flipped anywhere in the file is refused, or changes no value."""

    def save(self, tmp_path):
        model, phase, optimizer = recorded(4)
        phase.detach()
        return save_checkpoint(tmp_path / "last.pt", model=model, optimizer=optimizer, epoch=3)

    def flipped(self, file, positions):
        """The values that load with one bit flipped, for every position; None where the file is refused."""
        contents = file.read_bytes()
        for place, (at, bit) in enumerate(positions):
            damaged = bytearray(contents)
            damaged[at] ^= 1 << bit
            copy_ = file.with_name(f"{place}.pt")
            copy_.write_bytes(damaged)
            try:
                yield at, bit, load_checkpoint(copy_)
            except ValueError as error:
                assert re.search(r"\.pt: (expected|cannot be read|generators)", str(error)) and "\n" not in str(error)
                yield at, bit, None
            copy_.unlink()

    @pytest.mark.parametrize("where", ["contents", "directory"])
    def test_a_flipped_bit(self, where, tmp_path, rng):
        file = self.save(tmp_path)
        expected, contents = digest(load_checkpoint(file)), file.read_bytes()
        directory = contents.index(b"PK\x01\x02")
        low, high = (0, directory) if where == "contents" else (directory, len(contents))
        positions = [(int(at), int(bit)) for at, bit in rng.integers((low, 0), (high, 8), (150, 2))]
        if where == "directory":  # external attributes that make folders of files, of which nothing is read
            entries = [match.start() for match in re.finditer(rb"PK\x01\x02", contents)]
            positions += [(at + 38 + byte, bit) for at in entries for byte in range(4) for bit in (0, 4)]
        refused = 0
        for at, bit, values in self.flipped(file, positions):
            assert values is None or digest(values) == expected, (at, bit)
            refused += values is None
        assert refused > len(positions) // 4

    def test_values_that_are_not_what_was_saved_are_refused(self, tmp_path):
        """As damage that the archive's own checksums miss: the contents are written anew."""
        whole = torch.load(self.save(tmp_path), weights_only=True)
        changes = {
            "model": lambda w: w["parts"]["model"]["0.weight"].view(-1)[3].neg_(),
            "optimizer": lambda w: w["parts"]["optimizer"]["param_groups"][0].update(lr=0.02),
            "epoch": lambda w: w["parts"].update(epoch=4),
            "generators": lambda w: w["generators"]["torch"][100].add_(1),
            "manifest": lambda w: w["manifest"]["kinds"].update(optimizer="SGD"),
            "extra": lambda w: w["parts"].update(extra=1),
        }
        for name, change in changes.items():
            damaged = copy.deepcopy(whole)
            change(damaged)
            torch.save(damaged, tmp_path / "damaged.pt")
            with pytest.raises(ValueError, match=f"its {name} is damaged, as its SHA-256 tells"):
                load_checkpoint(tmp_path / "damaged.pt")
        for change, match in (
            (lambda w: w.pop("manifest"), "expected a manifest, got none"),
            (lambda w: w.update(version=3), "expected version 2, got 3"),
            (lambda w: w.pop("generators"), "expected parts and generators"),
            (lambda w: w["manifest"]["parts"].update(lost="0"), "its manifest is damaged"),
        ):
            damaged = copy.deepcopy(whole)
            change(damaged)
            torch.save(damaged, tmp_path / "damaged.pt")
            with pytest.raises(ValueError, match=match):
                load_checkpoint(tmp_path / "damaged.pt")

    def test_format_1_is_read_with_a_warning(self, tmp_path):
        whole = torch.load(self.save(tmp_path), weights_only=True)
        del whole["manifest"]
        old = {**whole, "version": 1}
        old["parts"]["model"] = {f"_orig_mod.{key}": value for key, value in old["parts"]["model"].items()}
        torch.save(old, tmp_path / "old.pt")
        model, optimizer = recorded(1)[::2]
        with pytest.warns(RuntimeWarning, match="a checkpoint of format 1 carries no checksum"):
            assert load_checkpoint(tmp_path / "old.pt", model=model, optimizer=optimizer) == {"epoch": 3}
        assert np.array_equal(bits(model), bits(recorded(4)[0]))
        old["parts"]["model"].popitem()
        torch.save(old, tmp_path / "old.pt")
        with (
            pytest.warns(RuntimeWarning, match="format 1"),
            pytest.raises(ValueError, match=r"model: expected '2\.bias'"),
        ):
            load_checkpoint(tmp_path / "old.pt", model=model)


class TestSaving:
    """Full disks, kills, names, and tensors that are parts of larger ones."""

    def test_a_full_disk_names_path_and_cause(self, tmp_path):
        """By the largest file that a process may write."""
        script = """if True:
            import pathlib, resource, sys, torch
            from fastkoop.torch_adapter import save_checkpoint
            file = save_checkpoint(sys.argv[1], epoch=1)
            before = pathlib.Path(file).read_bytes()
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
            for size in (60_000, 1_000_000):
                try:
                    save_checkpoint(file, weights=torch.ones(size))
                except ValueError as error:
                    print(error)
                assert pathlib.Path(file).read_bytes() == before
                assert [path.name for path in pathlib.Path(file).parent.iterdir()] == ["last.pt"]
        """
        command = [sys.executable, "-c", script, str(tmp_path / "last.pt")]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert finished.returncode == 0, finished.stderr
        lines = finished.stdout.splitlines()
        assert len(lines) == 2
        for line in lines:
            assert re.fullmatch(r".*last\.pt: cannot be written \(File too large\); make room .* is as it was", line)

    def test_kills_while_saving_leave_the_file_and_one_partial_at_most(self, tmp_path):
        script = """if True:
            import sys, torch
            from fastkoop.torch_adapter import save_checkpoint
            weights = torch.arange(3_000_000.0)
            while True:
                save_checkpoint(sys.argv[1], weights=weights)
                print("saved", flush=True)
        """
        file = tmp_path / "last.pt"
        for delay in (0.005, 0.02, 0.04):
            command = [sys.executable, "-c", script, str(file)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout.readline() == "saved\n"
                time.sleep(delay)
                process.kill()
            assert torch.equal(load_checkpoint(file)["weights"], torch.arange(3_000_000.0))
            assert len(list(tmp_path.iterdir())) <= 2
        save_checkpoint(file, epoch=1)
        assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]

    def test_a_recording_takes_what_it_holds(self, tmp_path):
        _, phase, _ = recorded(10, capacity=1000)
        held = phase.plan().bytes_per_snapshot * 10
        assert save_checkpoint(tmp_path / "last.pt", phase=phase).stat().st_size < held + 40_000

    def test_views_are_saved_as_what_they_hold_and_ties_once(self, tmp_path):
        large = torch.arange(1_000_000.0)
        values = {"row": large[5:9], "column": large.view(1000, 1000)[:, 3], "again": large[5:9]}
        file = save_checkpoint(tmp_path / "last.pt", **values)
        assert file.stat().st_size < 40_000
        loaded = load_checkpoint(file)
        assert all(torch.equal(loaded[name], value) for name, value in values.items())
        tied = nn.Linear(300, 300)
        file = save_checkpoint(tmp_path / "last.pt", first=tied, second=tied)
        assert file.stat().st_size < 1.2 * 4 * 300 * 300

    @pytest.mark.parametrize("path", ["", "a\0b"])
    def test_no_name_is_refused(self, path):
        for call in (lambda: save_checkpoint(path, epoch=1), lambda: load_checkpoint(path)):
            with pytest.raises(ValueError, match="path: expected the name of a file, got"):
                call()
        with pytest.raises(TypeError, match="path: expected the name of a file, got 3"):
            save_checkpoint(3, epoch=1)

    def test_devices_and_long_names_are_named(self, tmp_path):
        for path, why in ((os.devnull, "not a regular file"), (tmp_path / ("n" * 300), "File name too long")):
            with pytest.raises(ValueError, match=f"cannot be written \\({why}\\)"):
                save_checkpoint(path, epoch=1)
        assert load_checkpoint(save_checkpoint(tmp_path / ("n" * 250), epoch=1)) == {"epoch": 1}
