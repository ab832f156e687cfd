"""Encoder-decoder models: an encoder reads the source, a decoder writes while it looks at it.

T5 (Raffel et al., 2020): each distance learns what it adds to the scores, which are not scaled,
RMSNorm before each sublayer, no biases; v1.1 gates its feed-forward and unties its output matrix.
BART (Lewis et al., 2020): learnt positions, LayerNorm after each sublayer, GELU (exact).
Simplified away: dropout, encoders and decoders of different depth.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.models import layers
from course_lib.models.base import Config, Model, Output

BART_OFFSET = 2
"""The first row of BART's position tables that is used."""


class Stack(nn.Module):
    """The encoder or the decoder: ``layers.Blocks``, and what a family has besides."""

    def __init__(self, blocks, positions=None, embed_norm=None, relative=None, norm=None):
        super().__init__()
        self.blocks, self.positions, self.relative = blocks, positions, relative
        self.embed_norm, self.norm = embed_norm, norm

    def forward(
        self, x: Tensor, position_ids=None, added=None, cache=None, source=None, source_added=None
    ) -> Tensor:
        """x: (B, T, C) embedded tokens -> (B, T, C).

        Args:
            position_ids: (B, T); None = counted from the number of cached tokens on.
            The others as in ``Blocks.forward``.
        """
        T, past = x.shape[1], 0 if cache is None else cache.length
        if self.positions is not None:
            if position_ids is None:
                position_ids = torch.arange(past, past + T, device=x.device)
            x = self.embed_norm(x + self.positions(BART_OFFSET + position_ids))
        if self.relative is not None:
            distance = self.relative(T, past + T)  # (1, H, T, S)
            added = distance if added is None else added + distance
        x = self.blocks(x, None, added, cache, source, source_added)
        return x if self.norm is None else self.norm(x)


class Seq2Seq(Model):
    """The forward pass that both families share. They differ in the stacks they build."""

    embed_scale = logit_scale = 1.0
    logits_bias: Tensor | None

    def new_cache(self, capacity: int = 0) -> layers.KVCache:
        """An empty cache with room for ``capacity`` tokens of the decoder."""
        return layers.KVCache(self.config.n_layer, capacity, cross=True)

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What the encoder makes of the source: (B, S) -> (B, S, C)."""
        position_ids = self.check(input_ids, attention_mask)
        x = self.embed(input_ids) * self.embed_scale
        return self.encoder(x, position_ids, layers.additive_padding_mask(attention_mask, x))

    def forward(self, input_ids=None, attention_mask=None, decoder_input_ids=None,
                decoder_attention_mask=None, encoder_outputs=None, past_key_values=None,
                use_cache=False) -> Output:  # fmt: skip
        """Logits of the next target token at every position of the decoder.

        Args:
            input_ids, attention_mask: (B, S) source; no ids are needed beside ``encoder_outputs``.
            decoder_input_ids: (B, T) target, shifted right: its first token is
                ``config.start_token_id``.
            decoder_attention_mask: (B, cached + T), 1 = keep.
            encoder_outputs: a tuple whose first entry is what ``encode`` returned.
            The others, and what is refused: see ``Model``. A missing input is, too.
        """
        if decoder_input_ids is None or (input_ids is None and encoder_outputs is None):
            raise ValueError(
                "An encoder-decoder reads two texts: give decoder_input_ids, and input_ids or "
                "encoder_outputs."
            )
        source = encoder_outputs[0] if encoder_outputs else self.encode(input_ids, attention_mask)
        cache = self.new_cache() if use_cache and past_key_values is None else past_key_values
        past, T = 0 if cache is None else cache.length, decoder_input_ids.shape[-1]
        position_ids = self.check(decoder_input_ids, decoder_attention_mask, past=past)
        x = self.embed(decoder_input_ids) * self.embed_scale
        added = layers.additive_causal_mask(decoder_attention_mask, T, past, x)
        source_added = layers.additive_padding_mask(attention_mask, x)
        x = self.decoder(x, position_ids, added, cache, source, source_added)
        logits = self.score(x * self.logit_scale, self.logits_bias)
        return Output(logits, cache, x, source)


@dataclass
class T5Config(Config):
    """The shape of a T5 model."""

    head_width: int  # heads need not share the channels equally
    n_embd: int
    n_inner: int
    n_bucket: int = 32  # distances told apart
    max_distance: int = 128  # farther keys share a bucket
    norm_eps: float = 1e-6
    gated: bool = False  # v1.1: gated GELU instead of ReLU
    tie_embeddings: bool = True  # v1.1: False
    start_token_id: int = 0  # the decoder's first token


class T5(Seq2Seq):
    """Relative positions, one table a stack, that every layer of the stack adds to its scores."""

    def build(self, config: T5Config) -> None:
        plain = partial(layers.FeedForward, activation=F.relu, bias=False)
        parts = layers.RMSNorm, layers.GEGLUTanh if config.gated else plain
        attention = {"head_width": config.head_width, "scale": 1.0, "clamp": True}
        buckets = config.n_bucket, config.max_distance, config.n_head
        self.encoder, self.decoder = (
            Stack(
                self.new_blocks(*parts, causal=decoder, cross=decoder, **attention),
                relative=layers.RelativePositions(*buckets, bidirectional=not decoder),
                norm=layers.RMSNorm(config.n_embd, config.norm_eps),
            )
            for decoder in (False, True)
        )
        self.logits_bias = None
        if config.tie_embeddings:
            self.logit_scale = config.n_embd**-0.5


@dataclass
class BARTConfig(Config):
    """The shape of a BART model."""

    n_embd: int
    n_inner: int
    block_size: int  # of the source, and of the target
    scale_embeddings: bool = False  # multiply embeddings by √n_embd
    start_token_id: int = 2  # the decoder's first token


class BART(Seq2Seq):
    """Learnt positions, one table a stack; the output matrix is the embedding."""

    def build(self, config: BARTConfig) -> None:
        parts = nn.LayerNorm, layers.GELU
        self.encoder, self.decoder = (
            Stack(
                self.new_blocks(*parts, causal=decoder, cross=decoder, pre_norm=False, bias=True),
                positions=nn.Embedding(BART_OFFSET + config.block_size, config.n_embd),
                embed_norm=nn.LayerNorm(config.n_embd),
            )
            for decoder in (False, True)
        )
        self.register_buffer("logits_bias", torch.zeros(1, config.vocab_size))
        if config.scale_embeddings:
            self.embed_scale = config.n_embd**0.5
