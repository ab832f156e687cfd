"""What every family shares: the start of its config, its blocks, output matrix, checks."""

import inspect
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
    last_hidden_state: (B, T, C) of all tokens, what the output matrix reads; of an encoder-decoder
    also what the encoder made of the source, (B, S, C).
    """

    logits: Tensor
    past_key_values: layers.KVCache | None = None
    last_hidden_state: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None


def positions_from_mask(attention_mask: Tensor) -> Tensor:
    """Each token's position, (B, T): how many kept tokens stand before it.

    So a text has the same positions however it is padded. Padding gets a position that is there.

    Example:
        >>> positions_from_mask(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])).tolist()
        [[0, 0, 0, 1], [0, 1, 2, 2]]
    """
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def mask_inputs(
    model: nn.Module, attention_mask: Tensor | None, position_ids: Tensor | None = None
) -> dict[str, Tensor | None]:
    """What a decoder-only model of any library is told, so that padding changes nothing.

    Ours count positions in the mask by themselves; most of transformers' count columns unless they
    are told, so that learnt positions move with padding on the left.

    Args:
        attention_mask: (B, T), 1 = keep; None = no padding.
        position_ids: (B, T); ``positions_from_mask`` when None.

    Returns:
        ``attention_mask``, and ``position_ids`` where the model takes them and there are any.
    """
    if position_ids is None and attention_mask is not None:
        position_ids = positions_from_mask(attention_mask)
    taken = inspect.signature(getattr(model, "forward", model)).parameters.values()
    if position_ids is None or not any(
        p.name == "position_ids" or p.kind is p.VAR_KEYWORD for p in taken
    ):
        return {"attention_mask": attention_mask}
    return {"attention_mask": attention_mask, "position_ids": position_ids}


class Model(nn.Module):
    """Embeddings, the layers that a family's class makes in ``build``, and an output matrix.

    ``generator``, torch's own when None, draws matrices from N(0, 0.02²); biases start as 0.

    Every forward pass takes, as far as the family has it,
        input_ids: (B, T) ids in 0..vocab_size-1.
        attention_mask: (B, T), or (B, cached + T), 1 = keep; None = no padding.
        position_ids: (B, T) or (1, T); None = counted, over the kept tokens where there is a mask
            (``positions_from_mask``), else from the number of cached tokens on.
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

    def new_blocks(self, norm, feed_forward, causal=True, cross=False, pre_norm=True, clamp=False,
                   **attention):  # fmt: skip
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
                clamp,
            )
            for _ in range(c.n_layer)
        )

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def get_input_embeddings(self) -> nn.Module:
        """Ids -> (B, T, C): what ``inputs_embeds`` takes the place of, as transformers calls it."""
        return self.embed

    def score(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Every token's logit: (B, T, C) -> (B, T, V). Where the embeddings are tied there is no
        head of its own, unless somebody put one there.
        """
        if self.head is None:
            return F.linear(x, self.embed.weight, bias)
        logits = self.head(x)
        return logits if bias is None else logits + bias

    def check(
        self, tokens, attention_mask=None, position_ids=None, past: int = 0, embedded: bool = False
    ) -> Tensor | None:
        """Raise a ValueError where the input of a forward pass does not fit the model.

        Args:
            tokens: ids (B, T), or, ``embedded``, (B, T, C).

        Returns:
            ``position_ids``; those that follow from the mask where they are None; None without
            a mask.
        """
        self._check_shapes(tokens, attention_mask, position_ids, past, embedded)
        T, given = tokens.shape[1], position_ids is not None
        own_token = T == 1 and past > 0  # the model's own: reading it costs time
        if not embedded and not own_token:
            low, high = (int(x) for x in tokens.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"input_ids span {low}..{high}, the vocabulary 0..{self.config.vocab_size - 1}:"
                    " was the text tokenised with this model's tokenizer?"
                )
        if given and own_token:
            return position_ids
        if not given and attention_mask is not None:
            position_ids = positions_from_mask(attention_mask)[:, past:]
        last, block_size = past + T - 1, getattr(self.config, "block_size", math.inf)
        if given or (position_ids is not None and last >= block_size):
            last = int(position_ids.max())
        if last >= block_size:
            raise ValueError(
                f"The input reaches position {last}, {last + 1 - block_size} beyond the context of "
                f"{block_size} tokens: shorten it."
            )
        return position_ids

    def _check_shapes(self, tokens, attention_mask, position_ids, past: int, embedded: bool):
        C = self.config.n_embd
        if embedded and (tokens.ndim != 3 or 0 in tokens.shape or tokens.shape[2] != C):
            raise ValueError(
                f"inputs_embeds must be (B, T, {C}) with at least one token, got "
                f"{tuple(tokens.shape)}."
            )
        if not embedded and (tokens.ndim != 2 or 0 in tokens.shape):
            raise ValueError(
                f"input_ids must be (B, T) with at least one token, got "
                f"{tuple(tokens.shape)}: an empty prompt has nothing to continue."
            )
        B, T = tokens.shape[:2]
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
