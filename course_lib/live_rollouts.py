"""Batches of a live policy's own responses: what PPO and GRPO share.

``LiveRollouts`` is the stream that ``training.train`` reads: when its minibatches are used up, the
algorithm's ``roll_out`` lets the policy write, scores what it wrote and says what the loss needs;
then every response is given out once an epoch, in a new order each time.
Simplified away: rollouts across processes (each has its own: give each process's stream a generator
of another seed).
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from course_lib.models import mask_inputs
from course_lib.ops import IGNORE_INDEX, entropy, token_logprobs
from course_lib.rows import endless
from course_lib.runtime import evaluation_mode, model_device

Score = Callable[[list[list[int]], list[list[int]]], Tensor]
"""Prompts and responses as token ids -> (B,) scores. A response has its end token, if it ended."""


# --- checks -------------------------------------------------------------------------------------


def check_scores(scores: Tensor, rows: int) -> None:
    """Raise a ValueError unless these are ``rows`` finite numbers, (B,)."""
    if not isinstance(scores, Tensor) or scores.shape != (rows,):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"scores must be a tensor ({rows},), one a response, got {got}.")
    if not scores.isfinite().all():
        raise ValueError(
            f"The scores of rows {rows_where(~scores.isfinite())} are not finite. Mend the "
            "function that scores, or give such a response a low score; no step was made with them."
        )


def rows_where(bad: Tensor) -> list[int]:
    """Numbers of the rows at which ``bad`` (B,) is True; the first ten of them."""
    return bad.nonzero().flatten().tolist()[:10]


def shares_parameters(a: nn.Module, b: nn.Module) -> bool:
    """Whether any parameter of one module is one of the other, too."""
    return not {id(p) for p in a.parameters()}.isdisjoint(id(p) for p in b.parameters())


def check_reference(policy: nn.Module, ref_policy: nn.Module) -> None:
    """Raise a ValueError if the reference shares parameters or another vocabulary is its own."""
    if shares_parameters(policy, ref_policy):
        raise ValueError(
            "ref_policy has parameters of the model that is trained, so it would move with it: "
            "give a copy, copy.deepcopy(policy)."
        )
    ours, theirs = policy.config.vocab_size, ref_policy.config.vocab_size
    if ours != theirs:
        raise ValueError(
            f"The policy has a vocabulary of {ours} tokens, the reference of {theirs}: their "
            "log-probabilities cannot be compared."
        )


# --- reading ------------------------------------------------------------------------------------


def read_responses(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    temperature: float = 1.0,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What a model says of the response tokens, in evaluation mode: dropout would move the ratio.

    Logits are computed from the first column of responses on, not for the prompts.

    Args:
        model: ``ActorCritic``, or a policy alone.
        batch: ``input_ids``, ``attention_mask``, ``position_ids``, ``labels``, (B, T), of
            ``rollout.rollout``.
        temperature: divides the logits.
        entropy_grad: the entropies have a gradient, too, which costs time and memory.

    Returns:
        Log-probabilities, entropies in nats and values, None of a policy alone; each (B, T-1) and 0
        outside the response.

    Raises:
        ValueError: no response token, or one in the first column, which nothing predicts.
    """
    labels = batch["labels"]
    T, columns = labels.shape[1], (labels != IGNORE_INDEX).any(0)
    if not columns.any():
        raise ValueError("The batch has no response token: every label is ignored.")
    if columns[0]:
        raise ValueError(
            "The first column has a label, and nothing stands before it that could predict it: "
            "give each row a prompt, padded on the left."
        )
    keep = T - int(columns.int().argmax()) + 1  # one more: the first token is predicted before it
    inputs = mask_inputs(model, batch["attention_mask"], batch["position_ids"])
    with evaluation_mode(model):
        out = model(batch["input_ids"], **inputs, use_cache=False, logits_to_keep=keep)
    logits = out.logits if temperature == 1 else out.logits / temperature  # (B, keep, V)
    mask = labels[:, 1:] != IGNORE_INDEX  # (B, T-1)
    logprobs = F.pad(token_logprobs(logits, labels[:, -keep:]), (T - keep, 0))  # (B, T-1)
    with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
        entropies = entropy(logits[:, :-1][mask[:, 1 - keep :]])  # (N,) of the N response tokens
    entropies = torch.zeros_like(logprobs).masked_scatter(mask, entropies)
    values = getattr(out, "values", None)  # transformers' outputs are dicts: a method
    if not isinstance(values, Tensor):
        return logprobs, entropies, None
    return logprobs, entropies, values[:, :-1].float().masked_fill(~mask, 0.0)  # (B, T-1)


# --- the stream ---------------------------------------------------------------------------------


class LiveRollouts:
    """Minibatches of what ``roll_out`` returns, without end; an algorithm defines ``roll_out``.

    Args:
        model: what is trained; the device is its.
        prompts: rows of token ids: a sequence, read over and over in random order, or an iterator.
            A resumed iterator is read again up to where it was, so it must begin anew.
        minibatch_size: rows of a batch; of the last one of an epoch, what is left.
        epochs: how often each row of a rollout is given.
        generator: draws tokens, shuffles, and the order of a sequence of prompts.

    ``history`` has a dict of numbers for each rollout, which ``roll_out`` appends.
    """

    live = True
    """``training.train``: never read again, and each process draws its own."""

    def __init__(
        self, model: nn.Module, prompts: Sequence[Sequence[int]] | Iterator[Sequence[int]], *,
        minibatch_size: int, epochs: int, generator: Generator,
    ):  # fmt: skip
        self.model, self.generator = model, generator
        self.minibatch_size, self.epochs = minibatch_size, epochs
        self.history: list[dict[str, float]] = []
        self.batch: dict[str, Tensor] = {}  # the rollout in use
        self.order: list[list[int]] = []  # its minibatches that are left, the next one last
        self._sequence = prompts if isinstance(prompts, Sequence) else None
        self._seed = int(torch.randint(2**31, (1,), generator=generator, device=generator.device))
        self._prompts = prompts if self._sequence is None else self._shuffled()
        self._read = 0

    def roll_out(self) -> dict[str, Tensor]:
        """A rollout: tensors of as many rows, ``labels`` among them; adds to ``history``."""
        raise NotImplementedError

    def _shuffled(self) -> Iterator[Sequence[int]]:
        return endless(self._sequence, Generator().manual_seed(self._seed))

    def __iter__(self) -> Self:
        return self

    @torch.no_grad()
    def __next__(self) -> dict[str, Tensor]:
        """The next minibatch; it rolls out where none is left."""
        if not self.order:
            self.batch = self.roll_out()
            self.order = self._shuffles(len(self.batch["labels"]))[::-1]
        rows = torch.tensor(self.order.pop(), device=model_device(self.model))
        return {name: tensor[rows] for name, tensor in self.batch.items()}

    def _shuffles(self, count: int) -> list[list[int]]:
        """Rows of each minibatch: every epoch all rows, in a new order."""
        n, source = self.minibatch_size, self.generator
        epochs = [torch.randperm(count, generator=source, device=source.device).tolist()
                  for _ in range(self.epochs)]  # fmt: skip
        return [rows[i : i + n] for rows in epochs for i in range(0, len(rows), n)]

    def next_prompts(self, count: int) -> list[list[int]]:
        """``count`` prompts that were not read before.

        Raises:
            ValueError: an iterator that ended.
        """
        prompts = [list(row) for row in itertools.islice(self._prompts, count)]
        self._read += len(prompts)
        if len(prompts) < count:
            raise ValueError(
                f"The prompts ran out: {len(prompts)} were left and a rollout takes {count}. Give "
                "a sequence, which is repeated, or an endless iterator."
            )
        return prompts

    def read_in_parts(
        self, model: nn.Module, batch: Mapping[str, Tensor], temperature: float
    ) -> list[Tensor | None]:
        """``read_responses`` of as many rows at once as the step has, so that numbers are alike."""
        n = self.minibatch_size
        parts = [read_responses(model, {k: v[i : i + n] for k, v in batch.items()}, temperature)
                 for i in range(0, len(batch["labels"]), n)]  # fmt: skip
        return [None if column[0] is None else torch.cat(column) for column in zip(*parts)]

    def state_dict(self) -> dict:
        """All that a run needs to go on bit for bit, in the middle of a rollout, too."""
        return {
            "batch": self.batch, "order": self.order, "history": self.history,
            "generator": self.generator.get_state(), "seed": self._seed, "read": self._read,
        }  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        """Go on where ``state`` was taken.

        Raises:
            ValueError: prompts that were read farther, or that end before.
        """
        if self._sequence is not None:
            self._seed, self._read = state["seed"], 0
            self._prompts = self._shuffled()
        skipped = state["read"] - self._read
        there = sum(1 for _ in itertools.islice(self._prompts, max(skipped, 0)))
        if there != skipped:
            raise ValueError(
                f"The checkpoint had read {state['read']} prompts, and here {self._read} were read "
                f"and {there} came after: give the iterator as it was at the start."
            )
        self._read = state["read"]
        device = model_device(self.model)
        self.batch = {name: tensor.to(device) for name, tensor in state["batch"].items()}
        self.order = [list(rows) for rows in state["order"]]
        self.history = [dict(row) for row in state["history"]]
        self.generator.set_state(state["generator"])
