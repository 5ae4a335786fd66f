"""A Milvus server for the tests: one for all their processes, stopped when the last of them has ended.

It is the Go server of the package `milvus`, in a process of its own that this module starts and watches over:
`python -m tests.helpers.milvus_server FOLDER`. Whoever uses it leaves a file FOLDER/users/PID.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]

MEMORY = "512MiB"
"""At which the server's Go part collects garbage more eagerly."""


ETCD = """\
listen-client-urls: http://127.0.0.1:{client}
advertise-client-urls: http://127.0.0.1:{client}
listen-peer-urls: http://127.0.0.1:{peer}
initial-advertise-peer-urls: http://127.0.0.1:{peer}
initial-cluster: default=http://127.0.0.1:{peer}
"""
"""Ports of the etcd in the server: without it there can be one server on a machine."""


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in listening]
    for one in listening:
        one.close()
    return ports


def is_healthy(url: str) -> bool:
    """Whether a server says that all its parts run."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
            return b"OK" in answer.read()
    except OSError:
        return False


@contextmanager
def shared_server(folder: Path) -> Iterator[str]:
    """The address of the server of a folder, which is started if there is none."""
    users = folder / "users"
    users.mkdir(parents=True, exist_ok=True)
    address, own = folder / "address", users / str(os.getpid())
    with FileLock(folder / "lock"):
        own.touch()
        if not address.is_file():
            with (folder / "log").open("w") as log:
                command = [sys.executable, "-m", "tests.helpers.milvus_server", str(folder)]
                watching = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
            while not address.is_file() and watching.poll() is None:
                time.sleep(0.1)
            if not address.is_file():
                own.unlink()
                pytest.fail(f"the Milvus server did not start: {(folder / 'log').read_text()}")
    try:
        yield address.read_text()
    finally:
        own.unlink()


TRIES = 3
"""To start: between the choice of a port and its use, another program may take it."""


class MilvusServer:
    """A server with its data below a folder.

    Attributes:
        address: its URI.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        pytest.importorskip("milvus", reason="the package milvus, a server for tests, is not installed")
        self._folder, self._settings = folder, settings
        self.address = ""
        self._take_ports()

    def _take_ports(self) -> None:
        import milvus

        self._folder.mkdir(parents=True, exist_ok=True)
        client, peer = free_ports(2)
        etcd = self._folder / "etcd.yaml"
        etcd.write_text(ETCD.format(client=client, peer=peer))
        self._environment = {"GOMEMLIMIT": MEMORY, "GOMAXPROCS": "2", "ETCD_CONFIG_PATH": str(etcd)}
        self._server = milvus.MilvusServer(wait_for_started=False, etcd_port=client)
        self._server.set_base_dir(str(self._folder))
        for key, value in {
            "proxy_port": 0,  # any that is free
            "etcd_log_level": "fatal",
            "proxy.timeTickInterval": 20,  # ms that a read waits for all that was written: 200 by default
            "queryCoord.checkInterval": 100,
            "queryCoord.distPullInterval": 50,
            **self._settings,
        }.items():
            self._server.config.set(key, value)

    @property
    def pid(self) -> int:
        """The server's process."""
        return int(self._server.server_proc.pid)

    def start(self) -> None:
        """Start it, and return when it answers; after `kill` on the same ports and data."""
        for tries_left in reversed(range(TRIES)):
            self._launch()
            if self._answers():
                break
            if self.address or not tries_left:
                pytest.fail("the Milvus server has ended: see logs/ in its folder")
            self._server.stop()
            self._take_ports()  # another program may have taken one since
        self.address = f"http://127.0.0.1:{self._server.listen_port}"

    def _launch(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._environment.items():
                patch.setenv(name, value)
            if self.address:
                self._start_again()
            else:
                self._server.start()

    def _answers(self) -> bool:
        """Wait until it answers; False where it ends before."""
        health = f"http://127.0.0.1:{self._server.webservice_port}/healthz"
        while not is_healthy(health):
            if self._server.server_proc.poll() is not None:
                return False
            time.sleep(0.1)
        return True

    def _start_again(self) -> None:
        """As `milvus.MilvusServer.start`, which takes a port that was in use just now for one that is in use."""
        folder = self._server.config.base_data_dir
        program = self._server.get_milvus_executable_path()
        more = {"DEPLOY_MODE": "STANDALONE", "METRICS_PORT": str(self._server.webservice_port)}
        more |= {"MILVUS_RUN_DIR": f"{folder}/run", "LD_LIBRARY_PATH": str(Path(program).parent)}
        with Path(f"{folder}/logs/again.log").open("w") as log:
            self._server.server_proc = subprocess.Popen(
                [program, "run", "standalone"], cwd=folder, env={**os.environ, **more}, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """End it without warning."""
        self._server.server_proc.send_signal(signal.SIGKILL)
        self._server.server_proc.wait()
        self._server.server_proc = None

    def stop(self) -> None:
        """End it, and delete its data."""
        self._server.stop()
        shutil.rmtree(self._server.config.base_data_dir, ignore_errors=True)


def watch(folder: Path) -> None:
    """Start the server, write its address, and stop it when nobody uses it any more."""
    server = MilvusServer(folder / "data")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    address = folder / "address"
    try:
        server.start()
        temporary = folder / "address.new"
        temporary.write_text(server.address)
        temporary.replace(address)
        while True:
            time.sleep(1)
            with FileLock(folder / "lock"):
                if not any(psutil.pid_exists(int(user.name)) for user in (folder / "users").iterdir()):
                    address.unlink()
                    return
    finally:
        address.unlink(missing_ok=True)
        server.stop()


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
