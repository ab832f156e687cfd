"""Small models and batches whose training is known by hand, for the tests of the loop."""

import csv
from pathlib import Path

import torch
from torch import nn

from course_lib.models import Llama, LlamaConfig

NO_CLIP = 1e9


class Line(nn.Module):
    """y = w · x with w = 0 at the start: every gradient is known."""

    def __init__(self, width: int = 1):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return x @ self.w


def mean_output(model, batch):
    """Its gradient is the mean of the rows of x."""
    return model(batch["x"]).mean()


def rows(*values) -> list[dict]:
    """One batch of one row for each value."""
    return [{"x": torch.tensor(v, dtype=torch.float32).reshape(1, -1)} for v in values]


def sgd(model, lr: float = 1.0):
    return torch.optim.SGD(model.parameters(), lr)


def tiny_llama(seed: int = 0) -> Llama:
    return Llama(LlamaConfig(17, 1, 2, 1, 8, 12, 16), torch.Generator().manual_seed(seed))


def token_batches(count: int, size: int = 4) -> list[dict]:
    g = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 17, (size, 8), generator=g)} for _ in range(count)]


def read_csv(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
