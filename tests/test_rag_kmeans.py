"""k-means: clusters by hand, empty ones, spherical ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rag_vectors import clustered

from course_lib.rag import kmeans as module
from course_lib.rag.kmeans import kmeans, nearest, split_largest


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distortion(x: np.ndarray, centroids: np.ndarray) -> float:
    """Mean squared distance to the nearest centroid, reckoned the long way."""
    return float(((x[:, None] - centroids[None]) ** 2).sum(2).min(1).mean())


@pytest.mark.parametrize("seed", range(6))
def test_two_clusters_by_hand(seed):
    """0, 1 and 10, 11: their means are .5 and 10.5, wherever the centroids start. From 0 and 1 the
    second round has {0} and {1, 10, 11} with 7.33, the third {0, 1} and {10, 11}."""
    x = np.array([[0], [1], [10], [11]], np.float32)
    found = kmeans(x, 2, generator=generator(seed))
    assert sorted(found[:, 0].tolist()) == [0.5, 10.5] and found.dtype == np.float32


def test_nearest_by_distance_and_by_inner_product():
    """(1, 0) is nearer to (.9, 0), and has the higher product with (5, 0); the first of equals."""
    x = np.array([[1, 0], [0, 0]], np.float32)
    centroids = np.array([[0.9, 0], [5, 0], [0.9, 0]], np.float32)
    assert nearest(x, centroids).tolist() == [0, 0]
    assert nearest(x, centroids, spherical=True).tolist() == [1, 0]


def test_blocks_change_nothing(monkeypatch):
    x = clustered(0, 100, 4)
    whole = nearest(x, x[:7])
    nine = lambda n, width: (slice(i, i + 9) for i in range(0, n, 9))  # noqa: E731
    monkeypatch.setattr(module, "blocks", nine)
    assert np.array_equal(nearest(x, x[:7]), whole) and len(set(whole.tolist())) == 7


def test_an_empty_cluster_takes_half_of_the_largest():
    """(1, 1) with four vectors and (9, 9) with none: the two stand 1/1024 to either side of (1, 1),
    by turns along the axes, with two vectors each. The third stays."""
    centroids = np.array([[1, 1], [9, 9], [5, 5]], np.float32)
    counts = np.array([4, 0, 3])
    split_largest(centroids, counts)
    e = 1 / 1024
    assert centroids.tolist() == [[1 - e, 1 + e], [1 + e, 1 - e], [5, 5]]
    assert counts.tolist() == [2, 2, 3]


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
@pytest.mark.parametrize("spherical", [False, True])
def test_equal_vectors_make_no_nan(value, spherical):
    """All centroids but one would be means of nothing."""
    found = kmeans(np.full((9, 4), value, np.float32), 5, generator=generator(),
                   spherical=spherical)  # fmt: skip
    size = np.sign(value) / 2 if spherical else value  # (1, 1, 1, 1)/2 has length 1
    np.testing.assert_allclose(found, np.full((5, 4), size), atol=0.01 * abs(value))


def test_empty_clusters_are_used_again():
    """Ten copies each of eight points: of the eight vectors that are drawn first several are the
    same, and all but one of their centroids stay empty. Splitting gives them to other points;
    without it there would be as many clusters as different points were drawn."""
    x = np.repeat(np.arange(1, 9, dtype=np.float32)[:, None] * 10, 10, axis=0)
    for seed in range(5):
        drawn = x[torch.randperm(80, generator=generator(seed))[:8].numpy(), 0]
        found = kmeans(x, 8, generator=generator(seed), iterations=20)
        clusters = len(set(nearest(x, found).tolist()))
        assert len(set(drawn.tolist())) < clusters and clusters >= 7, (seed, clusters)


@settings(max_examples=30, deadline=None)
@given(arrays(np.float32, (12, 3), elements=st.floats(-5, 5, width=32)), st.integers(0, 99))
def test_centroids_are_finite_and_within_the_data(x, seed):
    """Means of vectors lie between them, and what is split goes 1/1024 beyond, round by round."""
    found = kmeans(x, 4, generator=generator(seed))
    assert np.isfinite(found).all()
    assert (np.abs(found) <= np.abs(x).max() * (1 + 1 / 1024) ** 11 + 1e-5).all()


def test_more_rounds_are_never_worse_and_better_in_the_end():
    x = clustered(3, 400, 5, clusters=12, noise=0.3)
    found = [distortion(x, kmeans(x, 12, generator=generator(0), iterations=i))
             for i in (0, 1, 3, 10, 30)]  # fmt: skip
    assert all(b <= a + 1e-6 for a, b in zip(found, found[1:])) and found[-1] < 0.7 * found[0]


def test_spherical_centroids_have_length_1_and_long_vectors_do_not_draw_them():
    """Along one axis vectors of length 100, along the other of 1: two centroids, one each. Those
    of inner products without the scaling would both lie on the long axis."""
    x = np.array([[100, 1], [100, -1], [0.01, 1], [-0.01, 1]], np.float32)
    for seed in range(5):
        found = kmeans(x, 2, generator=generator(seed), spherical=True)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        assert len(set(nearest(x, found, spherical=True).tolist())) == 2


def test_the_generator_decides_and_the_callers_vectors_stay():
    x = clustered(0, 50, 4)
    before = x.copy()
    one, same, other = (kmeans(x, 5, generator=generator(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert np.array_equal(x, before)


def test_a_sample_is_enough(monkeypatch):
    """Of 1,000 vectors 20 a centroid are read, and the centroids are means of those."""
    monkeypatch.setattr(module, "SAMPLE", 20)
    x = np.arange(1000, dtype=np.float32)[:, None]
    seen = []
    right = module.nearest
    monkeypatch.setattr(module, "nearest", lambda x, *a: seen.append(len(x)) or right(x, *a))
    kmeans(x, 3, generator=generator())
    assert set(seen) == {60}


def test_fewer_vectors_than_centroids_are_refused():
    with pytest.raises(ValueError, match="2 vectors are too few for 3 centroids"):
        kmeans(np.zeros((2, 4), np.float32), 3, generator=generator())
