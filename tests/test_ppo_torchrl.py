"""PPO's pieces beside torchrl: advantages on masks of every shape, both clipped losses.

torchrl has flags where we have masks: the last token of a response is ``done`` and ``terminated``,
so nothing flows back into it, and padding before and behind is each a trajectory of its own, whose
numbers are not read. (trl removed its PPO trainer in 2026, so there is none to compare with.)
"""

import pytest
import torch
from parity_record import Parity
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential
from tensordict.nn import TensorDictModule as Module
from torch.distributions import Categorical
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import (
    generalized_advantage_estimate,
    vec_generalized_advantage_estimate,
)

from course_lib.ppo import gae, policy_loss, value_loss

TOLERANCE = 1e-5
ESTIMATES = {"plain": generalized_advantage_estimate, "vec": vec_generalized_advantage_estimate}


def masks(T: int) -> torch.Tensor:
    """Every mask of T columns with one run of True: (T (T + 1) / 2, T)."""
    runs = [(start, end) for start in range(T) for end in range(start + 1, T + 1)]
    columns = torch.arange(T)
    return torch.stack([(columns >= start) & (columns < end) for start, end in runs])


def theirs(estimate, rewards, values, mask, gamma, gae_lambda):
    """Their estimate of (B, T) tensors, 0 where the mask keeps nothing."""
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))  # (B, T)
    done = (last | ~mask)[..., None]
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
    columns = (x[..., None] for x in (values, next_values, rewards))
    both = estimate(gamma, gae_lambda, *columns, done, done)
    return [x.squeeze(-1) * mask for x in both]


@pytest.mark.parametrize("name", ESTIMATES)
def test_advantages_are_those_of_torchrl(name):
    """All masks of 1 to 9 columns, four pairs of γ and λ; rewards and values are random on padding,
    too, and must not matter. The flags do: without them the difference is large. (Their vectorised
    one drops weights below 1e-7, whence the last digits, and fails where γ λ is 0.)"""
    estimate, g = ESTIMATES[name], torch.Generator().manual_seed(0)
    with Parity(f"GAE, masks of every shape ({name})", f"torchrl.{estimate.__name__}",
                TOLERANCE) as parity:  # fmt: skip
        pairs = [(1.0, 0.95), (0.99, 0.9), (0.9, 1.0), (1.0, 0.0 if name == "plain" else 0.2)]
        for T in range(1, 10):
            mask = masks(T)
            rewards, values = torch.randn(2, *mask.shape, generator=g)
            for gamma, gae_lambda in pairs:
                parity.tried()
                ours = gae(rewards, values, mask, gamma, gae_lambda)
                for a, b in zip(ours, theirs(estimate, rewards, values, mask, gamma, gae_lambda)):
                    parity.compare(a, b)
        careless = theirs(estimate, rewards, values, torch.ones_like(mask), gamma, gae_lambda)
        assert (careless[0] * mask - ours[0]).abs().max() > 0.1


def clip_ppo(eps: float, vf_eps: float, words: int, width: int):
    """torchrl's loss of a linear actor and a linear critic on observations of ``width`` numbers."""
    actor = ProbabilisticTensorDictSequential(
        Module(torch.nn.Linear(width, words), in_keys=["observation"], out_keys=["logits"]),
        ProbabilisticTensorDictModule(["logits"], ["action"], distribution_class=Categorical,
                                      return_log_prob=True),
    )  # fmt: skip
    critic = Module(torch.nn.Linear(width, 1), in_keys=["observation"], out_keys=["state_value"])
    return actor, critic, ClipPPOLoss(
        actor, critic, clip_epsilon=eps, clip_value=vf_eps, loss_critic_type="l2",
        critic_coeff=1.0, entropy_bonus=False, reduction="none",
    )  # fmt: skip


def test_both_clipped_losses_are_those_of_torchrl():
    """Their loss runs for real: an actor and a critic on random observations, old log-probabilities
    and values off by more than the clipping, gradients too."""
    B, T, words, width = 5, 7, 6, 4
    with (
        Parity("PPO's policy loss", "torchrl.objectives.ClipPPOLoss", TOLERANCE) as policy,
        Parity("PPO's value loss", "torchrl.objectives.ClipPPOLoss", TOLERANCE) as value,
    ):
        for seed, (eps, vf_eps) in enumerate(((0.2, 0.2), (0.1, 0.5), (0.3, 0.05))):
            torch.manual_seed(seed)
            actor, critic, loss = clip_ppo(eps, vf_eps, words, width)
            observation, action = torch.randn(B, T, width), torch.randint(words, (B, T))
            with torch.no_grad():
                logits, values = actor[0].module(observation), critic.module(observation)
                logprobs = Categorical(logits=logits).log_prob(action)  # (B, T)
            old_logprobs = logprobs + 0.4 * torch.randn(B, T)
            old_values = values + 0.5 * torch.randn(B, T, 1)
            advantages, returns = torch.randn(B, T, 1), torch.randn(B, T, 1)
            out = loss(TensorDict(
                {"observation": observation, "action": action, "action_log_prob": old_logprobs,
                 "advantage": advantages, "value_target": returns, "state_value": old_values},
                batch_size=[B, T],
            ))  # fmt: skip
            leaves = [logprobs.requires_grad_(), values[..., 0].clone().requires_grad_()]
            pg = policy_loss(leaves[0], old_logprobs, advantages[..., 0], eps)
            vf = value_loss(leaves[1], old_values[..., 0], returns[..., 0], vf_eps)
            policy.tried(), value.tried()
            policy.compare(pg, out["loss_objective"].reshape(B, T))
            value.compare(vf, out["loss_critic"].reshape(B, T))
            clipped = ((leaves[0] - old_logprobs).exp() - 1).abs() > eps
            assert 0 < clipped.sum() < B * T
            assert out["clip_fraction"].item() == pytest.approx(clipped.float().mean().item())
            plain = policy_loss(leaves[0], old_logprobs, advantages[..., 0], None)
            assert (plain - pg).abs().max() > 100 * TOLERANCE
            # The same gradient of the means reaches actor and critic.
            (out["loss_objective"].mean() + out["loss_critic"].mean()).backward()
            got = loss.actor_network_params.flatten_keys(".")
            bias = next(v for k, v in got.items() if k.endswith("bias")).grad
            (by_logprobs,) = torch.autograd.grad(pg.mean(), leaves[0])
            one_hot = torch.nn.functional.one_hot(action, words)
            want = (by_logprobs[..., None] * (one_hot - logits.softmax(-1))).sum((0, 1))
            policy.compare(bias, want)
            got = loss.critic_network_params.flatten_keys(".")
            bias = next(v for k, v in got.items() if k.endswith("bias")).grad
            (by_values,) = torch.autograd.grad(vf.mean(), leaves[1])
            value.compare(bias, by_values.sum().reshape(1))
