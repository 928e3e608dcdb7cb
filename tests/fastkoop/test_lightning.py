"""KoopmanCallback in real fits of Lightning: accumulation, two optimizers, precision, checkpoints, loggers."""

import pytest

torch = pytest.importorskip("torch")
pl = pytest.importorskip("lightning.pytorch")

from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from fastkoop.lightning import KoopmanCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own: on workers, loggers, bars
OPTIONS = {"burn_in": 4, "record": 12, "jump": 8, "rest": 4, "partition": "layer"}


def data(seed, count=96, shuffle=False):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(x, x[:, :1].sin()), batch_size=16, shuffle=shuffle)


class Regression(pl.LightningModule):
    def __init__(self, dropout=0.1):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))

    def loss(self, batch):
        x, y = batch
        return (self.net(x) - y).square().mean()

    def training_step(self, batch, _):
        return self.loss(batch)

    def validation_step(self, batch, _):
        self.log_dict({"val_loss": self.loss(batch), "other": 0.0})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Gan(pl.LightningModule):
    """Manual optimisation of two networks, one of which takes two steps a batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.generator, self.critic = nn.Linear(3, 6), nn.Linear(6, 1)

    def training_step(self, batch, _):
        generator, critic = self.optimizers()
        for optimizer, sign in ((critic, 1), (critic, 1), (generator, -1)):
            optimizer.zero_grad()
            fake = self.generator(torch.randn(16, 3))
            self.manual_backward(sign * (self.critic(fake).tanh().mean() - self.critic(batch[0]).tanh().mean()))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(self.generator.parameters()), torch.optim.SGD(self.critic.parameters(), lr=0.01)]


class Figures(pl.loggers.Logger):
    """A logger that keeps what it is handed."""

    def __init__(self):
        super().__init__()
        self.values = {}

    name, version = "figures", 0

    def log_metrics(self, metrics, step=None):
        for key, value in metrics.items():
            self.values.setdefault(key, []).append((step, value))

    def log_hyperparams(self, *_, **__):
        pass


def fit(module, callbacks, epochs=6, folder=None, ckpt_path=None, shuffle=True, seed=1, **options):
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder, log_every_n_steps=1,
        **{"logger": False, **options},
    )  # fmt: skip
    torch.manual_seed(seed)
    trainer.fit(module, data(0, shuffle=shuffle), data(1, 32), ckpt_path=ckpt_path)
    return trainer


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_optimizer_steps_are_counted_and_figures_logged(accumulate, tmp_path):
    logger, callback = Figures(), KoopmanCallback(monitor="val_loss", **OPTIONS)
    fit(Regression(), [callback], 6 * accumulate, tmp_path, accumulate_grad_batches=accumulate, logger=logger)
    assert callback.koopman.schedule.steps == 36
    assert callback.koopman.jumps == 2
    figures = {name: values for name, values in logger.values.items() if name.startswith("koopman/")}
    assert [step for step, _ in figures["koopman/steps"]] == [16, 32]
    for name in ("kept", "tried", "seconds", "rank", "spectral_radius", "guard_before", "guard_after",
                 "forecast_error", "blocks_held", "gradients_saved"):  # fmt: skip
        assert all(isinstance(value, float) for _, value in figures[f"koopman/{name}"])
    kept = zip(figures["koopman/guard_before"], figures["koopman/guard_after"], strict=True)
    assert all(after <= before for (_, before), (_, after) in kept)
    assert figures["koopman/tried"][0][1] >= 3  # the mean and the line, too


def test_training_is_not_disturbed_by_a_guard_that_refuses(tmp_path):
    alone = Regression()
    fit(alone, [], folder=tmp_path)
    module = Regression()
    callback = KoopmanCallback(validate=(lambda model, batch: float("inf"), [0]), **OPTIONS)
    fit(module, [callback], folder=tmp_path)
    assert callback.koopman.jumps == 2 and torch.equal(weights(module), weights(alone))


def test_fractions_are_of_the_fit(tmp_path):
    callback = KoopmanCallback(partition="layer", burn_in=0.25, record=0.5, jump=0.1, rest=0.25)
    fit(Regression(), [callback], folder=tmp_path)
    assert callback.koopman.plan == {"burn_in": 9, "record": 18, "jump": 3, "rest": 9}


def test_two_networks_by_name(tmp_path):
    callbacks = [KoopmanCallback(module=name, **OPTIONS) for name in ("generator", "critic")]
    assert callbacks[0].state_key != callbacks[1].state_key
    module = Gan()
    fit(module, callbacks, folder=tmp_path)
    for callback, member in zip(callbacks, (module.generator, module.critic), strict=True):
        assert callback.koopman.schedule.steps == 36 and callback.koopman.jumps == 2
        names = callback.koopman.phase.parts.parameters.by_name
        assert [id(p) for p in names.values()] == [id(p) for p in member.parameters()]


def test_bfloat16_autocast(tmp_path):
    callback = KoopmanCallback(monitor="val_loss", **OPTIONS)
    module = Regression()
    fit(module, [callback], folder=tmp_path, precision="bf16-mixed")
    assert callback.koopman.jumps == 2 and torch.isfinite(weights(module)).all()


def resumed(folder, epochs, callbacks):
    """Weights of a fit, and of one that was cut after some epochs and goes on elsewhere, at another seed."""
    whole, first, second = Regression(), Regression(), Regression()
    fit(whole, callbacks(), folder=folder)
    fit(first, callbacks(), epochs, folder).save_checkpoint(folder / "last.ckpt")
    again = callbacks()
    fit(second, again, folder=folder, ckpt_path=folder / "last.ckpt", seed=7)
    return weights(whole), weights(second), again


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_a_resumed_fit_ends_bit_for_bit_where_it_would_have(epochs, tmp_path):
    """Dropout and shuffling included, from Lightning's checkpoint in a recording, a rest and a second recording."""
    expected, ended, [callback] = resumed(tmp_path, epochs, lambda: [KoopmanCallback(monitor="val_loss", **OPTIONS)])
    assert torch.equal(ended, expected) and callback.koopman.jumps == 2


def test_lightning_alone_does_not_resume_random_generators(tmp_path):
    """Why the callback's state holds them."""
    expected, ended, _ = resumed(tmp_path, 2, lambda: [])
    assert not torch.equal(ended, expected)


def test_a_log_of_the_user_s_hears_of_jumps_too(tmp_path):
    heard, logger = [], Figures()
    callback = KoopmanCallback(log=lambda name, value, step: heard.append((name, step)), **OPTIONS)
    fit(Regression(), [callback], folder=tmp_path, logger=logger)
    assert {step for _, step in heard} == {16, 32} and {name for name, _ in heard} <= set(logger.values)


def test_fractions_stay_those_of_the_first_fit(tmp_path):
    callback = KoopmanCallback(partition="layer", burn_in=0.25, record=0.5)
    trainer = fit(Regression(), [callback], 4, tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = KoopmanCallback(partition="layer", burn_in=0.25, record=0.5)
    fit(Regression(), [again], 12, tmp_path, ckpt_path=tmp_path / "last.ckpt")
    assert again.koopman.plan == callback.koopman.plan


def test_a_value_that_is_not_logged_is_named(tmp_path):
    with pytest.raises(ValueError, match="monitor: expected validation_step to log 'accuracy'"):
        fit(Regression(), [KoopmanCallback(monitor="accuracy", **OPTIONS)], folder=tmp_path)
