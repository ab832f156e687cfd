"""Decoder-only models: a causal mask and one loss, next-token prediction.

GPT-2 (Radford et al., 2019): learnt positions, LayerNorm before each sublayer, GELU.
BLOOM (BigScience, 2022): ALiBi positions, a norm of the embeddings, otherwise GPT-2's block.
Llama (Touvron et al., 2023): rotary positions, RMSNorm, SwiGLU, no biases.
Simplified away: dropout, rotary scaling for contexts longer than the trained one.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from course_lib.models.base import Model, check_config
from course_lib.models.layers import (
    Attention,
    Block,
    FeedForward,
    KVCache,
    RMSNorm,
    SwiGLU,
    alibi_slopes,
    causal_bias,
    document_bias,
    gelu_tanh,
    rotary_table,
)


@dataclass
class DecoderOutput:
    """What a decoder returns.

    logits: (B, T, V), or (B, n_label) of a classifier; last_hidden_state: (B, T, C), what the
    output matrix read; the cache if one was asked for.
    """

    logits: Tensor
    past_key_values: KVCache | None = None
    last_hidden_state: Tensor | None = None


class Decoder(Model):
    """The forward pass that the families share. Each says how tokens and positions come in."""

    def new_cache(self, capacity: int = 0) -> KVCache:
        """An empty cache with room for ``capacity`` tokens."""
        return KVCache(self.config.n_layer, capacity)

    def enter(self, input_ids: Tensor, position_ids: Tensor | None, past: int):
        """Embedded tokens (B, T, C), and the rotary rows of their positions or None."""
        return self.embed(input_ids), None

    def bias(self, attention_mask: Tensor | None, past: int, x: Tensor) -> Tensor | None:
        """What is added to the scores, (B or 1, H or 1, T, S); None = the plain causal mask."""
        return causal_bias(attention_mask, x.shape[1], past, x)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> DecoderOutput:
        """Logits of the next token at every position, or of the labels at the last kept token.

        Args:
            input_ids: (B, T) ids in 0..vocab_size-1.
            attention_mask: (B, S), 1 = keep, S = cached + T; None = no padding.
            position_ids: (B, T) or (1, T); by default counted from the number of cached tokens on.
                BLOOM has none: its distances are counted in ``attention_mask``. Where they start
                anew inside a row, and there is neither mask nor cache, a row holds several
                documents that do not see each other (``document_bias``).
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
        self.check(input_ids, attention_mask, position_ids, past)
        x, rotary = self.enter(input_ids, position_ids, past)
        bias = self.bias(attention_mask, past, x)
        if position_ids is not None and attention_mask is None and cache is None:
            bias = document_bias(position_ids, bias, x)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotary, bias, None if cache is None else (cache, layer))
        if cache is not None:
            cache.advance(x.shape[1])
        x = self.norm(x[:, -logits_to_keep:])
        if getattr(self.config, "n_label", None):
            return DecoderOutput(self._classify(x, attention_mask), cache, x)
        return DecoderOutput(self.score(x), cache, x)

    def _classify(self, x: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The labels' logits (B, n_label), read at each row's last kept token."""
        B, T, _ = x.shape
        last = torch.full((B,), T - 1, device=x.device)
        if attention_mask is not None:
            places = torch.arange(T, device=x.device)
            last = (attention_mask[:, -T:] * places).argmax(1)
        return self.classifier(x[torch.arange(B, device=x.device), last])


@dataclass
class GPT2Config:
    """The shape of a GPT-2 model."""

    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int  # width of the residual stream
    block_size: int  # longest sequence of tokens
    n_inner: int | None = None  # width of the feed-forward layer; None = 4 · n_embd
    norm_eps: float = 1e-5
    tie_embeddings: bool = True  # one matrix embeds tokens and scores them (Press and Wolf, 2017)
    n_label: int | None = None  # classes of a classifier; None = a language model

    def __post_init__(self) -> None:
        self.n_inner = self.n_inner or 4 * self.n_embd
        check_config(self)


class GPT2(Decoder):
    """Learnt positions added to the tokens."""

    def build(self, config: GPT2Config) -> None:
        C = config.n_embd
        norm = partial(nn.LayerNorm, C, config.norm_eps)
        self.embed = nn.Embedding(config.vocab_size, C)
        self.positions = nn.Embedding(config.block_size, C)
        self.blocks = nn.ModuleList(
            Block(norm, Attention(C, config.n_head, bias=True),
                  FeedForward(C, config.n_inner, gelu_tanh))
            for _ in range(config.n_layer)
        )  # fmt: skip
        self.norm = norm()
        if config.n_label:
            self.classifier = nn.Linear(C, config.n_label, bias=False)

    def enter(self, input_ids, position_ids, past):
        if position_ids is None:
            T = input_ids.shape[1]
            position_ids = torch.arange(past, past + T, device=input_ids.device)
        return self.embed(input_ids) + self.positions(position_ids), None


@dataclass
class BLOOMConfig:
    """The shape of a BLOOM model. Its positions are distances, so no sequence is too long."""

    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int  # width of the residual stream; the feed-forward layer is four times as wide
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        check_config(self)


class BLOOM(Decoder):
    """ALiBi: each head subtracts slope · distance from its scores (Press et al., 2022)."""

    def build(self, config: BLOOMConfig) -> None:
        C = config.n_embd
        norm = partial(nn.LayerNorm, C, config.norm_eps)
        self.embed = nn.Embedding(config.vocab_size, C)
        self.embed_norm = norm()
        self.blocks = nn.ModuleList(
            Block(norm, Attention(C, config.n_head, bias=True), FeedForward(C, 4 * C, gelu_tanh))
            for _ in range(config.n_layer)
        )
        self.norm = norm()
        self.register_buffer("slopes", alibi_slopes(config.n_head), persistent=False)

    def enter(self, input_ids, position_ids, past):
        return self.embed_norm(self.embed(input_ids)), None

    def bias(self, attention_mask, past, x):
        """slope · key position: the softmax does not see what all keys of a query share."""
        T = x.shape[1]
        mask = attention_mask
        if mask is None:
            mask = torch.ones(1, past + T, dtype=torch.long, device=x.device)
        places = ((mask.cumsum(1) - 1) * mask)[:, None, None]  # (B or 1, 1, 1, S)
        alibi = (self.slopes[:, None, None] * places).to(x.dtype)  # (B or 1, H, 1, S)
        return alibi + causal_bias(attention_mask, T, past, x, explicit=True)


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
    n_label: int | None = None  # classes of a classifier; None = a language model

    def __post_init__(self) -> None:
        check_config(self)
        if self.n_head % self.n_kv_head:
            raise ValueError(
                f"n_head={self.n_head} must be a multiple of n_kv_head={self.n_kv_head}: every "
                "key-value head serves as many query heads."
            )


class Llama(Decoder):
    """Rotary positions: queries and keys are turned by angles that grow with their place."""

    def build(self, config: LlamaConfig) -> None:
        C = config.n_embd
        norm = partial(RMSNorm, C, config.norm_eps)
        self.embed = nn.Embedding(config.vocab_size, C)
        self.blocks = nn.ModuleList(
            Block(norm, Attention(C, config.n_head, config.n_kv_head), SwiGLU(C, config.n_inner))
            for _ in range(config.n_layer)
        )
        self.norm = norm()
        if config.n_label:
            self.classifier = nn.Linear(C, config.n_label, bias=False)
        cos, sin = rotary_table(config.block_size, C // config.n_head, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def enter(self, input_ids, position_ids, past):
        x, T = self.embed(input_ids), input_ids.shape[1]
        if position_ids is None:
            return x, (self.cos[past : past + T], self.sin[past : past + T])  # (T, D) for all rows
        return x, (self.cos[position_ids][:, None], self.sin[position_ids][:, None])
