"""Operations on logits and masks that every algorithm of the course shares.

Shapes: B sequences, T tokens, V words of the vocabulary. Every mask is True/1 = keep.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that carries no loss: prompt or padding."""


def token_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each next token. The only place of the package that shifts.

    Args:
        logits: (B, T, V), position t predicts token t + 1.
        labels: (B, T) token ids, unshifted; ``IGNORE_INDEX`` where there is none.

    Returns:
        (B, T-1): entry t is log p(labels[t+1] | tokens up to t), and 0 where it is ignored.

    Raises:
        ValueError: shapes that do not fit together.

    Example: uniform logits over V = 4 give log(1/4) everywhere.
        >>> token_logprobs(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
        tensor([[-1.3863, -1.3863]])
    """
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"logits must be (B, T, V) and labels (B, T), got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}."
        )
    targets = labels[:, 1:]  # (B, T-1)
    keep = targets != IGNORE_INDEX
    # Prompts and padding are most of many batches: only the N rows that count are normalised.
    places = F.pad(keep, (0, 1)).flatten().nonzero().squeeze(1)  # (N,)
    rows = logits.flatten(0, 1).index_select(0, places).float()  # (N, V)
    logprobs = -F.cross_entropy(rows, targets[keep], reduction="none")  # (N,)
    return logprobs.new_zeros(targets.shape).masked_scatter(keep, logprobs)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of ``values`` where ``mask`` keeps them; 0 where it keeps none.

    Args:
        values: any shape.
        mask: the same shape, True/1 = keep.
        dim: the dimension to average over; all of them when None.

    Example:
        >>> masked_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1, 1, 0]))
        tensor(1.5000)
    """
    if values.shape != mask.shape:
        raise ValueError(
            f"values have shape {tuple(values.shape)}, the mask {tuple(mask.shape)}: they must "
            "be equal."
        )
    kept = torch.where(mask.bool(), values, torch.zeros_like(values))
    total = kept.sum() if dim is None else kept.sum(dim)
    count = mask.bool().sum() if dim is None else mask.bool().sum(dim)
    return total / count.clamp(min=1)
