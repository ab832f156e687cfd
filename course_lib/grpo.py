"""GRPO: several responses to each prompt, and their mean in place of a critic.

Each prompt gets a group of G responses; a response's advantage is its score minus the group's mean,
and every token of the response has that advantage (Shao et al., 2024, "DeepSeekMath", section 4.1).
The update is PPO's clipped one. ``grpo_rollouts`` has the stream of batches; ``training.train`` is
the loop. Changes to it that came later are options, named after what they do:

- ``std=None``: the score minus the mean, and not divided by the group's standard deviation, which
  makes prompts on which the scores hardly differ weigh more (Liu et al., 2025, "Understanding
  R1-Zero-like training": Dr. GRPO).
- ``normalise="token"`` (Yu et al., 2025, "DAPO", section 3.3) or ``"constant"`` (Dr. GRPO): what
  the sum over a response's tokens is divided by. With ``"sequence"``, its own length, a token of a
  long wrong response costs less than one of a short wrong one.
- ``clip_eps_high``: more room for tokens that become likelier (DAPO, section 3.1).
- ``dead``: groups of equal scores have no advantage (DAPO, section 3.2: dynamic sampling).
- ``truncated``: responses that were cut off (DAPO, section 3.4).

The KL to a reference. In the reward (``kl_coef``): the score of a response is lowered by kl_coef ·
Σ (log p - log p_ref) before the advantages are taken, as in PPO without its critic. At the optimum
of E[score] - kl_coef · KL all these scores are equal, so the advantages vanish there, whatever the
normalisation. In the loss (``kl_loss_coef``, as in the paper): an estimate of the KL is added to
the loss of each token. Its value and its gradient are two things; with r = p_ref / p, over tokens
that the policy draws:

===== =============== ================= ==========================================================
      value           mean of the value gradient by log p, and what its mean is
===== =============== ================= ==========================================================
k1    -log r          the KL            1: 0 in the mean, so as a loss it teaches nothing but noise
k2    (log r)² / 2    near the KL       log p - log p_ref: the gradient of KL(p ‖ p_ref)
k3    r - 1 - log r   the KL            1 - r: the gradient of KL(p_ref ‖ p), the KL turned round
===== =============== ================= ==========================================================

The paper takes k3, so it does not go to the optimum above. All three hold for tokens of the current
policy: after its first step on a rollout none is exact. ``kl_corrected`` multiplies each by the
ratio p_new / p_old, whose gradient counts, too: value and gradient of k1 and k3 are then those of
KL(p ‖ p_ref), on later steps as well (DeepSeek-AI, 2025, "DeepSeek-V3.2"; trl's default). Even so
each sees the token's own KL alone, not what the token does to the KL of those that follow.

What ``grpo_loss`` logs, over the response tokens that count; of several batches in a step, their
mean weighted as the loss is:

============ ======================================================================================
pg_loss      mean of ``token_losses``, whatever the normalisation
kl_loss      mean of the estimator as it stands in the loss, without ``kl_loss_coef``; only where
             there is a reference
entropy      mean entropy of the next token's distribution, in nats a token
approx_kl    mean of ``ops.kl_k3(old, new)``: KL from the rollout's policy to that of the step, nats
             a token. Not the distance from the reference
clipfrac     share of tokens whose ratio lies outside 1 - ``clip_eps`` to 1 + ``clip_eps_high``; 0
             is right where a rollout is used for a single step, for then every ratio is 1
ratio        mean ratio p_new / p_old
ratio_max    the largest of a batch
============ ======================================================================================

Simplified away: an entropy bonus; a ratio of whole responses (GSPO); a penalty that grows with the
length (DAPO, equation 13); the standard deviation of the whole batch; top-k and top-p.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from course_lib.live_rollouts import check_scores, read_responses
from course_lib.ops import check_same_shape, clipped_policy_loss, kl_k1, kl_k2, kl_k3, masked_mean
from course_lib.training import counted

EQUAL = 1e-6
"""Scores of a group that differ by less are equal: in units of the largest, or of 1 if it is less.
What is left of .1 + .2 - .3 would otherwise be divided by its own standard deviation."""
STDS = ("population", "bessel", None)
NORMALISATIONS = ("sequence", "token", "constant")
ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
TRUNCATED = ("keep", "mask", "penalise")
DEAD = ("keep", "drop", "refill")


# --- advantages ---------------------------------------------------------------------------------


def _groups(scores: Tensor, group_size: int) -> Tensor:
    """(B,) scores -> (N, G), in double precision."""
    if group_size < 2:
        raise ValueError(
            f"group_size={group_size} must be at least 2: a response alone has nothing to be "
            "compared with, and its advantage would be 0 for ever."
        )
    if scores.ndim != 1 or len(scores) == 0 or len(scores) % group_size:
        raise ValueError(
            f"scores must be (B,), groups of {group_size} in succession, got {tuple(scores.shape)}."
        )
    check_scores(scores, len(scores))
    return scores.double().view(-1, group_size)  # (N, G)


def _dead(groups: Tensor) -> Tensor:
    low, high = groups.aminmax(dim=1)  # (N,)
    return high - low <= EQUAL * groups.abs().amax(1).clamp(min=1)


def dead_groups(scores: Tensor, group_size: int) -> Tensor:
    """Which groups have equal scores, up to ``EQUAL``: nothing can be learnt from them.

    Args:
        scores: (B,), groups in succession.

    Returns:
        (B / group_size,) bool.

    Raises:
        ValueError: groups of one, scores that do not fill groups or are not finite.

    Example:
        >>> dead_groups(torch.tensor([1.0, 1.0, 0.0, 1.0]), 2)
        tensor([ True, False])
    """
    return _dead(_groups(scores, group_size))


def dead_share(p: Tensor, group_size: int) -> Tensor:
    """p^G + (1 - p)^G: how likely a group is dead whose responses are right with probability p.

    Args:
        p: any shape, one of each prompt; the mean over prompts is not that of the mean p.

    Example: two coins fall alike half the time.
        >>> dead_share(torch.tensor([0.5, 1.0]), 2)
        tensor([0.5000, 1.0000])
    """
    return p**group_size + (1 - p) ** group_size


def group_advantages(
    scores: Tensor, group_size: int, std: str | None = "population", eps: float = 0.0
) -> Tensor:
    """(score - mean of its group) / standard deviation of its group (Shao et al., 2024, 4.1.2).

    Args:
        scores: (B,), groups in succession: the first ``group_size`` belong together.
        std: "population" divides by n in the variance, "bessel" by n - 1, as trl and torch do; None
            = no division at all (Liu et al., 2025, Dr. GRPO).
        eps: added to the standard deviation; trl has 1e-4. None is needed: a group of equal scores
            (``dead_groups``) has advantages of exactly 0.

    Returns:
        (B,), in float32, or float64 if the scores are.

    Raises:
        ValueError: see ``dead_groups``; an unknown ``std``.

    Example: {1, 0} has the standard deviation .5, or .7071 with n - 1. {1, 1} is dead.
        >>> scores = torch.tensor([1.0, 0, 1, 1])
        >>> group_advantages(scores, 2), group_advantages(scores, 2, "bessel")
        (tensor([ 1., -1.,  0.,  0.]), tensor([ 0.7071, -0.7071,  0.0000,  0.0000]))
        >>> group_advantages(scores, 2, None)
        tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """
    _one_of("std", std, STDS)
    groups = _groups(scores, group_size)  # (N, G)
    advantages = groups - groups.mean(1, keepdim=True)
    if std is not None:
        spread = groups.std(1, correction=int(std == "bessel"), keepdim=True)  # (N, 1)
        advantages = advantages / (spread + eps)
    advantages = advantages.masked_fill(_dead(groups)[:, None], 0.0)  # 0 / 0 among them
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return advantages.flatten().to(dtype)  # (B,)


def net_scores(
    scores: Tensor, ended: Tensor, logps: Tensor | None = None, ref_logps: Tensor | None = None, *,
    truncation_penalty: float = 0.0, kl_coef: float = 0.0,
) -> Tensor:  # fmt: skip
    """What the advantages are taken of: score - penalty where cut off - kl_coef · log p / p_ref.

    Args:
        scores: (B,).
        ended: (B,), True where the response has its end token.
        logps, ref_logps: (B,), of the responses, summed over their tokens; not needed where
            ``kl_coef`` is 0.

    Returns:
        (B,).

    Example: 2 - .5 · (-1 + 3), and 2 - 1 of a response cut off.
        >>> two, logps, ref_logps = torch.full((2,), 2.0), torch.tensor([-1.0, -1]), torch.tensor(
        ...     [-3.0, -1])
        >>> net_scores(two, torch.tensor([True, False]), logps, ref_logps, truncation_penalty=1.0,
        ...            kl_coef=0.5)
        tensor([1., 1.])
    """
    check_same_shape(scores=scores, ended=ended)
    net = torch.where(ended.bool(), scores, scores - truncation_penalty)
    if kl_coef == 0:
        return net
    check_same_shape(scores=scores, logps=logps, ref_logps=ref_logps)
    return net - kl_coef * kl_k1(logps, ref_logps)


# --- the loss -----------------------------------------------------------------------------------


def token_losses(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_eps: float | None = 0.2,
    clip_eps_high: float | None = None,
) -> Tensor:  # fmt: skip
    """``ops.clipped_policy_loss`` of each token, with the advantage of its response.

    Shao et al. (2024), equation 3, without the KL; each token has a ratio of its own.

    Args:
        logprobs, old_logprobs: (B, T-1), now and when the tokens were sampled.
        advantages: (B,).
        clip_eps, clip_eps_high: see ``ops.clipped_policy_loss``.

    Returns:
        (B, T-1).

    Example: ratios 1.3 and .9 of one good response: -(1.2 + .9) / 2 is its mean.
        >>> token_losses(torch.tensor([[1.3, 0.9]]).log(), torch.zeros(1, 2), torch.ones(1))
        tensor([[-1.2000, -0.9000]])
    """
    if advantages.shape != logprobs.shape[:1]:
        raise ValueError(
            f"advantages must be ({len(logprobs)},), one a response, got {tuple(advantages.shape)}."
        )
    each = advantages[:, None].expand_as(logprobs)  # (B, T-1): every token has its response's
    return clipped_policy_loss(logprobs, old_logprobs, each, clip_eps, clip_eps_high)


def aggregate(
    losses: Tensor, mask: Tensor, normalise: str = "sequence", constant: float | None = None
) -> Tensor:
    """One loss from those of the tokens, normalised over the whole step: ``training.counted``.

    Args:
        losses: (B, T-1).
        mask: (B, T-1), True/1 = counts. A row without any does not count as a response.
        normalise: "sequence", the mean over responses of each one's mean (Shao et al., 2024,
            equation 3); "token", the mean over all tokens (Yu et al., 2025, equation 8);
            "constant", the sum / (responses · constant) (Liu et al., 2025, section 3.2).
        constant: of "constant", a number of tokens.

    Returns:
        A scalar. Its count is of responses, of tokens, or responses · constant, so that
        micro-batches add up to the step.

    Raises:
        ValueError: shapes that differ, an unknown normalisation, a constant that is missing.

    Example: a response of one token and one of three: (2 + 1) / 2, (2 + 3) / 4, (2 + 3) / (2 · 5).
        >>> losses = torch.tensor([[2.0, 0, 0], [1, 1, 1]])
        >>> mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
        >>> [round(aggregate(losses, mask, how, 5).item(), 2) for how in NORMALISATIONS]
        [1.5, 1.25, 0.5]
    """
    _one_of("normalise", normalise, NORMALISATIONS)
    check_same_shape(losses=losses, mask=mask)
    mask = mask.bool()
    rows = mask.any(1).sum()  # responses that count
    if normalise == "sequence":
        return counted(masked_mean(losses, mask, dim=1).sum(), rows)
    total = torch.where(mask, losses, torch.zeros_like(losses)).sum()
    if normalise == "token":
        return counted(total, mask.sum())
    if constant is None or not 0 < constant < math.inf:
        raise ValueError(
            f'normalise="constant" needs a constant above 0, got {constant}: a number of tokens, '
            "such as the most that a response may have."
        )
    return counted(total, rows * constant)


# --- settings -----------------------------------------------------------------------------------


def _one_of(name: str, value: str | None, options: tuple) -> None:
    if value not in options:
        raise ValueError(f"{name} must be one of {options}, got {value!r}.")


@dataclass(frozen=True)
class GRPOSettings:
    """How a run of GRPO is set. As it stands it is the paper's without the KL, one update a rollout
    if ``minibatch_size`` is that of the rollout."""

    max_new_tokens: int  # of a response, its end token included
    minibatch_size: int  # responses a batch of training.train
    group_size: int = 8  # responses a prompt
    epochs: int = 1  # how often each rollout is used
    temperature: float = 1.0  # of the policy that samples and is trained, and of the reference
    std: str | None = "population"  # see group_advantages
    normalise: str = "sequence"  # see aggregate
    constant: float | None = None  # of normalise="constant"; None = max_new_tokens
    clip_eps: float | None = 0.2  # of the ratio; None = no clipping
    clip_eps_high: float | None = None  # upwards; None = clip_eps. DAPO: 0.28
    kl_coef: float = 0.0  # of the KL in the reward
    kl_loss_coef: float = 0.0  # of the KL in the loss; the paper's β, .04 there
    kl_estimator: str = "k3"  # of the KL in the loss
    kl_corrected: bool = False  # the KL in the loss times the ratio
    # Responses cut off: keep = as they are; mask = out of the loss, though their score counts in
    # the group's mean; penalise = truncation_penalty off their score.
    truncated: str = "keep"
    truncation_penalty: float = 1.0
    # Dead groups: keep = their tokens count, with advantages of 0; drop = out of the rollout, their
    # KL too; refill = dropped and other prompts drawn instead, at most max_tries - 1 times.
    dead: str = "keep"
    max_tries: int = 4

    def __post_init__(self) -> None:
        """ValueError where a setting makes no sense."""
        for name, least in (("max_new_tokens", 1), ("minibatch_size", 1), ("epochs", 1),
                            ("max_tries", 1), ("group_size", 2)):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        for name in ("kl_coef", "kl_loss_coef", "truncation_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be finite and not negative, got {getattr(self, name)}."
                )
        for name in ("temperature", "clip_eps", "clip_eps_high", "constant"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {value}.")
        if self.clip_eps is None and self.clip_eps_high is not None:
            raise ValueError("clip_eps_high must be None where clip_eps is: nothing is clipped.")
        named = {"std": STDS, "normalise": NORMALISATIONS, "kl_estimator": tuple(ESTIMATORS),
                 "truncated": TRUNCATED, "dead": DEAD}  # fmt: skip
        for name, options in named.items():
            _one_of(name, getattr(self, name), options)

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0 or self.kl_loss_coef > 0


# --- the loss that training.train takes ---------------------------------------------------------


def grpo_loss(
    settings: GRPOSettings,
) -> Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]:
    """The loss function of ``training.train``: ``token_losses`` + kl_loss_coef · KL, aggregated.

    Returns:
        (model, batch) -> (loss, what is logged: see the module). The model is the policy, the batch
        one of ``GRPORollouts``.
    """
    estimator = ESTIMATORS[settings.kl_estimator]
    low = settings.clip_eps if settings.clip_eps is not None else math.inf
    high = settings.clip_eps_high if settings.clip_eps_high is not None else low

    def loss_fn(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        mask, old = batch["response_mask"].bool(), batch["old_logprobs"]  # (B, T-1)
        if settings.truncated == "mask":
            mask = mask & batch["ended"].bool()[:, None]
        logprobs, entropies, _ = read_responses(model, batch, settings.temperature)
        losses = pg = token_losses(logprobs, old, batch["advantages"], settings.clip_eps,
                                   settings.clip_eps_high)  # fmt: skip
        numbers, ratio = {"pg_loss": pg, "entropy": entropies}, (logprobs - old).exp()
        if "ref_logprobs" in batch:
            kl = estimator(logprobs, batch["ref_logprobs"])
            numbers["kl_loss"] = kl = kl * ratio if settings.kl_corrected else kl
            losses = pg + settings.kl_loss_coef * kl if settings.kl_loss_coef else pg
        elif settings.kl_loss_coef:
            raise ValueError("kl_loss_coef is above 0, and the batch has no ref_logprobs.")
        loss = aggregate(losses, mask, settings.normalise,
                         settings.constant or settings.max_new_tokens)  # fmt: skip
        with torch.no_grad():
            numbers["approx_kl"] = kl_k3(old, logprobs)
            numbers["clipfrac"] = ((ratio < 1 - low) | (ratio > 1 + high)).float()
            numbers["ratio"] = ratio = ratio.detach()
            metrics = {name: masked_mean(x.detach(), mask) for name, x in numbers.items()}
            metrics["ratio_max"] = torch.where(mask, ratio, torch.zeros_like(ratio)).max()
        return loss, metrics

    return loss_fn
