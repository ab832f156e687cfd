"""Operations on logits and masks that every algorithm of the course shares.

Shapes: B sequences, T tokens, V words of the vocabulary. Every mask is True/1 = keep.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100
"""Label of a position that carries no loss: prompt or padding."""


def long_ids(ids: Tensor, name: str) -> Tensor:
    """The token ids or labels as int64, which embeddings and losses ask for.

    Every function of the package that takes ids takes any whole numbers: int32 comes from many
    data sets, uint16 from token files.

    Args:
        name: what the error calls them.

    Raises:
        ValueError: numbers that are not whole, or a mask.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(
            f"{name} must be integers, one a token, got {ids.dtype} of shape {tuple(ids.shape)}."
        )
    return ids.long()


def shift_labels(labels: Tensor) -> Tensor:
    """The label that each position predicts: that of the next token.

    The only place of the package that shifts labels to predictions. (Decoders of encoder-decoders
    have it the other way round: ``pretraining.shift_right`` shifts what they read.)

    Args:
        labels: (B, T), unshifted; ``IGNORE_INDEX`` where there is none.

    Returns:
        (B, T): entry t is labels[t+1], and ``IGNORE_INDEX`` at the end, where no token follows.

    Example:
        >>> shift_labels(torch.tensor([[-100, 5, 6]]))
        tensor([[   5,    6, -100]])
    """
    return F.pad(long_ids(labels, "labels")[:, 1:], (0, 1), value=IGNORE_INDEX)


def token_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each next token.

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
    targets = shift_labels(labels)  # (B, T)
    keep = targets != IGNORE_INDEX
    # Prompts and padding are most of many batches: only the N rows that count are normalised.
    counted = keep.flatten().nonzero().squeeze(1)  # (N,)
    rows = logits.flatten(0, 1).index_select(0, counted).float()  # (N, V)
    logprobs = -F.cross_entropy(rows, targets[keep], reduction="none")  # (N,)
    keep = keep[:, :-1]  # (B, T-1): the last position predicts nothing
    return logprobs.new_zeros(keep.shape).masked_scatter(keep, logprobs)


def sequence_logprobs(logits: Tensor, labels: Tensor, *, mean: bool = False) -> Tensor:
    """Log-probability of each response: the ``logps`` of preference losses.

    Args:
        logits: (B, T, V), position t predicts token t + 1.
        labels: (B, T), unshifted; ``IGNORE_INDEX`` on prompt and padding.
        mean: the mean over the response's tokens instead of their sum. A sum falls with every
            token, the mean does not punish long responses.

    Returns:
        (B,); 0 where a row has no label.

    Raises:
        ValueError: shapes that do not fit together.

    Example: uniform logits over V = 4, two labels and one: 2 log(1/4) and log(1/4).
        >>> labels = torch.tensor([[-100, 1, 2], [-100, 3, -100]])
        >>> sequence_logprobs(torch.zeros(2, 3, 4), labels)
        tensor([-2.7726, -1.3863])
        >>> sequence_logprobs(torch.zeros(2, 3, 4), labels, mean=True)
        tensor([-1.3863, -1.3863])
    """
    logprobs = token_logprobs(logits, labels)  # (B, T-1)
    if mean:
        return masked_mean(logprobs, shift_labels(labels)[:, :-1] != IGNORE_INDEX, dim=1)
    return logprobs.sum(1)


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


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Population variance of ``values`` where ``mask`` keeps them: their squared distances from
    their mean, divided by their number n, not by n - 1.

    Args:
        values: any shape.
        mask: the same shape, True/1 = keep.

    Returns:
        A scalar.

    Raises:
        ValueError: another shape, or fewer than two values that are kept: one does not vary.

    Example: 0 and 4 lie 2 from their mean. (Divided by n - 1 it would be 8.)
        >>> masked_var(torch.tensor([0.0, 4.0, 9.0]), torch.tensor([1, 1, 0]))
        tensor(4.)
    """
    mean = masked_mean(values, mask)
    if (kept := int(mask.bool().sum())) < 2:
        raise ValueError(
            f"The mask keeps {kept} of {mask.numel()} values: a variance needs at least two."
        )
    return masked_mean((values - mean) ** 2, mask)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Kept values with standard deviation 1, and with mean 0 or the mean they had.

    (x - mean) / √(variance + 1e-8), the population's. ``shift_mean=False`` adds the mean again, as
    OpenAI's code for Ziegler et al. (2019) and trl's ``masked_whiten`` do, which differs from
    ``masked_scale``. trl divides by n - 1.

    Args:
        values: any shape.
        mask: the same shape, True/1 = keep.
        shift_mean: move the mean to 0.

    Returns:
        The same shape, 0 where nothing is kept.

    Raises:
        ValueError: see ``masked_var``.

    Example: 0 and 4 have the mean 2 and the standard deviation 2.
        >>> values, mask = torch.tensor([0.0, 4.0, 9.0]), torch.tensor([1, 1, 0])
        >>> masked_whiten(values, mask), masked_whiten(values, mask, shift_mean=False)
        (tensor([-1.,  1.,  0.]), tensor([1., 3., 0.]))
    """
    mean, var = masked_mean(values, mask), masked_var(values, mask)
    whitened = (values - mean) * torch.rsqrt(var + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask.bool(), whitened, torch.zeros_like(whitened))


def masked_scale(values: Tensor, mask: Tensor) -> Tensor:
    """Kept values divided by their standard deviation; the mean is divided with them.

    Args, Returns, Raises: those of ``masked_whiten``.

    Example: 0 and 4 have the standard deviation 2.
        >>> masked_scale(torch.tensor([0.0, 4.0, 9.0]), torch.tensor([1, 1, 0]))
        tensor([0., 2., 0.])
    """
    scaled = values * torch.rsqrt(masked_var(values, mask) + 1e-8)
    return torch.where(mask.bool(), scaled, torch.zeros_like(scaled))


def entropy(logits: Tensor) -> Tensor:
    """-Σ p log p of each distribution, in nats.

    Args:
        logits: (..., V); -inf for what never comes.

    Returns:
        (...), in float32.

    Example: two words as likely as each other, and one that never comes: log 2.
        >>> entropy(torch.tensor([[0.0, 0.0, -torch.inf]]))
        tensor([0.6931])
    """
    logprobs = logits.float().log_softmax(-1)  # (..., V)
    # 0 · log 0 counts 0.
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)


# --- estimators of KL(policy ‖ reference), from tokens that the policy drew -----------------------
# Schulman, "Approximating KL divergence" (2020), where r = p_ref / p and the three are -log r,
# (log r)² / 2 and (r - 1) - log r.


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """log p - log p_ref of each token: right in the mean, and of either sign.

    Args:
        logprobs, ref_logprobs: equal shapes, of tokens that the policy drew.

    Example: log .4/.5.
        >>> kl_k1(torch.tensor([0.4]).log(), torch.tensor([0.5]).log())
        tensor([-0.2231])
    """
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(log p - log p_ref)² / 2 of each token: never negative, and right for small distances alone.

    Args:
        logprobs, ref_logprobs: equal shapes, of tokens that the policy drew.

    Example: .2231² / 2.
        >>> kl_k2(torch.tensor([0.4]).log(), torch.tensor([0.5]).log())
        tensor([0.0249])
    """
    return 0.5 * (logprobs - ref_logprobs) ** 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """r - 1 - log r with r = p_ref / p: right in the mean and never negative.

    Args:
        logprobs, ref_logprobs: equal shapes, of tokens that the policy drew.

    Example: r = .5/.4 = 1.25, and .25 - .2231; with r the wrong way round it would be .0231.
        >>> kl_k3(torch.tensor([0.4]).log(), torch.tensor([0.5]).log())
        tensor([0.0269])
    """
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


def check_same_shape(**tensors: Tensor) -> None:
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise ValueError(f"These must have one shape, and nothing is broadcast: {shapes}.")


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_eps: float | None = 0.2,
    clip_eps_high: float | None = None,
) -> Tensor:  # fmt: skip
    """max(-ratio · A, -clip(ratio, 1 - ε, 1 + ε') · A) of each token, ratio = p_new / p_old.

    Schulman et al. (2017), equation 7, whose gain it turns into a loss; with an ε' of its own, Yu
    et al. (2025), equation 8 (DAPO's "clip-higher").

    Args:
        logprobs, old_logprobs: (B, T-1), now and when the tokens were sampled.
        advantages: (B, T-1).
        clip_eps: ε; None = no clipping.
        clip_eps_high: ε'; None = ε.

    Returns:
        (B, T-1).

    Raises:
        ValueError: shapes that differ.

    Example: a ratio of 1.5 pays 1.2 where the token was good, and costs 1.5 where it was bad.
        >>> logprobs, advantages = torch.tensor([[1.5, 1.5]]).log(), torch.tensor([[1.0, -1.0]])
        >>> clipped_policy_loss(logprobs, torch.zeros(1, 2), advantages)
        tensor([[-1.2000,  1.5000]])
    """
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    ratio = (logprobs - old_logprobs).exp()
    if clip_eps is None:
        return -ratio * advantages
    high = clip_eps if clip_eps_high is None else clip_eps_high
    clipped = ratio.clamp(1 - clip_eps, 1 + high)
    return torch.maximum(-ratio * advantages, -clipped * advantages)
