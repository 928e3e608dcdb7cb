"""A character-level transformer on text that is made here; its stream of batches has no length."""

import torch
from torch import nn
from torch.nn import functional

WORDS, LENGTH = "the weights of a network move as a linear system moves near a fixed point".split(), 24


class Model(nn.Module):
    def __init__(self, letters):
        super().__init__()
        self.embed, self.place = nn.Embedding(letters, 16), nn.Parameter(torch.zeros(LENGTH, 16))
        self.block, self.read = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True), nn.Linear(16, letters)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.read(self.block(self.embed(x) + self.place, src_mask=mask, is_causal=True))


class Characters:
    name, epochs = "characters", ("10it", "40it", "20it")
    text = " ".join(WORDS[i] for i in torch.randint(15, (600,), generator=torch.Generator().manual_seed(0)))

    def make_model(self, seed):
        return Model(len(set(self.text)))  # PyTorch is seeded before a model is asked for

    def batches(self, seed, size=16):
        codes = torch.tensor([sorted(set(self.text)).index(letter) for letter in self.text])
        generator = torch.Generator().manual_seed(seed)
        while True:
            starts = torch.randint(len(codes) - LENGTH - 1, (size,), generator=generator)
            yield torch.stack([codes[start : start + LENGTH + 1] for start in starts])

    def loss(self, model, batch):
        return functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def evaluate(self, model):
        loss = self.loss(model.eval(), next(self.batches(1234, 32)))
        return {"loss": loss, "perplexity": loss.exp()}
