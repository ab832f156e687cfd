"""Vectors in clusters, and how rankings of them are compared."""

import numpy as np

from course_lib.rag.hnsw import HNSWIndex
from course_lib.rag.index import FlatIndex
from course_lib.rag.ivf import IVFIndex, IVFPQIndex
from course_lib.rag.pq import PQIndex

OWN = {
    "flat": (FlatIndex, {}),
    "ivf": (IVFIndex, {"nlist": 4, "nprobe": 2}),
    "hnsw": (HNSWIndex, {"M": 4, "efConstruction": 20, "efSearch": 20}),
    "pq": (PQIndex, {"m": 4, "nbits": 3}),
    "ivfpq": (IVFPQIndex, {"nlist": 4, "nprobe": 2, "m": 4, "nbits": 3}),
}
"""Kind -> class and small parameters, for vectors of 8 numbers."""


def clustered(seed: int, n: int, d: int, clusters: int = 100, noise: float = 1.0) -> np.ndarray:
    """(n, d) float32 of length 1, around random centres that are ``noise`` wide."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, d))
    x = centres[rng.integers(clusters, size=n)] + noise * rng.normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def recall(ids: np.ndarray, truth: np.ndarray) -> float:
    """The share of the true ids (Q, K) that were found."""
    return float(np.mean([np.isin(right, found).mean() for found, right in zip(ids, truth)]))


def assert_same_ranking(ours, theirs, tolerance: float = 1e-5) -> None:
    """Scores and ids (Q, K) of two searches: the scores are equal, and so are the ids but where
    scores are, within the tolerance: two such may change places, and at the last place either of
    them may be the one that is in."""
    (scores, ids), (their_scores, their_ids) = ours, theirs
    np.testing.assert_allclose(scores, their_scores, atol=tolerance, rtol=0)
    for row in range(len(ids)):
        mine = dict(zip(ids[row].tolist(), scores[row].tolist()))
        yours = dict(zip(their_ids[row].tolist(), their_scores[row].tolist()))
        for one, other in ((mine, yours), (yours, mine)):
            for name, score in one.items():
                if name in other:
                    assert abs(score - other[name]) <= tolerance, (row, name)
                else:
                    assert abs(score - scores[row][-1]) <= 2 * tolerance, (row, name)


def clear_of_ties(scores: np.ndarray, k: int = 1, gap: float = 1e-4) -> np.ndarray:
    """Rows of (n, c) whose k-th and next highest scores differ by more than ``gap``: rounding does
    not decide which are their k best."""
    ordered = -np.sort(-scores, axis=1)
    return ordered[:, k - 1] - ordered[:, k] > gap
