"""What every family shares: the start of its config, its blocks, output matrix, checks."""

import math
from dataclasses import dataclass, fields
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.models import layers


@dataclass
class Config:
    """The start of every family's config. Where a family lacks a field, the value here holds.

    Of the others n_embd is the width of the residual stream, n_inner the feed-forward layers'
    (4 · n_embd when None), block_size the longest sequence of tokens.

    Raises:
        ValueError: a count that is no count, channels that the heads do not divide.
    """

    vocab_size: int
    n_layer: int
    n_head: int
    norm_eps = 1e-5
    tie_embeddings = True  # one matrix embeds tokens and scores them (Press and Wolf, 2017)
    n_label = None  # classes of a classifier; None = a language model

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name.endswith("_id") else 1
            if field.type is int and (not isinstance(value, int) or value < least):
                raise ValueError(
                    f"{field.name}={value!r} must be a whole number of at least {least}."
                )
        for whole, part in (("n_embd", "n_head"), ("n_head", "n_kv_head")):
            n, shares = getattr(self, whole), getattr(self, part, 1)
            if n % shares and not (whole == "n_embd" and hasattr(self, "head_width")):
                raise ValueError(
                    f"{whole}={n} must be a multiple of {part}={shares}: all get an equal share."
                )
        self.n_inner = getattr(self, "n_inner", None) or 4 * self.n_embd


@dataclass
class Output:
    """logits: (B, T, V), or (B, n_label) of a classifier; the cache, if one was asked for;
    last_hidden_state: (B, T, C), what the output matrix read; of an encoder-decoder also what the
    encoder made of the source, (B, S, C).
    """

    logits: Tensor
    past_key_values: layers.KVCache | None = None
    last_hidden_state: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None


class Model(nn.Module):
    """Embeddings, the layers that a family's class makes in ``build``, and an output matrix.

    ``generator``, torch's own when None, draws matrices from N(0, 0.02²); biases start as 0.

    Every forward pass takes, as far as the family has it,
        input_ids: (B, T) ids in 0..vocab_size-1.
        attention_mask: (B, T), or (B, cached + T), 1 = keep; None = no padding.
        position_ids: (B, T) or (1, T); None = counted, from the number of cached tokens on.
        past_key_values: the cache of the tokens before these.
        use_cache: return a cache that holds these tokens too.
    A ValueError says where the input is empty or too long, ids lie outside the vocabulary, a mask
    or positions have another shape.
    """

    def __init__(self, config: Config, generator: torch.Generator | None = None):
        super().__init__()
        self.config, self.head = config, None
        with torch.random.fork_rng(devices=[]):  # torch draws weights that are replaced below
            self.embed = nn.Embedding(config.vocab_size, config.n_embd)
            self.build(config)
            if not (config.tie_embeddings or config.n_label):
                self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def new_blocks(self, norm, feed_forward, causal=True, cross=False, pre_norm=True, **attention):
        """The config's layers of such classes; ``layers.Attention`` is told ``attention``, too."""
        c = self.config
        attend = partial(layers.Attention, c.n_embd, c.n_head, **attention)
        return layers.Blocks(
            layers.Block(
                partial(norm, c.n_embd, c.norm_eps),
                attend(causal=causal),
                feed_forward(c.n_embd, c.n_inner),
                attend(causal=False) if cross else None,
                pre_norm,
            )
            for _ in range(c.n_layer)
        )

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
        last, block_size = past + T - 1, getattr(self.config, "block_size", math.inf)
        if T > 1 or past == 0:  # a single new token is the model's own: reading it costs time
            low, high = (int(x) for x in input_ids.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"input_ids span {low}..{high}, the vocabulary 0..{self.config.vocab_size - 1}:"
                    " was the text tokenised with this model's tokenizer?"
                )
            last = last if position_ids is None else int(position_ids.max())
        elif position_ids is not None:
            return
        if last >= block_size:
            raise ValueError(
                f"The input reaches position {last}, {last + 1 - block_size} beyond the context of "
                f"{block_size} tokens: shorten it."
            )
