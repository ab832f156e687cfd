"""HNSW: walks and neighbours by hand, the graph's form, removal, recall."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rag_vectors import clustered, recall

from course_lib.rag.hnsw import HNSWIndex
from course_lib.rag.index import NO_HIT, FlatIndex

ONE = np.ones(1, np.float32)


def chain(scores: list[float], links: list[tuple[int, ...]]) -> HNSWIndex:
    """A graph of one level by hand: vectors of one number, so that with q = 1 they are scores."""
    n, index = len(scores), HNSWIndex(1, 2)
    table = np.full((n, 4), -1, np.int32)
    for row, others in enumerate(links):
        table[row, : len(others)] = others
    index.restore({
        "ids": np.arange(n), "source_of": np.arange(n, dtype=np.int32),
        "vectors": np.array(scores, np.float32)[:, None], "levels": np.zeros(n, np.int8),
        "alive": np.ones(n, bool), "links": table.ravel(),
        "generator": index.generator.get_state().numpy(),
    })  # fmt: skip
    index.source_names, index.efSearch = [str(i) for i in range(n)], 1
    return index


VALLEY = [0.5, 0.25, 0.75], [(1,), (0, 2), (1,)]
"""From vector 0 a worse one, 1, leads to the best, 2."""


def test_a_walk_that_keeps_one_candidate_stops_at_a_valley_and_two_cross_it():
    index = chain(*VALLEY)
    assert index.entry == 0
    assert index._nearby(ONE, [(0.5, 0)], 1, 0, index.everything) == [(0.5, 0)]
    found = index._nearby(ONE, [(0.5, 0)], 2, 0, index.everything)
    assert found == [(0.75, 2), (0.5, 0)]
    assert index.search([[1.0]], 1)[1].tolist() == [[0]]
    index.efSearch = 2
    assert index.search([[1.0]], 1)[1].tolist() == [[2]]
    assert index.search([[1.0]], 3)[1].tolist() == [[2, 0, 1]]  # at least k candidates


def test_a_walk_goes_over_what_was_removed():
    """The middle of a chain is taken out: the other end is found all the same, through it."""
    index = chain([0.5, 0.6, 0.75], VALLEY[1])
    index.remove("1")
    scores, ids = index.search([[1.0]], 3)
    assert ids.tolist() == [[2, 0]] and len(index) == 2 and scores.shape == (1, 2)
    index.remove("0")
    assert index.search([[1.0]], 3)[1].tolist() == [[2]]


def test_what_no_walk_reaches_is_no_hit():
    index = chain([0.5, 0.25, 0.75], [(1,), (0,), ()])
    assert index.search([[1.0]], 3)[1].tolist() == [[0, 1, NO_HIT]]
    index.remove("0"), index.remove("1")
    assert index.search([[1.0]], 3)[1].tolist() == [[NO_HIT]]


def at_angles(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_neighbours_lie_in_different_directions():
    """Of a vector at 0°, others at 10°, 12° and -30°: 12° is nearer to 10° (2° away) than to the
    vector, and -30° is not (40°). Two by their scores alone would be 10° and 12°."""
    index = HNSWIndex(2, 2)
    index.vectors = at_angles(0, 10, 12, -30)
    scores = (index.vectors @ index.vectors[0]).tolist()
    found = [(scores[row], row) for row in (1, 2, 3)]
    assert [row for _, row in index._select(found, 2)] == [1, 3]
    assert [row for _, row in index._select(found, 3)] == [1, 3]
    assert index._select(found, 4) == found  # fewer than there is room for: all


@settings(max_examples=25, deadline=None)
@given(arrays(np.int8, st.tuples(st.integers(1, 9), st.just(3)), elements=st.integers(-4, 4)),
       st.integers(0, 5))  # fmt: skip
def test_few_vectors_are_all_neighbours_and_the_search_is_exact(x, seed):
    """With M = 4 up to 8 on level 0: nine vectors are a complete graph."""
    index = HNSWIndex(3, 4, generator=torch.Generator().manual_seed(seed))
    flat = FlatIndex(3)
    index.add(x), flat.add(x)
    for one, other in zip(index.search(x, 9), flat.search(x, 9)):
        assert np.array_equal(one, other)


def grown(n: int = 400, M: int = 4, **settings) -> tuple[HNSWIndex, np.ndarray]:
    x = clustered(0, n, 8, clusters=20)
    index = HNSWIndex(8, M, **settings)
    index.add(x[: n // 2], "first"), index.add(x[n // 2 :], "second")
    return index, x


def test_the_graph_has_the_form_of_the_paper():
    """At most 2M neighbours on level 0 and M above, none twice, never the vector itself, on a level
    only vectors of that level; the entry is on the highest."""
    index, x = grown()
    assert index.levels.max() >= 2 and index.levels[index.entry] == index.levels.max()
    assert len(index.links) == (8 + 4 * index.levels.astype(int)).sum()
    for row, top in enumerate(index.levels):
        for level in range(top + 1):
            links = index._neighbours(row, level).tolist()
            assert len(links) <= (4 if level else 8) and len(set(links)) == len(links)
            assert row not in links and (index.levels[links] >= level).all()
            assert links or level
    assert index.offsets[-1] == len(index.links)


def test_one_in_m_vectors_reaches_the_next_level():
    """Of 20,000 with M = 10 a tenth and a hundredth; four standard deviations are 170 and 56."""
    levels = HNSWIndex(1, 10)._encode(np.zeros((20_000, 1), np.float32))["levels"]
    assert abs((levels >= 1).sum() - 2000) < 170 and abs((levels >= 2).sum() - 200) < 56


def test_wider_walks_find_more():
    """On a larger graph; the hits are nearly all once efSearch is large."""
    index, x = grown(1500, efConstruction=30)
    flat = FlatIndex(8)
    flat.add(x)
    truth = flat.search(x[:200], 10)[1]
    found = []
    for index.efSearch in (10, 20, 100):
        found.append(recall(index.search(x[:200], 10)[1], truth))
    assert found == sorted(found) and found[0] < 0.98 < found[-1]


def test_after_removal_the_others_are_found_as_before():
    index, x = grown()
    index.efSearch = 60
    gone = index.remove("first")
    flat = FlatIndex(8)
    flat.add(x[200:])
    found, truth = index.search(x, 5)[1], flat.search(x, 5)[1] + 200
    assert not np.isin(found, gone).any() and recall(found, truth) > 0.97
    assert len(index.vectors) == 400 and len(index) == 200


def test_m_must_be_at_least_2():
    with pytest.raises(ValueError, match="M must be at least 2"):
        HNSWIndex(4, 1)
