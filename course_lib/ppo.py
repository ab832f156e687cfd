"""PPO on the tokens of a response: rewards, advantages, the clipped losses.

Each token is a decision (Ziegler et al., 2019; Stiennon et al., 2020; Ouyang et al., 2022). State:
prompt and response so far. Action: the next token. Transition: it is appended. Reward: minus
``kl_coef`` times its log-ratio to the reference, and the score of the whole response at its last
token. The update is that of Schulman et al. (2017). ``ppo_rollouts`` has the policy with its critic
and the stream of batches; ``training.train`` is the loop.

Details that decide whether it works; in brackets, who documents them: [37] Huang et al., 2022, "The
37 implementation details of proximal policy optimization"; [N+] Huang et al., 2024, "The N+
implementation details of RLHF with PPO"; [A] Andrychowicz et al., 2021, "What matters in on-policy
reinforcement learning?"; [E] Engstrom et al., 2020, "Implementation matters in deep policy
gradients"; [Z] Ziegler et al., 2019; [S] Stiennon et al., 2020.

 1. The score counts at the last token of the response, the end token if there is one, and every
    token pays its own KL. [Z, N+]
 2. Values belong to states *before* a token: the value at position t stands beside the token t + 1.
    Behind the last token it is 0, so padding never bootstraps.
 3. γ = 1 and λ = 0.95: the text ends after a few dozen tokens. [Z]
 4. Returns are advantages plus values, before the whitening. [37]
 5. Advantages are whitened over the response tokens of the whole rollout; [37] does it in each
    minibatch. It made little difference in [A].
 6. The policy's ratio is clipped to 1 ± 0.2, token by token. Gains that were put down to the
    clipping came to a large part from other details. [E]
 7. The value is clipped around the rollout's, and the larger of both errors counts. [37] That was
    no help in [E] and did harm in [A]: ``vf_clip_eps=None`` turns it off.
 8. Dropout is off, while sampling and in the step, so that the first ratio of each rollout is 1.
    [N+] Old log-probabilities and values come from a pass under the padding of the step.
 9. The temperature divides the logits wherever they are used: sampling, step, reference. [N+]
10. A response that was cut off is punished. [Z, N+]
11. Each rollout is used for several epochs, in minibatches that are shuffled anew. [37]
12. ``kl_coef`` may follow a target. [Z]
13. The critic has a trunk of its own, at first the reward model's [S, N+], or shares the policy's.
14. Losses are means over the response tokens of a step, so long responses weigh more.

What ``ppo_loss`` logs, over the response tokens of the step:

============ ======================================================================================
pg_loss      mean of ``policy_loss``
vf_loss      mean of ``value_loss``, without ``vf_coef``
entropy      mean entropy of the next token's distribution, in nats a token
approx_kl    mean of ``ops.kl_k3(old, new)``: KL from the rollout's policy to that of the step, nats
             a token. Not the distance from the reference
clipfrac     share of tokens whose ratio lies outside 1 ± ``clip_eps``
vf_clipfrac  share of tokens whose value is farther than ``vf_clip_eps`` from the rollout's
ratio        mean ratio p_new / p_old
ratio_max    the largest of a batch; of several batches in a step, the mean
============ ======================================================================================

Simplified away: reward whitening; an early stop of the epochs by KL; top-k and top-p, which would
make the sampler another policy than the one in the ratio.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from course_lib.live_rollouts import check_scores, read_responses, rows_where
from course_lib.ops import check_same_shape, clipped_policy_loss, kl_k1, kl_k3
from course_lib.training import counted

# --- rewards ------------------------------------------------------------------------------------


def missing_eos_penalty(
    scores: Tensor, ended: Tensor, penalty: float, replace: bool = False
) -> Tensor:
    """Scores in which responses that were cut off are punished.

    Args:
        scores: (B,).
        ended: (B,), True where the response has its end token.
        penalty: taken off the score, as trl does; 0 = none.
        replace: the score of such a response is -penalty instead, whatever it says, as in Ziegler
            et al. (2019).

    Returns:
        (B,).

    Example:
        >>> scores, ended = torch.tensor([2.0, 2.0]), torch.tensor([True, False])
        >>> missing_eos_penalty(scores, ended, 1.0), missing_eos_penalty(scores, ended, 1.0, True)
        (tensor([2., 1.]), tensor([ 2., -1.]))
    """
    check_same_shape(scores=scores, ended=ended)
    punished = torch.full_like(scores, -penalty) if replace else scores - penalty
    return torch.where(ended.bool(), scores, punished)


def per_token_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor, kl_coef: float
) -> Tensor:
    """-kl_coef · (log p - log p_ref) of each token, and the score at the response's last one.

    Ouyang et al. (2022), equation 2, without its pretraining term; Ziegler et al. (2019), equation
    2: R(x, y) = r(x, y) - β log π(y | x) / ρ(y | x), spread over the tokens.

    Args:
        scores: (B,).
        logprobs, ref_logprobs: (B, T-1), of the policy that sampled and of the reference.
        response_mask: (B, T-1), True/1 = a token of the response.

    Returns:
        (B, T-1), 0 outside the response. Its sum is score - kl_coef · KL of the response.

    Raises:
        ValueError: shapes that do not fit, scores that are not finite, a row without a response.

    Example: three tokens of the response, the last its end token, and padding.
        >>> logprobs, ref_logprobs = torch.zeros(1, 4), torch.tensor([[-1.0, 0, 0, 9]])
        >>> mask = torch.tensor([[1, 1, 1, 0]])
        >>> per_token_rewards(torch.tensor([2.0]), logprobs, ref_logprobs, mask, kl_coef=0.5)
        tensor([[-0.5000,  0.0000,  2.0000,  0.0000]])
    """
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, response_mask=response_mask)
    mask = response_mask.bool()
    check_scores(scores, len(mask))
    if not mask.any(1).all():
        raise ValueError(
            f"Rows {rows_where(~mask.any(1))} have no response token, so there is nothing to "
            "reward: leave them out."
        )
    rewards = -kl_coef * kl_k1(logprobs, ref_logprobs)  # (B, T-1)
    rewards = torch.where(mask, rewards, torch.zeros_like(rewards)) + 0.0  # no -0
    last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)  # (B,)
    return rewards.scatter_add(1, last[:, None], scores.to(rewards)[:, None])


# --- advantages ---------------------------------------------------------------------------------


def gae(
    rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float = 1.0,
    gae_lambda: float = 0.95,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Advantages and returns by generalised advantage estimation (Schulman et al., 2016).

    δ_t = r_t + γ V_{t+1} - V_t and A_t = δ_t + γ λ A_{t+1} (equation 16 there, as a recursion). The
    response ends the episode: behind its last token V and A are 0, whatever the
    critic says of padding.

    Args:
        rewards: (B, T-1).
        values: (B, T-1), entry t of the state before token t + 1 was written.
        response_mask: (B, T-1), each row one run of True/1 or none at all, padded at either end.
        gamma: discount of rewards, a token.
        gae_lambda: 0 = one step ahead, little variance and the critic's bias; 1 = the return minus
            the value, no bias.

    Returns:
        advantages and returns (advantages + values: what the critic should have said), (B, T-1);
        0 outside the response.

    Raises:
        ValueError: shapes that do not fit, a mask with a hole.

    Example: the critic says 10 of padding. A_1 = 1, A_0 = 0.95; with its 10: 9 and more.
        >>> rewards, values = torch.tensor([[0.0, 1, 0]]), torch.tensor([[0.0, 0, 10]])
        >>> gae(rewards, values, torch.tensor([[1, 1, 0]]))[0]
        tensor([[0.9500, 1.0000, 0.0000]])
    """
    check_same_shape(rewards=rewards, values=values, response_mask=response_mask)
    mask = response_mask.bool()
    starts = mask[:, :1].sum(1) + (mask[:, 1:] & ~mask[:, :-1]).sum(1)  # (B,) runs
    if (starts > 1).any():
        raise ValueError(
            f"response_mask has a hole in rows {rows_where(starts > 1)}: a response is one run of "
            "tokens."
        )
    zero = torch.zeros_like(rewards[:, 0])  # (B,)
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = zero
    for t in reversed(range(mask.shape[1])):
        keep = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * gae_lambda * next_advantage
        next_value = torch.where(keep, values[:, t], zero)
        next_advantage = torch.where(keep, advantage, zero)
        advantages[:, t] = next_advantage
    return advantages, torch.where(mask, advantages + values, torch.zeros_like(values))


# --- losses -------------------------------------------------------------------------------------


policy_loss = clipped_policy_loss
"""Schulman et al. (2017), equation 7: see ``ops``, for GRPO has it, too."""


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip_eps: float | None = 0.2
) -> Tensor:
    """max((V - R)², (V_old + clip(V - V_old, -ε, ε) - R)²) of each token.

    The clipping comes from OpenAI's baselines and is in no paper of theirs (Engstrom et al., 2020).
    Schulman et al. (2017), equation 9, has the plain square. OpenAI's code and trl's
    put 1/2 before it; here, as in equation 9 and in torchrl, ``vf_coef`` holds every factor.

    Args:
        values, old_values: (B, T-1), now and of the rollout.
        returns: (B, T-1).
        clip_eps: ε, in the units of the score; None = no clipping.

    Returns:
        (B, T-1).

    Raises:
        ValueError: shapes that differ.

    Example: R = 0, V_old = 2, V = 1, ε = .5: V may move to 1.5, and max(1, 1.5²) counts.
        >>> value_loss(torch.ones(1, 1), torch.full((1, 1), 2.0), torch.zeros(1, 1), clip_eps=0.5)
        tensor([[2.2500]])
    """
    check_same_shape(values=values, old_values=old_values, returns=returns)
    errors = (values - returns) ** 2
    if clip_eps is None:
        return errors
    clipped = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return torch.maximum(errors, (clipped - returns) ** 2)


# --- settings -----------------------------------------------------------------------------------


@dataclass
class PPOSettings:
    """How a run of PPO is set. Epochs times minibatches is the number of steps a rollout."""

    max_new_tokens: int  # of a response, its end token included
    minibatch_size: int  # responses a batch of training.train
    epochs: int = 4  # how often each rollout is used
    temperature: float = 1.0  # of the policy that samples and is trained, and of the reference
    kl_coef: float = 0.05  # the KL's weight; with kl_target only at the start
    kl_target: float | None = None  # nats a response that AdaptiveKL aims at; None = FixedKL
    kl_horizon: float = 10_000  # responses over which AdaptiveKL moves
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip_eps: float | None = 0.2  # of the ratio; None = no clipping
    vf_clip_eps: float | None = 0.2  # of the value, in units of the score; None = no clipping
    vf_coef: float = 0.1  # weight of value_loss, which has no factor 1/2
    entropy_coef: float = 0.0  # weight of the entropy that is added to the gain
    whiten_advantages: bool = True
    missing_eos_penalty: float = 0.0  # taken off the score of a response that was cut off

    def __post_init__(self) -> None:
        """ValueError where a number makes no sense."""
        for name in ("max_new_tokens", "minibatch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")
        for name in ("kl_coef", "vf_coef", "entropy_coef", "missing_eos_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be finite and not negative, got {getattr(self, name)}."
                )
        for name in ("temperature", "kl_target", "kl_horizon", "clip_eps", "vf_clip_eps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {value}.")


# --- the loss that training.train takes ---------------------------------------------------------


def ppo_loss(
    settings: PPOSettings,
) -> Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]:
    """The loss function of ``training.train``: policy + vf_coef · value - entropy_coef · entropy.

    Schulman et al. (2017), equation 9, as a mean over the response tokens of the step.

    Returns:
        (model, batch) -> (loss, what is logged: see the module). The model is an ``ActorCritic``,
        the batch one of ``PPORollouts``.
    """

    def loss_fn(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        mask = batch["response_mask"].bool()  # (B, T-1)
        count = mask.sum()

        def total(x: Tensor) -> Tensor:
            return torch.where(mask, x, torch.zeros_like(x)).sum()

        logprobs, entropies, values = read_responses(
            model, batch, settings.temperature, entropy_grad=settings.entropy_coef > 0
        )
        pg = total(policy_loss(logprobs, batch["old_logprobs"], batch["advantages"],
                               settings.clip_eps))  # fmt: skip
        vf = total(value_loss(values, batch["old_values"], batch["returns"], settings.vf_clip_eps))
        loss = pg + settings.vf_coef * vf
        if settings.entropy_coef:
            loss = loss - settings.entropy_coef * total(entropies)
        with torch.no_grad():
            sums = {"pg_loss": pg, "vf_loss": vf, "entropy": total(entropies)}
            ratio = (logprobs - batch["old_logprobs"]).exp()
            moved = (values - batch["old_values"]).abs()
            sums["approx_kl"] = total(kl_k3(batch["old_logprobs"], logprobs))
            sums["clipfrac"] = total(((ratio - 1).abs() > (settings.clip_eps or math.inf)).float())
            sums["vf_clipfrac"] = total((moved > (settings.vf_clip_eps or math.inf)).float())
            sums["ratio"] = total(ratio)
            metrics = {name: value.detach() / count for name, value in sums.items()}
            metrics["ratio_max"] = torch.where(mask, ratio, torch.zeros_like(ratio)).max()
        return counted(loss, count), metrics

    return loss_fn
