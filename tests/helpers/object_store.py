"""An S3 server for the tests, in a process of its own that ends with them; and its settings in the environment."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import fsspec
import pytest

from tests.helpers.milvus_server import free_ports

# It ends when its standard input does, and so with the tests, however they end.
_SERVER = """
import os, sys, threading
from moto.server import main
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
main(["-p", sys.argv[1]])
"""

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(address: str) -> bool:
    try:
        with _OPENER.open(f"{address}/moto-api/", timeout=10):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


@contextmanager
def running_server() -> Iterator[str]:
    """The address of a server, started here."""
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not answers(address):
            if process.poll() is not None:
                pytest.fail("the S3 server has ended")
            time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.wait()


@contextmanager
def settings_for(address: str) -> Iterator[None]:
    """The settings with which fsspec and boto find the server, here and in processes that are started meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("HTTP_PROXY", "http_proxy"):
            patch.delenv(name, raising=False)
        yield


def put(url: str, files: dict[str, bytes]) -> str:
    """Put files below a URL, whose bucket is made; the URL."""
    store, path = fsspec.url_to_fs(url)
    if url.startswith("s3://"):
        with suppress(FileExistsError):
            store.mkdir(path.partition("/")[0])
    for name, content in files.items():
        store.pipe_file(f"{path}/{name}", content)
    return url


def forget(url: str) -> None:
    """Remove all that lies below a URL."""
    store, path = fsspec.url_to_fs(url)
    with suppress(FileNotFoundError):
        store.rm(path, recursive=True)
