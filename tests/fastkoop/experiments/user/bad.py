"""Problems that each break the contract in one way."""

import torch
from torch import nn


class Good:
    name, epochs = "tiny", (2, 8, 4)

    def make_model(self, seed):
        return nn.Linear(2, 1)

    def batches(self, seed):
        return [torch.ones(3, 2)] * 2

    def loss(self, model, batch):
        return model(batch).square().mean()

    def evaluate(self, model):
        return self.loss(model, torch.ones(1, 2))


class NoLoss(Good):
    loss = None


class Empty(Good):
    def batches(self, seed):
        return []


class OneShot(Good):
    def batches(self, seed):
        return iter(())


class NoParameters(Good):
    def make_model(self, seed):
        return nn.ReLU()


class Meta(Good):
    def make_model(self, seed):
        return nn.Linear(2, 1, device="meta")


class NotFinite(Good):
    def make_model(self, seed):
        model = nn.Linear(2, 1)
        nn.init.constant_(model.weight, float("nan"))
        return model


class NaNLoss(Good):
    def loss(self, model, batch):
        return model(batch).sum() * float("nan")


class Evaluates(Good):
    def evaluate(self, model):
        return {}["missing"]


class NoNumber(Good):
    def evaluate(self, model):
        return "good"


class NoLossKey(Good):
    def evaluate(self, model):
        return {"accuracy": 1.0}


class Explodes(Good):
    def loss(self, model, batch):
        raise RuntimeError("the [red] cable")


class Vector(Good):
    def loss(self, model, batch):
        return model(batch)


class Constructor(Good):
    def __init__(self):
        raise OSError("no data")


class NotAModel(Good):
    def make_model(self, seed):
        return "model"


class NotAnOptimizer(Good):
    def make_optimizer(self, model):
        return "sgd"


class Generator(Good):
    def batches(self, seed):
        yield torch.ones(3, 2)
        raise ValueError("the file is cut")


class SecondSeed(Good):
    def make_model(self, seed):
        self.seed = seed
        return nn.Linear(2, 1)

    def loss(self, model, batch):
        return super().loss(model, batch) * (float("inf") if self.seed == 1 else 1.0)


class NaNEvaluated(Good):
    def evaluate(self, model):
        return float("nan")


class HalfEpochs(Good):
    epochs = (0.5, 8, 4)
