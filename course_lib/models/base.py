"""What every family shares: first weights, the output matrix, the checks of config and input."""

import math
from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02


def check_config(config) -> None:
    """Raise a ValueError where a count of the config is no count, or its heads do not divide."""
    for field in fields(config):
        value, least = getattr(config, field.name), 0 if field.name.endswith("_id") else 1
        if field.type is int and (not isinstance(value, int) or value < least):
            raise ValueError(
                f"{field.name}={value!r} must be a whole number of at least {least}."
            )
    if not hasattr(config, "head_width") and config.n_embd % config.n_head:
        raise ValueError(
            f"n_embd={config.n_embd} must be a multiple of n_head={config.n_head}: every head "
            "gets an equal share of the channels."
        )


class Model(nn.Module):
    """A family's class makes its layers, ``embed`` among them, in ``build``.

    Args:
        config: the shape.
        generator: draws the first weights: matrices from N(0, 0.02²), biases are 0; torch's own
            generator when None.
    """

    def __init__(self, config, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.head = None
        with torch.random.fork_rng(devices=[]):  # torch draws weights that are replaced below
            self.build(config)
            if not (getattr(config, "tie_embeddings", True) or getattr(config, "n_label", None)):
                self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=INIT_STD, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def score(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Every token's logit: (B, T, C) -> (B, T, V)."""
        return F.linear(x, self.embed.weight if self.head is None else self.head.weight, bias)

    def check(self, input_ids, attention_mask=None, position_ids=None, past: int = 0) -> None:
        """Raise a ValueError where the input of a forward pass does not fit the model."""
        if input_ids.ndim != 2 or 0 in input_ids.shape:
            raise ValueError(
                f"input_ids must be (B, T) with at least one token, got "
                f"{tuple(input_ids.shape)}: an empty prompt has nothing to continue."
            )
        B, T = input_ids.shape
        if attention_mask is not None and attention_mask.shape != (B, past + T):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, expected "
                f"{(B, past + T)}: one entry for each cached and each new token."
            )
        if position_ids is not None and position_ids.shape not in ((B, T), (1, T)):
            raise ValueError(
                f"position_ids has shape {tuple(position_ids.shape)}, expected {(B, T)} or "
                f"{(1, T)}: one position for each new token."
            )
        last = past + T - 1
        if T > 1 or past == 0:  # a single new token is the model's own: reading it costs time
            check_ids(input_ids, self.config.vocab_size)
            last = last if position_ids is None else int(position_ids.max())
        elif position_ids is not None:
            return
        block_size = getattr(self.config, "block_size", math.inf)
        if last >= block_size:
            raise ValueError(
                f"The input reaches position {last}, {last + 1 - block_size} "
                f"beyond the context of {block_size} tokens: shorten it."
            )


def check_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Raise a ValueError where a token id lies outside the vocabulary."""
    low, high = (int(x) for x in input_ids.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"input_ids span {low}..{high}, the vocabulary 0..{vocab_size - 1}: was the text "
            "tokenised with this model's tokenizer?"
        )
