"""Two coordinates for embeddings, so that a map can show them; figures.py and embedding_map.py draw it."""

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]  # (n, 2), each coordinate in 0..1

LANDMARKS = 10_000  # most points that t-SNE itself lays out: about 36 seconds of one core
ONE_THREAD = 2_000  # with fewer points, threads that wait for each other on a busy machine take ten times as long
ANCHORS = 4  # landmarks that place another point
ALIKE = 1e-5  # standard deviation of the numbers: below it, embeddings differ by rounding alone
NEAR = 0.03  # of the map's width: anchors that far from the nearest one lie on another island


def project(embeddings: npt.NDArray[np.float32], seed: int) -> Points:
    """Two dimensions for embeddings (n, D), of length 1, scaled into 0..1; seeded.

    Up to LANDMARKS points: t-SNE started from PCA. Beyond, its cost would grow with n: t-SNE lays out so many points
    drawn at random, and each other point goes to the mean of the landmarks nearest to it, weighted by closeness (ours).
    """
    if len(embeddings) <= LANDMARKS:
        return _scaled(_tsne(embeddings, seed))
    chosen = np.sort(np.random.default_rng(seed).choice(len(embeddings), LANDMARKS, replace=False))
    landmarks = _scaled(_tsne(embeddings[chosen], seed))
    points = _placed(embeddings, embeddings[chosen], landmarks)
    points[chosen] = landmarks
    return points


def _tsne(embeddings: npt.NDArray[np.float32], seed: int) -> Points:
    # In float64: the mean of thousands of equal vectors in float32 is another vector, and t-SNE of equals is a crash.
    centred = embeddings - embeddings.mean(axis=0, dtype=np.float64)
    if len(embeddings) < 5 or embeddings.shape[1] < 2 or not centred.std() > ALIKE:
        points = np.zeros((len(embeddings), 2))  # too little for t-SNE: as they are
        points[:, : min(2, centred.shape[1])] = centred[:, :2]
        return points
    from sklearn.manifold import TSNE  # noqa: PLC0415  (slow to load, and only the map needs it)
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    perplexity = min(30.0, (len(embeddings) - 1) / 3)
    with threadpool_limits(1 if len(embeddings) <= ONE_THREAD else None):
        tsne = TSNE(init="pca", perplexity=perplexity, max_iter=500, random_state=seed)
        fitted: Points = tsne.fit_transform(embeddings).astype(np.float64)
    return fitted


def _placed(
    embeddings: npt.NDArray[np.float32], anchors: npt.NDArray[np.float32], places: Points, block: int = 4096
) -> Points:
    """Where points (n, D) lie between the anchors (L, D) nearest to them, whose places (L, 2) are known."""
    from faiss import IndexFlatIP  # noqa: PLC0415  (only large maps need it)

    index = IndexFlatIP(anchors.shape[1])
    index.add(np.ascontiguousarray(anchors))
    points = np.empty((len(embeddings), 2))
    for start in range(0, len(embeddings), block):
        part = slice(start, start + block)
        similarity, nearest = index.search(np.ascontiguousarray(embeddings[part]), ANCHORS)
        around = places[nearest]  # (block, ANCHORS, 2)
        weight = 1 / np.maximum(1 - similarity.astype(np.float64), 1e-6) ** 2
        weight *= np.abs(around - around[:, :1]).max(axis=2) <= NEAR
        points[part] = (weight[:, :, None] * around).sum(axis=1) / weight.sum(axis=1, keepdims=True)
    return points


def _scaled(points: Points) -> Points:
    shifted = points - points.min(axis=0)
    scaled: Points = shifted / np.maximum(shifted.max(axis=0), 1e-12)
    return scaled
