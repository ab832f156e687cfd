"""Pretraining objectives: for now the causal one, next-token prediction.

Simplified away: the loss of packed rows runs over document borders too (the model sees the
``<|end|>`` between them).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.ops import IGNORE_INDEX


def causal_labels(input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Labels of next-token prediction: the inputs themselves, unshifted, padding ignored.

    Args:
        input_ids: (B, T).
        attention_mask: (B, T), 1 = keep; positions with 0 become ``IGNORE_INDEX``.

    Returns:
        (B, T). ``ops.token_logprobs`` and ``causal_lm_loss`` do the shift.

    Raises:
        ValueError: the mask has another shape.

    Example:
        >>> causal_labels(torch.tensor([[7, 8, 1]]), torch.tensor([[1, 1, 0]])).tolist()
        [[7, 8, -100]]
    """
    labels = input_ids.clone()
    if attention_mask is not None:
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, input_ids "
                f"{tuple(input_ids.shape)}: give one mask entry for each token."
            )
        labels[~attention_mask.bool()] = IGNORE_INDEX
    return labels


def causal_lm_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of the next token, in nats (Radford et al., 2018, eq. 1).

    Args:
        batch: ``input_ids`` (B, T); optionally ``attention_mask`` and ``labels``, both (B, T).

    Returns:
        A scalar, the mean over every kept position whose next token is not ignored (nan when there
        is none). Padding on the left predicts nothing, so both sides of padding give one loss.
    """
    input_ids, mask = batch["input_ids"], batch.get("attention_mask")
    labels = batch["labels"] if "labels" in batch else causal_labels(input_ids, mask)
    logits = model(input_ids, attention_mask=mask).logits  # (B, T, V)
    # Shifting the labels instead of the logits spares a copy of the largest tensor of the step.
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # (B, T)
    if mask is not None:
        targets = targets.masked_fill(~mask.bool(), IGNORE_INDEX)
    return F.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE_INDEX
    )
