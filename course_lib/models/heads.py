"""A scalar on every token: the head of a reward model and of a critic.

Works on our decoders and on any ``AutoModelForCausalLM``.
Simplified away: dropout before the head; several scalars a token.
"""

import torch
from torch import Tensor, nn

from course_lib.models.base import Model, Output, mask_inputs


def _is_ours(model: nn.Module) -> bool:
    """Also inside the wrappers of ``torch.compile`` and of several processes."""
    inner = getattr(model, "_orig_mod", getattr(model, "module", None))
    return isinstance(model, Model) or (inner is not None and _is_ours(inner))


def read(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None, logits_to_keep: int = 0,
) -> Output:  # fmt: skip
    """Logits and last hidden states of one pass, which a policy and its critic may share.

    Args:
        model: follows transformers' calling convention; decoder-only.
        input_ids, attention_mask: (B, T), padded at either end.
        position_ids: (B, T); those of ``positions_from_mask`` when None.
        logits_to_keep: logits of this many last positions alone; 0 = all.

    Returns:
        ``logits``, and ``last_hidden_state`` (B, T, C): what the output matrix reads.
    """
    inputs = mask_inputs(model, attention_mask, position_ids)
    if _is_ours(model):
        return model(input_ids, **inputs, logits_to_keep=logits_to_keep)
    out = model(input_ids, **inputs, logits_to_keep=logits_to_keep, output_hidden_states=True,
                use_cache=False)  # fmt: skip
    return Output(out.logits, last_hidden_state=out.hidden_states[-1])


class ScalarHead(nn.Module):
    """w · x + b for every token. Zero at the start, so it says 0 of everything.

    The weight is a vector, (C,): optimizers that are for matrices alone (Muon) leave it out. It
    computes in its own precision, float32, whatever the model's and under autocast too.

    Args:
        n_embd: C.
        std: the weight starts as N(0, std²) instead.
        generator: draws it; torch's own when None.
    """

    def __init__(self, n_embd: int, std: float = 0.0, generator: torch.Generator | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_embd))
        self.bias = nn.Parameter(torch.zeros(1))
        if std:
            nn.init.normal_(self.weight, std=std, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, C) -> (B, T)."""
        with torch.autocast(x.device.type, enabled=False):
            return x.to(self.weight.dtype) @ self.weight + self.bias


class WithScalarHead(nn.Module):
    """A causal language model that says a number after every token instead of the next token.

    The parameters of ``model`` are trained with the head's: to keep a policy as it is, give a copy
    of it; to share one trunk with a policy, apply a ``ScalarHead`` to what ``read`` returns.

    Args:
        model: one of our decoders, or any ``AutoModelForCausalLM``.
        std, generator: of the head, see ``ScalarHead``.
    """

    def __init__(
        self, model: nn.Module, std: float = 0.0, generator: torch.Generator | None = None
    ):
        super().__init__()
        config = model.config
        width = config.n_embd if _is_ours(model) else config.get_text_config().hidden_size
        self.model = model
        self.head = ScalarHead(width, std, generator).to(next(model.parameters()).device)

    @property
    def config(self):
        """The model's."""
        return self.model.config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(B, T) tokens -> (B, T) values; those of padding mean nothing."""
        out = read(self.model, input_ids, attention_mask, position_ids, logits_to_keep=1)
        return self.head(out.last_hidden_state)
