"""Prompt tuning: vectors before the text that belong to no token, learnt (Lester et al., 2021).

The model is frozen; P vectors of the embeddings' width are all that is trained, the same for every
text. They stand in front of the row, before its padding, and count as tokens: with P = 2 the row
``[pad pad a b]`` is read as ``[v1 v2 pad pad a b]``, a at position 2 and b at 3.
Simplified away: encoder-decoders; the reparametrisation by a network (prefix tuning, P-tuning).
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from course_lib.models import mask_inputs, positions_from_mask
from course_lib.models.base import Model
from course_lib.models.decoder import Decoder
from course_lib.wrapped_linear import freeze

LENGTHS = ("block_size", "max_position_embeddings")
"""What configs call the length of the context: ours, transformers'."""


class SoftPrompt(nn.Module):
    """A causal language model that reads P learnt vectors before every text.

    It follows the calling convention of the model: logits are those of the T tokens, so losses,
    labels and ``course_lib.generate`` need not know of the vectors. ``config`` is the model's, with
    a context that is shorter by P.

    Args:
        model: one of our decoders or any ``AutoModelForCausalLM``.
        vectors: (P, C), the first ones.
    """

    def __init__(self, model: nn.Module, vectors: Tensor):
        super().__init__()
        self.model, self.prompt = model, nn.Parameter(vectors)
        self.enabled = True
        self.config = copy.copy(model.config)
        for name in LENGTHS:
            if getattr(self.config, name, None):
                setattr(self.config, name, getattr(self.config, name) - len(vectors))
        self.train(model.training)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def new_cache(self, capacity: int = 0):
        """The model's empty cache, with room for the vectors too; None if it makes its own."""
        if not hasattr(self.model, "new_cache"):
            return None
        return self.model.new_cache(capacity + len(self.prompt))

    def inputs(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """What the model is given in place of tokens, also for transformers' own ``generate``.

        Args:
            input_ids, attention_mask, position_ids: (B, T).

        Returns:
            ``inputs_embeds`` (B, P + T, C), ``attention_mask`` (B, P + T), and ``position_ids``
            (B, P + T) where they were given.
        """
        B, P = len(input_ids), len(self.prompt)
        embedded = self.model.get_input_embeddings()(input_ids)  # (B, T, C)
        vectors = self.prompt.to(embedded.dtype).expand(B, -1, -1)  # (B, P, C)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        found = {"inputs_embeds": torch.cat([vectors, embedded], dim=1),
                 "attention_mask": self._longer(mask)}  # fmt: skip
        if position_ids is not None:
            first = torch.arange(P, device=position_ids.device).expand(len(position_ids), -1)
            found["position_ids"] = torch.cat([first, position_ids + P], dim=1)
        return found

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None, past_key_values=None, use_cache: bool = False,
        logits_to_keep: int = 0,
    ):  # fmt: skip
        """The model's output for the T tokens; what it says of the vectors is left out.

        Args:
            input_ids: (B, T). attention_mask: (B, T), or (B, cached + T), of tokens alone.
            position_ids: (B, T) or (1, T), counted from 0 at the first token.

        Raises:
            ValueError: rows of several texts, whose positions start anew.
        """
        if not self.enabled:
            return self.model(
                input_ids, attention_mask=attention_mask, position_ids=position_ids,
                past_key_values=past_key_values, use_cache=use_cache, logits_to_keep=logits_to_keep,
            )  # fmt: skip
        T = input_ids.shape[1]
        mask = None if attention_mask is None else self._longer(attention_mask)
        if _length(past_key_values):  # the vectors have been read
            text = {"input_ids": input_ids}
            positions = None if position_ids is None else position_ids + len(self.prompt)
            if positions is None and mask is not None:
                positions = positions_from_mask(mask)[:, -T:]
        else:
            if mask is None and position_ids is not None and (position_ids.diff(dim=1) != 1).any():
                raise ValueError(
                    "Positions start anew inside a row, so it holds several texts, and the vectors "
                    "would stand before the first alone: give rows of one text (no packing)."
                )
            inputs = self.inputs(input_ids, attention_mask, position_ids)
            text, positions = {"inputs_embeds": inputs["inputs_embeds"]}, inputs.get("position_ids")
        return self.model(
            **text, **mask_inputs(self.model, mask, positions), past_key_values=past_key_values,
            use_cache=use_cache, logits_to_keep=logits_to_keep or T,
        )  # fmt: skip

    def _longer(self, mask: Tensor) -> Tensor:
        """(B, T) -> (B, P + T): the vectors are kept."""
        return torch.cat([mask.new_ones(len(mask), len(self.prompt)), mask], dim=1)

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **settings):
        """transformers' ``generate`` of such a model: (B, T) -> (B, T + new)."""
        new = self.model.generate(**self.inputs(input_ids, attention_mask), **settings)
        return torch.cat([input_ids, new], dim=1)


def _length(cache) -> int:
    """How many tokens, or vectors, a cache of any library holds."""
    if cache is None:
        return 0
    return cache.get_seq_length() if hasattr(cache, "get_seq_length") else cache.length


def add_soft_prompt(
    model: nn.Module, n_tokens: int, *, init: str | Sequence[int] = "vocabulary",
    std: float = 0.02, generator: Generator | None = None,
) -> SoftPrompt:  # fmt: skip
    """A model with ``n_tokens`` trained vectors before every text; all else is frozen.

    Args:
        model: see ``SoftPrompt``; it becomes a part of what is returned.
        n_tokens: P.
        init: ``"vocabulary"``: embeddings of tokens that are drawn; ``"noise"``: N(0, std²); or
            token ids, such as ``tokenizer.encode("Write the plural")``: their embeddings, cut
            after P of them, or repeated up to P (Lester et al., 2021, section 2.1).
        std: of the noise.
        generator: draws; torch's own when None.

    Raises:
        ValueError: no causal language model, a P that leaves no room for a token, an ``init`` that
            is none of these.
    """
    if isinstance(n_tokens, bool) or not isinstance(n_tokens, int) or n_tokens < 1:
        raise ValueError(f"n_tokens={n_tokens!r} must be a whole number of at least 1.")
    _check_model(model)
    room = next((getattr(model.config, n) for n in LENGTHS if getattr(model.config, n, None)),
                math.inf)  # fmt: skip
    if n_tokens >= room:
        raise ValueError(
            f"n_tokens={n_tokens} leaves no room for a text in the context of {room}: take fewer."
        )
    vectors = _start(model.get_input_embeddings(), n_tokens, init, std, generator)
    freeze(model)
    return SoftPrompt(model, vectors)


def _check_model(model: nn.Module) -> None:
    if isinstance(model, Model):
        causal = isinstance(model, Decoder) and not model.config.n_label
    else:
        causal = getattr(model, "get_output_embeddings", lambda: None)() is not None
        causal = causal and not model.config.is_encoder_decoder
    if not causal:
        raise ValueError(
            f"A soft prompt stands before the texts of a causal language model, got "
            f"{type(model).__name__}."
        )


@torch.no_grad()
def _start(embed: nn.Module, P: int, init, std: float, generator: Generator | None) -> Tensor:
    """The first vectors, (P, C), float32 or wider."""
    weight = embed.weight  # (V, C)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    device = weight.device if generator is None else generator.device
    if isinstance(init, str) and init not in ("vocabulary", "noise"):
        raise ValueError(
            f'init must be "vocabulary", "noise" or token ids, got {init!r}: encode a text first.'
        )
    if isinstance(init, str) and init == "noise":
        noise = torch.randn(P, weight.shape[1], generator=generator, device=device, dtype=dtype)
        return (std * noise).to(weight.device)
    if isinstance(init, str):
        ids = torch.randint(len(weight), (P,), generator=generator, device=device)
    else:
        ids = torch.as_tensor(list(init), dtype=torch.long)
        if not len(ids) or ids.min() < 0 or ids.max() >= len(weight):
            raise ValueError(
                f"init: {len(ids)} token ids {ids[:5].tolist()}; expected at least one, in "
                f"0..{len(weight) - 1}: those of this model's tokenizer."
            )
        ids = ids.repeat(math.ceil(P / len(ids)))[:P]
    return embed(ids.to(weight.device)).to(dtype)
