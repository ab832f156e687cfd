"""Inverted lists: vectors in nlist groups, of which a query reads nprobe.

Jégou et al. 2011, "Product Quantization for Nearest Neighbor Search", section IV. k-means learns
nlist centroids; a vector is stored in the list of its nearest one; a query is compared with the
centroids, and then with the vectors of the nprobe nearest lists alone. In ``IVFPQIndex`` the lists
hold codes of the residuals, x - centroid, which are smaller than the vectors and so lose less.
The rows of the arrays stand in the order of the lists: list l is rows starts[l] to starts[l + 1].
"""

import numpy as np
import torch

from course_lib.rag.index import Hits, Index, top_k
from course_lib.rag.kmeans import SAMPLE, kmeans, nearest
from course_lib.rag.pq import check_cut, encode, inner_product_tables, learn_codebooks, look_up


class _Lists(Index):
    """Centroids, and rows in the order of their lists."""

    PARAMETERS = ("nlist", "nprobe")
    ROWS = (*Index.ROWS, "list_of")
    LEARNT = ("centroids",)

    def __init__(self, d: int, nlist: int, nprobe: int = 1, **settings) -> None:
        self.nlist, self.nprobe = nlist, nprobe
        super().__init__(d, **settings)
        self.centroids: np.ndarray | None = None  # (nlist, d)
        self.list_of = np.zeros(0, np.int32)
        self.starts = np.zeros(nlist + 1, np.int64)

    def _least(self) -> dict[str, int]:
        return {"nlist": self.nlist}

    def _train(self, x: np.ndarray) -> None:
        self.centroids = kmeans(x, self.nlist, generator=self.generator, spherical=True)

    def _append(self, new: dict[str, np.ndarray]) -> None:
        super()._append(new)
        order = np.argsort(self.list_of, kind="stable")
        for name in self.ROWS:
            setattr(self, name, getattr(self, name)[order])
        self._find_starts()

    def _drop(self, gone: np.ndarray) -> None:
        super()._drop(gone)
        self._find_starts()

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        super().restore(arrays)
        self._find_starts()

    def _find_starts(self) -> None:
        self.starts = np.searchsorted(self.list_of, np.arange(self.nlist + 1))

    def _rows(self, lists: np.ndarray) -> list[slice]:
        return [slice(self.starts[i], self.starts[i + 1]) for i in lists]


class IVFIndex(_Lists):
    """Whole vectors in lists: exact within the lists that are read.

    As ``faiss.IndexIVFFlat`` with inner products.

    Args:
        d, metric, generator: see ``Index``.
        nlist: how many lists; training takes as many vectors at least.
        nprobe: how many of them a query reads; may be changed between searches. With nprobe = nlist
            the hits are those of ``FlatIndex``.
    """

    kind = "ivf"
    ROWS = (*_Lists.ROWS, "vectors")

    def __init__(self, d: int, nlist: int, nprobe: int = 1, **settings) -> None:
        super().__init__(d, nlist, nprobe, **settings)
        self.vectors = np.zeros((0, d), np.float32)

    def _encode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        return {"list_of": nearest(x, self.centroids, spherical=True), "vectors": x}

    def _search(self, queries: np.ndarray, k: int) -> Hits:
        lists = np.arange(self.nlist)
        for q in queries:
            _, probed = top_k(self.centroids @ q, lists, self.nprobe)
            parts = self._rows(probed)
            scores = np.concatenate([self.vectors[rows] @ q for rows in parts])
            yield top_k(scores, np.concatenate([self.ids[rows] for rows in parts]), k)


class IVFPQIndex(_Lists):
    """Codes of residuals in lists: little memory and few codes read.

    As ``faiss.IndexIVFPQ`` with inner products: q·x ≈ q·centroid + q·(decoded residual), so one set
    of tables serves all lists.

    Args:
        d, metric, generator: see ``Index``.
        nlist, nprobe: see ``IVFIndex``.
        m, nbits: see ``PQIndex``.
    """

    kind = "ivfpq"
    PARAMETERS = ("nlist", "m", "nbits", "nprobe")
    ROWS = (*_Lists.ROWS, "codes")
    LEARNT = ("centroids", "codebooks")

    def __init__(
        self, d: int, nlist: int, m: int, nbits: int = 8, nprobe: int = 1, **settings
    ) -> None:
        self.m, self.nbits = m, nbits
        super().__init__(d, nlist, nprobe, **settings)
        self.codebooks: np.ndarray | None = None  # (m, 2^nbits, d/m)
        self.codes = np.zeros((0, m), np.uint8)

    def check_parameters(self) -> None:
        super().check_parameters()
        check_cut(self.d, self.m, self.nbits)

    def _least(self) -> dict[str, int]:
        return super()._least() | {"2**nbits": 2**self.nbits}

    def _train(self, x: np.ndarray) -> None:
        super()._train(x)
        order = torch.randperm(len(x), generator=self.generator)[: SAMPLE * 2**self.nbits]
        some = x[order.numpy()]
        residuals = some - self.centroids[nearest(some, self.centroids, spherical=True)]
        self.codebooks = learn_codebooks(residuals, self.m, self.nbits, self.generator)

    def _encode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        list_of = nearest(x, self.centroids, spherical=True)
        return {"list_of": list_of, "codes": encode(x - self.centroids[list_of], self.codebooks)}

    def _search(self, queries: np.ndarray, k: int) -> Hits:
        lists = np.arange(self.nlist)
        for q in queries:
            coarse, probed = top_k(self.centroids @ q, lists, self.nprobe)
            tables = inner_product_tables(q, self.codebooks)  # (m, 2^nbits)
            parts = self._rows(probed)
            codes = np.concatenate([self.codes[rows] for rows in parts])
            sizes = self.starts[probed + 1] - self.starts[probed]
            scores = np.repeat(coarse, sizes) + look_up(tables, codes)
            yield top_k(scores, np.concatenate([self.ids[rows] for rows in parts]), k)
