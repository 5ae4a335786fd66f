"""Labels that are changed on purpose, and how well a ranking finds them."""

import numpy as np
import numpy.typing as npt


def mislabelled_at_random(labels: npt.NDArray[np.int64], share: float, seed: int = 0) -> npt.NDArray[np.int64]:
    """The labels with a share of them changed to another class, each as likely."""
    random = np.random.default_rng(seed)
    changed = random.permutation(len(labels))[: round(share * len(labels))]
    classes = int(labels.max()) + 1
    labels = labels.copy()
    labels[changed] = (labels[changed] + random.integers(1, classes, len(changed))) % classes
    return labels


def clustered(
    count: int, classes: int, size: int = 24, spread: float = 0.35, seed: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Vectors (n, F) around a centre for each class, and their classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    vectors = random.normal(size=(classes, size))[labels] + spread * random.normal(size=(count, size))
    return vectors.astype(np.float32), labels
