"""Product quantisation: a vector stored as m small numbers.

Jégou et al. 2011, "Product Quantization for Nearest Neighbor Search". A vector is cut into m parts;
each part is replaced by the nearest of 2^nbits codewords, learnt by k-means, and only the
codeword's number is kept. A query stays as it is (asymmetric distance computation): its inner
products with all codewords are m small tables, and the score of a stored vector is a sum of m of
their entries.
Simplified away: codes of fewer than 8 bits are packed by FAISS, here each takes a byte; the
rotation that would make the parts alike (OPQ).
"""

import numpy as np
import torch

from course_lib.rag.index import Hits, Index, top_k
from course_lib.rag.kmeans import kmeans, nearest

MAX_BITS = 8
"""A code is a byte."""


def cut(x: np.ndarray, m: int) -> np.ndarray:
    """(n, d) -> (m, n, d/m)."""
    return x.reshape(len(x), m, x.shape[1] // m).transpose(1, 0, 2)


def learn_codebooks(
    x: np.ndarray, m: int, nbits: int, generator: torch.Generator
) -> np.ndarray:
    """(n, d) -> (m, 2^nbits, d/m): k-means on each part of its own."""
    parts = map(np.ascontiguousarray, cut(x, m))
    return np.stack([kmeans(p, 2**nbits, generator=generator, iterations=25) for p in parts])


def encode(x: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """(n, d) -> (n, m) uint8: the number of the nearest codeword of each part."""
    pairs = zip(cut(x, len(codebooks)), codebooks)
    return np.stack([nearest(part, book) for part, book in pairs], axis=1).astype(np.uint8)


def decode(codes: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """(n, m) -> (n, d): the codewords in a row, which is all that is left of the vectors."""
    return np.concatenate([book[column] for book, column in zip(codebooks, codes.T)], axis=1)


def inner_product_tables(q: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """(d,) -> (m, 2^nbits): each part of the query with each codeword of that part."""
    return np.einsum("mkd,md->mk", codebooks, q.reshape(len(codebooks), -1))


def look_up(tables: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(m, 2^nbits), (n, m) -> (n,): the inner products of the query with the decoded vectors."""
    scores = np.zeros(len(codes), np.float32)
    for table, column in zip(tables, codes.T):
        scores += table.take(column)
    return scores


def check_cut(d: int, m: int, nbits: int) -> None:
    """Refuse what vectors of length d cannot be cut into.

    Raises:
        ValueError: m does not divide d; more than 8 bits.
    """
    if d % m:
        raise ValueError(
            f"d = {d} numbers cannot be cut into m = {m} equal parts: choose m among the divisors "
            f"of d ({', '.join(str(i) for i in range(1, d + 1) if d % i == 0)})."
        )
    if nbits > MAX_BITS:
        raise ValueError(f"nbits = {nbits}: a code is a byte here, so at most {MAX_BITS}.")


class PQIndex(Index):
    """Every vector's code, looked up for every query: m bytes a vector, m additions a score.

    As ``faiss.IndexPQ`` with inner products.

    Args:
        d, metric, generator: see ``Index``.
        m: parts of a vector; divides d.
        nbits: 2^nbits codewords a part, at most 8; training takes as many vectors at least.
    """

    kind = "pq"
    PARAMETERS = ("m", "nbits")
    ROWS = (*Index.ROWS, "codes")
    LEARNT = ("codebooks",)

    def __init__(self, d: int, m: int, nbits: int = 8, **settings) -> None:
        self.m, self.nbits = m, nbits
        super().__init__(d, **settings)
        self.codebooks: np.ndarray | None = None  # (m, 2^nbits, d/m)
        self.codes = np.zeros((0, m), np.uint8)

    def check_parameters(self) -> None:
        super().check_parameters()
        check_cut(self.d, self.m, self.nbits)

    def _least(self) -> dict[str, int]:
        return {"2**nbits": 2**self.nbits}

    def _train(self, x: np.ndarray) -> None:
        self.codebooks = learn_codebooks(x, self.m, self.nbits, self.generator)

    def _encode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        return {"codes": encode(x, self.codebooks)}

    def _search(self, queries: np.ndarray, k: int) -> Hits:
        for q in queries:
            tables = inner_product_tables(q, self.codebooks)  # (m, 2^nbits)
            yield top_k(look_up(tables, self.codes), self.ids, k)
