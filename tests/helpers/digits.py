"""Real vectors that every checkout has: handwritten digits, and pieces of photographs, which are no digits."""

import numpy as np
import numpy.typing as npt


def digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """1,797 digits of 8 x 8 pixels as vectors of 64, and which digit each is."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.data.astype(np.float32), found.target.astype(np.int64)


def photo_pieces(count: int) -> npt.NDArray[np.float32]:
    """Pieces of two photographs, of the size and range of the digits."""
    from sklearn.datasets import load_sample_images

    photos = [photo.mean(axis=2) for photo in load_sample_images().images]
    random = np.random.default_rng(0)
    pieces = []
    for number in range(count):
        photo = photos[number % len(photos)]
        top, left = (random.integers(0, side - 8) for side in photo.shape)
        piece = photo[top : top + 8, left : left + 8]
        pieces.append(((piece - piece.min()) / max(np.ptp(piece), 1) * 16).ravel())
    return np.array(pieces, np.float32)
