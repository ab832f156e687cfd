"""k-means: centroids such that each vector is near one of them.

The lists of an IVF index and the codebooks of product quantisation are learnt by it.

Lloyd's algorithm as FAISS runs it (``faiss/Clustering.cpp``): a sample of at most 256 vectors a
centroid, of which the first k at random are where the centroids start; a fixed number of rounds; a
centroid that no vector is nearest to takes half of the largest cluster.
Simplified away: several starts, weights, k-means++, whose careful start costs k passes and gains
little after the rounds.
"""

import numpy as np
import torch

from course_lib.rag.index import blocks, normalised

SAMPLE = 256
"""Vectors a centroid at most: more change little."""
SPLIT = 1 / 1024
"""Relative distance of the two halves of a cluster that is split."""


def nearest(x: np.ndarray, centroids: np.ndarray, spherical: bool = False) -> np.ndarray:
    """(n, d), (k, d) -> (n,) the centroid nearest to each vector; the first of equals.

    |x - c|² = |x|² - 2 (x·c - |c|²/2), so the nearest has the highest bracket; ``spherical`` goes
    by x·c alone, the inner product.
    """
    half = 0 if spherical else 0.5 * (centroids**2).sum(1)
    labels = np.zeros(len(x), np.int32)
    for rows in blocks(len(x), len(centroids)):
        labels[rows] = (x[rows] @ centroids.T - half).argmax(1)
    return labels


def kmeans(
    x: np.ndarray, k: int, *, generator: torch.Generator, iterations: int = 10,
    spherical: bool = False,
) -> np.ndarray:  # fmt: skip
    """Learn centroids.

    Args:
        x: (n, d).
        k: how many.
        iterations: rounds; FAISS has 10 for an IVF index and 25 for codebooks.
        spherical: for inner products: vectors go to the centroid with the highest one, and
            centroids are scaled to length 1, or a long one would draw everything to it.

    Returns:
        (k, d) float32.

    Raises:
        ValueError: fewer vectors than centroids.
    """
    if len(x) < k:
        raise ValueError(f"{len(x)} vectors are too few for {k} centroids.")
    order = torch.randperm(len(x), generator=generator)[: SAMPLE * k]
    x = x[order.numpy()]
    centroids = normalised(x[:k]) if spherical else x[:k].copy()
    for _ in range(iterations):
        labels = nearest(x, centroids, spherical)
        counts = np.bincount(labels, minlength=k)
        sums = np.stack([np.bincount(labels, column, minlength=k) for column in x.T], axis=1)
        full = counts > 0
        centroids[full] = sums[full] / counts[full, None]
        split_largest(centroids, counts)
        if spherical:
            centroids = normalised(centroids)
    return centroids


def split_largest(centroids: np.ndarray, counts: np.ndarray) -> None:
    """Put each centroid without vectors beside that of the largest cluster, in place.

    The two move apart by a little along each axis, to either side by turns; the next round divides
    the cluster's vectors between them.
    """
    step = np.where(np.arange(centroids.shape[1]) % 2 == 0, SPLIT, -SPLIT).astype(np.float32)
    for empty in np.flatnonzero(counts == 0):
        largest = counts.argmax()
        centroids[empty] = centroids[largest] * (1 + step)
        centroids[largest] *= 1 - step
        counts[empty] = counts[largest] // 2
        counts[largest] -= counts[empty]
