"""Rows of token ids and the batches they become: replay, padding, packing, mixing.

A row is what ``chat.encode_chat`` and ``document_row`` give. A stream of rows, mixed from several
sources (``mix``), becomes padded or packed batches (``batches``) for ``training.train``.
Simplified away: weights of single examples or turns; rows longer than the context are cut.
"""

import math
import warnings
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence

from course_lib.ops import IGNORE_INDEX

Row = dict[str, list[int]]
"""``input_ids`` and ``labels`` of one example, equally long; packed ones have ``position_ids``."""


def document_row(tokenizer, text: str, block_size: int) -> Row:
    """A document of the pretraining kind, every token of which is learnt, and its end: replay.

    Args:
        block_size: the most tokens; a longer document is cut, and has no end.
    """
    ids = tokenizer(
        text, add_special_tokens=False, truncation=True, max_length=block_size
    )["input_ids"]  # fmt: skip
    ids = [*ids, tokenizer.eos_token_id][:block_size]
    return {"input_ids": ids, "labels": list(ids)}


def pad_rows(rows: Sequence[Sequence[int]], value: int, side: str = "right") -> Tensor:
    """One tensor (B, T) of rows of different lengths, T the longest.

    Args:
        value: what fills the shorter rows.
        side: ``"right"`` or ``"left"``, where it stands.

    Raises:
        ValueError: no rows.

    Example:
        >>> pad_rows([[5, 6], [7]], value=0), pad_rows([[5, 6], [7]], value=0, side="left")
        (tensor([[5, 6],
                [7, 0]]), tensor([[5, 6],
                [0, 7]]))
    """
    if not rows:
        raise ValueError("There are no rows to pad: a batch needs at least one.")
    columns = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(columns, batch_first=True, padding_value=value, padding_side=side)


def collate(
    rows: Sequence[Row], pad_id: int, mask_prompt: bool = True, side: str = "right"
) -> dict[str, Tensor]:
    """A batch of rows, padded at one side.

    Args:
        rows: of ``encode_chat`` and ``document_row``, or of ``pack``.
        mask_prompt: take the loss on the labels of the rows; if False on every token, the prompts
            included.
        side: of the padding. On the left, ``position_ids`` come too, which start behind it.

    Returns:
        ``input_ids``, ``labels`` and ``attention_mask``, (B, T). Packed rows get ``position_ids``
        instead of the mask, for transformers too reads a mask and restarting positions as one
        document; each token of padding is a document of its own.

    Raises:
        ValueError: no rows, or packed ones among others.

    Example: two questions, 5 6 and 7, with the answers 8 0 and 9 0; 1 pads.
        >>> rows = [{"input_ids": [2, 5, 6, 3, 8, 0], "labels": [-100, -100, -100, -100, 8, 0]},
        ...         {"input_ids": [2, 7, 3, 9, 0], "labels": [-100, -100, -100, 9, 0]}]
        >>> batch = collate(rows, pad_id=1)
        >>> batch["input_ids"]
        tensor([[2, 5, 6, 3, 8, 0],
                [2, 7, 3, 9, 0, 1]])
        >>> batch["labels"]
        tensor([[-100, -100, -100, -100,    8,    0],
                [-100, -100, -100,    9,    0, -100]])
        >>> batch["attention_mask"]
        tensor([[1, 1, 1, 1, 1, 1],
                [1, 1, 1, 1, 1, 0]])
        >>> collate(rows, pad_id=1, mask_prompt=False)["labels"]
        tensor([[   2,    5,    6,    3,    8,    0],
                [   2,    7,    3,    9,    0, -100]])
        >>> packed = collate(pack(rows, block_size=12), pad_id=1)
        >>> packed["input_ids"], packed["position_ids"]
        (tensor([[2, 5, 6, 3, 8, 0, 2, 7, 3, 9, 0]]), tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]]))
    """
    packed = ["position_ids" in row for row in rows]
    if not rows or any(packed) != all(packed):
        raise ValueError("A batch needs rows, all of them packed or none.")
    ids = pad_rows([row["input_ids"] for row in rows], pad_id, side)
    mask = pad_rows([[1] * len(row["input_ids"]) for row in rows], 0, side)
    labels = pad_rows([row["labels"] for row in rows], IGNORE_INDEX, side)
    batch = {
        "input_ids": ids,
        "labels": labels if mask_prompt else ids.masked_fill(mask == 0, IGNORE_INDEX),
    }
    if all(packed):
        batch["position_ids"] = pad_rows([row["position_ids"] for row in rows], 0, side)
    else:
        batch["attention_mask"] = mask
        if side == "left":
            batch["position_ids"] = positions_of(mask)
    if "position_ids" in batch:  # nothing stands before a text's first token
        batch["labels"] = batch["labels"].masked_fill(batch["position_ids"] == 0, IGNORE_INDEX)
    return batch


def positions_of(attention_mask: Tensor) -> Tensor:
    """The position of each token in its text, (B, T): padding before it does not count.

    Example:
        >>> positions_of(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]))
        tensor([[0, 0, 0, 1],
                [0, 1, 2, 2]])
    """
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def pack(rows: Iterable[Row], block_size: int) -> list[Row]:
    """Put several rows into one: best fit, the longest first (Ding et al., ICML 2024).

    A row goes where the least room is left that suffices; the earliest such place wins a tie.
    Positions start anew with each row that was put in, by which models tell them apart: none sees
    another.

    Args:
        block_size: the most tokens of a packed row; a longer row is cut.

    Returns:
        Rows with ``position_ids``. The first token of each original row has no label: nothing
        stands before it.

    Example:
        >>> packed = pack([{"input_ids": [5, 6], "labels": [5, 6]},
        ...                {"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}], block_size=6)
        >>> packed[0]["input_ids"], packed[0]["labels"], packed[0]["position_ids"]
        ([7, 8, 9, 5, 6], [-100, 8, 9, -100, 6], [0, 1, 2, 0, 1])
    """
    cut = [{name: column[:block_size] for name, column in row.items()} for row in rows]
    packed: list[Row] = []
    places: dict[int, deque[Row]] = defaultdict(deque)  # free tokens -> packed rows
    for row in sorted(cut, key=lambda row: len(row["input_ids"]), reverse=True):
        length = len(row["input_ids"])
        room = next((n for n in range(length, block_size) if places[n]), block_size)
        if room < block_size:
            place = places[room].popleft()
        else:
            packed.append(place := {"input_ids": [], "labels": [], "position_ids": []})
        place["input_ids"] += row["input_ids"]
        place["labels"] += [IGNORE_INDEX, *row["labels"][1:]]
        place["position_ids"] += range(length)
        places[room - length].append(place)
    return packed


BARREN_ROWS = 1000
"""So many rows in succession without a label end a stream with an error."""


def batches(
    rows: Iterable[Row], batch_size: int, pad_id: int, *, block_size: int,
    packed: bool = False, mask_prompt: bool = True,
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    """Batches for ``sft_loss`` of ``batch_size`` rows each, until too few are left.

    Rows that keep no label when they are cut teach nothing and are left out; a warning tells their
    number after the first batch that met any, and at the end of the stream if there were more.

    Args:
        rows: a stream; see ``mix`` and ``endless``.
        block_size: the model's context, to which rows are cut.
        packed: put the rows of a batch into as few as they fit; the loss stays the same, and the
            model reads less padding.
        mask_prompt: see ``collate``.

    Raises:
        ValueError: ``BARREN_ROWS`` rows in succession keep no label.
    """
    some: list[Row] = []
    read = dropped = told = barren = 0
    for row in rows:
        row = {name: column[:block_size] for name, column in row.items()}
        read += 1
        if _has_label(row, mask_prompt):
            some.append(row)
            barren = 0
        else:
            dropped, barren = dropped + 1, barren + 1
        if barren == BARREN_ROWS:
            raise ValueError(_no_label(barren, read, block_size))
        if len(some) < batch_size:
            continue
        if dropped and not told:
            warnings.warn(_no_label(dropped, read, block_size), stacklevel=2)
            told = dropped
        yield collate(pack(some, block_size) if packed else some, pad_id, mask_prompt)
        some = []
    if dropped > told:
        warnings.warn(_no_label(dropped, read, block_size), stacklevel=2)


def _has_label(row: Row, mask_prompt: bool) -> bool:
    """Whether the loss counts any token of the row; the first is predicted by nothing."""
    if not mask_prompt:
        return len(row["input_ids"]) > 1
    return any(label != IGNORE_INDEX for label in row["labels"][1:])


def _no_label(dropped: int, read: int, block_size: int) -> str:
    return (
        f"{dropped} of the first {read} rows have no label within {block_size} tokens and are left "
        "out: their response begins later, or they are shorter than two tokens. Raise block_size, "
        "shorten the prompts, or leave such rows out of the data."
    )


# --- mixtures -----------------------------------------------------------------------------------


def mixing_rates(
    sizes: Sequence[float], cap: float = math.inf, temperature: float = 1.0
) -> list[float]:
    """How often to draw from each source (Raffel et al., 2020, section 3.5.2).

    r_m = min(e_m, K)^(1/T) / Σ_n min(e_n, K)^(1/T). T = 1 without K is proportional mixing, and
    T → ∞ (``math.inf``) equal mixing. FLAN caps at K = 3000 (Wei et al., 2022, section 2.4).

    Args:
        sizes: e_m, examples of each source.
        cap: K, sizes above which count as K.
        temperature: T.

    Returns:
        Rates that add up to 1.

    Raises:
        ValueError: no sources, a size or cap that is not positive, a temperature below 1.

    Example: capped at 40 and then square roots, 2 : 6.32.
        >>> [round(r, 3) for r in mixing_rates([4, 400], cap=40, temperature=2.0)]
        [0.24, 0.76]
    """
    if not sizes or min(sizes) <= 0 or cap <= 0 or not temperature >= 1:
        raise ValueError(
            f"Sizes and the cap must be positive and the temperature at least 1, got {sizes}, "
            f"{cap} and {temperature}."
        )
    powers = [min(size, cap) ** (1 / temperature) for size in sizes]
    return [power / sum(powers) for power in powers]


def endless(rows: Sequence[Row], generator: Generator) -> Iterator[Row]:
    """The rows over and over, each time in a new order.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("There are no rows to repeat.")
    while True:
        for i in torch.randperm(len(rows), generator=generator).tolist():
            yield rows[i]


def mix(
    sources: Sequence[Iterator[Row]], rates: Sequence[float], generator: Generator
) -> Iterator[Row]:
    """Rows drawn from the sources at random; ends when the source that is drawn has ended.

    One source may be replay: documents of the pretraining kind, whose abilities would otherwise
    be forgotten (Robins, 1995; Scialom et al., 2022).

    Args:
        rates: of ``mixing_rates``; they need not add up to 1.

    Raises:
        ValueError: not one rate a source, a negative rate, or none above 0.
    """
    if len(sources) != len(rates) or min(rates, default=-1) < 0 or sum(rates) <= 0:
        raise ValueError(
            f"{len(sources)} sources need as many rates, none negative and one above 0, got "
            f"{list(rates)}."
        )
    weights = torch.tensor(rates, dtype=torch.float64)

    def stream() -> Iterator[Row]:
        while True:
            source = int(torch.multinomial(weights, 1, generator=generator))
            try:
                yield next(sources[source])
            except StopIteration:
                return

    return stream()
