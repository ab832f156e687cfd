"""DPO: preferences learnt by a loss, without a reward model and without sampling.

The optimum of score and KL (Rafailov et al., 2023, equation 4; ``enumeration.exact_optimum``),
solved for the score, is r(x, y) = β log π(y | x) / π_ref(y | x) + β log Z(x) (equation 5). In the
Bradley-Terry model the difference of two scores decides, so Z(x) drops out (equation 6), and the
log-likelihood of preferences is a loss of the policy itself (equation 7): ``dpo_loss``.
``pairs`` has the data, ``reference_pairs`` reads the reference once, ``pair_loss`` is what
``training.train`` takes.

Details that decide whether it works:

1. Both rows of a pair have the same prompt, whose tokens count in neither.
2. ``logps`` are sums over the response. A mean over its tokens is another loss, IPO's by name
   ``ipo_mean``.
3. Policy and reference are the same at the start, so every pair costs log 2 there. A first loss
   that is another says that the reference is not the start, or was read otherwise: another
   temperature or precision.
4. Dropout is off in the step, as it was when the reference was read: else the log-ratio of two
   equal models were noise.
5. What is held to is the *difference* of the log-ratios: the log-probability of the preferred
   response may fall, if that of the other falls faster. ``chosen_logps`` tells.

What ``pair_loss`` logs beside the loss, each a mean over the pairs of the step:

================ =================================================================================
chosen_rewards   β (log π - log π_ref) of the preferred response, the implicit reward, without
                 β log Z
rejected_rewards that of the other
margin           chosen_rewards - rejected_rewards
accuracy         share of the pairs whose margin is above 0; at the start, where it is 0 up to
                 rounding, it says nothing
chosen_logps     log π of the preferred response, in nats a response
rejected_logps   that of the other
================ =================================================================================

Simplified away: other divergences than the reverse KL; a reference that moves; a term that holds
the likelihood of the preferred response.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from course_lib import models
from course_lib.files import read_text, write_json
from course_lib.models import mask_inputs
from course_lib.ops import IGNORE_INDEX, sequence_logprobs, shift_labels, token_logprobs
from course_lib.pairs import (
    Pair,
    PairBatch,
    PairBatches,
    PairCounts,
    collate_pairs,
    encode_pairs,
    usable_pairs,
)
from course_lib.rows import collate, pack
from course_lib.runtime import autocast, evaluation_mode, model_device
from course_lib.training import counted

__all__ = [
    "LOSS_TYPES", "Pair", "PairBatch", "PairBatches", "PairCounts", "ReferencePairs",
    "collate_pairs", "dpo_loss", "encode_pairs", "fingerprint", "pair_logps", "pair_loss",
    "reference_pairs", "usable_pairs",
]  # fmt: skip

LOSS_TYPES = ("sigmoid", "ipo_sum", "ipo_mean")


# --- the loss -----------------------------------------------------------------------------------


def dpo_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor, beta: float, *, loss_type: str = "sigmoid",
    label_smoothing: float = 0.0, chosen_tokens: Tensor | None = None,
    rejected_tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The loss of each pair, and the implicit rewards of its responses.

    With h = log π(y_w)/π_ref(y_w) - log π(y_l)/π_ref(y_l):

    - ``"sigmoid"``: -log σ(β h), DPO (Rafailov et al., 2023, equation 7). With label smoothing ε,
      -(1 - ε) log σ(β h) - ε log σ(-β h), for preferences of which a share ε is the wrong way round
      ("conservative DPO": Mitchell, 2023, equation 3). It is least at β h = log (1 - ε)/ε.
    - ``"ipo_sum"``: (h - 1/(2β))² (Azar et al., 2024, equation 17, where β is called τ): h has an
      aim, where DPO pushes without end on a pair that is always preferred the same way.
    - ``"ipo_mean"``: the same, with log-ratios divided by the number of tokens of their response,
      as its authors told trl that they did. h is then in nats a token, and 1/(2β) too.

    Args:
        policy_chosen_logps, policy_rejected_logps, ref_chosen_logps, ref_rejected_logps: (B,),
            log-probabilities summed over the response: ``ops.sequence_logprobs``.
        beta: β, above 0: weight of the KL in the objective whose optimum is looked for.
        loss_type: one of ``LOSS_TYPES``.
        label_smoothing: ε in [0, 0.5), of ``"sigmoid"`` alone.
        chosen_tokens, rejected_tokens: (B,), tokens of the responses, for ``"ipo_mean"`` alone.

    Returns:
        losses, chosen_rewards and rejected_rewards, (B,), float32 or wider. The rewards are
        β (policy - ref), equation 5 without its β log Z(x), and have no gradient.

    Raises:
        ValueError: shapes that are not (B,) or differ, no pair, a beta, loss type, smoothing or
            number of tokens that makes no sense.
        FloatingPointError: log-probabilities that are not finite.

    Example: a pair at the start, and one whose preferred response is e times as likely as before.
        >>> zero = torch.zeros(2)
        >>> dpo_loss(torch.tensor([0.0, 1.0]), zero, zero, zero, beta=1.0)
        (tensor([0.6931, 0.3133]), tensor([0., 1.]), tensor([0., 0.]))
    """
    _check_settings(beta, loss_type, label_smoothing)
    given = {"policy_chosen_logps": policy_chosen_logps, "ref_chosen_logps": ref_chosen_logps,
             "policy_rejected_logps": policy_rejected_logps,
             "ref_rejected_logps": ref_rejected_logps}  # fmt: skip
    _check_logps(given)
    chosen_ratios = _wide(policy_chosen_logps) - _wide(ref_chosen_logps)  # (B,)
    rejected_ratios = _wide(policy_rejected_logps) - _wide(ref_rejected_logps)  # (B,)
    rewards = beta * chosen_ratios.detach(), beta * rejected_ratios.detach()  # eq. 5
    if loss_type == "ipo_mean":
        chosen_ratios = chosen_ratios / _lengths(chosen_tokens, "chosen_tokens", chosen_ratios)
        rejected_ratios = rejected_ratios / _lengths(
            rejected_tokens, "rejected_tokens", rejected_ratios
        )
    h = chosen_ratios - rejected_ratios  # (B,)
    if loss_type == "sigmoid":
        losses = -F.logsigmoid(beta * h)  # Rafailov et al. (2023), eq. 7
        if label_smoothing:  # Mitchell (2023), eq. 3
            losses = (1 - label_smoothing) * losses - label_smoothing * F.logsigmoid(-beta * h)
    else:
        losses = (h - 1 / (2 * beta)) ** 2  # Azar et al. (2024), eq. 17
    return losses, *rewards


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _check_settings(beta: float, loss_type: str, label_smoothing: float) -> None:
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type must be one of {', '.join(LOSS_TYPES)}, got {loss_type!r}.")
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be finite and above 0, got {beta}: it divides the scores.")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing must lie in [0, 0.5), got {label_smoothing}: it is the share of "
            "preferences that are the wrong way round, and from a half on they teach nothing."
        )
    if label_smoothing and loss_type != "sigmoid":
        raise ValueError(
            f'label_smoothing={label_smoothing} belongs to loss_type="sigmoid": {loss_type} has '
            "none. Its aim 1/(2 beta) is the smaller the larger beta is."
        )


def _check_logps(given: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(logps.shape) for name, logps in given.items()}
    B = next(iter(shapes.values()))
    if len(set(shapes.values())) > 1 or len(B) != 1 or not B[0]:
        raise ValueError(
            f"Log-probabilities must all be (B,), one a response and at least one pair, got "
            f"{shapes}."
        )
    for name, logps in given.items():
        if not (finite := logps.isfinite()).all():
            raise FloatingPointError(
                f"{name} must be finite, got {logps[~finite][:5].tolist()}, {int((~finite).sum())} "
                f"of {logps.numel()}. Look at what made them."
            )


def _lengths(tokens: Tensor | None, name: str, ratios: Tensor) -> Tensor:
    if tokens is None or tokens.shape != ratios.shape or not (tokens > 0).all():
        got = "none" if tokens is None else f"{tuple(tokens.shape)} {tokens.flatten()[:5].tolist()}"
        raise ValueError(
            f'loss_type="ipo_mean" divides by {name}, {tuple(ratios.shape)} numbers of at least 1, '
            f"got {got}."
        )
    return tokens.to(ratios)


# --- reading ------------------------------------------------------------------------------------


def pair_logps(
    model: nn.Module, batch: Mapping[str, Tensor], temperature: float = 1.0, packed: bool = False
) -> tuple[Tensor, Tensor]:
    """log π of the preferred responses and of the others, from one pass in evaluation mode.

    Padded, logits are computed from the first column of responses on, not for the prompts before.

    Args:
        model: follows transformers' calling convention; decoder-only.
        batch: of ``collate_pairs``.
        temperature: divides the logits: the policy is the one that is sampled at it.
        packed: read less padding: rows of several texts, which the model tells apart by their
            positions (``rows.pack``). All of ours do; of transformers', those that take
            ``position_ids``.

    Returns:
        (B,) each, sums over the response.
    """
    ids, mask, labels = (batch[name].flatten(0, 1)
                         for name in ("input_ids", "attention_mask", "labels"))  # fmt: skip
    if packed:
        return _packed_logps(model, ids, mask, labels, temperature).view(-1, 2).unbind(1)
    first = int((labels != IGNORE_INDEX).any(0).int().argmax())
    keep = labels.shape[1] - first + 1  # one more: the first token is predicted before it
    with evaluation_mode(model):
        logits = model(ids, **mask_inputs(model, mask), use_cache=False, logits_to_keep=keep).logits
    logits = logits if temperature == 1 else logits / temperature  # (2B, keep, V)
    return sequence_logprobs(logits, labels[:, -keep:]).view(-1, 2).unbind(1)


def _packed_logps(
    model: nn.Module, ids: Tensor, mask: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """(2B,) of rows (2B, T). What is packed is where each token stands in the padded batch.

    Packed rows are half as long again as the longest text, which leaves room for short ones beside
    it; in longer ones attention would cost more than the padding.
    """
    T = ids.shape[1]
    texts = [[i * T + t for t in kept.nonzero()[:, 0].tolist()]
             for i, kept in enumerate(mask.cpu())]  # fmt: skip
    places = [{"input_ids": text, "labels": text} for text in texts]
    packed = collate(pack(places, max(map(len, texts)) * 3 // 2), 0)
    where, positions = (packed[name].to(ids.device) for name in ("input_ids", "position_ids"))
    nothing_before = positions == 0  # the first token of a text, and padding
    targets = labels.flatten()[where].masked_fill(nothing_before, IGNORE_INDEX)  # (R, W)
    with evaluation_mode(model):
        out = model(ids.flatten()[where], **mask_inputs(model, None, positions), use_cache=False)
    logits = out.logits if temperature == 1 else out.logits / temperature  # (R, W, V)
    logprobs = token_logprobs(logits, targets)  # (R, W-1)
    rows = (where // T)[:, 1:]  # (R, W-1): the text of each token that is predicted
    return logprobs.new_zeros(len(ids)).index_add(0, rows.flatten(), logprobs.flatten())


@dataclass(frozen=True)
class ReferencePairs:
    """Pairs with the log-probabilities that a reference gave to them, and which one it was."""

    pairs: list[Pair]
    chosen_logps: Tensor  # (N,), float32 on the CPU
    rejected_logps: Tensor  # (N,)
    fingerprint: str  # of the reference's weights
    vocab_size: int  # the reference's
    temperature: float  # at which it was read

    def check(self, ref_policy: nn.Module) -> None:
        """Raise a ValueError unless this is the reference that gave the log-probabilities."""
        if (size := ref_policy.config.vocab_size) != self.vocab_size:
            raise ValueError(
                f"The pairs were read by a reference with a vocabulary of {self.vocab_size} tokens,"
                f" and this one has {size}: its ids mean other words. Tokenise the texts with this "
                "model's tokenizer and call reference_pairs."
            )
        if (found := fingerprint(ref_policy)) != self.fingerprint:
            raise ValueError(
                f"The log-probabilities are of a reference whose weights have the fingerprint "
                f"{self.fingerprint[:12]}, and this one's is {found[:12]}: was it trained since, "
                "or is it another model? Call reference_pairs with the one that is meant."
            )

    def batches(
        self, ref_policy: nn.Module, pad_token_id: int, batch_size: int, generator: Generator
    ) -> PairBatches:
        """Endless batches for ``pair_loss``, after ``check``."""
        self.check(ref_policy)
        return PairBatches(self.pairs, (self.chosen_logps, self.rejected_logps), pad_token_id,
                           batch_size, generator)  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write all of it as JSON, from which ``load`` gives the same numbers, bit for bit."""
        write_json(path, {
            "fingerprint": self.fingerprint, "vocab_size": self.vocab_size,
            "temperature": self.temperature, "pairs": [list(pair) for pair in self.pairs],
            "chosen_logps": self.chosen_logps.tolist(),
            "rejected_logps": self.rejected_logps.tolist(),
        })  # fmt: skip

    @classmethod
    def load(cls, path: str | Path, ref_policy: nn.Module) -> "ReferencePairs":
        """What ``save`` wrote, after ``check``."""
        stored = json.loads(read_text(path))
        data = cls(
            [Pair(*pair) for pair in stored["pairs"]], torch.tensor(stored["chosen_logps"]),
            torch.tensor(stored["rejected_logps"]), stored["fingerprint"], stored["vocab_size"],
            stored["temperature"],
        )  # fmt: skip
        data.check(ref_policy)
        return data


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all that a model's ``state_dict`` holds, see ``models.fingerprint``."""
    return models.fingerprint(model.state_dict())


@torch.no_grad()
def reference_pairs(
    ref_policy: nn.Module, pairs: Sequence[Pair], pad_token_id: int, *, batch_size: int = 32,
    temperature: float = 1.0, mixed_precision: str = "no",
) -> ReferencePairs:  # fmt: skip
    """Read all pairs once by the reference, in evaluation mode and without gradients.

    Args:
        pairs: of ``encode_pairs`` or ``usable_pairs``.
        batch_size: pairs a pass; they are sorted by length, to read less padding.
        temperature, mixed_precision: those of the training, or the first loss is not log 2.

    Raises:
        ValueError: no pairs, or one that ``collate_pairs`` refuses.
        FloatingPointError: a log-probability that is not finite.
    """
    pairs = [Pair(*map(list, pair)) for pair in pairs]
    if not pairs or batch_size < 1:
        raise ValueError(
            f"{len(pairs)} pairs, batch_size={batch_size}: expected at least one of both."
        )
    device = model_device(ref_policy)
    order = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
    logps = torch.empty(2, len(pairs))
    for start in range(0, len(pairs), batch_size):
        some = order[start : start + batch_size]
        batch = collate_pairs([pairs[i] for i in some], pad_token_id)
        with autocast(device, mixed_precision):
            read = pair_logps(ref_policy, {k: v.to(device) for k, v in batch.items()}, temperature)
        logps[:, some] = torch.stack(read).float().cpu()  # (2, b)
    _check_logps({"ref_chosen_logps": logps[0], "ref_rejected_logps": logps[1]})
    return ReferencePairs(pairs, logps[0], logps[1], fingerprint(ref_policy),
                          ref_policy.config.vocab_size, temperature)  # fmt: skip


# --- the loss that training.train takes ---------------------------------------------------------


def pair_loss(
    beta: float, *, loss_type: str = "sigmoid", label_smoothing: float = 0.0,
    temperature: float = 1.0, packed: bool = False,
) -> Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]:  # fmt: skip
    """The loss function of ``training.train``: the mean of ``dpo_loss`` over the pairs of a step.

    Args:
        beta, loss_type, label_smoothing: see ``dpo_loss``.
        temperature: that of ``reference_pairs``.
        packed: see ``pair_logps``; faster where lengths differ.

    Returns:
        (model, batch) -> (loss, what is logged: see the module). The batch is one of
        ``ReferencePairs.batches``.

    Raises:
        ValueError: settings that make no sense.
    """
    _check_settings(beta, loss_type, label_smoothing)

    def loss_fn(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = pair_logps(model, batch, temperature, packed)  # (B,)
        kept = shift_labels(batch["labels"].flatten(0, 1)) != IGNORE_INDEX  # (2B, T)
        tokens = kept.sum(1).view(-1, 2)  # (B, 2)
        losses, chosen_rewards, rejected_rewards = dpo_loss(
            chosen, rejected, batch["ref_chosen_logps"], batch["ref_rejected_logps"], beta,
            loss_type=loss_type, label_smoothing=label_smoothing, chosen_tokens=tokens[:, 0],
            rejected_tokens=tokens[:, 1],
        )  # fmt: skip
        margin = chosen_rewards - rejected_rewards
        columns = {"chosen_rewards": chosen_rewards, "rejected_rewards": rejected_rewards,
                   "margin": margin, "accuracy": (margin > 0).float(), "chosen_logps": chosen,
                   "rejected_logps": rejected}  # fmt: skip
        numbers = {name: column.detach().mean() for name, column in columns.items()}
        return counted(losses.sum(), len(losses)), numbers

    return loss_fn
