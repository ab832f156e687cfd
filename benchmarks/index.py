"""Our indexes beside FAISS: the same vectors and parameters; recall, time a query, size.

Ours answer one query after the other in NumPy, but for the flat one; FAISS's are compiled, and each
has as many threads as torch. The size is that of the file's arrays, whole vectors included where a
kind keeps them. Recall is the share of the ten true neighbours that are found; the vectors lie in
clusters, as those of texts do.
"""

import faiss
import numpy as np
import torch

from benchmarks.measure import compare, seconds, table
from course_lib.rag.faiss_index import OWN, FaissIndex
from course_lib.rag.index import FlatIndex, Index, normalised

SIZES = 10_000, 100_000
D, QUERIES, K = 64, 100, 10
ALIKE = 0.05
"""Recalls may differ by so much, of one draw of each."""


def parameters(n: int) -> dict[str, dict[str, int]]:
    """Kind -> the same for both sides: √n lists of √n vectors, codes of 16 bytes."""
    lists, codes = {"nlist": round(n**0.5), "nprobe": 8}, {"m": 16, "nbits": 8}
    graph = {"M": 16, "efConstruction": 40, "efSearch": 32}
    return {"flat": {}, "ivf": lists, "hnsw": graph, "pq": codes, "ivfpq": lists | codes}


def vectors(n: int, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(n, D) and (QUERIES, D) of length 1, about a hundred around each of some random centres."""
    centres = torch.randn(max(2, n // 100), D, generator=generator)
    of = torch.randint(len(centres), (n + QUERIES,), generator=generator)
    x = centres[of] + torch.randn(n + QUERIES, D, generator=generator)
    x = normalised(x.numpy())
    return x[:n], x[n:]


def built(index: Index, x: np.ndarray) -> float:
    """Seconds to train and fill it."""
    return seconds(lambda: (index.train(x), index.add(x)))


def recall(index: Index, queries: np.ndarray, truth: np.ndarray) -> float:
    """The share of the true ids (Q, K) that it finds."""
    found = index.search(queries, K)[1]
    return float(np.mean([np.isin(right, ids).mean() for right, ids in zip(truth, found)]))


def main(model: torch.nn.Module, peak: float, rounds: int = 11) -> str:
    """Time searches and return the table. Neither ``model`` nor ``peak`` is asked."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    lines = []
    for n in SIZES:
        x, queries = vectors(n, torch.Generator().manual_seed(0))
        exact = FlatIndex(D)
        exact.add(x)
        truth = exact.search(queries, K)[1]
        for kind, settings in parameters(n).items():
            pair = OWN[kind](D, **settings), FaissIndex(D, kind, **settings)
            building = [built(index, x) for index in pair]
            recalls = [recall(index, queries, truth) for index in pair]
            assert abs(recalls[0] - recalls[1]) <= ALIKE, f"{kind}: the recalls are {recalls}"
            ours, theirs = (lambda i=index, q=queries: i.search(q, K) for index in pair)
            result = compare(ours, theirs, rounds)
            low, high = result.quartiles
            lines.append([
                kind, f"{n:,}", *(f"{r:.2f}" for r in recalls),
                f"{1000 * result.seconds / QUERIES:.3f}", f"{result.ratio:.2f}",
                f"{low:.2f}-{high:.2f}", *(f"{index.nbytes / 1e6:.1f}" for index in pair),
                *(f"{s:.1f}" for s in building),
            ])  # fmt: skip
    head = ["index", "vectors", "recall", "theirs", "ms/query", "ratio", "quartiles", "MB",
            "their MB", "s to build", "theirs"]  # fmt: skip
    return table(f"indexes / FAISS's, {D} numbers a vector, {K} hits", head, lines)
