"""HNSW: a graph of vectors, searched by going to whichever neighbour is nearer.

Malkov and Yashunin 2016, "Efficient and robust approximate nearest neighbor search using
Hierarchical Navigable Small World graphs" (https://arxiv.org/abs/1603.09320). Every vector is on
level 0, one in M of them on level 1, and so on; a search comes down from the top, where steps are
long. Sizes follow FAISS's ``HNSW.cpp``: a vector has up to 2M neighbours on level 0 and M above,
and if fewer candidates than that were found, all become neighbours.
Simplified away: threads; a removed vector stays in the graph as a way to others, and only a new
index frees its memory.
"""

from heapq import heappop, heappush, heappushpop

import numpy as np
import torch

from course_lib.rag.index import Hits, Index, top_k

Found = list[tuple[float, int]]
"""(score, row) of vectors, nearest first."""


class HNSWIndex(Index):
    """As ``faiss.IndexHNSWFlat`` with inner products; nothing is learnt before the first ``add``.

    Args:
        d, metric, generator: see ``Index``. The generator draws the levels.
        M: neighbours of a vector on each level, twice as many on level 0; at least 2.
        efConstruction: how many candidates are kept while a new vector's neighbours are sought.
        efSearch: how many while a query is answered, at least k; may be changed between searches.
    """

    kind = "hnsw"
    PARAMETERS = ("M", "efConstruction", "efSearch")
    ROWS = (*Index.ROWS, "vectors", "levels", "alive")

    def __init__(
        self, d: int, M: int = 32, efConstruction: int = 40, efSearch: int = 16, **settings
    ) -> None:
        self.M, self.efConstruction, self.efSearch = M, efConstruction, efSearch
        super().__init__(d, **settings)
        self.vectors = np.zeros((0, d), np.float32)
        self.levels = np.zeros(0, np.int8)
        self.alive = np.zeros(0, bool)
        self.links = np.zeros(0, np.int32)  # of each vector 2M places for level 0, M a level above
        self._find_offsets()  # where those of each vector begin
        self.entry = -1

    def check_parameters(self) -> None:
        super().check_parameters()
        if self.M < 2:
            raise ValueError("M must be at least 2, or every vector would be on every level.")

    def __len__(self) -> int:
        return int(self.alive.sum())

    # --- search ---------------------------------------------------------------------------------

    def _search(self, queries: np.ndarray, k: int) -> Hits:
        for q in queries:
            found = self._descend(q, 0)
            found = self._nearby(q, found, max(self.efSearch, k), 0, self.alive)
            scores = np.array([score for score, _ in found], np.float32)
            yield top_k(scores, self.ids[[row for _, row in found]], k)

    def _descend(self, q: np.ndarray, level: int) -> Found:
        """From the entry down to above ``level``: on each level the nearest vector alone."""
        found = [(float(self.vectors[self.entry] @ q), self.entry)]
        for above in range(self.levels[self.entry], level, -1):
            found = self._nearby(q, found, 1, above, self.everything)
        return found

    def _nearby(self, q: np.ndarray, start: Found, ef: int, level: int, wanted) -> Found:
        """The ef nearest of the rows ``wanted`` (n,) that a walk from ``start`` over the graph of a
        level finds (Algorithm 2); it goes over the others too."""
        seen = np.zeros(len(self.vectors), bool)
        seen[[row for _, row in start]] = True
        near = sorted((-score, row) for score, row in start)  # a heap with the nearest on top
        found = sorted(pair for pair in start if wanted[pair[1]])  # one with the farthest on top
        while near and (len(found) < ef or -near[0][0] >= found[0][0]):
            _, row = heappop(near)
            rows = self._neighbours(row, level)
            rows = rows[~seen[rows]]
            seen[rows] = True
            for score, row in zip((self.vectors[rows] @ q).tolist(), rows.tolist()):
                if len(found) < ef or score > found[0][0]:
                    heappush(near, (-score, row))
                    if wanted[row]:
                        (heappush if len(found) < ef else heappushpop)(found, (score, row))
        return sorted(found, reverse=True)

    def _places(self, row: int, level: int) -> slice:
        start = self.offsets[row] + (self.M * (level + 1) if level else 0)
        return slice(start, start + self._limit(level))

    def _limit(self, level: int) -> int:
        return self.M if level else 2 * self.M

    def _neighbours(self, row: int, level: int) -> np.ndarray:
        links = self.links[self._places(row, level)]
        return links[links >= 0]

    # --- construction ---------------------------------------------------------------------------

    def _encode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """The level of a vector is -ln(u) / ln M rounded down: one in M reaches the next."""
        u = 1 - torch.rand(len(x), generator=self.generator, dtype=torch.float64).numpy()
        levels = (-np.log(u) / np.log(self.M)).astype(np.int8)
        return {"vectors": x, "levels": levels, "alive": np.ones(len(x), bool)}

    def _append(self, new: dict[str, np.ndarray]) -> None:
        first = len(self.vectors)
        super()._append(new)
        places = self._find_offsets() - len(self.links)
        self.links = np.concatenate([self.links, np.full(places, -1, np.int32)])
        for row in range(first, len(self.vectors)):
            self._insert(row)

    def _find_offsets(self) -> int:
        sizes = self.M * (self.levels.astype(np.int64) + 2)
        self.offsets = np.concatenate([[0], np.cumsum(sizes)])
        self.everything = np.ones(len(sizes), bool)
        return int(self.offsets[-1])

    def _insert(self, row: int) -> None:
        """Algorithm 1."""
        if self.entry < 0:
            self.entry = row
            return
        q, level, top = self.vectors[row], int(self.levels[row]), int(self.levels[self.entry])
        found = self._descend(q, level)
        for shared in range(min(level, top), -1, -1):
            found = self._nearby(q, found, self.efConstruction, shared, self.everything)
            chosen = self._select(found, self._limit(shared))
            self._link(row, shared, chosen)
            for score, other in chosen:
                self._link_back(other, shared, score, row)
        if level > top:
            self.entry = row

    def _select(self, found: Found, limit: int) -> Found:
        """Neighbours that lie in different directions (Algorithm 4): from the nearest on, one is
        taken unless it is nearer to one already taken than to the vector itself."""
        if len(found) < limit:
            return found
        scores = np.array([score for score, _ in found], np.float32)
        x = self.vectors[[row for _, row in found]]
        among = x @ x.T
        free, chosen = np.ones(len(found), bool), []
        for i in range(len(found)):
            if free[i] and len(chosen) < limit:
                chosen.append(found[i])
                free &= among[i] <= scores
        return chosen

    def _link(self, row: int, level: int, chosen: Found) -> None:
        places = self._places(row, level)
        self.links[places] = -1
        self.links[places.start : places.start + len(chosen)] = [other for _, other in chosen]

    def _link_back(self, row: int, level: int, score: float, other: int) -> None:
        """``other`` becomes a neighbour too, if there is room or it is a better one."""
        rows = self._neighbours(row, level)
        if len(rows) < self._limit(level):
            self.links[self._places(row, level).start + len(rows)] = other
            return
        scores = (self.vectors[rows] @ self.vectors[row]).tolist()
        found = sorted([(score, other), *zip(scores, rows.tolist())], reverse=True)
        self._link(row, level, self._select(found, self._limit(level)))

    # --- removal and files ----------------------------------------------------------------------

    def _drop(self, gone: np.ndarray) -> None:
        self.alive = self.alive & ~gone
        self.source_of = np.where(gone, np.int32(-1), self.source_of)

    def arrays(self) -> dict[str, np.ndarray]:
        state = self.generator.get_state().numpy()
        return super().arrays() | {"links": self.links, "generator": state}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        super().restore(arrays)
        self.links = arrays["links"]
        self.generator.set_state(torch.from_numpy(arrays["generator"]))
        self._find_offsets()
        self.entry = int(self.levels.argmax()) if len(self.levels) else -1
