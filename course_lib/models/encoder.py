"""Encoder-only models: every token sees every other, so a token is guessed from both sides.

BERT (Devlin et al., 2019): learnt positions, LayerNorm after each sublayer, GELU. RoBERTa (Liu et
al., 2019) changed the training; in the model only the count of positions differs.
Simplified away: dropout, next-sentence prediction.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.models.base import Model, check_config
from course_lib.models.layers import Attention, Block, FeedForward, mask_bias


@dataclass
class BERTConfig:
    """The shape of a BERT model."""

    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int  # width of the residual stream
    n_inner: int  # width of the feed-forward layer
    block_size: int  # longest sequence of tokens
    n_token_type: int = 2  # kinds of segment: question and passage, say
    norm_eps: float = 1e-12
    tie_embeddings: bool = True  # one matrix embeds tokens and scores them (Press and Wolf, 2017)
    n_label: int | None = None  # classes of a classifier; None = a masked language model

    def __post_init__(self) -> None:
        check_config(self)

    @property
    def first_position(self) -> int:
        """The row of the position table that the first token gets."""
        return 0


@dataclass
class RoBERTaConfig(BERTConfig):
    """The shape of a RoBERTa model."""

    n_token_type: int = 1
    norm_eps: float = 1e-5
    pad_token_id: int = 1  # this token is not counted as a position

    @property
    def first_position(self) -> int:
        return self.pad_token_id + 1


@dataclass
class EncoderOutput:
    """logits: (B, T, V), or (B, n_label) of a classifier; last_hidden_state: (B, T, C)."""

    logits: Tensor
    last_hidden_state: Tensor


class BERT(Model):
    """A masked language model, or a classifier that reads the first token."""

    def build(self, config: BERTConfig) -> None:
        C = config.n_embd
        norm = partial(nn.LayerNorm, C, config.norm_eps)
        self.embed = nn.Embedding(config.vocab_size, C)
        self.positions = nn.Embedding(config.first_position + config.block_size, C)
        self.token_types = nn.Embedding(config.n_token_type, C)
        self.embed_norm = norm()
        self.blocks = nn.ModuleList(
            Block(norm, Attention(C, config.n_head, bias=True, causal=False),
                  FeedForward(C, config.n_inner, F.gelu), pre_norm=False)
            for _ in range(config.n_layer)
        )  # fmt: skip
        self.transform = nn.Linear(C, C)
        if config.n_label:
            self.classifier = nn.Linear(C, config.n_label)
        else:
            self.transform_norm = norm()
            self.head_bias = nn.Parameter(torch.zeros(config.vocab_size))

    def positions_of(self, input_ids: Tensor) -> Tensor:
        """The row of the position table for each token: (T,) or (B, T)."""
        return torch.arange(input_ids.shape[1], device=input_ids.device)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> EncoderOutput:
        """Logits of each token, or of the labels of the whole text.

        Args:
            input_ids: (B, T) ids in 0..vocab_size-1.
            attention_mask: (B, T), 1 = keep; None = no padding.
            token_type_ids: (B, T) segment of each token; all 0 when None.
            position_ids: (B, T) or (1, T) rows of the position table.

        Raises:
            ValueError: empty or too long input, ids outside the vocabulary, a mask or positions of
                another shape, a row without a single kept token.
        """
        first = self.config.first_position
        places = None if position_ids is None else position_ids - first
        self.check(input_ids, attention_mask, places)
        if position_ids is None:
            position_ids = self.positions_of(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        x = self.embed(input_ids) + self.token_types(token_type_ids) + self.positions(position_ids)
        x, bias = self.embed_norm(x), padding_bias(attention_mask, x)
        for block in self.blocks:
            x = block(x, None, bias)
        if self.config.n_label:
            pooled = self.transform(x[:, 0]).tanh()  # (B, C)
            return EncoderOutput(self.classifier(pooled), x)
        guess = self.transform_norm(F.gelu(self.transform(x)))
        return EncoderOutput(self.score(guess, self.head_bias), x)


class RoBERTa(BERT):
    """BERT whose positions count from ``pad_token_id + 1`` and skip padding."""

    def positions_of(self, input_ids: Tensor) -> Tensor:
        real = (input_ids != self.config.pad_token_id).long()
        return real.cumsum(1) * real + self.config.pad_token_id  # (B, T)


def padding_bias(attention_mask: Tensor | None, like: Tensor) -> Tensor | None:
    """(B, 1, 1, S) that hides padding from everyone; None where there is none.

    Raises:
        ValueError: a row of which nothing is kept.
    """
    if attention_mask is None or attention_mask.all():
        return None
    if not attention_mask.any(1).all():
        row = int((~attention_mask.any(1)).nonzero()[0])
        raise ValueError(f"attention_mask of row {row} is all 0: there is nothing to look at.")
    return mask_bias(attention_mask.bool()[:, None, None], like.dtype)
