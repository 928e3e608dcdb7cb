"""Koopman: three lines in plain loops, its log, its state, and the memory that it gives back."""

import copy
import gc
import logging
import math
import warnings

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn
functional = nn.functional

from fastkoop.adapter.digest import digest  # noqa: E402
from fastkoop.torch_adapter import Koopman, load_checkpoint, save_checkpoint  # noqa: E402

OPTIONS = {"burn_in": 6, "record": 24, "jump": 12, "rest": 6}


def loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def batches(count=8, seed=5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 16, 6, generator=generator)
    noise = 0.1 * torch.randn(count, 16, 1, generator=generator)
    return list(zip(x, x[..., :1].sin() + noise, strict=True))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))


class Run:
    """A model in training with a Koopman; `log` holds what it was told."""

    def __init__(self, **options):
        self.model, self.log = net(), []
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.data, self.reports = batches(), []
        options = {"validate": (loss, batches(2, 9)), "log": lambda *figure: self.log.append(figure), **options}
        self.koopman = Koopman(self.model, self.optimizer, **{**OPTIONS, **options})

    def train(self, first, last):
        for i in range(first, last):
            self.optimizer.zero_grad()
            loss(self.model, self.data[i % 8]).backward()
            self.optimizer.step()
            if (report := self.koopman.step()) is not None:
                self.reports.append(report)
        return self

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


class TestLoop:
    def test_jumps_when_it_is_time_and_never_for_the_worse(self):
        run = Run().train(0, 120)
        assert run.koopman.jumps == len(run.reports) == 4  # after 30, 60, 90, 120
        assert all(report.after <= report.before for report in run.reports)
        assert all(len(report.tried) >= 2 and report.others for report in run.reports)  # a horizon, the mean, the line
        assert run.koopman.gradients_saved == sum(report.steps for report in run.reports)

    def test_the_noisy_preset_records_twelve_means(self):
        koopman = Run().koopman
        assert (koopman.phase.window, koopman.phase.every, koopman.phase.capacity) == (2, 2, 12)
        assert Run(preset="smooth").koopman.phase.every == 1
        assert Run(preset="noisy", window=3).koopman.phase.every == 3
        assert Run(preset="published", every=4).koopman.plan == OPTIONS

    def test_lengths_are_rounded_to_snapshots(self):
        assert Run(record=50, jump=50, rest=7).koopman.plan == {"burn_in": 6, "record": 48, "jump": 48, "rest": 7}
        assert Run(record=24, jump=1).koopman.schedule.jump == 2
        assert Run(record=24, jump=math.inf).koopman.schedule.jump == math.inf

    def test_fractions_and_defaults(self):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        plan = Koopman(model, optimizer, total_steps=1000, burn_in=0.1, record=0.06, jump=0.02).plan
        assert plan == {"burn_in": 100, "record": 60, "jump": 20, "rest": 60}
        assert Koopman(model, optimizer, total_steps=1000).plan == {
            "burn_in": 250,
            "record": 48,
            "jump": 48,
            "rest": 48,
        }
        assert Koopman(model, optimizer).plan == {"burn_in": 50, "record": 48, "jump": 48, "rest": 48}

    def test_without_a_guard_the_forecast_decides(self):
        run = Run(validate=None).train(0, 30)
        [report] = run.reports
        assert report.before is None and report.held.get("forecast", 0) > 0

    def test_a_monitor_is_the_guard(self):
        values = iter([3.0, *[4.0] * 50])
        run = Run(validate=None, monitor=lambda: next(values)).train(0, 30)
        assert run.reports[0].rolled_back and run.reports[0].before == 3.0

    def test_validation_leaves_the_run_as_it_was(self):
        """Modes, dropout's random numbers, the norm's statistics: a guard that refuses all changes nothing."""
        alone = Run(burn_in=10**6).train(0, 60)
        loader = torch.utils.data.DataLoader(batches(3), shuffle=True, batch_size=None)
        run = Run(validate=(lambda model, batch: math.inf, loader)).train(0, 60)
        assert run.koopman.jumps == 2 and run.reports[0].rolled_back
        assert torch.equal(run.weights(), alone.weights())
        assert digest(run.model.state_dict()) == digest(alone.model.state_dict())

    def test_validation_sees_the_same_batches_every_time(self):
        loader = torch.utils.data.DataLoader(batches(3), shuffle=True, batch_size=None)
        seen = []

        def judged(model, batch):
            assert not model.training and not torch.is_grad_enabled()
            seen.append(float(batch[0].sum()))
            return loss(model, batch)

        Run(validate=(judged, loader)).train(0, 30)
        assert len(seen) > 6 and seen == seen[:3] * (len(seen) // 3)


class TestLog:
    def test_every_value_is_a_finite_float_under_its_name(self):
        run = Run().train(0, 120)
        names = {name for name, _, _ in run.log}
        assert all(name.startswith("koopman/") for name in names)
        assert {f"koopman/{name}" for name in (
            "steps", "kept", "tried", "seconds", "gradients_saved", "guard_before", "guard_after", "forecast_error",
            "blocks", "blocks_held", "rank", "spectral_radius",
        )} <= names  # fmt: skip
        assert all(type(value) is float and math.isfinite(value) for _, value, _ in run.log)
        assert sorted({step for _, _, step in run.log}) == [30, 60, 90, 120]
        saved = [value for name, value, _ in run.log if name == "koopman/gradients_saved"]
        assert saved[-1] == run.koopman.gradients_saved

    def test_what_is_not_finite_is_left_out(self):
        run = Run(validate=(lambda model, batch: math.nan, [0])).train(0, 30)
        names = [name for name, _, _ in run.log]
        assert "koopman/steps" in names and "koopman/guard_before" not in names

    def test_one_line_a_jump(self, caplog):
        with caplog.at_level(logging.INFO, logger="fastkoop"):
            Run().train(0, 60)
        lines = [record.getMessage() for record in caplog.records if record.name == "fastkoop"]
        assert len(lines) == 2 and all(line.startswith("koopman: ") and "\n" not in line for line in lines)
        assert "after iteration 30; guard" in lines[0] and "forecast error" in lines[0]


class TestState:
    @pytest.mark.parametrize("at", [3, 20, 30, 55])
    def test_a_resumed_run_is_bit_equal(self, at, tmp_path):
        expected = Run().train(0, 100)
        first = Run().train(0, at)
        parts = {"model": first.model, "optimizer": first.optimizer, "koopman": first.koopman}
        file = save_checkpoint(tmp_path / "last.pt", **parts)
        again = Run()
        load_checkpoint(file, model=again.model, optimizer=again.optimizer, koopman=again.koopman)
        again.train(at, 100)
        assert torch.equal(again.weights(), expected.weights())
        assert again.koopman.gradients_saved == expected.koopman.gradients_saved

    def test_shares_no_memory_and_holds_what_is_recorded(self):
        run = Run(capacity=500).train(0, 20)
        state = run.koopman.state_dict()
        before = digest(state)
        run.train(20, 30)
        assert digest(state) == before
        sizes = [buffer.untyped_storage().nbytes() for buffer in state["phase"]["recording"]["buffers"]]
        assert sum(sizes) == 7 * run.koopman.phase.plan().bytes_per_snapshot

    def test_other_and_damaged_states_are_refused_whole(self, tmp_path):
        run = Run().train(0, 20)
        state = copy.deepcopy(run.koopman.state_dict())
        for other, match in ((Run(record=48), "capacity 24|expected"), (Run(rest=7), "expected burn_in, record, jump")):
            before = digest(other.koopman.state_dict())
            with pytest.raises(ValueError, match=match):
                other.koopman.load_state_dict(state)
            assert digest(other.koopman.state_dict()) == before
        state["phase"]["recording"]["buffers"][0].view(-1)[0] += 1
        with pytest.raises(ValueError, match="the state of the Koopman is damaged"):
            run.koopman.load_state_dict(state)

    def test_average_is_the_recordings(self):
        run = Run().train(0, 30)
        average = run.koopman.average()
        assert set(average) == set(dict(run.model.named_parameters()))

    def test_close_gives_the_memory_back(self):
        run = Run().train(0, 20)
        phase = run.koopman.phase
        assert sum(recording.buffer.nbytes for recording in phase.parts.recordings) > 0
        run.koopman.close()
        gc.collect()
        held = [t for r in phase.parts.recordings for t in vars(r).values() if isinstance(t, torch.Tensor)]
        assert sum(tensor.nbytes for tensor in held) == 0 and not run.optimizer._optimizer_step_post_hooks
        run.koopman.close()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"burn_in": 0.1}, ValueError, "burn_in: the fraction 0.1 needs total_steps="),
        ({"record": 1.5, "total_steps": 10}, ValueError, r"record: expected iterations or a fraction in \(0, 1\)"),
        ({"rest": True}, TypeError, "rest: expected an integer"),
        ({"record": 1}, ValueError, "record: expected an integer >= 2"),
        ({"validate": loss}, TypeError, r"validate: expected \(loss, batches\)"),
        ({"validate": (3, [1])}, TypeError, r"validate: expected \(loss, batches\) with a function"),
        ({"validate": (loss, [])}, ValueError, "validate: expected at least one batch"),
        ({"monitor": lambda: 0.0}, ValueError, "either validate= or monitor="),
        ({"log": "tensorboard"}, TypeError, "log: expected a function"),
        ({"preset": "loud"}, ValueError, "preset: expected one of"),
        ({"total_steps": 0}, ValueError, "total_steps: expected an integer >= 1"),
        ({"partition": "brick"}, ValueError, "partition: expected one of"),
    ],
)
def test_arguments_are_checked(options, error, match):
    with pytest.raises(error, match=match):
        Run(**options)


class Tied(nn.Module):
    """In the manner of nanoGPT: an embedding that is the head, a block, a norm."""

    def __init__(self, vocabulary=24, width=12):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(8, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 24, 0.0, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        x = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        return self.head(self.norm(self.block(x, src_mask=mask, is_causal=True)))


def test_a_language_model_with_ties_accumulation_clipping_and_compile():
    torch._dynamo.reset()
    torch.manual_seed(0)
    raw = Tied()
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, 24, (6, 8, 8), generator=generator)

    def entropy(model, batch):
        return functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what compiling says of its own
        model = torch.compile(raw, backend="eager")
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
        koopman = Koopman(model, optimizer, validate=(entropy, tokens[:2]), burn_in=4, record=12, jump=12, rest=4)
        reports = []
        for _ in range(32):
            for batch in tokens.chunk(3):
                (entropy(model, batch[0]) / 3).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            reports.append(koopman.step())
    jumps = [report for report in reports if report is not None]
    assert len(jumps) == koopman.jumps == 2 and all(report.after <= report.before for report in jumps)
    assert raw.head.weight is raw.embedding.weight
    assert "embedding.weight" in koopman.phase.parts.parameters.names
    koopman.close()
