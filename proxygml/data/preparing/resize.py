"""Smaller copies of a catalog's images, which decode several times faster, and the catalog that points at them.

prepare.py has checked the images before.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from proxygml.console import note, track
from proxygml.data.catalog import Catalog
from proxygml.data.columns import BOX_COLUMNS
from proxygml.data.images.decode import read_file
from proxygml.data.images.packed import file_behind
from proxygml.data.images.tensors import decode_image
from proxygml.data.images.transforms import scale_down, scaled_size
from proxygml.errors import DatasetError, counted
from proxygml.files import atomic_write, remove_leftovers
from proxygml.urls import Place, url_of

JPEG_QUALITY = 95
"""Pillow advises against more: it would only make the files larger."""


class Size(NamedTuple):
    """Height and width of an upright image, in pixels."""

    height: int
    width: int


def copy_smaller(
    catalog: Catalog, sizes: Mapping[Place, Size], folder: Path, shorter_side: int, workers: int | None = None
) -> Catalog:
    """Store a copy of every image whose shorter side has that many pixels, and scale the boxes with it.

    JPEG and lossy WebP become JPEG, all else PNG, upright and RGB. An image that is no larger is copied byte for byte.
    Each copy gets the modification time of its image. A copy with the same time is kept as it is, so that a stopped run
    continues; of an image at a URL, any copy in the folder, which is made anew when one of the images has changed.

    Args:
        catalog: the images.
        sizes: the size of each of `catalog.paths`.
        folder: where the copies go, under the relative paths of their images.
        shorter_side: 1 or more; of the image, not of its box.
        workers: how many images at a time; as many as there are processors when left out.

    Returns:
        The same rows with the paths and boxes of the copies, relative to `folder`.

    Raises:
        ImageError: an image cannot be decoded.
        DatasetError: a copy cannot be written, or two images would have the same.
    """
    sources = dict(zip(catalog.paths, catalog.table["path"], strict=True))
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)  # decoding, scaling and encoding free the lock
    for place in {(folder / _place(path)).parent for path in sources.values()}:
        remove_leftovers(place)
    try:
        jobs = pool.map(lambda path: _copy(path, folder / _place(sources[path]), sizes[path], shorter_side), sources)
        copies = dict(
            zip(sources, track(jobs, f"Copying at {counted(shorter_side, 'pixel')}", len(sources)), strict=True)
        )
    finally:
        pool.shutdown(cancel_futures=True)
    _check_clashes(copies)
    after = sum(path.stat().st_size for path in copies.values())
    before = sum(path.stat().st_size for path in copies if isinstance(path, Path))
    of = f" of {before / 1e6:,.1f} MB" if before else ""
    note(f"{counted(len(copies), 'smaller copy')} in {folder}: {after / 1e6:,.1f} MB{of}")
    table = catalog.table.assign(path=[copies[path].relative_to(folder).as_posix() for path in catalog.paths])
    if BOX_COLUMNS[0] in table:
        table[list(BOX_COLUMNS)] = _scaled_boxes(catalog, sizes, shorter_side)
    return Catalog(table, folder)


def _place(path: str) -> str:
    """The path of the copy within the folder; each image from elsewhere gets a folder of its own."""
    if (url := url_of(path)) is not None:
        return f"elsewhere/{blake2b(path.encode(), digest_size=8).hexdigest()}/{url.name}"
    place = PurePosixPath(os.path.normpath(path))
    if place.is_absolute() or place.parts[0] == "..":
        return f"elsewhere/{blake2b(path.encode(), digest_size=8).hexdigest()}/{place.name}"
    return str(place)


def _copy(source: Place, target: Path, size: Size, shorter_side: int) -> Path:
    """Make the copy where it is not there yet, and return its path."""
    status = file_behind(source).stat() if isinstance(source, Path) else None
    smaller = min(size) > shorter_side
    if smaller:
        target = _with_suffix(source, target)
    if target.exists() and (status is None or target.stat().st_mtime_ns == status.st_mtime_ns):
        return target
    data = read_file(source, kept=True)
    image = scale_down(decode_image(data, str(source)), shorter_side) if smaller else None
    try:
        with atomic_write(target, tidy=False) as temporary:
            if image is None:
                temporary.write_bytes(data)
            else:
                picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
                picture.save(temporary, "PNG" if target.suffix.lower() == ".png" else "JPEG", quality=JPEG_QUALITY)
            if status is not None:
                os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
    except OSError as error:
        raise DatasetError(f"the copy {target} cannot be written: {error.strerror or error}") from error
    return target


def _with_suffix(source: Place, target: Path) -> Path:
    """The name of a copy, with a suffix that says how it is encoded."""
    start = read_file(source, kept=True)[:16]
    lossy = start.startswith(b"\xff\xd8") or start[8:16] in (b"WEBPVP8 ", b"WEBPVP8X")
    suffixes = (".jpg", ".jpeg") if lossy else (".png",)
    return target if target.suffix.lower() in suffixes else target.with_name(target.name + suffixes[0])


def _check_clashes(copies: Mapping[Place, Path]) -> None:
    owners: dict[Path, Place] = {}
    for source, copy in copies.items():
        if (other := owners.setdefault(copy, source)) != source:
            raise DatasetError(f"{other} and {source} would both be copied to {copy}: rename one of them")


def _scaled_boxes(catalog: Catalog, sizes: Mapping[Place, Size], shorter_side: int) -> np.ndarray:
    """The boxes in pixels of the copies, rounded outwards; missing where there was none."""
    boxes = catalog.table[list(BOX_COLUMNS)].to_numpy(dtype=np.float64, na_value=np.nan)
    old = np.array([sizes[path] for path in catalog.paths], dtype=np.float64)
    new = np.array([scaled_size(*sizes[path], shorter_side) for path in catalog.paths], dtype=np.float64)
    # x by the width, y by the height; in this order whole numbers stay whole.
    corners = boxes * new[:, [1, 0, 1, 0]] / old[:, [1, 0, 1, 0]]
    return np.hstack([np.floor(corners[:, :2]), np.ceil(corners[:, 2:])])
