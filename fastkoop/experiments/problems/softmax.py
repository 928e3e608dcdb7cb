"""Softmax regression on the digits by full-batch gradient descent in float64: the smooth regime, its optimum known.

Gradient descent near a minimum is a linear map with slow real eigenvalues, which an operator of low rank reads off a
recording. The loss is the gap between the training objective and its minimum.
"""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional

from ...checks import InputError
from . import register
from .datasets import load

NAME = "softmax"
PENALTY = 1e-3  # l2: half of it times the weights' squared norm
NEWTON_STEPS, FLAT = 20, 1e-9  # a gradient of this norm is 1e-15 above the minimum
SHORTEST = 1e-3  # of a step, where rounding decides


class Softmax:
    """Cross-entropy of a linear model with an l2 penalty, on all training images at once; step size 1 / L."""

    name, loss_name, epoch_name = NAME, "gap to the optimum", "iteration"
    epochs = (100, 140, 2000)  # chosen on seeds 100 to 104, see bench/pages/compare.md
    preset, partition = "smooth", "network"
    threads = 1  # for PyTorch: an iteration is too small for two to wait for each other

    def __init__(self, device: str = "cpu"):
        data = load("digits").on(device, torch.float64)
        self.train, self.test = (data.train_images, data.train_labels), (data.test_images, data.test_labels)

    def make_model(self, seed: int) -> nn.Linear:
        """A linear model whose weights start as N(0, 0.1^2)."""
        torch.manual_seed(seed)
        images, labels = self.train
        model = nn.Linear(images.shape[1], int(labels.max()) + 1, dtype=torch.float64)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
        return model

    def batches(self, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """All training images, one batch."""
        return [self.train]

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The objective."""
        images, labels = batch
        penalty = sum(parameter.square().sum() for parameter in model.parameters())
        return functional.cross_entropy(model(images), labels) + 0.5 * PENALTY * penalty

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Gradient descent with the step 1 / L."""
        return torch.optim.SGD(model.parameters(), lr=1 / self.smoothness)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """How far the objective is above its minimum, and the share of right answers on the test images."""
        images, labels = self.test
        accuracy = (model(images).argmax(dim=1) == labels).double().mean()
        gap = max(0.0, float(self.loss(model, self.train)) - self.minimum)
        return {"loss": gap, "accuracy": float(accuracy)}

    def validate(self, model: nn.Module) -> float:
        """The objective: nothing is chosen by the test images."""
        with torch.no_grad():
            return float(self.loss(model, self.train))

    @functools.cached_property
    def smoothness(self) -> float:
        """The largest curvature L: half the largest eigenvalue of the inputs' second moments, and the penalty."""
        images = self.train[0]
        inputs = torch.cat([images, torch.ones_like(images[:, :1])], dim=1)
        return 0.5 * float(torch.linalg.eigvalsh(inputs.T @ inputs / len(inputs))[-1]) + PENALTY

    @functools.cached_property
    def minimum(self) -> float:
        """The objective's minimum, by Newton's method with the exact Hessian."""
        images, labels = self.train
        inputs = torch.cat([images, torch.ones_like(images[:, :1])], dim=1)
        count, width = inputs.shape
        hot = functional.one_hot(labels).to(inputs.dtype)
        classes = hot.shape[1]
        weights = inputs.new_zeros(width, classes)

        def objective(weights: torch.Tensor) -> torch.Tensor:
            return functional.cross_entropy(inputs @ weights, labels) + 0.5 * PENALTY * weights.square().sum()

        for _ in range(NEWTON_STEPS):
            share = (inputs @ weights).softmax(dim=1)
            gradient = inputs.T @ (share - hot) / count + PENALTY * weights
            if gradient.norm() < FLAT:
                break
            hessian = torch.eye(width * classes, dtype=inputs.dtype, device=inputs.device) * PENALTY
            blocks = hessian.view(classes, width, classes, width)
            for k in range(classes):
                for j in range(k + 1):
                    weight = share[:, k] * (float(k == j) - share[:, j]) / count
                    block = (inputs * weight[:, None]).T @ inputs
                    blocks[k, :, j] += block
                    if j < k:
                        blocks[j, :, k] += block
            step = torch.linalg.solve(hessian, gradient.T.flatten()).view(classes, width).T
            length, value = 1.0, objective(weights)
            while objective(weights - length * step) > value and length > SHORTEST:
                length /= 2
            weights = weights - length * step
        return float(objective(weights))


@register(NAME)
def softmax(config) -> Softmax:
    """The problem as the guide has it."""
    if config.batch_size is not None:
        raise InputError(f"batch_size: all images are one batch, got {config.batch_size}; leave --batch-size out")
    if config.validation:
        raise InputError("validation: jumps are judged by the training objective; leave --validation out")
    return Softmax(config.device)
