"""Resume: a run that was killed goes on bit by bit; files that are damaged or foreign are refused."""

import copy
import json
import os
import pathlib
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn = torch.nn

import fastkoop as fk  # noqa: E402
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

    @pytest.mark.parametrize("where", [0.02, 0.3, 0.5, 0.7, 0.98])
    def test_a_flipped_bit_anywhere_is_noticed(self, where, tmp_path):
        phase, file = self.save(tmp_path)
        before = phase.state_dict()["checksum"]
        with zipfile.ZipFile(file) as archive:
            inside = max(archive.infolist(), key=lambda entry: entry.file_size)
        contents = bytearray(file.read_bytes())
        at = inside.header_offset + 200 + int(where * (inside.file_size - 200))
        contents[at] ^= 4
        file.write_bytes(contents)
        with pytest.raises(ValueError, match=r"last\.pt: (expected|the state of)"):
            load_checkpoint(file, phase=phase)
        assert phase.state_dict()["checksum"] == before

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
