"""Vector indexes: the interface that all share, and the flat one, which compares with everything.

    index = FlatIndex(d)           # or IVFIndex, HNSWIndex, PQIndex, IVFPQIndex, FaissIndex
    index.train(x)                 # what there is to learn of vectors like those to come
    ids = index.add(x, sources)    # 0, 1, 2, ...: none is given twice
    scores, ids = index.search(queries, k)
    index.remove("manual.md")      # all vectors of that source

Letters: n vectors of d numbers (n, d), Q queries (Q, d), K = min(k, n) hits each. Vectors are
arrays of NumPy or tensors; inside they are float32. A score is an inner product, or with
``metric="cosine"`` that of the vectors scaled to length 1, where a vector of zeros has score 0
with everything. The higher is the nearer; of equal scores the smaller id, the older vector's, comes
first. Parameters have the names of FAISS (Douze et al. 2024, https://arxiv.org/abs/2401.08281).
Simplified away: distances (for vectors of length 1 they rank as inner products do); threads; a
search in many queries at once, but for the flat index.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

NO_HIT = np.iinfo(np.int64).max
"""The id where a query has fewer than K hits. Looking it up fails; -1 is the last document."""
LONGEST = 1e19
"""Vectors may not be longer: an inner product could exceed float32."""
METRICS = ("ip", "cosine")
Vectors = np.ndarray | Tensor
Hits = Iterator[tuple[np.ndarray, np.ndarray]]
"""For each query scores and ids, best first."""


def normalised(x: np.ndarray) -> np.ndarray:
    """Vectors (n, d) scaled to length 1; those of zeros stay."""
    lengths = lengths_of(x).astype(np.float32)
    return x / np.where(lengths > 0, lengths, np.float32(1))[:, None]


def lengths_of(x: np.ndarray) -> np.ndarray:
    """(n, d) -> (n,), in float64, where no square of a float32 overflows or vanishes."""
    return np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))


def blocks(n: int, width: int, numbers: int = 2**24) -> Iterator[slice]:
    """Slices of n rows so that a block of rows of this width has about so many numbers at most."""
    step = max(1, numbers // max(1, width))
    return (slice(start, start + step) for start in range(0, n, step))


def top_k(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest of scores (n,) with their ids, best first, of equals the smaller id first.

    >>> top_k(np.array([1.0, 3.0, 3.0]), np.array([7, 9, 8]), 2)[1].tolist()
    [8, 9]
    """
    if len(scores) > k:
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        kept = scores >= kth  # and all its equals
        scores, ids = scores[kept], ids[kept]
    order = np.lexsort((ids, -scores))[:k]
    return scores[order], ids[order]


def hits(scores: np.ndarray, ids: np.ndarray) -> list[list[tuple[int, float]]]:
    """What ``search`` gave as a list of (id, score) for each query, without places of no hit."""
    return [[(i, s) for i, s in zip(*row) if i != NO_HIT]
            for row in zip(ids.tolist(), scores.tolist())]  # fmt: skip


class Index:
    """What all indexes share: checks, ids, sources. Kinds fill in what begins with an underscore.

    Args:
        d: length of a vector.
        metric: "ip" (inner product) or "cosine".
        generator: of all that is drawn; by default one with seed 0.

    Raises:
        ValueError: a parameter that is out of its range (named).
    """

    kind: str
    PARAMETERS: tuple[str, ...] = ()
    """Names of those that are whole numbers from 1; all that is needed to make the index anew."""
    ROWS: tuple[str, ...] = ("ids", "source_of")
    """Names of the arrays that have a row for each vector."""
    LEARNT: tuple[str, ...] = ()
    """Names of the arrays that ``train`` makes; None before."""

    def __init__(
        self, d: int, *, metric: str = "ip", generator: torch.Generator | None = None
    ) -> None:
        self.d, self.metric = d, metric
        self.generator = generator or torch.Generator().manual_seed(0)
        self.check_parameters()
        self.ids = np.zeros(0, np.int64)
        self.source_of = np.zeros(0, np.int32)  # place in source_names; -1: none
        self.source_names: list[str] = []
        self.next_id = 0

    # --- the interface --------------------------------------------------------------------------

    def train(self, x: Vectors) -> None:
        """Learn what the index needs to know of vectors like those to come.

        Args:
            x: (n, d), a sample of them or all.

        Raises:
            ValueError: another length than d, NaN or infinity, too few vectors for what is to be
                learnt, or an index that already holds vectors.
        """
        if len(self.ids):
            raise ValueError(
                f"The index holds {len(self.ids)} vectors, stored by what it had learnt: train "
                "before the first add, or make a new index."
            )
        x = self._checked(x, "x")
        self._check_enough(x)
        self._train(x)

    def add(self, x: Vectors, sources: Sequence[str] | str | None = None) -> np.ndarray:
        """Store vectors.

        Args:
            x: (n, d).
            sources: what each comes from, e.g. the path of its document, or one name for all; by
                it they can be removed.

        Returns:
            (n,) their ids, which count on from the last one ever given.

        Raises:
            ValueError: another length than d, NaN or infinity, sources of another number, an
                index that is not trained. Nothing has been stored then.
        """
        x = self._checked(x, "x")
        self._check_trained()
        names = [sources] * len(x) if isinstance(sources, str) else sources
        if names is not None and len(names) != len(x):
            raise ValueError(
                f"{len(names)} sources for {len(x)} vectors: give one for each, or one for all."
            )
        if names is not None and not all(isinstance(name, str) for name in names):
            raise ValueError("A source is a string, such as the path of a document.")
        ids = np.arange(self.next_id, self.next_id + len(x))
        known = {name: i for i, name in enumerate(self.source_names)}
        numbers = [-1] * len(x) if names is None else [
            known.setdefault(name, len(known)) for name in names
        ]  # fmt: skip
        self._append({"ids": ids, "source_of": np.array(numbers, np.int32), **self._encode(x)})
        self.source_names, self.next_id = list(known), self.next_id + len(x)
        return ids

    def search(self, queries: Vectors, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest vectors.

        Args:
            queries: (Q, d).
            k: how many each; all vectors where there are fewer.

        Returns:
            scores (Q, K) float32 and ids (Q, K) int64, best first, K = min(k, n). Where an
            approximate index finds fewer, the row ends with scores -inf and ids ``NO_HIT``;
            ``hits`` leaves them out.

        Raises:
            ValueError: another length than d, NaN or infinity, k < 1, an index that is empty or
                not trained.
        """
        queries = self._checked(queries, "queries")
        _check_count("k", k)
        self.check_parameters()
        self._check_trained()
        if not len(self):
            raise ValueError("The index is empty: add vectors before you search.")
        k = min(int(k), len(self))
        scores = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), NO_HIT, np.int64)
        for row, (found, names) in enumerate(self._search(queries, k)):
            scores[row, : len(found)], ids[row, : len(names)] = found, names
        return scores, ids

    def remove(self, source: str) -> np.ndarray:
        """Take all vectors of a source out.

        Returns:
            Their ids, which no vector will have again.

        Raises:
            ValueError: no vector is of this source.
        """
        sources = self.sources
        if source not in sources:
            known = ", ".join(map(repr, sources[:5])) or "none"
            raise ValueError(
                f"No vector has the source {source!r}; the index has {len(sources)}: {known}"
                f"{', ...' if len(sources) > 5 else ''}."
            )
        gone = self.source_of == self.source_names.index(source)
        ids = np.sort(self.ids[gone])
        self._drop(gone)
        return ids

    def __len__(self) -> int:
        """How many vectors can be found."""
        return len(self.ids)

    @property
    def sources(self) -> list[str]:
        """Those that have vectors now, in the order in which they came."""
        return [self.source_names[i] for i in np.unique(self.source_of) if i >= 0]

    @property
    def parameters(self) -> dict[str, int | str]:
        """All that ``type(self)`` is called with to make the same index, empty."""
        return {name: getattr(self, name) for name in ("d", *self.PARAMETERS, "metric")}

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that the index keeps."""
        return sum(array.nbytes for array in self.arrays().values())

    # --- for files ------------------------------------------------------------------------------

    def arrays(self) -> dict[str, np.ndarray]:
        """All that it has learnt and stored, by name."""
        names = [name for name in self.LEARNT if getattr(self, name) is not None]
        return {name: getattr(self, name) for name in (*names, *self.ROWS)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over the ``arrays`` of an index with the same parameters."""
        for name in (*self.LEARNT, *self.ROWS):
            setattr(self, name, arrays.get(name))

    # --- what kinds fill in ---------------------------------------------------------------------

    def _train(self, x: np.ndarray) -> None:
        """Nothing to learn, unless a kind does."""

    def _encode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """What is stored of each vector: the kind's own ``ROWS``."""
        raise NotImplementedError

    def _search(self, queries: np.ndarray, k: int) -> Hits:
        """For each query at most k scores and ids, best first."""
        raise NotImplementedError

    def _least(self) -> dict[str, int]:
        """How many vectors training takes at least, by what asks for so many."""
        return {}

    def _append(self, new: dict[str, np.ndarray]) -> None:
        for name in self.ROWS:
            setattr(self, name, np.concatenate([getattr(self, name), new[name]]))

    def _drop(self, gone: np.ndarray) -> None:
        """Forget the rows where ``gone`` (n,) is True."""
        for name in self.ROWS:
            setattr(self, name, getattr(self, name)[~gone])

    # --- checks ---------------------------------------------------------------------------------

    def check_parameters(self) -> None:
        """Parameters may be changed between searches, so each one looks at them."""
        if self.metric not in METRICS:
            raise ValueError(f"metric={self.metric!r}: choose from {', '.join(METRICS)}.")
        for name in ("d", *self.PARAMETERS):
            value = getattr(self, name)
            _check_count(name, value)
            setattr(self, name, int(value))  # one of NumPy's is no JSON

    def _check_trained(self) -> None:
        if any(getattr(self, name) is None for name in self.LEARNT):
            raise ValueError("The index is not trained: call train(x) with vectors like yours.")

    def _check_enough(self, x: np.ndarray) -> None:
        for name, least in self._least().items():
            if len(x) < least:
                raise ValueError(
                    f"{len(x)} vectors are too few to learn {name} = {least} centroids: give at "
                    "least as many vectors (better 40 times as many), or make it smaller."
                )

    def _checked(self, x: Vectors, name: str) -> np.ndarray:
        """As float32 (n, d), scaled to length 1 where the metric is cosine."""
        if isinstance(x, Tensor):
            x = x.detach().cpu().float().numpy()
        with np.errstate(over="ignore"):  # too large for float32: infinity, refused below
            x = np.ascontiguousarray(x, np.float32)
        if x.ndim != 2 or x.shape[1] != self.d:
            raise ValueError(
                f"{name} has the shape {x.shape}; this index takes (n, {self.d}): vectors of "
                f"{self.d} numbers, as rows. Are they of the same embedding model?"
            )
        lengths = lengths_of(x)
        if (bad := np.flatnonzero(~(lengths < LONGEST))).size:
            what = (f"is longer than {LONGEST:g}" if np.isfinite(lengths[bad[0]])
                    else "holds NaN or infinity")  # fmt: skip
            raise ValueError(
                f"{name}: vector {bad[0]} {what} ({bad.size} of {len(x)} do). Nothing was done; "
                "look at what the embedding model was given."
            )
        return normalised(x) if self.metric == "cosine" else x


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a whole number from 1, not {value!r}.")


class FlatIndex(Index):
    """Every vector, compared with every query: exact, n · d products a query.

    As ``faiss.IndexFlatIP``. Nothing is learnt: ``train`` only looks at the vectors.
    """

    kind = "flat"
    ROWS = (*Index.ROWS, "vectors")

    def __init__(self, d: int, **settings) -> None:
        super().__init__(d, **settings)
        self.vectors = np.zeros((0, d), np.float32)

    def _encode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        return {"vectors": x}

    def _search(self, queries: np.ndarray, k: int) -> Hits:
        for rows in blocks(len(queries), len(self.vectors)):
            for scores in queries[rows] @ self.vectors.T:  # (n,) of the block's (Q, n)
                yield top_k(scores, self.ids, k)
