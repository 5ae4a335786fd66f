"""Processes that decode: the same pixels, limits that hold, and other images that go on whatever becomes of one."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from proxygml.data.images.decode import decode
from proxygml.data.images.decoder_pool import DecoderPool, DecoderStoppedError
from proxygml.errors import ImageError
from tests.helpers import bombs
from tests.helpers.pictures import encoded, gradient

PHOTO = encoded(gradient(30, 40), "JPEG")


def processes(pool: DecoderPool) -> list[int]:
    return [process._process.pid for process in pool._all]


def is_running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    with DecoderPool(2, processor_seconds=2, seconds=60, max_pixels=30_000_000) as pool:
        yield pool


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_pixels_are_those_of_this_process(pool: DecoderPool, format: str) -> None:
    for height, width in ((30, 40), (800, 900)):
        data = encoded(gradient(height, width), format)
        assert np.array_equal(pool.decode(data, "a"), decode(data, "a"))


def test_a_bad_image_is_named_and_the_next_one_is_decoded(pool: DecoderPool, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="page is no image of a known format"):
        pool.decode(b"<html>", "page")
    with pytest.raises(ImageError, match="has 40 x 30 pixels, but may have at most 100"):
        pool.decode(PHOTO, "a", max_pixels=100)
    with pytest.raises(ImageError, match=r"none\.jpg cannot be read"):
        pool.inspect(tmp_path / "none.jpg")
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    assert pool.inspect(tmp_path / "a.jpg")[1:] == (30, 40)


def test_an_image_that_takes_too_long_is_stopped_and_others_go_on() -> None:
    slow = b"P2 4000 5000 255\n" + b"1 " * 20_000_000  # numbers as text, which Pillow reads in Python
    with DecoderPool(2, processor_seconds=1, seconds=100) as pool, ThreadPoolExecutor(4) as threads:
        stopped = [threads.submit(pool.decode, slow, "the bomb") for _ in range(2)]
        for _ in range(5):
            assert pool.decode(PHOTO, "a").shape == (30, 40, 3)
        for answer in stopped:
            with pytest.raises(ImageError, match="the bomb takes more than 1 seconds of processor time"):
                answer.result()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds a process's memory")
def test_an_image_that_takes_too_much_memory_is_refused() -> None:
    with DecoderPool(1, max_pixels=10_000) as pool:
        with pytest.raises(ImageError, match="the image takes too much memory to be decoded"):
            pool.decode(encoded(gradient(1, 1).resize((6000, 6000)), "PNG"), "the image", max_pixels=2**30)
        assert pool.decode(PHOTO, "a").shape == (30, 40, 3)


def test_a_process_that_is_killed_is_replaced(pool: DecoderPool) -> None:
    for _ in range(2):
        for process in processes(pool):
            os.kill(process, signal.SIGKILL)
        time.sleep(0.1)
        for _ in range(4):
            assert pool.decode(PHOTO, "a").shape == (30, 40, 3)


def test_a_process_that_cannot_be_replaced_now_is_replaced_later() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with DecoderPool(1) as pool:
        os.kill(processes(pool)[0], signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            for _ in range(2):
                with pytest.raises(DecoderStoppedError, match="the process that decoded a was stopped"):
                    pool.decode(PHOTO, "a")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with suppress(DecoderStoppedError):  # of the last one that could not be replaced
            pool.decode(PHOTO, "a")
        assert pool.decode(PHOTO, "a").shape == (30, 40, 3)


def test_one_that_is_stopped_at_work_is_nobodys_fault() -> None:
    with DecoderPool(1, seconds=1) as pool:
        pool.decode(PHOTO, "a")
        os.kill(processes(pool)[0], signal.SIGSTOP)
        with pytest.raises(DecoderStoppedError, match="a could not be decoded within 1 s"):
            pool.decode(PHOTO, "a")


def test_a_crash_is_the_images_fault() -> None:
    slow = bombs.jpeg_with_scans(5000, 99)
    with DecoderPool(1, processor_seconds=60) as pool, ThreadPoolExecutor(1) as threads:
        pool.decode(PHOTO, "a")
        crashing = threads.submit(pool.decode, slow, "the image")
        time.sleep(0.2)
        os.kill(processes(pool)[0], signal.SIGSEGV)
        with pytest.raises(ImageError, match="the image makes the decoder crash"):
            crashing.result()


PARENT = """
import sys, time
from proxygml.data.images.decoder_pool import DecoderPool
import threading
pool = DecoderPool(2, processor_seconds=600)
for _ in range(2):
    pool.decode(open(sys.argv[1], "rb").read(), "a")
threading.Thread(target=pool.decode, args=(open(sys.argv[2], "rb").read(), "slow"), daemon=True).start()
time.sleep(0.2)
print(*[process._process.pid for process in pool._all], flush=True)
time.sleep(60)
"""


def test_no_process_outlives_its_parent(tmp_path: Path) -> None:
    """Not even one that is at work."""
    (tmp_path / "a.jpg").write_bytes(PHOTO)
    (tmp_path / "slow.jpg").write_bytes(bombs.jpeg_with_scans(5000, 99))
    arguments = [sys.executable, "-c", PARENT, str(tmp_path / "a.jpg"), str(tmp_path / "slow.jpg")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [int(process) for process in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.kill()
    stop = time.monotonic() + 60
    while any(is_running(child) for child in children) and time.monotonic() < stop:
        time.sleep(0.05)
    assert not any(is_running(child) for child in children)


def test_a_process_loads_no_pytorch() -> None:
    code = "import sys, proxygml.data.images.decoder_worker; print({'torch', 'pandas'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
