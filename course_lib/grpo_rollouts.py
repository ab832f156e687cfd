"""GRPO's stream of batches: groups of the live policy's responses, scored and compared.

``GRPORollouts`` is a live stream for ``training.train``: when its batches are used up it lets the
policy write ``group_size`` responses to each of some prompts, scores them, and gives each several
times. ``grpo`` has the mathematics. There is no value network, and a reference only where a KL is
used or measured.

What ``GRPORollouts.history`` keeps of each rollout:

=========== =======================================================================================
score       mean of what ``score`` returned, of all responses, those of dropped groups included
score_std   its standard deviation (population)
dead        share of all groups whose scores are equal, after the penalty for responses cut off
kept        how many groups the batches have
tries       how often the policy was sampled: 1, or more where dead groups are refilled
length      mean number of response tokens, the end token included, of all responses
ended       share of all responses that have an end token
entropy     mean entropy of the next token's distribution in the groups kept, in nats a token
kl          mean over the responses kept of Σ ``ops.kl_k1``, in nats a response; only with a
            reference. Estimated from samples; a single rollout's may be negative
=========== =======================================================================================

Simplified away: groups across processes (each process has whole ones of its own).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor, nn

from course_lib.generation import EndTokens, end_ids
from course_lib.grpo import GRPOSettings, dead_groups, group_advantages, net_scores
from course_lib.live_rollouts import LiveRollouts, Score, check_reference, check_scores
from course_lib.ops import IGNORE_INDEX, kl_k1, masked_mean
from course_lib.rollout import pad_left, response_batch, responses, rollout
from course_lib.rows import pad_rows
from course_lib.runtime import model_device


def batch_of_rows(
    prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]], eos_token_id: EndTokens
) -> dict[str, Tensor]:
    """The batch of ``rollout`` of prompts and responses that stand apart, as from several calls.

    Args:
        prompts: rows of token ids.
        written: rows of token ids, of ``rollout.responses``: shorter than the longest only where
            they have their end token.
        eos_token_id: with which they were generated.

    Example: 0 ends and pads.
        >>> batch = batch_of_rows([[5, 6], [7]], [[8, 0], [9, 9, 9]], 0)
        >>> batch["input_ids"], batch["ended"]
        (tensor([[5, 6, 8, 0, 0],
                [0, 7, 9, 9, 9]]), tensor([ True, False]))
    """
    pad = (*end_ids(eos_token_id), 0)[0]
    ids, mask = pad_left(prompts, pad)
    ids = torch.cat([ids, pad_rows(written, pad)], dim=1)  # (B, P + R)
    return response_batch(ids, mask, eos_token_id)


class GRPORollouts(LiveRollouts):
    """Minibatches of the live policy's responses, without end; for ``training.train``.

    Args:
        policy: the model that is trained: one of our decoders, or any ``AutoModelForCausalLM``.
        prompts: rows of token ids: a sequence, read over and over in random order, or an iterator.
            A resumed iterator is read again up to where it was, so it must begin anew.
        score: see ``live_rollouts.Score``: a verifier, a reward model, or any other. It gets the
            prompt once for each response.
        settings: the same that ``grpo_loss`` gets.
        groups: prompts a rollout; groups · group_size is a multiple of ``minibatch_size``.
        eos_token_id: see ``generate``.
        generator: draws tokens, shuffles, and the order of a sequence of prompts.
        ref_policy: the reference, a model of its own that nobody trains. Needed where a KL has a
            weight; where none has, the KL is measured.

    Each batch has ``input_ids``, ``attention_mask``, ``position_ids``, ``labels`` (B, T),
    ``response_mask``, ``old_logprobs`` and, with a reference, ``ref_logprobs`` (B, T-1),
    ``scores``, ``advantages`` and ``ended`` (B,). Where groups are dropped a rollout has fewer
    batches, or smaller ones; if all are dead after the last try, the last ones stay, without
    advantages.

    Raises:
        ValueError: a reference that is missing or is the policy, sizes that do not fit, an option
            for responses cut off where nothing ends one; when a batch is drawn, scores that are not
            finite or not one a response.
    """

    def __init__(
        self, policy: nn.Module, prompts: Sequence[Sequence[int]] | Iterator[Sequence[int]],
        score: Score, settings: GRPOSettings, *, groups: int, eos_token_id: EndTokens,
        generator: Generator, ref_policy: nn.Module | None = None,
    ):  # fmt: skip
        rows = groups * settings.group_size
        if groups < 1 or rows % settings.minibatch_size:
            raise ValueError(
                f"{groups} groups of {settings.group_size} are {rows} responses: expected a "
                f"multiple of minibatch_size={settings.minibatch_size}, at least one."
            )
        if ref_policy is not None:
            check_reference(policy, ref_policy)
        elif settings.needs_reference:
            raise ValueError(
                "A KL has a weight and there is no reference: give ref_policy, a copy of the start."
            )
        self.ends = end_ids(eos_token_id)
        if settings.truncated != "keep" and not self.ends:
            raise ValueError(
                f"truncated={settings.truncated!r} and no eos_token_id: every response would count "
                'as cut off. Give one, or truncated="keep".'
            )
        super().__init__(policy, prompts, minibatch_size=settings.minibatch_size,
                         epochs=settings.epochs, generator=generator)  # fmt: skip
        self.ref_policy, self.score, self.settings, self.groups = (
            ref_policy, score, settings, groups,
        )  # fmt: skip

    @torch.no_grad()
    def roll_out(self) -> dict[str, Tensor]:
        """New groups, and all that the loss needs of them; adds a row to ``history``."""
        s = self.settings
        prompts, written, scores, numbers = self._sample()
        device = model_device(self.model)
        batch = batch_of_rows(prompts, written, self.ends)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        batch["response_mask"] = mask = batch["labels"][:, 1:] != IGNORE_INDEX  # (B, T-1)
        batch["old_logprobs"], entropies, _ = self.read_in_parts(self.model, batch, s.temperature)
        numbers["entropy"] = masked_mean(entropies, mask)
        logps = ref_logps = None
        if self.ref_policy is not None:
            batch["ref_logprobs"] = self.read_in_parts(self.ref_policy, batch, s.temperature)[0]
            logps, ref_logps = (batch[f"{name}_logprobs"].sum(1) for name in ("old", "ref"))  # (B,)
            numbers["kl"] = kl_k1(logps, ref_logps).mean()
        batch["scores"] = scores.to(device)
        net = self._net(batch["scores"], batch["ended"], logps, ref_logps, s.kl_coef)
        batch["advantages"] = group_advantages(net, s.group_size, s.std)
        self.history.append({name: float(value) for name, value in numbers.items()})
        return batch

    def _net(self, scores: Tensor, ended: Tensor, logps=None, ref_logps=None, kl_coef=0.0):
        s = self.settings
        penalty = s.truncation_penalty if s.truncated == "penalise" else 0.0
        return net_scores(scores, ended, logps, ref_logps, truncation_penalty=penalty,
                          kl_coef=kl_coef)  # fmt: skip

    def _sample(self) -> tuple[list[list[int]], list[list[int]], Tensor, dict]:
        """Prompts, responses and scores of the groups kept, and what is known of all."""
        s, size = self.settings, self.settings.group_size
        kept, every, tries = [], [], 0  # lists of groups
        while tries < (s.max_tries if s.dead == "refill" else 1) and len(kept) < self.groups:
            last = self._sample_groups(self.groups - len(kept))
            tries += 1
            every += last
            kept += [group for group in last if s.dead == "keep" or not group["dead"]]
        kept = kept or last  # all are dead: a step without advantages
        scores, lengths, ended = (torch.cat([g[name] for g in every]).double()
                                  for name in ("scores", "lengths", "ended"))  # fmt: skip
        numbers = {
            "score": scores.mean(), "score_std": scores.std(correction=0),
            "dead": sum(group["dead"] for group in every) / len(every), "kept": len(kept),
            "tries": tries, "length": lengths.mean(), "ended": ended.mean(),
        }  # fmt: skip
        prompts = [group["prompt"] for group in kept for _ in range(size)]
        written = [row for group in kept for row in group["written"]]
        return prompts, written, torch.cat([group["scores"] for group in kept]), numbers

    def _sample_groups(self, count: int) -> list[dict]:
        """``count`` groups in one call: the prompt, its responses, their scores, whether dead."""
        s, size = self.settings, self.settings.group_size
        prompts = [row for row in self.next_prompts(count) for _ in range(size)]
        batch = rollout(
            self.model, prompts, max_new_tokens=s.max_new_tokens, eos_token_id=self.ends,
            temperature=s.temperature, generator=self.generator,
        )  # fmt: skip
        written, ended = responses(batch), batch["ended"].cpu()
        scores = self.score(prompts, written)
        check_scores(scores, len(prompts))
        scores = scores.detach().cpu().float()
        dead = dead_groups(self._net(scores, ended), size).tolist()
        return [
            {"prompt": prompts[i], "written": written[i : i + size],
             "scores": scores[i : i + size], "ended": ended[i : i + size],
             "lengths": torch.tensor([len(row) for row in written[i : i + size]]),
             "dead": dead[i // size]}
            for i in range(0, len(prompts), size)
        ]  # fmt: skip
