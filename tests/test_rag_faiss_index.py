"""FAISS behind our interface: what it does, what it refuses, and when it is imported.

What holds for every kind of index, FAISS's among them, is in ``test_rag_index``.
"""

import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from rag_vectors import OWN, assert_same_ranking, clustered, recall

from course_lib.rag.faiss_index import FaissIndex
from course_lib.rag.index import NO_HIT, FlatIndex

ROOT = Path(__file__).resolve().parents[1]
D = 8
TYPES = {"flat": "IndexFlat", "ivf": "IndexIVFFlat", "hnsw": "IndexHNSWFlat", "pq": "IndexPQ",
         "ivfpq": "IndexIVFPQ"}  # fmt: skip
each = pytest.mark.parametrize("of", TYPES)


@pytest.fixture(autouse=True)
def one_thread():
    faiss.omp_set_num_threads(1)


def filled(of: str, n: int = 200, **changes) -> tuple[FaissIndex, np.ndarray]:
    index, x = FaissIndex(D, of, **OWN[of][1] | changes), clustered(0, n, D)
    index.train(x)
    index.add(x, ["first" if i < n // 2 else "second" for i in range(n)])
    return index, x


@each
def test_it_is_what_faiss_finds(of):
    """With the parameters that were given; the table of ids adds nothing."""
    index, x = filled(of)
    assert type(index.inner).__name__.startswith(TYPES[of])
    assert index.inner.metric_type == faiss.METRIC_INNER_PRODUCT
    for ours, theirs in (("nlist", lambda i: i.nlist), ("M", lambda i: i.hnsw.nb_neighbors(1)),
                         ("efConstruction", lambda i: i.hnsw.efConstruction),
                         ("m", lambda i: i.pq.M), ("nbits", lambda i: i.pq.nbits)):  # fmt: skip
        if hasattr(index, ours):
            assert theirs(index.inner) == getattr(index, ours)
    raw = index.inner
    if hasattr(raw, "nprobe"):
        raw.nprobe = index.nprobe
    if hasattr(raw, "hnsw"):
        raw.hnsw.efSearch = index.efSearch
    assert_same_ranking(index.search(x[:20], 3), raw.search(x[:20], 3), 0)


@pytest.mark.parametrize(
    "of, name, values",
    [("ivf", "nprobe", (1, 4)), ("ivfpq", "nprobe", (1, 4)), ("hnsw", "efSearch", (2, 80))],
)
def test_parameters_of_a_search_may_be_changed(of, name, values):
    """More lists, or a wider walk, find more; also after a file."""
    index, x = filled(of, 600, **({"m": 8, "nbits": 4} if of == "ivfpq" else {}))
    exact = FlatIndex(D)
    exact.add(x)
    found = []
    for value in values:
        setattr(index, name, value)
        found.append(recall(index.search(x[:100], 2)[1], exact.search(x[:100], 2)[1]))
    assert found[0] < found[1]


def test_a_walk_keeps_as_many_candidates_as_hits_are_asked_for():
    """As ours does: with efSearch = 1 FAISS alone would stop before it has fifty."""
    index, x = filled("hnsw", efSearch=1)
    found = (index.search(x, 50)[1] != NO_HIT).mean()
    index.inner.hnsw.efSearch = 1
    alone = (index.inner.search(x, 50)[1] >= 0).mean()
    assert alone < 0.9 < found


@each
def test_removed_vectors_leave_faiss_where_it_can(of):
    """Not a graph: there they stay as ways to others, and are kept out of the hits."""
    index, x = filled(of)
    gone = index.remove("first")
    assert index.index.ntotal == (200 if of == "hnsw" else 100)
    found = index.search(x, 100)[1]
    assert not np.isin(found, gone).any()
    if of == "hnsw":
        index.efSearch = 100
        exact = FlatIndex(D)
        exact.add(x[100:])
        assert recall(index.search(x, 5)[1], exact.search(x, 5)[1] + 100) > 0.95


def test_another_generator_learns_other_centroids():
    x = clustered(0, 200, D)
    found = []
    for seed in (0, 0, 1):
        index = FaissIndex(D, "ivf", nlist=10, generator=torch.Generator().manual_seed(seed))
        index.train(x)
        found.append(index.inner.quantizer.reconstruct_n(0, 10))
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_faiss_prints_no_warnings(capfd):
    """It would, of fewer than 39 vectors a centroid."""
    for of in ("ivf", "pq", "ivfpq"):
        filled(of, 40)
    assert capfd.readouterr() == ("", "")


def test_unknown_kinds_and_parameters_are_named():
    with pytest.raises(ValueError, match="of='tree': choose from flat, ivf, hnsw, pq, ivfpq"):
        FaissIndex(D, "tree")
    with pytest.raises(ValueError, match="M, efs: no parameter of 'ivf', which has nlist, nprobe"):
        FaissIndex(D, "ivf", nlist=3, M=4, efs=2)
    with pytest.raises(ValueError, match="cannot be cut into m = 3"):
        FaissIndex(D, "pq", m=3)


def test_without_faiss_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'course_lib\[rag\]', or .*faiss-cpu"):
        FaissIndex(D)


def test_faiss_is_imported_when_the_first_index_is_made():
    code = """if True:
        import sys
        from course_lib.rag import faiss_index, index_files
        print("faiss" in sys.modules)
        faiss_index.FaissIndex(2)
        print("faiss" in sys.modules)
    """
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert out.stdout == "False\nTrue\n", out.stderr
