"""Supervised fine-tuning: cross-entropy on the responses.

``rows.batches`` makes the batches, ``training.train`` is the loop, and ``sft_loss`` is all that
this module adds: which tokens count, and how they are averaged.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from course_lib.ops import IGNORE_INDEX, token_logprobs


def response_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p(y_t | x, y_<t) of each response token, in nats (Ouyang et al., 2022, section 3.5).

    Args:
        logits: (B, T, V).
        labels: (B, T), unshifted; ``IGNORE_INDEX`` on prompt and padding.

    Returns:
        (B, T-1), aligned with ``labels[:, 1:]``; 0 where it is ignored.
    """
    return -token_logprobs(logits, labels)


def response_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of ``response_nll`` over all response tokens of the batch.

    Long responses therefore weigh more than short ones, as in trl and transformers.

    Args:
        logits: (B, T, V).
        labels: (B, T), unshifted.

    Returns:
        A scalar; 0 if every label is ignored.

    Example: uniform logits over V = 4 make log 4 of every token, whatever is ignored.
        >>> response_loss(torch.zeros(1, 3, 4), torch.tensor([[-100, -100, 2]]))
        tensor(1.3863)
    """
    kept = (labels[:, 1:] != IGNORE_INDEX).sum()
    return response_nll(logits, labels).sum() / kept.clamp(min=1)


def sft_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """``response_loss`` of the model on a batch.

    Args:
        batch: what ``rows.collate`` gives.

    Returns:
        A scalar; 0 if every label is ignored.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    # Packed rows are told by their positions, as transformers does it, and only without a cache.
    return response_loss(model(**inputs, use_cache=False).logits, batch["labels"])
