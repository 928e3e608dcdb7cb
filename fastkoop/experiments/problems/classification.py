"""The report's problem: its network learns the labels of a data set."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ..training import Batches, make_model
from .datasets import Dataset, load, with_validation

BATCH_SIZE = 64


class Classification:
    """A network 784-20-20-20-10, or as the data set's images and labels want it, by mini-batches of cross-entropy.

    Args:
        data: the images.
        epochs: (t1, t2, T) if the caller names none.
        batch_size: images in a mini-batch.
        device: where the images are kept.
    """

    def __init__(self, data: Dataset, epochs: tuple[int, int, int], batch_size: int = BATCH_SIZE, device: str = "cpu"):
        self.name, self.epochs, self.batch_size = data.name, epochs, batch_size
        self._data, self._device = data, torch.device(device)
        self.data = data.on(self._device)
        self.validates = data.validation_images is not None

    @classmethod
    def of(cls, name: str, epochs: tuple[int, int, int], config) -> Classification:
        """The problem that a config asks for."""
        data = with_validation(load(name, config.data_dir, progress=True), config.validation)
        return cls(data, epochs, BATCH_SIZE if config.batch_size is None else config.batch_size, config.device)

    def make_model(self, seed: int) -> nn.Sequential:
        """The network for this seed."""
        return make_model(self._data.features, self._data.classes, seed)

    def batches(self, seed: int) -> Batches:
        """The mini-batches for this seed."""
        return Batches(self.data, self.batch_size, seed)

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy of the logits."""
        images, labels = batch
        return functional.cross_entropy(model(images), labels)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean cross-entropy and share of right answers on the test images."""
        return judge(model, self.data.test_images, self.data.test_labels)

    def validate(self, model: nn.Module) -> float:
        """Mean cross-entropy on the images that were taken out of the training set."""
        return judge(model, self.data.validation_images, self.data.validation_labels)["loss"]


@torch.no_grad()
def judge(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Mean cross-entropy and share of right answers."""
    logits = model(images)
    accuracy = (logits.argmax(dim=1) == labels).double().mean()
    return {"loss": float(functional.cross_entropy(logits, labels)), "accuracy": float(accuracy)}
