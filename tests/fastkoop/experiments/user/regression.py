"""Linear regression by full-batch gradient descent: the map of the weights is linear, its optimum known."""

import torch
from torch import nn


class Regression:
    name, epochs, preset, partition = "regression", (30, 60, 200), "smooth", "network"

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        scales = torch.tensor([1.0, 0.5, 0.25, 0.2], dtype=torch.float64)
        self.x = torch.randn(40, 4, generator=generator, dtype=torch.float64) * scales
        self.y = self.x @ torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
        self.y = self.y + 0.1 * torch.randn(40, generator=generator, dtype=torch.float64)
        self.best = torch.linalg.lstsq(self.x, self.y[:, None]).solution[:, 0]
        self.rate = 1.0 / float(torch.linalg.eigvalsh(self.x.T @ self.x / 40)[-1])

    def make_model(self, seed):
        torch.manual_seed(seed)
        return nn.Linear(4, 1, bias=False, dtype=torch.float64)

    def batches(self, seed):
        return [(self.x, self.y)]

    def loss(self, model, batch):
        x, y = batch
        return 0.5 * (model(x)[:, 0] - y).square().mean()

    def make_optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=self.rate)

    def evaluate(self, model):
        return (model.weight[0] - self.best).square().sum().sqrt()
