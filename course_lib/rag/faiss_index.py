"""FAISS behind the interface of our indexes: what the pipeline uses by default.

Douze et al. 2024, "The Faiss library" (https://arxiv.org/abs/2401.08281). The same kinds with the
same parameters; ids, sources, checks and files are those of ``course_lib.rag.index``. FAISS is
imported when the first index is made.
"""

import numpy as np
import torch

from course_lib.rag.hnsw import HNSWIndex
from course_lib.rag.index import FlatIndex, Hits, Index, top_k
from course_lib.rag.ivf import IVFIndex, IVFPQIndex
from course_lib.rag.pq import PQIndex

OWN = {own.kind: own for own in (FlatIndex, IVFIndex, HNSWIndex, PQIndex, IVFPQIndex)}
"""Kind -> our index of that kind."""


def faiss_library():
    """The module ``faiss``.

    Raises:
        ImportError: it is not installed; says how to.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "FAISS is not installed. Install it with the extra rag: pip install "
            "'course_lib[rag]', or alone: pip install faiss-cpu. The indexes of course_lib.rag "
            "without it are FlatIndex, IVFIndex, HNSWIndex, PQIndex and IVFPQIndex."
        ) from error
    return faiss


class FaissIndex(Index):
    """An index of FAISS, with inner products. A vector that is removed leaves it, but for a graph,
    where it stays as a way to others.

    Args:
        d, metric, generator: see ``Index``; the generator draws FAISS's seed.
        of: "flat", "ivf", "hnsw", "pq" or "ivfpq".
        parameters: those of our index of that kind, with its defaults.

    Raises:
        ValueError: a kind or a parameter that is not known or out of range.
        ImportError: FAISS is not installed.
    """

    kind = "faiss"

    def __init__(self, d: int, of: str = "flat", *, metric: str = "ip",
                 generator: torch.Generator | None = None, **parameters: int) -> None:  # fmt: skip
        if of not in OWN:
            raise ValueError(f"of={of!r}: choose from {', '.join(OWN)}.")
        if unknown := sorted(set(parameters) - set(OWN[of].PARAMETERS)):
            raise ValueError(
                f"{', '.join(unknown)}: no parameter of {of!r}, which has "
                f"{', '.join(OWN[of].PARAMETERS) or 'none'}."
            )
        own = OWN[of](d, metric=metric, **parameters)  # says what it would say, and its defaults
        self._own, self.of, self.PARAMETERS = own, of, own.PARAMETERS
        for name in self.PARAMETERS:
            setattr(self, name, getattr(own, name))
        super().__init__(d, metric=metric, generator=generator)
        self._faiss = faiss_library()
        self._seed = int(torch.randint(2**31 - 1, (), generator=self.generator))
        self.index = self._make()

    @property
    def parameters(self) -> dict[str, int | str]:
        return super().parameters | {"of": self.of}

    @property
    def inner(self):
        """FAISS's index itself: without the table of ids in which some are wrapped."""
        inner = self._faiss.downcast_index(self.index)
        return self._faiss.downcast_index(inner.index) if hasattr(inner, "id_map") else inner

    def _make(self):
        faiss, ip, d = self._faiss, self._faiss.METRIC_INNER_PRODUCT, self.d
        if self.of == "flat":
            return faiss.IndexIDMap(faiss.IndexFlatIP(d))
        if self.of == "hnsw":
            index = faiss.IndexHNSWFlat(d, self.M, ip)
            index.hnsw.efConstruction = self.efConstruction
            index.hnsw.rng = faiss.RandomGenerator(self._seed)
            return faiss.IndexIDMap(index)
        if self.of == "pq":
            index = faiss.IndexPQ(d, self.m, self.nbits, ip)
            learners = [index.pq]
        elif self.of == "ivf":
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, self.nlist, ip)
            learners = [index]
        else:
            coarse = faiss.IndexFlatIP(d)
            index = faiss.IndexIVFPQ(coarse, d, self.nlist, self.m, self.nbits, ip)
            learners = [index, index.pq]
        for learner in learners:
            learner.cp.seed = self._seed
            learner.cp.min_points_per_centroid = 1  # it would warn; we refuse what is too little
        return faiss.IndexIDMap(index) if self.of == "pq" else index

    def _least(self) -> dict[str, int]:
        return self._own._least()

    def _train(self, x: np.ndarray) -> None:
        self.index.train(x)

    def _check_trained(self) -> None:
        if not self.index.is_trained:
            raise ValueError("The index is not trained: call train(x) with vectors like yours.")

    def _encode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        return {"x": x}

    def _append(self, new: dict[str, np.ndarray]) -> None:
        if len(new["ids"]):
            self.index.add_with_ids(new["x"], new["ids"])
        super()._append(new)

    def _search(self, queries: np.ndarray, k: int) -> Hits:
        for scores, ids in zip(*self.index.search(queries, k, params=self._settings(k))):
            found = ids >= 0
            yield top_k(scores[found], ids[found], k)

    def _settings(self, k: int):
        """What holds for this search: nprobe, efSearch, and which vectors of a graph are left."""
        if self.of in ("ivf", "ivfpq"):
            kind = {"ivf": "SearchParametersIVF", "ivfpq": "IVFPQSearchParameters"}[self.of]
            return getattr(self._faiss, kind)(nprobe=min(self.nprobe, self.nlist))
        if self.of == "hnsw":
            left = {} if len(self) == self.index.ntotal else {
                "sel": self._faiss.IDSelectorBatch(self.ids)
            }  # fmt: skip
            return self._faiss.SearchParametersHNSW(efSearch=max(self.efSearch, k), **left)
        return None

    def _drop(self, gone: np.ndarray) -> None:
        if self.of != "hnsw":  # FAISS cannot take a vector out of a graph
            self.index.remove_ids(self.ids[gone])
        super()._drop(gone)

    def arrays(self) -> dict[str, np.ndarray]:
        return super().arrays() | {"faiss": self._faiss.serialize_index(self.index)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        super().restore(arrays)
        self.index = self._faiss.deserialize_index(arrays["faiss"])
