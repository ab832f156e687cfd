"""Our indexes beside FAISS: the same vectors, parameters, centroids, codebooks and graph.

What is learnt or drawn differs by chance, so searches are compared to the letter on what FAISS has
learnt, and the recall of what each has learnt itself over several seeds.
"""

import faiss
import numpy as np
import pytest
import torch
from parity_record import Parity
from rag_vectors import assert_same_ranking, clear_of_ties, clustered, recall

from course_lib.rag.faiss_index import OWN, FaissIndex
from course_lib.rag.hnsw import HNSWIndex
from course_lib.rag.index import FlatIndex
from course_lib.rag.ivf import IVFIndex, IVFPQIndex
from course_lib.rag.kmeans import nearest
from course_lib.rag.pq import PQIndex, cut, encode

D, K, TOLERANCE = 16, 10, 1e-5
IP = faiss.METRIC_INNER_PRODUCT


@pytest.fixture(autouse=True)
def one_thread():
    faiss.omp_set_num_threads(1)


def vectors(seed: int, n: int = 1000, queries: int = 50) -> tuple[np.ndarray, np.ndarray]:
    x = clustered(seed, n + queries, D)
    return x[:n], x[n:]


def compare(parity: Parity, ours, theirs) -> None:
    """Scores into the table, ids with ties allowed."""
    parity.tried()
    parity.compare(*(torch.from_numpy(np.ascontiguousarray(s)) for s in (ours[0], theirs[0])))
    assert_same_ranking(ours, theirs, TOLERANCE)
    assert ours[1].min() >= 0 and theirs[1].min() >= 0 and len(set(ours[1].ravel().tolist())) > K


# --- on the same centroids, codebooks, graph ----------------------------------------------------


def test_the_flat_index_is_that_of_faiss():
    """Vectors of length 1, of any length, and of a few whole numbers, among which many tie; as
    many hits as asked for and all there are."""
    rng = np.random.default_rng(0)
    with Parity("Flat index, scores", "faiss.IndexFlatIP", TOLERANCE) as parity:
        for x in (vectors(0)[0], rng.normal(size=(1000, D)).astype(np.float32),
                  rng.integers(-1, 2, (1000, D)).astype(np.float32)):  # fmt: skip
            for k in (1, K, 950):
                ours, theirs = FlatIndex(D), faiss.IndexFlatIP(D)
                ours.add(x[:950]), theirs.add(x[:950])
                parity.tried()
                mine, yours = ours.search(x[950:], k), theirs.search(x[950:], k)
                parity.compare(*(torch.from_numpy(s) for s in (mine[0], yours[0])))
                assert_same_ranking(mine, yours, TOLERANCE)


def test_cosine_is_the_inner_product_of_what_faiss_has_normalised():
    rng = np.random.default_rng(1)
    x, q = (rng.normal(size=(n, D)).astype(np.float32) * 7 for n in (500, 20))
    ours, theirs = FlatIndex(D, metric="cosine"), faiss.IndexFlatIP(D)
    ours.add(x)
    unit = [x.copy(), q.copy()]
    for one in unit:
        faiss.normalize_L2(one)
    theirs.add(unit[0])
    with Parity("Flat index, cosine", "faiss.normalize_L2, faiss.IndexFlatIP",
                TOLERANCE) as parity:  # fmt: skip
        compare(parity, ours.search(q, K), theirs.search(unit[1], K))


def test_an_ivf_index_with_the_same_centroids_is_that_of_faiss():
    """Vectors and queries between two lists are left out: rounding would choose theirs."""
    with Parity("IVF index, the same centroids", "faiss.IndexIVFFlat", TOLERANCE) as parity:
        for seed in (0, 1):
            x, q = vectors(seed, 1500, 80)
            theirs = faiss.IndexIVFFlat(faiss.IndexFlatIP(D), D, 20, IP)
            theirs.cp.min_points_per_centroid = 1
            theirs.train(x)
            ours = IVFIndex(D, 20)
            ours.centroids = theirs.quantizer.reconstruct_n(0, 20)
            x = x[clear_of_ties(x @ ours.centroids.T)]
            ours.add(x), theirs.add(x)
            sizes = [theirs.invlists.list_size(i) for i in range(20)]
            assert np.diff(ours.starts).tolist() == sizes
            for nprobe in (2, 5, 20):
                queries = q[clear_of_ties(q @ ours.centroids.T, nprobe)] if nprobe < 20 else q
                assert len(queries) > 40
                ours.nprobe = theirs.nprobe = nprobe
                compare(parity, ours.search(queries, K), theirs.search(queries, K))


def code_is_clear(x: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """(n,) where no part lies between two codewords."""
    clear = [clear_of_ties(2 * part @ book.T - (book**2).sum(1))
             for part, book in zip(cut(x, len(codebooks)), codebooks)]  # fmt: skip
    return np.all(clear, axis=0)


def codebooks_of(pq) -> np.ndarray:
    return faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub)


@pytest.mark.parametrize("m, nbits", [(4, 8), (8, 5)])
def test_a_pq_index_with_the_same_codebooks_is_that_of_faiss(m, nbits):
    """Codes and scores; with 8 bits their codes are our bytes."""
    with Parity(f"PQ index, m = {m}, {nbits} bits, the same codebooks", "faiss.IndexPQ",
                TOLERANCE) as parity:  # fmt: skip
        for seed in (0, 1):
            x, q = vectors(seed)
            theirs = faiss.IndexPQ(D, m, nbits, IP)
            theirs.pq.cp.min_points_per_centroid = 1
            theirs.train(x)
            ours = PQIndex(D, m, nbits)
            ours.codebooks = codebooks_of(theirs.pq)
            x = x[code_is_clear(x, ours.codebooks)]
            assert len(x) > 700
            ours.add(x), theirs.add(x)
            if nbits == 8:
                assert np.array_equal(theirs.pq.compute_codes(x), ours.codes)
            compare(parity, ours.search(q, K), theirs.search(q, K))


def test_an_ivf_pq_index_with_the_same_centroids_and_codebooks_is_that_of_faiss():
    with Parity("IVF-PQ index, the same centroids and codebooks", "faiss.IndexIVFPQ",
                TOLERANCE) as parity:  # fmt: skip
        for seed in (0, 1):
            x, q = vectors(seed, 1500, 80)
            theirs = faiss.IndexIVFPQ(faiss.IndexFlatIP(D), D, 10, 4, 6, IP)
            theirs.cp.min_points_per_centroid = theirs.pq.cp.min_points_per_centroid = 1
            theirs.train(x)
            ours = IVFPQIndex(D, 10, 4, 6)
            ours.centroids = theirs.quantizer.reconstruct_n(0, 10)
            ours.codebooks = codebooks_of(theirs.pq)
            x = x[clear_of_ties(x @ ours.centroids.T)]
            residuals = x - ours.centroids[nearest(x, ours.centroids, spherical=True)]
            x = x[code_is_clear(residuals, ours.codebooks)]
            assert len(x) > 1000 and encode(residuals, ours.codebooks).std() > 1
            ours.add(x), theirs.add(x)
            for nprobe in (2, 10):
                queries = q[clear_of_ties(q @ ours.centroids.T, nprobe)] if nprobe < 10 else q
                ours.nprobe = theirs.nprobe = nprobe
                compare(parity, ours.search(queries, K), theirs.search(queries, K))


def test_the_walk_over_their_graph_finds_what_theirs_finds():
    """Links, offsets, levels and entry of FAISS's graph, whose form ours has; the hits of both, not
    the true ones, which either misses here and there."""
    with Parity("HNSW index, the same graph", "faiss.IndexHNSWFlat", TOLERANCE) as parity:
        for M in (4, 16):
            x, q = vectors(2, 1500)
            theirs = faiss.IndexHNSWFlat(D, M, IP)
            theirs.add(x)
            graph, ours = theirs.hnsw, HNSWIndex(D, M)
            n = len(x)
            ours.restore({
                "ids": np.arange(n), "source_of": np.full(n, -1, np.int32), "vectors": x,
                "levels": (faiss.vector_to_array(graph.levels) - 1).astype(np.int8),
                "alive": np.ones(n, bool), "links": faiss.vector_to_array(graph.neighbors),
                "generator": ours.generator.get_state().numpy(),
            })  # fmt: skip
            assert np.array_equal(ours.offsets, faiss.vector_to_array(graph.offsets))
            ours.entry = graph.entry_point
            for ef in (K, 40):
                ours.efSearch = graph.efSearch = ef
                found, truth = ours.search(q, K), FlatIndex(D)
                truth.add(x)
                compare(parity, found, theirs.search(q, K))
                if M == 4 and ef == K:
                    assert recall(found[1], truth.search(q, K)[1]) < 0.95


def test_rankings_that_differ_are_seen():
    """Control: two ids exchanged, of scores that differ; of scores that tie they may be."""
    scores, ids = np.array([[0.9, 0.5, 0.5, 0.1]]), np.array([[3, 1, 2, 7]])
    assert_same_ranking((scores, ids), (scores, ids[:, [0, 2, 1, 3]]))
    with pytest.raises(AssertionError):
        assert_same_ranking((scores, ids), (scores, ids[:, [1, 0, 2, 3]]))
    with pytest.raises(AssertionError):
        assert_same_ranking((scores, ids), (scores, np.array([[8, 1, 2, 7]])))
    assert_same_ranking((scores, ids), (scores, np.array([[3, 1, 2, 8]])))  # of two at the end


# --- what each has learnt itself ----------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, n, seeds, parameters",
    [
        ("ivf", 5000, 8, {"nlist": 50, "nprobe": 4}),
        ("hnsw", 1500, 3, {"M": 8, "efConstruction": 40, "efSearch": 16}),
        ("pq", 5000, 8, {"m": 8, "nbits": 6}),
        ("ivfpq", 5000, 8, {"nlist": 20, "nprobe": 4, "m": 8, "nbits": 6}),
    ],
)
def test_recall_is_within_two_hundredths_of_that_of_faiss(kind, n, seeds, parameters):
    """The mean over seeds of the share of the ten true neighbours; none finds all of them, so the
    figure can fall."""
    found = []
    for seed in range(seeds):
        x = clustered(seed, n + 200, 32)
        x, q = x[:n], x[n:]
        exact = FlatIndex(32)
        exact.add(x)
        _, truth = exact.search(q, K)
        for make in (lambda **s: OWN[kind](32, **s), lambda **s: FaissIndex(32, kind, **s)):
            index = make(generator=torch.Generator().manual_seed(seed), **parameters)
            index.train(x)
            index.add(x)
            found.append(recall(index.search(q, K)[1], truth))
    ours, theirs = torch.tensor(found).view(seeds, 2).mean(0)
    library = {"ivf": "IVFFlat", "hnsw": "HNSWFlat", "pq": "PQ", "ivfpq": "IVFPQ"}[kind]
    with Parity(f"Recall of ten by {OWN[kind].__name__}, mean of {seeds} seeds",
                f"faiss.Index{library}", 0.02) as parity:  # fmt: skip
        parity.tried()
        parity.compare(ours, theirs)
    assert 0.4 < theirs < 0.99
