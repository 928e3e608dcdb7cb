"""A small convolutional network with batch normalisation on a part of MNIST, as a user would write it."""

import torch
from torch import nn
from torch.nn import functional

from fastkoop.experiments.problems.datasets import load


class ConvNet:
    name, epochs = "convnet", (1, 3, 1)

    def __init__(self):
        data = load("mnist").on("cpu")
        self.train = data.train_images[:640].view(-1, 1, 28, 28), data.train_labels[:640]
        self.test = data.test_images[:500].view(-1, 1, 28, 28), data.test_labels[:500]

    def make_model(self, seed):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 5, stride=2)]
        return nn.Sequential(*layers, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 10))

    def batches(self, seed):
        generator, data = torch.Generator().manual_seed(seed), torch.utils.data.TensorDataset(*self.train)
        return torch.utils.data.DataLoader(data, 64, shuffle=True, generator=generator)

    def loss(self, model, batch):
        return functional.cross_entropy(model(batch[0]), batch[1])

    def make_optimizer(self, model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.5)

    def evaluate(self, model):
        model.eval()
        with torch.no_grad():
            logits = model(self.test[0])
        hits = (logits.argmax(1) == self.test[1]).float().mean()
        return {"loss": functional.cross_entropy(logits, self.test[1]), "accuracy": hits}
