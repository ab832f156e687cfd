"""PPO's policy with its critic, its control of the KL, and its stream of batches.

``PPORollouts`` is a live stream for ``training.train``: when its batches are used up it lets the
policy write new responses, scores them, and gives each several times. ``ppo`` has the mathematics
and the list of details that matter.

What ``PPORollouts.history`` keeps of each rollout:

================== ================================================================================
score              mean of what ``score`` returned, before the penalty for responses cut off
score_std          its standard deviation (population)
kl                 mean over responses of Σ ``ops.kl_k1``, in nats a response: the distance from the
                   reference, estimated from the samples; a single rollout's may be negative
kl_coef            the weight that the KL had in this rollout's rewards
reward             mean over responses of the summed rewards: score - penalty - kl_coef · KL
entropy            mean entropy of the next token's distribution, in nats a token
length             mean number of response tokens, the end token included
ended              share of responses that have an end token
return_var         variance of the returns over response tokens
explained_variance 1 - Var(returns - values) / Var(returns): 1 = the critic knew, 0 = a constant
                   would do as well; 0 where the returns do not vary
================== ================================================================================

Simplified away: whitening across processes (each whitens its own rollouts alone).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from course_lib.generation import EndTokens, end_ids
from course_lib.live_rollouts import (
    LiveRollouts,
    Score,
    check_reference,
    check_scores,
    shares_parameters,
)
from course_lib.models.heads import WithScalarHead, read
from course_lib.ops import IGNORE_INDEX, kl_k1, masked_mean, masked_var, masked_whiten
from course_lib.ppo import (
    PPOSettings,
    gae,
    missing_eos_penalty,
    per_token_rewards,
)
from course_lib.rollout import responses, rollout

# --- policy and critic --------------------------------------------------------------------------


@dataclass
class ActorCriticOutput:
    """logits: (B, T, V), or of the last positions alone; values: (B, T), entry t of the state that
    the tokens up to t are, so before token t + 1.
    """

    logits: Tensor
    values: Tensor


class ActorCritic(nn.Module):
    """A policy and its critic as one module, so that one optimizer and one checkpoint hold both.

    Args:
        policy: one of our decoders, or any ``AutoModelForCausalLM``; ``generate`` samples from
            ``.policy``.
        critic: a module of its own, ids -> (B, T) values, as ``WithScalarHead(model)`` or a copy of
            the reward model; None = a ``ScalarHead`` on the policy's trunk.
        generator: draws the head's first weights, where ``std`` is above 0.
        detach: the critic's gradient ends at its head, and the shared trunk is the policy's alone.
        std: see ``ScalarHead``.

    Raises:
        ValueError: a critic that has parameters of the policy.
    """

    def __init__(
        self, policy: nn.Module, critic: nn.Module | None = None,
        generator: Generator | None = None, *, detach: bool = False, std: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        if critic is not None and shares_parameters(policy, critic):
            raise ValueError(
                "The critic has parameters of the policy: give it a copy of the model, or no "
                "critic at all to share the trunk."
            )
        self.policy, self.critic, self.detach = policy, critic, detach
        # WithScalarHead knows how wide any model is.
        self.head = WithScalarHead(policy, std, generator).head if critic is None else None

    @property
    def config(self):
        """The policy's."""
        return self.policy.config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None, use_cache: bool = False, logits_to_keep: int = 0,
    ) -> ActorCriticOutput:  # fmt: skip
        """Logits and values of one pass; see ``models.heads.read``. There is no cache."""
        out = read(self.policy, input_ids, attention_mask, position_ids, logits_to_keep)
        if self.critic is not None:
            return ActorCriticOutput(
                out.logits, self.critic(input_ids, attention_mask, position_ids)
            )
        x = out.last_hidden_state  # (B, T, C)
        return ActorCriticOutput(out.logits, self.head(x.detach() if self.detach else x))


# --- control of the KL --------------------------------------------------------------------------


class FixedKL:
    """The KL's weight stays as it is."""

    def __init__(self, kl_coef: float):
        self.kl_coef = kl_coef

    def update(self, kl: float, n: int) -> None:
        """kl: of the last rollout, in nats a response; n: how many responses it had."""

    def state_dict(self) -> dict:
        return {"kl_coef": self.kl_coef}

    def load_state_dict(self, state: dict) -> None:
        self.kl_coef = state["kl_coef"]


class AdaptiveKL(FixedKL):
    """The KL's weight follows a target (Ziegler et al., 2019, section 2.2).

    e = clip(KL / target - 1, -0.2, 0.2); kl_coef is multiplied by 1 + e · n / horizon.

    Args:
        kl_coef: at the start.
        target: nats a response.
        horizon: responses; the paper's K_β is n / horizon.

    Raises:
        ValueError: a number that is not above 0.

    Example: a KL of twice the target, clipped to an error of 0.2; 50 of 100 responses.
        >>> control = AdaptiveKL(0.1, target=5.0, horizon=100)
        >>> control.update(10.0, 50)
        >>> round(control.kl_coef, 4)
        0.11
    """

    def __init__(self, kl_coef: float, target: float, horizon: float):
        if not min(kl_coef, target, horizon) > 0:
            raise ValueError(
                f"kl_coef, target and horizon must be above 0, got {kl_coef}, {target} and "
                f"{horizon}: a weight of 0 stays 0."
            )
        super().__init__(kl_coef)
        self.target, self.horizon = target, horizon

    def update(self, kl: float, n: int) -> None:
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.kl_coef *= 1 + error * n / self.horizon


# --- the stream ---------------------------------------------------------------------------------


class PPORollouts(LiveRollouts):
    """Minibatches of the live policy's responses, without end; for ``training.train``.

    Args:
        actor_critic: the model that is trained.
        ref_policy: the reference, a model of its own that nobody trains.
        prompts: rows of token ids: a sequence, read over and over in random order, or an iterator.
            A resumed iterator is read again up to where it was, so it must begin anew.
        score: see ``Score``.
        settings: the same that ``ppo_loss`` gets.
        batch_size: responses a rollout, one a prompt; a multiple of ``minibatch_size``.
        eos_token_id: see ``generate``.
        generator: draws tokens, shuffles, and the order of a sequence of prompts.

    Each batch has ``input_ids``, ``attention_mask``, ``position_ids``, ``labels`` (B, T),
    ``response_mask``, ``old_logprobs``, ``ref_logprobs``, ``old_values``, ``rewards``,
    ``advantages``, ``returns`` (B, T-1), ``scores`` and ``ended`` (B,).

    Raises:
        ValueError: a reference that is the policy, another vocabulary, sizes that do not fit; when
            a batch is drawn, scores that are not finite or not one a response.
    """

    def __init__(
        self, actor_critic: ActorCritic, ref_policy: nn.Module,
        prompts: Sequence[Sequence[int]] | Iterator[Sequence[int]], score: Score,
        settings: PPOSettings, *, batch_size: int, eos_token_id: EndTokens, generator: Generator,
    ):  # fmt: skip
        check_reference(actor_critic, ref_policy)
        if batch_size < 1 or batch_size % settings.minibatch_size:
            raise ValueError(
                f"batch_size={batch_size} must be a multiple of minibatch_size="
                f"{settings.minibatch_size}: every response is used once an epoch."
            )
        super().__init__(actor_critic, prompts, minibatch_size=settings.minibatch_size,
                         epochs=settings.epochs, generator=generator)  # fmt: skip
        self.ref_policy, self.score = ref_policy, score
        self.settings, self.batch_size = settings, batch_size
        self.ends = end_ids(eos_token_id)
        s = settings
        self.kl = (FixedKL(s.kl_coef) if s.kl_target is None
                   else AdaptiveKL(s.kl_coef, s.kl_target, s.kl_horizon))  # fmt: skip

    @torch.no_grad()
    def roll_out(self) -> dict[str, Tensor]:
        """New responses, and all that the loss needs of them; adds a row to ``history``."""
        s = self.settings
        prompts = self.next_prompts(self.batch_size)
        batch = rollout(
            self.model.policy, prompts, max_new_tokens=s.max_new_tokens, eos_token_id=self.ends,
            temperature=s.temperature, generator=self.generator,
        )  # fmt: skip
        scores = self.score(prompts, responses(batch))
        check_scores(scores, len(prompts))
        mask = batch["labels"][:, 1:] != IGNORE_INDEX  # (B, T-1)
        scores = scores.detach().to(mask.device, torch.float32)
        old_logprobs, entropies, old_values = self.read_in_parts(self.model, batch, s.temperature)
        ref_logprobs = self.read_in_parts(self.ref_policy, batch, s.temperature)[0]
        net = scores
        if self.ends:
            net = missing_eos_penalty(scores, batch["ended"], s.missing_eos_penalty)
        rewards = per_token_rewards(net, old_logprobs, ref_logprobs, mask, self.kl.kl_coef)
        advantages, returns = gae(rewards, old_values, mask, s.gamma, s.gae_lambda)
        if s.whiten_advantages:
            advantages = masked_whiten(advantages, mask)
        batch |= {
            "response_mask": mask, "old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs,
            "old_values": old_values, "rewards": rewards, "advantages": advantages,
            "returns": returns, "scores": scores,
        }  # fmt: skip
        self._note(batch, entropies)
        return batch

    def _note(self, batch: dict[str, Tensor], entropies: Tensor) -> None:
        """A row of ``history``, and the weight that the next rollout's KL will have."""
        mask = batch["response_mask"]
        kl = kl_k1(batch["old_logprobs"], batch["ref_logprobs"]).sum(1)  # (B,)
        returns, values = batch["returns"], batch["old_values"]
        return_var = float(masked_var(returns, mask))
        unexplained = float(masked_var(returns - values, mask))
        numbers = {
            "score": batch["scores"].mean(), "score_std": batch["scores"].std(correction=0),
            "kl": kl.mean(), "kl_coef": self.kl.kl_coef,
            "reward": batch["rewards"].sum(1).mean(), "entropy": masked_mean(entropies, mask),
            "length": mask.sum(1).float().mean(), "ended": batch["ended"].float().mean(),
            "return_var": return_var,
            "explained_variance": 1 - unexplained / return_var if return_var else 0.0,
        }  # fmt: skip
        self.history.append({name: float(value) for name, value in numbers.items()})
        self.kl.update(self.history[-1]["kl"], self.batch_size)

    def state_dict(self) -> dict:
        return super().state_dict() | {"kl": self.kl.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.kl.load_state_dict(state["kl"])
