"""Decoder-only models: a causal mask and one loss, next-token prediction.

GPT-2 (Radford et al., 2019): learnt positions, LayerNorm before each sublayer, GELU in its tanh
approximation.
BLOOM (BigScience, 2022): ALiBi positions, a norm of the embeddings, otherwise GPT-2's block.
Llama (Touvron et al., 2023): rotary positions, RMSNorm, SwiGLU, no biases.
Simplified away: dropout, rotary scaling for contexts longer than the trained one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from course_lib.models import layers
from course_lib.models.base import Config, Model, Output


class Decoder(Model):
    """The forward pass that the families share. Each says in ``enter`` how embedded tokens and
    positions come in: as (B, T, C), and as rotary rows or None.
    """

    def assemble(self, norm, feed_forward, **attention) -> None:
        """Blocks of such parts, a last norm, and a classifier where the config asks for one."""
        config = self.config
        self.blocks = self.new_blocks(norm, feed_forward, **attention)
        self.norm = norm(config.n_embd, config.norm_eps)
        if config.n_label:
            self.classifier = nn.Linear(config.n_embd, config.n_label, bias=False)

    def new_cache(self, capacity: int = 0) -> layers.KVCache:
        """An empty cache with room for ``capacity`` tokens."""
        return layers.KVCache(self.config.n_layer, capacity)

    def added(self, attention_mask: Tensor | None, past: int, x: Tensor) -> Tensor | None:
        """What is added to the scores, (B or 1, H or 1, T, S); None = the plain causal mask."""
        T = x.shape[1]
        if attention_mask is None and (past == 0 or T == 1):
            return None
        return layers.additive_causal_mask(attention_mask, T, past, x)

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None,
                use_cache=False, logits_to_keep=0, inputs_embeds=None) -> Output:  # fmt: skip
        """Logits of the next token at every position, or of the labels at the last kept token.

        Args:
            position_ids: BLOOM has none: its distances are counted in ``attention_mask``. Where
                they start anew inside a row, and there is neither mask nor cache, a row holds
                several documents that do not see each other (``layers.additive_document_mask``).
            logits_to_keep: score only this many last positions; 0 = all.
            inputs_embeds: (B, T, C) in place of ``input_ids``: ``embed(input_ids)``, or vectors
                that belong to no token (soft prompts).
            The others, and what is refused: see ``Model``.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                f"give {'either' if input_ids is None else 'only one of'} input_ids (B, T) or "
                "inputs_embeds (B, T, C): they are two forms of the same input."
            )
        cache = self.new_cache() if use_cache and past_key_values is None else past_key_values
        past = 0 if cache is None else cache.length
        embedded = inputs_embeds is not None
        tokens = inputs_embeds if embedded else input_ids
        position_ids = self.check(tokens, attention_mask, position_ids, past, embedded)
        x, rotary = self.enter(tokens if embedded else self.embed(tokens), position_ids, past)
        added = self.added(attention_mask, past, x)
        if position_ids is not None and attention_mask is None and cache is None:
            added = layers.additive_document_mask(position_ids, added, x)
        x = self.norm(self.blocks(x, rotary, added, cache))  # (B, T, C)
        if self.config.n_label:
            return Output(self.classify(x, attention_mask), cache, x)
        return Output(self.score(x[:, -logits_to_keep:]), cache, x)

    def classify(self, x: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The labels' logits (B, n_label), read at each row's last kept token."""
        if attention_mask is None:
            return self.classifier(x[:, -1])
        B, T, _ = x.shape
        last = (attention_mask[:, -T:] * torch.arange(T, device=x.device)).argmax(1)  # (B,)
        return self.classifier(x[torch.arange(B, device=x.device), last])


@dataclass
class GPT2Config(Config):
    """The shape of a GPT-2 model."""

    n_embd: int
    block_size: int
    n_inner: int | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    n_label: int | None = None


class GPT2(Decoder):
    """Learnt positions added to the tokens."""

    def build(self, config: GPT2Config) -> None:
        self.positions = nn.Embedding(config.block_size, config.n_embd)
        self.assemble(nn.LayerNorm, layers.GELUTanh, bias=True)

    def enter(self, x, position_ids, past):
        if position_ids is None:
            position_ids = torch.arange(past, past + x.shape[1], device=x.device)
        return x + self.positions(position_ids), None


@dataclass
class BLOOMConfig(Config):
    """The shape of a BLOOM model. Its positions are distances, so no sequence is too long."""

    n_embd: int
    norm_eps: float = 1e-5
    tie_embeddings: bool = True


class BLOOM(Decoder):
    """ALiBi: each head subtracts slope · distance from its scores (Press et al., 2022)."""

    def build(self, config: BLOOMConfig) -> None:
        self.embed_norm = nn.LayerNorm(config.n_embd, config.norm_eps)
        self.assemble(nn.LayerNorm, layers.GELUTanh, bias=True)
        self.register_buffer("slopes", layers.alibi_slopes(config.n_head), persistent=False)

    def enter(self, x, position_ids, past):
        return self.embed_norm(x), None

    def added(self, attention_mask, past, x):
        """slope · key position: the softmax does not see what all keys of a query share."""
        T, mask = x.shape[1], attention_mask
        if mask is None:
            mask = torch.ones(1, past + T, dtype=torch.long, device=x.device)
        places = ((mask.cumsum(1) - 1) * mask)[:, None, None]  # (B or 1, 1, 1, S)
        alibi = (self.slopes[:, None, None] * places).to(x.dtype)  # (B or 1, H, 1, S)
        return alibi + layers.additive_causal_mask(attention_mask, T, past, x)


@dataclass
class LlamaConfig(Config):
    """The shape of a Llama model."""

    n_kv_head: int  # key-value heads; each serves n_head / n_kv_head query heads
    n_embd: int
    n_inner: int
    block_size: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    n_label: int | None = None


class Llama(Decoder):
    """Rotary positions: queries and keys are turned by angles that grow with their place."""

    def build(self, config: LlamaConfig) -> None:
        self.assemble(layers.RMSNorm, layers.SwiGLU, n_kv_head=config.n_kv_head)
        head_width = config.n_embd // config.n_head
        cos, sin = layers.rotary_table(config.block_size, head_width, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def enter(self, x, position_ids, past):
        T = x.shape[1]
        if position_ids is None:
            return x, (self.cos[past : past + T], self.sin[past : past + T])  # (T, D) for all rows
        return x, (self.cos[position_ids][:, None], self.sin[position_ids][:, None])
