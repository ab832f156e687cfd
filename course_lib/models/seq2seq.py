"""Encoder-decoder models: an encoder reads the source, a decoder writes while it looks at it.

T5 (Raffel et al., 2020): a learnt bias for each distance, RMSNorm before each sublayer, unscaled
scores, no biases; v1.1 gates its feed-forward and unties its output matrix.
BART (Lewis et al., 2020): learnt positions, LayerNorm after each sublayer, GELU.
Simplified away: dropout, encoders and decoders of different depth.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.models.base import Model, check_config
from course_lib.models.encoder import padding_bias
from course_lib.models.layers import (
    GEGLU,
    Attention,
    Block,
    FeedForward,
    KVCache,
    RelativePositions,
    RMSNorm,
    causal_bias,
)

BART_OFFSET = 2
"""The first row of BART's position tables that is used."""


class Seq2SeqCache:
    """Keys and values of the decoder's own tokens, and of the source, which is read once."""

    def __init__(self, n_layer: int, capacity: int = 0):
        self.own, self.source = KVCache(n_layer, capacity), KVCache(n_layer)

    @property
    def length(self) -> int:
        return self.own.length

    def select(self, rows: Tensor) -> None:
        """Keep only the given rows of the batch. rows: (B',) indices."""
        self.own.select(rows)
        self.source.select(rows)


@dataclass
class Seq2SeqOutput:
    """logits: (B, T, V); encoder_last_hidden_state: (B, S, C); the cache if asked for."""

    logits: Tensor
    encoder_last_hidden_state: Tensor
    past_key_values: Seq2SeqCache | None = None


class Stack(nn.Module):
    """The encoder or the decoder: positions, blocks, norms. A family leaves out what it lacks."""

    def __init__(self, blocks, positions=None, embed_norm=None, relative=None, norm=None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.positions, self.relative = positions, relative
        self.embed_norm, self.norm = embed_norm, norm

    def forward(self, x: Tensor, bias=None, source=None, source_bias=None, cache=None) -> Tensor:
        """
        Args:
            x: (B, T, C) embedded tokens.
            bias, source_bias: see ``attend``.
            source: (B, S, C), what the encoder made of the source.
            cache: a Seq2SeqCache.

        Returns:
            (B, T, C).
        """
        T, past = x.shape[1], 0 if cache is None else cache.length
        if self.positions is not None:
            first = BART_OFFSET + past
            x = x + self.positions.weight[first : first + T]
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        if self.relative is not None:
            distance = self.relative(T, past + T)  # (1, H, T, S)
            bias = distance if bias is None else bias + distance
        own_cache = source_cache = None
        for layer, block in enumerate(self.blocks):
            if cache is not None:
                own_cache, source_cache = (cache.own, layer), (cache.source, layer)
            x = block(x, None, bias, own_cache, source, source_bias, source_cache)
        if cache is not None:
            cache.own.advance(T)
            cache.source.advance(0 if cache.source.length else source.shape[1])
        return x if self.norm is None else self.norm(x)


class Seq2Seq(Model):
    """The forward pass that both families share. They differ in the stacks they build."""

    embed_scale = logit_scale = 1.0
    logits_bias: Tensor | None

    def new_cache(self, capacity: int = 0) -> Seq2SeqCache:
        """An empty cache with room for ``capacity`` tokens of the decoder."""
        return Seq2SeqCache(self.config.n_layer, capacity)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What the encoder makes of the source: (B, S) -> (B, S, C)."""
        self.check(input_ids, attention_mask)
        x = self.embed(input_ids) * self.embed_scale
        return self.encoder(x, padding_bias(attention_mask, x))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: tuple[Tensor] | None = None,
        past_key_values: Seq2SeqCache | None = None,
        use_cache: bool = False,
    ) -> Seq2SeqOutput:
        """Logits of the next target token at every position of the decoder.

        Args:
            input_ids: (B, S) source; not needed beside ``encoder_outputs``.
            attention_mask: (B, S), 1 = keep; None = no padding.
            decoder_input_ids: (B, T) target, shifted right: its first token is
                ``config.start_token_id``.
            decoder_attention_mask: (B, cached + T), 1 = keep.
            encoder_outputs: a tuple whose first entry is what ``encode`` returned.
            past_key_values: the cache of the target tokens before these.
            use_cache: return a cache that holds these tokens too.

        Raises:
            ValueError: a missing input; otherwise as a decoder's.
        """
        if decoder_input_ids is None or (input_ids is None and encoder_outputs is None):
            raise ValueError(
                "An encoder-decoder reads two texts: give decoder_input_ids, and input_ids or "
                "encoder_outputs."
            )
        if encoder_outputs is None:
            source = self.encode(input_ids, attention_mask)
        else:
            source = encoder_outputs[0]  # (B, S, C)
        cache = past_key_values
        if cache is None and use_cache:
            cache = self.new_cache()
        past, T = 0 if cache is None else cache.length, decoder_input_ids.shape[-1]
        self.check(decoder_input_ids, decoder_attention_mask, past=past)
        x = self.embed(decoder_input_ids) * self.embed_scale
        bias = causal_bias(decoder_attention_mask, T, past, x, explicit=True)
        x = self.decoder(x, bias, source, padding_bias(attention_mask, x), cache)
        return Seq2SeqOutput(self.score(x * self.logit_scale, self.logits_bias), source, cache)


@dataclass
class T5Config:
    """The shape of a T5 model."""

    vocab_size: int
    n_layer: int  # of the encoder, and of the decoder
    n_head: int
    head_width: int  # heads need not share the channels equally
    n_embd: int  # width of the residual stream
    n_inner: int  # width of the feed-forward layer
    n_bucket: int = 32  # distances told apart
    max_distance: int = 128  # farther keys share a bucket
    norm_eps: float = 1e-6
    gated: bool = False  # v1.1: gated GELU instead of ReLU
    tie_embeddings: bool = True  # v1.1: False
    start_token_id: int = 0  # the decoder's first token

    def __post_init__(self) -> None:
        check_config(self)


class T5(Seq2Seq):
    """Relative positions, one table a stack, that every layer of the stack adds to its scores."""

    def build(self, config: T5Config) -> None:
        C, D = config.n_embd, config.head_width
        norm = partial(RMSNorm, C, config.norm_eps)
        attention = partial(Attention, C, config.n_head, head_width=D, scale=1.0)
        feed_forward = partial(FeedForward, activation=F.relu, bias=False)
        if config.gated:
            feed_forward = GEGLU

        def stack(decoder: bool) -> Stack:
            blocks = [
                Block(norm, attention(causal=decoder), feed_forward(C, config.n_inner),
                      attention(causal=False) if decoder else None)
                for _ in range(config.n_layer)
            ]  # fmt: skip
            relative = RelativePositions(
                config.n_bucket, config.max_distance, config.n_head, bidirectional=not decoder
            )
            return Stack(blocks, relative=relative, norm=norm())

        self.embed = nn.Embedding(config.vocab_size, C)
        self.encoder, self.decoder = stack(decoder=False), stack(decoder=True)
        self.logits_bias = None
        if config.tie_embeddings:
            self.logit_scale = C**-0.5


@dataclass
class BARTConfig:
    """The shape of a BART model."""

    vocab_size: int
    n_layer: int  # of the encoder, and of the decoder
    n_head: int
    n_embd: int  # width of the residual stream
    n_inner: int  # width of the feed-forward layer
    block_size: int  # longest sequence of tokens, source or target
    scale_embeddings: bool = False  # multiply embeddings by √n_embd
    start_token_id: int = 2  # the decoder's first token

    def __post_init__(self) -> None:
        check_config(self)


class BART(Seq2Seq):
    """Learnt positions, one table a stack; the output matrix is the embedding."""

    def build(self, config: BARTConfig) -> None:
        C = config.n_embd
        norm = partial(nn.LayerNorm, C)
        attention = partial(Attention, C, config.n_head, bias=True)

        def stack(decoder: bool) -> Stack:
            blocks = [
                Block(norm, attention(causal=decoder), FeedForward(C, config.n_inner, F.gelu),
                      attention(causal=False) if decoder else None, pre_norm=False)
                for _ in range(config.n_layer)
            ]  # fmt: skip
            positions = nn.Embedding(BART_OFFSET + config.block_size, C)
            return Stack(blocks, positions, embed_norm=norm())

        self.embed = nn.Embedding(config.vocab_size, C)
        self.encoder, self.decoder = stack(decoder=False), stack(decoder=True)
        self.register_buffer("logits_bias", torch.zeros(1, config.vocab_size))
        if config.scale_embeddings:
            self.embed_scale = C**0.5
