"""Opening image files in processes that are stopped at their limits: what they hold, and whether they are whole."""

import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from proxygml.console import track
from proxygml.data.images.decode import read_file
from proxygml.data.images.decoder_pool import DecoderPool, DecoderStoppedError
from proxygml.data.images.packed import file_behind
from proxygml.errors import MOST_WORKERS, DatasetError, ImageError, check_whole
from proxygml.urls import Place, Url


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found when an image file was opened: its hash and its size in pixels, or what is wrong."""

    digest: bytes = b""
    width: int = 0
    height: int = 0
    kind: str = ""
    problem: str = ""


def inspect_all(paths: Sequence[Place], workers: int | None, kept: bool = False) -> dict[Place, Inspection]:
    """Open every file once, however many rows name it, in processes that are stopped at their limits.

    `kept`: whether what is read from URLs is kept on the disk, since it will be read again.
    """
    if workers is not None:
        check_whole("workers", workers, 1, MOST_WORKERS, DatasetError)
    unique = list(dict.fromkeys(paths))
    size = min(workers or os.cpu_count() or 1, max(1, len(unique)))
    with DecoderPool(size) as decoders:
        pool = ThreadPoolExecutor(size)
        try:
            jobs = pool.map(partial(inspect, decoders, kept=kept), unique)
            return dict(zip(unique, track(jobs, "Opening images", len(unique)), strict=True))
        finally:
            pool.shutdown(cancel_futures=True)  # at Ctrl-C, do not open the rest first


def inspect(decoders: DecoderPool, path: Place, kept: bool = False) -> Inspection:
    """Read and decode one file; see `inspect_all`."""
    return _inspect_remote(decoders, path, kept) if isinstance(path, Url) else _inspect_file(decoders, path)


def _inspect_file(decoders: DecoderPool, path: Path) -> Inspection:
    try:
        str(path).encode()
        mode = file_behind(path).stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return Inspection(kind="unreadable", problem="is a device or a pipe")  # which would never end
        facts = decoders.inspect(path)
    except UnicodeEncodeError:
        return Inspection(kind="unreadable", problem="has a name that is not UTF-8: rename it")
    except FileNotFoundError:
        return Inspection(kind="missing", problem="is a link to nothing" if path.is_symlink() else "is missing")
    except OSError as error:
        return Inspection(kind="unreadable", problem=f"cannot be read: {error.strerror}")
    except (ImageError, DecoderStoppedError) as error:
        return Inspection(kind="unreadable", problem=str(error).removeprefix(f"{path} "))
    return Inspection(facts.digest, facts.width, facts.height)


def _inspect_remote(decoders: DecoderPool, url: Url, kept: bool) -> Inspection:
    """The same for a URL, which is read here: the processes that decode have no rights to use."""
    try:
        facts = decoders.inspect(url, read_file(url, kept))
    except (ImageError, DecoderStoppedError) as error:
        missing = str(error) == f"there is no {url}"
        problem = "is missing" if missing else str(error).removeprefix(f"{url} ")
        return Inspection(kind="missing" if missing else "unreadable", problem=problem)
    return Inspection(facts.digest, facts.width, facts.height)
