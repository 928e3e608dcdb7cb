"""KoopmanCallback in real runs of Hugging Face's Trainer, and Koopman under accelerate; tiny models, random weights."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

from torch import nn  # noqa: E402

from fastkoop.huggingface import KoopmanCallback  # noqa: E402
from fastkoop.torch_adapter import Koopman, KoopmanPhase, step_cost  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own
OPTIONS = {"burn_in": 3, "record": 12, "jump": 6, "rest": 3, "partition": "layer"}


SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def bert():
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, num_labels=2))


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=40, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    return transformers.GPT2LMHeadModel(config)


class Lora(nn.Module):
    """Low-rank updates of a frozen model's layers."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def lora():
    model = bert().requires_grad_(False)
    attention = model.bert.encoder.layer[0].attention.self
    attention.query, attention.value = Lora(attention.query), Lora(attention.value)
    model.classifier.requires_grad_(True)
    return model


class Tokens(torch.utils.data.Dataset):
    """Random tokens; whether the first is even, or the tokens themselves, are the labels."""

    def __init__(self, language, count=48):
        self.tokens = torch.randint(0, 40, (count, 8), generator=torch.Generator().manual_seed(3))
        self.language = language

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        labels = self.tokens[i] if self.language else self.tokens[i, 0] % 2
        return {"input_ids": self.tokens[i], "labels": labels}


MODELS = {"bert": bert, "gpt2": gpt2, "lora": lora}


def trainer(folder, make, callbacks, epochs=4, **options):
    model = make()
    args = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=epochs, per_device_train_batch_size=8, report_to=[], use_cpu=True,
        disable_tqdm=True, learning_rate=1e-3, logging_steps=100, seed=0,
        **{"save_strategy": "no", "lr_scheduler_type": "constant", **options},
    )  # fmt: skip
    tokens = Tokens(language=isinstance(model, transformers.GPT2LMHeadModel))
    evaluation = torch.utils.data.Subset(tokens, range(8))  # one batch
    return transformers.Trainer(model, args, train_dataset=tokens, eval_dataset=evaluation, callbacks=callbacks)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_trains_jumps_and_logs(make, tmp_path):
    callback = KoopmanCallback(metric="eval_loss", **OPTIONS)
    run = trainer(tmp_path, make, [callback], gradient_accumulation_steps=1)
    frozen = {name: p.detach().clone() for name, p in run.model.named_parameters() if not p.requires_grad}
    run.train()
    koopman = callback.koopman
    assert koopman.schedule.steps == 24 and koopman.jumps == 1
    logged = {name: value for entry in run.state.log_history for name, value in entry.items() if "koopman/" in name}
    assert logged["koopman/guard_after"] <= logged["koopman/guard_before"]
    assert {"koopman/steps", "koopman/tried", "koopman/rank", "koopman/seconds"} <= set(logged)
    assert all(torch.equal(p, frozen[name]) for name, p in run.model.named_parameters() if name in frozen)
    assert torch.isfinite(weights(run.model)).all()


@pytest.mark.parametrize(("make", "at"), [(bert, 9), (gpt2, 16)])
def test_a_resumed_run_ends_bit_for_bit_where_it_would_have(make, at, tmp_path):
    """State beside the checkpoint, in the middle of a recording, and after the jump; dropout and shuffling included."""
    expected = trainer(tmp_path / "whole", make, [KoopmanCallback(metric="eval_loss", **OPTIONS)])
    expected.train()
    options = {"save_strategy": "steps", "save_steps": at, "save_total_limit": 1}
    first = trainer(tmp_path / "cut", make, [KoopmanCallback(metric="eval_loss", **OPTIONS), Stop(at)], **options)
    first.train()
    folder = tmp_path / "cut" / f"checkpoint-{at}"
    assert (folder / "koopman-0.pt").exists()
    callback = KoopmanCallback(metric="eval_loss", **OPTIONS)
    second = trainer(tmp_path / "elsewhere", make, [callback])
    second.train(resume_from_checkpoint=str(folder))
    assert callback.koopman.jumps == 1 and second.state.global_step == 24
    assert torch.equal(weights(second.model), weights(expected.model))


class Stop(transformers.TrainerCallback):
    """Ends a run as a kill would, after its checkpoint."""

    def __init__(self, at):
        self.at = at

    def on_save(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.at


def test_gradient_accumulation_counts_optimizer_steps(tmp_path):
    callback = KoopmanCallback(**{**OPTIONS, "record": 6})
    trainer(tmp_path, bert, [callback], epochs=4, gradient_accumulation_steps=2).train()
    assert callback.koopman.schedule.steps == 12 and callback.koopman.jumps == 1


def test_validate_and_unknown_metrics(tmp_path):
    batch = Tokens(language=False)[0]
    batch = {"input_ids": batch["input_ids"][None], "labels": batch["labels"][None]}
    callback = KoopmanCallback(validate=(lambda model, batch: model(**batch).loss, [batch]), **OPTIONS)
    trainer(tmp_path, bert, [callback], epochs=3).train()
    assert callback.koopman.jumps == 1
    with pytest.raises(ValueError, match="metric: expected one of eval_loss"):
        trainer(tmp_path, bert, [KoopmanCallback(metric="accuracy", **OPTIONS)], epochs=3).train()


class TestAccelerate:
    def run(self, steps, folder=None, save=None, load=None):
        accelerator = accelerate.Accelerator(cpu=True)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
        model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.01))
        x = torch.randn(64, 6, generator=torch.Generator().manual_seed(5))

        def loss(model, x):
            return (model(x) - x[:, :1]).square().mean()

        koopman = Koopman(model, optimizer, validate=(loss, [x]), **OPTIONS)
        accelerator.register_for_checkpointing(koopman)
        if load:
            accelerator.load_state(str(folder))
        for step in range(load or 0, steps):
            optimizer.zero_grad()
            accelerator.backward(loss(model, x[step % 4 :: 4]))
            optimizer.step()
            koopman.step()
            if step + 1 == save:
                accelerator.save_state(str(folder))
        return weights(model), koopman

    def test_phases_and_costs_look_beneath_its_optimizer(self):
        accelerator = accelerate.Accelerator(cpu=True)
        model = nn.Linear(6, 1)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
        phase = KoopmanPhase(model)
        phase.attach(optimizer)

        def closure():
            optimizer.zero_grad()
            loss = model(torch.ones(4, 6)).square().mean()
            accelerator.backward(loss)
            return loss

        for _ in range(4):
            closure()
            optimizer.step()
        assert phase.snapshots == 4
        phase.detach()
        assert step_cost(model, optimizer, closure, snapshots=3, rounds=1).optimizer_step > 0

    @pytest.mark.parametrize("at", [8, 17])
    def test_states_are_saved_and_loaded(self, at, tmp_path):
        expected, koopman = self.run(40, tmp_path / "state", save=at)
        assert koopman.jumps == 2
        again, koopman = self.run(40, tmp_path / "state", load=at)
        assert torch.equal(again, expected) and koopman.jumps == 2
