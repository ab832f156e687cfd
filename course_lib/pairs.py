"""Pairs of responses to a prompt, one preferred: from texts to token ids, and to batches.

DPO (``course_lib.dpo``) compares probabilities of two responses to the *same* prompt, so both rows
of a pair begin with the same tokens, also where the tokenizer would merge the prompt's end with the
start of a response, and also after a cut. What cannot be compared is left out and counted.
Simplified away: prompts of several turns as texts (as ids any prompt will do), ties.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from course_lib.chat import Format, course_format, encode_chat, turns
from course_lib.ops import IGNORE_INDEX
from course_lib.rows import collate


class Pair(NamedTuple):
    """Token ids of a prompt, of the preferred response and of the other, with what ends them."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass
class PairCounts:
    """What became of the pairs that were given; the first reason to leave one out counts."""

    given: int = 0
    kept: int = 0
    empty: int = 0  # left out: a response, or the prompt, without a token
    equal: int = 0  # left out: two responses of the same tokens
    no_room: int = 0  # left out: nothing of a response, or of the prompt, is left after the cut
    cut_equal: int = 0  # left out: two responses that differ only where they were cut
    cut: int = 0  # kept, and shorter than they were
    merged: int = 0  # kept, and the text as a whole has other tokens than prompt and response


PairBatch = dict[str, Tensor]
"""What ``collate_pairs`` gives: B pairs of rows of up to T tokens, the preferred response first.

``input_ids``, ``labels`` and ``attention_mask``, (B, 2, T), padded on the right, and with a
reference ``ref_chosen_logps`` and ``ref_rejected_logps``, (B,).
"""


# --- from texts to ids --------------------------------------------------------------------------


def encode_pairs(
    tokenizer, texts: Sequence[tuple[str, str, str]], form: Format = course_format, *,
    max_tokens: int | None = None, keep: str = "start",
) -> tuple[list[Pair], PairCounts]:  # fmt: skip
    """Pairs of token ids of (prompt, preferred response, other response).

    Prompt and response are tokenised apart where they would merge (``chat.encode_chat``): a policy
    reads the prompt alone and writes its own tokens. The course's format never merges them, as
    prompts end in a special token there.

    Args:
        max_tokens, keep: see ``usable_pairs``.

    Returns:
        The pairs that can be compared, and how many of the others there were. A response without a
        word has its end token, where the format writes one, and is kept as any other.

    Example: a word a token; 2 is ``<|user|>``, 3 ``<|assistant|>``, 0 ``<|end|>``.
        >>> pairs, counts = encode_pairs(tokenizer, [("plural: dog", "dogs", "dog"),
        ...                                          ("plural: dog", "dogs", "dogs")])
        >>> pairs
        [Pair(prompt=[2, 4, 5, 3], chosen=[6, 0], rejected=[5, 0])]
        >>> counts.given, counts.kept, counts.equal
        (2, 1, 1)
    """
    encoded, merged = [], []
    for prompt, *responses in texts:
        rows = [encode_chat(tokenizer, turns(prompt, response), form) for response in responses]
        start = next((i for i, label in enumerate(rows[0]["labels"]) if label != IGNORE_INDEX),
                     len(rows[0]["labels"]))  # fmt: skip
        chosen, rejected = (row["input_ids"] for row in rows)
        encoded.append(Pair(chosen[:start], chosen[start:], rejected[start:]))
        merged.append(any(
            list(tokenizer(form(turns(prompt, text), False), add_special_tokens=False)["input_ids"])
            != row["input_ids"] for text, row in zip(responses, rows)
        ))  # fmt: skip
    return _sift(encoded, merged, max_tokens, keep)


def usable_pairs(
    pairs: Sequence[Pair], *, max_tokens: int | None = None, keep: str = "start"
) -> tuple[list[Pair], PairCounts]:
    """The pairs that can be compared, cut to a length, and how many of the others there were.

    Args:
        pairs: of ``Pair``, or (prompt, chosen, rejected) as token ids.
        max_tokens: the most tokens of a row, prompt and response together; None = no cut.
        keep: which end of a row is kept. ``"start"``: responses lose their end. ``"end"``: the
            prompt loses its start, the same tokens in both rows, for the two are compared on one
            prompt; trl cuts each row by itself.

    Raises:
        ValueError: another word for ``keep``, a ``max_tokens`` below 2.

    Example: 5 6 is the prompt.
        >>> usable_pairs([([5, 6], [7], [8])], max_tokens=2, keep="end")[0]
        [Pair(prompt=[6], chosen=[7], rejected=[8])]
        >>> usable_pairs([([5, 6], [7, 1], [7, 2])], max_tokens=3)[1].cut_equal
        1
    """
    return _sift([Pair(*map(list, pair)) for pair in pairs], [False] * len(pairs), max_tokens, keep)


def _sift(
    pairs: Sequence[Pair], merged: Sequence[bool], max_tokens: int | None, keep: str
) -> tuple[list[Pair], PairCounts]:  # fmt: skip
    if keep not in ("start", "end") or (max_tokens is not None and max_tokens < 2):
        raise ValueError(
            'keep must be "start" or "end", and max_tokens None or at least 2, a token of the '
            f"prompt and one of the response; got {keep!r} and {max_tokens}."
        )
    kept, counts = [], PairCounts(given=len(pairs))
    for pair, was_merged in zip(pairs, merged, strict=True):
        short = pair if max_tokens is None else _cut(pair, max_tokens, keep)
        if not all(pair):
            counts.empty += 1
        elif pair.chosen == pair.rejected:
            counts.equal += 1
        elif not all(short):
            counts.no_room += 1
        elif short.chosen == short.rejected:
            counts.cut_equal += 1
        else:
            kept.append(short)
            counts.cut += short != pair
            counts.merged += was_merged
    counts.kept = len(kept)
    return kept, counts


def _cut(pair: Pair, max_tokens: int, keep: str) -> Pair:
    prompt, chosen, rejected = pair
    if keep == "start":
        room = max(0, max_tokens - len(prompt))
        return Pair(prompt, chosen[:room], rejected[:room])
    too_many = max(0, len(prompt) + max(len(chosen), len(rejected)) - max_tokens)
    return Pair(prompt[too_many:], chosen, rejected)


# --- batches ------------------------------------------------------------------------------------


def collate_pairs(
    pairs: Sequence[Pair], pad_token_id: int,
    ref_logps: tuple[Tensor, Tensor] | None = None,
) -> PairBatch:  # fmt: skip
    """A batch of pairs, padded on the right; both rows of a pair go through a model together.

    Args:
        ref_logps: the reference's log-probabilities of the preferred responses and of the others,
            (B,) each.

    Raises:
        ValueError: no pairs, one without a prompt or a response, log-probabilities of another
            shape.

    Example: 5 6 is answered by 8 or by 9 9, 7 by 8 or by 9.
        >>> batch = collate_pairs([([5, 6], [8], [9, 9]), ([7], [8], [9])], pad_token_id=0)
        >>> batch["input_ids"]
        tensor([[[5, 6, 8, 0],
                 [5, 6, 9, 9]],
        <BLANKLINE>
                [[7, 8, 0, 0],
                 [7, 9, 0, 0]]])
        >>> batch["labels"]
        tensor([[[-100, -100,    8, -100],
                 [-100, -100,    9,    9]],
        <BLANKLINE>
                [[-100,    8, -100, -100],
                 [-100,    9, -100, -100]]])
        >>> batch["attention_mask"]
        tensor([[[1, 1, 1, 0],
                 [1, 1, 1, 1]],
        <BLANKLINE>
                [[1, 1, 0, 0],
                 [1, 1, 0, 0]]])
    """
    if bad := [i for i, pair in enumerate(pairs) if len(pair) != 3 or not all(map(len, pair))]:
        raise ValueError(
            f"Pairs {bad[:10]} lack a token of the prompt or of a response: there is nothing to "
            "compare. See usable_pairs, which leaves them out and counts them."
        )
    rows = [{"input_ids": [*prompt, *response],
             "labels": [IGNORE_INDEX] * len(prompt) + list(response)}
            for prompt, *responses in pairs for response in responses]  # fmt: skip
    batch = collate(rows, pad_token_id)
    batch = {name: tensor.view(len(pairs), 2, -1) for name, tensor in batch.items()}  # (B, 2, T)
    if ref_logps is not None:
        if any(logps.shape != (len(pairs),) for logps in ref_logps):
            raise ValueError(
                f"ref_logps must be two tensors ({len(pairs)},), one number a pair, got "
                f"{[tuple(logps.shape) for logps in ref_logps]}."
            )
        batch["ref_chosen_logps"], batch["ref_rejected_logps"] = ref_logps
    return batch


class PairBatches:
    """Endless batches of pairs in random order, for ``training.train``.

    Args:
        pairs: N pairs.
        ref_logps: (N,) each, see ``collate_pairs``.
        generator: of the order; each time through the pairs it is another.

    Raises:
        ValueError: no pairs, a batch size below 1, log-probabilities of another number of pairs.
    """

    def __init__(
        self, pairs: Sequence[Pair], ref_logps: tuple[Tensor, Tensor], pad_token_id: int,
        batch_size: int, generator: Generator,
    ):  # fmt: skip
        if not pairs or batch_size < 1 or any(len(logps) != len(pairs) for logps in ref_logps):
            raise ValueError(
                f"{len(pairs)} pairs, {[len(logps) for logps in ref_logps]} log-probabilities of "
                f"the reference, batch_size={batch_size}: expected at least one pair, as many "
                "log-probabilities of either response, and batches of at least one."
            )
        self.pairs, self.ref_logps = list(pairs), ref_logps
        self.pad, self.size, self.generator = pad_token_id, batch_size, generator
        self.order: list[int] = []

    def __iter__(self) -> Iterator[PairBatch]:
        return self

    def __next__(self) -> PairBatch:
        while len(self.order) < self.size:
            self.order += torch.randperm(len(self.pairs), generator=self.generator).tolist()
        now, self.order = self.order[: self.size], self.order[self.size :]
        ref = tuple(logps[now] for logps in self.ref_logps)
        return collate_pairs([self.pairs[i] for i in now], self.pad, ref)

    def state_dict(self) -> dict:
        """Where the stream stands, for a checkpoint."""
        return {"generator": self.generator.get_state(), "order": list(self.order)}

    def load_state_dict(self, state: dict) -> None:
        """Go on where ``state_dict`` was taken."""
        self.generator.set_state(state["generator"])
        self.order = list(state["order"])
