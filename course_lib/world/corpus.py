"""The corpus: a seeded stream of documents, tokenised and packed into rows, over processes.

Shard ``i`` of corpus ``seed`` is a pure function of ``(seed, i)``, so any number of processes
gives the same rows in the same order. Documents are packed whole (best-fit packing, Ding et al.,
"Fewer Truncations Improve Language Modeling", ICML 2024), so an answer never loses its question.
"""

import bisect
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from pathlib import Path

import numpy as np

from course_lib.files import read_text, replacing
from course_lib.world.documents import KINDS, MIXES
from course_lib.world.shards import in_order

DOCUMENTS_PER_SHARD = 2000


@dataclass(frozen=True)
class Document:
    kind: str
    text: str


@lru_cache
def _document_weights(mix: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """How often to draw each kind so that its share of the *characters* is as in the mix."""
    weights = []
    for kind, share in MIXES[mix].items():
        rng = random.Random(f"length of {kind}")
        mean_length = sum(len(KINDS[kind](rng)) for _ in range(200)) / 200
        weights.append(share / mean_length)
    return tuple(MIXES[mix]), tuple(weights)


def shard_documents(seed: int, shard: int, mix: str = "main") -> Iterator[Document]:
    """The documents of one shard, always the same for the same arguments."""
    rng = random.Random(f"corpus {seed} shard {shard}")
    kinds, weights = _document_weights(mix)
    for _ in range(DOCUMENTS_PER_SHARD):
        kind = rng.choices(kinds, weights)[0]
        yield Document(kind, KINDS[kind](rng))


def documents(seed: int, first_shard: int = 0) -> Iterator[Document]:
    """An endless stream of documents. Training uses seed 0 upwards, validation ``VALIDATION_SEED``.

    Example:
        >>> next(documents(0)).kind in KINDS
        True
    """
    shard = first_shard
    while True:
        yield from shard_documents(seed, shard)
        shard += 1


VALIDATION_SEED = 10_000_000
"""Documents of this seed are never trained on."""


def pack(
    token_lists: list[list[int]], row_length: int, end_id: int, rng: random.Random | None = None
) -> np.ndarray:
    """Pack whole documents into rows, the longest first, each into the fullest row it fits.

    A document is followed by ``end_id``; what stays free at the end of a row is filled with
    ``end_id`` too. A document longer than a row is cut.

    Args:
        token_lists: one list of ids a document.
        row_length: T.
        rng: shuffles the documents of each row, so that short ones begin rows too; by default the
            longest comes first.

    Returns:
        (rows, T) uint16.

    Example:
        >>> pack([[5, 6, 7], [8], [9, 9]], 4, 0).tolist()
        [[5, 6, 7, 0], [9, 9, 0, 8]]
    """
    rows: list[list[list[int]]] = []  # the pieces of each row
    free: list[tuple[int, int]] = []  # (free places, row), sorted
    for tokens in sorted(token_lists, key=len, reverse=True):
        piece = (tokens + [end_id])[:row_length]
        i = bisect.bisect_left(free, (len(piece), -1))
        if i < len(free):
            places, row = free.pop(i)
        elif free and free[-1][0] == len(piece) - 1:  # fits without its end mark
            places, row = free.pop()
            piece = piece[:-1]
        else:
            places, row = row_length, len(rows)
            rows.append([])
        rows[row].append(piece)
        if places > len(piece):
            bisect.insort(free, (places - len(piece), row))
    array = np.full((len(rows), row_length), end_id, dtype=np.uint16)
    for row, pieces in zip(array, rows, strict=True):
        last = [] if pieces[-1][-1] == end_id else [pieces.pop()]  # no end mark: stays last
        if rng is not None:
            rng.shuffle(pieces)
        tokens = sum(pieces + last, [])
        row[: len(tokens)] = tokens
    return array


def _packed_shard(
    shard: int, *, seed: int, tokenizer_json: str, row_length: int, mix: str
) -> np.ndarray:
    """The rows of one shard; all they depend on is an argument, so streams may alternate."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)  # 3 ms of the 500 that a shard takes
    texts = [d.text for d in shard_documents(seed, shard, mix)]
    ids = [e.ids for e in tokenizer.encode_batch_fast(texts)]
    rng = random.Random(f"rows {seed} {shard}")
    rows = pack(ids, row_length, tokenizer.token_to_id("<|end|>"), rng)
    rng.shuffle(order := list(range(len(rows))))
    return rows[order]


def packed_rows(
    seed: int, tokenizer_path: Path, row_length: int = 256, processes: int = 2,
    mix: str = "main",
) -> Iterator[np.ndarray]:  # fmt: skip
    """An endless stream of packed shards of one of ``MIXES``, each (rows, row_length) uint16.

    The rows do not depend on ``processes``. Memory is constant: a few shards at a time.
    """
    packed = partial(
        _packed_shard, seed=seed, row_length=row_length, mix=mix,
        tokenizer_json=read_text(tokenizer_path),
    )  # fmt: skip
    yield from in_order(packed, count(), processes)


def write_rows(
    path: Path, tokens: int, seed: int, tokenizer_path: Path, row_length: int = 256,
    processes: int = 2, mix: str = "main",
) -> np.ndarray:  # fmt: skip
    """Write at least ``tokens`` tokens of packed rows to ``path`` (.npy) and map it.

    The file is renamed into place when complete. An existing file is returned as it is.

    Returns:
        (rows, row_length) uint16, memory-mapped.
    """
    from tqdm.auto import tqdm

    path = Path(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = -(-tokens // row_length)
        done, tokens = 0, rows * row_length
        with (
            replacing(path) as part,
            tqdm(total=tokens, unit="tok", unit_scale=True, desc="corpus") as bar,
        ):
            array = np.lib.format.open_memmap(part, "w+", np.uint16, (rows, row_length))
            for block in packed_rows(seed, tokenizer_path, row_length, processes, mix):
                block = block[: rows - done]
                array[done : done + len(block)] = block
                done += len(block)
                bar.update(block.size)
                if done == rows:
                    break
            array.flush()
    return np.load(path, mmap_mode="r")
