"""Decoder-only models: a causal mask and one loss, next-token prediction.

Llama (Touvron et al., 2023): RMSNorm before each sublayer, rotary positions, SwiGLU, no biases.
Simplified away: dropout, biases, rotary scaling for contexts longer than the trained one.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.models.layers import (
    Attention,
    KVCache,
    RMSNorm,
    SwiGLU,
    causal_mask,
    mask_bias,
    rotary_table,
)

INIT_STD = 0.02


@dataclass
class LlamaConfig:
    """The shape of a Llama model."""

    vocab_size: int
    n_layer: int
    n_head: int
    n_kv_head: int  # key-value heads; each serves n_head / n_kv_head query heads
    n_embd: int  # width of the residual stream
    n_inner: int  # width of the feed-forward layer
    block_size: int  # longest sequence of tokens
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True  # one matrix embeds tokens and scores them (Press and Wolf, 2017)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{field.name}={value!r} must be a whole number of at least 1.")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}: every head "
                "gets an equal share of the channels."
            )
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_head={self.n_head} must be a multiple of n_kv_head={self.n_kv_head}: every "
                "key-value head serves as many query heads."
            )


@dataclass
class DecoderOutput:
    """What a decoder returns: logits (B, T, V), and the cache if one was asked for."""

    logits: Tensor
    past_key_values: KVCache | None = None


class LlamaBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.attention = Attention(config.n_embd, config.n_head, config.n_kv_head)
        self.feed_forward = SwiGLU(config.n_embd, config.n_inner)
        self.attention_norm = RMSNorm(config.n_embd, config.norm_eps)
        self.feed_forward_norm = RMSNorm(config.n_embd, config.norm_eps)

    def forward(self, x: Tensor, rotary, bias=None, cache=None) -> Tensor:
        """x: (B, T, C) -> (B, T, C); the rest as in ``Attention.forward``."""
        x = x + self.attention(self.attention_norm(x), rotary, bias, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Llama(nn.Module):
    """A Llama language model that follows transformers' calling convention.

    Args:
        config: the shape.
        generator: draws the first weights, N(0, 0.02²); torch's own generator when None.
    """

    def __init__(self, config: LlamaConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.head = None
        with torch.random.fork_rng(devices=[]):  # torch draws weights that are replaced below
            self.embed = nn.Embedding(config.vocab_size, config.n_embd)
            self.blocks = nn.ModuleList(LlamaBlock(config) for _ in range(config.n_layer))
            self.norm = RMSNorm(config.n_embd, config.norm_eps)
            if not config.tie_embeddings:
                self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        cos, sin = rotary_table(
            config.block_size, config.n_embd // config.n_head, config.rope_theta
        )
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=INIT_STD, generator=generator)

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def new_cache(self, capacity: int = 0) -> KVCache:
        """An empty cache with room for ``capacity`` tokens."""
        return KVCache(self.config.n_layer, capacity)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> DecoderOutput:
        """Logits of the next token at every position.

        Args:
            input_ids: (B, T) ids in 0..vocab_size-1.
            attention_mask: (B, S), 1 = keep, S = cached + T; None = no padding.
            position_ids: (B, T) or (1, T); by default counted from the number of cached tokens on.
            past_key_values: the cache of the tokens before these.
            use_cache: return a cache that holds these tokens too.
            logits_to_keep: score only this many last positions; 0 = all.

        Raises:
            ValueError: empty or too long input, ids outside the vocabulary, a mask or positions of
                another shape.
        """
        cache = past_key_values
        if cache is None and use_cache:
            cache = self.new_cache()
        past = cache.length if cache is not None else 0
        self._check(input_ids, attention_mask, position_ids, past)
        x = self.embed(input_ids)  # (B, T, C)
        rotary = self._rotary(position_ids, past, T=x.shape[1])
        bias = self._bias(attention_mask, past, x)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotary, bias, None if cache is None else (cache, layer))
        if cache is not None:
            cache.advance(x.shape[1])
        x = self.norm(x[:, -logits_to_keep:])
        weight = self.embed.weight if self.head is None else self.head.weight
        return DecoderOutput(F.linear(x, weight), cache)

    def _rotary(self, position_ids: Tensor | None, past: int, T: int) -> tuple[Tensor, Tensor]:
        """Rows of the tables at the tokens' positions: (B, 1, T, D), or (T, D) shared by all."""
        if position_ids is None:
            return self.cos[past : past + T], self.sin[past : past + T]
        return self.cos[position_ids][:, None], self.sin[position_ids][:, None]

    def _bias(self, attention_mask: Tensor | None, past: int, x: Tensor) -> Tensor | None:
        """(B or 1, 1, T, S), or None where the plain causal mask will do."""
        T = x.shape[1]
        if attention_mask is None and (past == 0 or T == 1):
            return None
        mask = causal_mask(T, past + T, x.device)[None, None]  # (1, 1, T, S)
        if attention_mask is not None:
            mask = mask & attention_mask.bool()[:, None, None]  # (B, 1, T, S)
            # A padded query may see nothing, and its softmax would be 0/0: let it see itself.
            mask[..., past:].diagonal(dim1=-2, dim2=-1).fill_(True)
        return mask_bias(mask, x.dtype)

    def _check(self, input_ids, attention_mask, position_ids, past: int) -> None:
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
        if last >= self.config.block_size:
            raise ValueError(
                f"The input reaches position {last}, {last + 1 - self.config.block_size} "
                f"beyond the context of {self.config.block_size} tokens: shorten it."
            )


def check_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Raise a ValueError where a token id lies outside the vocabulary."""
    low, high = (int(x) for x in input_ids.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"input_ids span {low}..{high}, the vocabulary 0..{vocab_size - 1}: was the text "
            "tokenised with this model's tokenizer?"
        )
