"""Problems that are unusual, and right; those of `Refused` break the contract in an unusual way."""

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset


class Odd:
    name, epochs = "odd", (2, 8, 4)

    def make_model(self, seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))

    def batches(self, seed):
        return [torch.randn(8, 4, generator=torch.Generator().manual_seed(seed)) for _ in range(2)]

    def loss(self, model, batch):
        return (model(batch)[:, 0] - batch.sum(1)).square().mean()

    def evaluate(self, model):
        return self.loss(model, torch.ones(3, 4))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)))


class Iterable(Odd):
    def batches(self, seed):
        return DataLoader(Stream(), batch_size=8)


class SeveralLosses(Odd):
    def loss(self, model, batch):
        fit = super().loss(model, batch)
        return {"loss": fit + 0.1 * model[0].weight.abs().sum(), "fit": fit}


class Frozen(Odd):
    def make_model(self, seed):
        model = super().make_model(seed)
        model[0].requires_grad_(False)
        return model


class QuasiNewton(Odd):
    def make_optimizer(self, model):
        return torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)


class Signs(torch.optim.Optimizer):
    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter -= group["lr"] * parameter.grad.sign()


class OwnOptimizer(Odd):
    def make_optimizer(self, model):
        optimizer = Signs(model.parameters(), lr=0.01)
        return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


class Half(Odd):
    def make_model(self, seed):
        return super().make_model(seed).bfloat16()

    def loss(self, model, batch):
        return super().loss(model, batch.bfloat16())


class Plateau(Odd):
    def make_optimizer(self, model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)


class TooShort(Odd):
    def make_optimizer(self, model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)


class Complex(Odd):
    def make_model(self, seed):
        model = super().make_model(seed)
        model.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
        return model


class Stopped(Odd):
    def make_model(self, seed):
        self.seed = seed
        return super().make_model(seed)

    def loss(self, model, batch):
        return super().loss(model, batch) * (float("nan") if self.seed == 1 else 1.0)
