"""Encoder-only models: every token sees every other, so a token is guessed from both sides.

BERT (Devlin et al., 2019): learnt positions, LayerNorm after each sublayer, GELU (exact). RoBERTa
(Liu et al., 2019) changed the training; in the model only the count of positions differs.
Simplified away: dropout, next-sentence prediction.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.models import layers
from course_lib.models.base import Config, Model, Output, positions_from_mask


@dataclass
class BERTConfig(Config):
    """The shape of a BERT model."""

    n_embd: int
    n_inner: int
    block_size: int
    n_token_type: int = 2  # kinds of segment: question and passage, say
    norm_eps: float = 1e-12
    tie_embeddings: bool = True
    n_label: int | None = None
    first_position = 0  # the row of the position table that the first token gets


class BERT(Model):
    """A masked language model, or a classifier that reads the first kept token."""

    def build(self, config: BERTConfig) -> None:
        C, norm = config.n_embd, partial(nn.LayerNorm, config.n_embd, config.norm_eps)
        self.positions = nn.Embedding(config.first_position + config.block_size, C)
        self.token_types = nn.Embedding(config.n_token_type, C)
        self.embed_norm = norm()
        self.blocks = self.new_blocks(
            nn.LayerNorm, layers.GELU, causal=False, pre_norm=False, bias=True
        )
        if config.n_label:
            self.pooler, self.classifier = nn.Linear(C, C), nn.Linear(C, config.n_label)
        else:
            self.transform, self.transform_norm = nn.Linear(C, C), norm()
            self.head_bias = nn.Parameter(torch.zeros(config.vocab_size))

    def positions_of(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The row of the position table for each token: (T,) or (B, T)."""
        if attention_mask is not None:
            return positions_from_mask(attention_mask)
        return torch.arange(input_ids.shape[1], device=input_ids.device)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None):
        """Logits of each token, or of the labels of the whole text.

        Args:
            token_type_ids: (B, T) segment of each token; all 0 when None.
            position_ids: (B, T) or (1, T) rows of the position table; by default those of
                ``positions_of``.
            The others, and what is refused: see ``Model``. A row without a kept token is, too.
        """
        places = None if position_ids is None else position_ids - self.config.first_position
        self.check(input_ids, attention_mask, places)
        if position_ids is None:
            position_ids = self.positions_of(input_ids, attention_mask)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        x = self.embed(input_ids) + self.token_types(token_type_ids) + self.positions(position_ids)
        x = self.embed_norm(x)
        x = self.blocks(x, added=layers.additive_padding_mask(attention_mask, x))
        if self.config.n_label:
            first = 0 if attention_mask is None else attention_mask.int().argmax(1)  # (B,)
            pooled = self.pooler(x[torch.arange(len(x), device=x.device), first]).tanh()  # (B, C)
            return Output(self.classifier(pooled), last_hidden_state=x)
        guess = self.transform_norm(F.gelu(self.transform(x)))
        return Output(self.score(guess, self.head_bias), last_hidden_state=x)


@dataclass
class RoBERTaConfig(BERTConfig):
    """The shape of a RoBERTa model."""

    n_token_type: int = 1
    norm_eps: float = 1e-5
    pad_token_id: int = 1  # this token is not counted as a position

    def __post_init__(self) -> None:
        super().__post_init__()
        self.first_position = self.pad_token_id + 1


class RoBERTa(BERT):
    """BERT whose positions count from ``pad_token_id + 1`` and skip padding."""

    def positions_of(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        real = (input_ids != self.config.pad_token_id).long()
        if attention_mask is not None:  # padding need not be made of the padding token
            real = real * attention_mask.long()
        return real.cumsum(1) * real + self.config.pad_token_id  # (B, T)
