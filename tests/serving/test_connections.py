"""Limits on connections, and the end of the process, as a client sees them through real sockets."""

import asyncio
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import torch

from proxygml.serving.batched_embedder import BatchedEmbedder
from proxygml.serving.limits import Limits
from tests.helpers.server import TIMES, TOKEN, Running, gallery_at, picture

httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")
connections = pytest.importorskip("proxygml.serving.connections", reason="the extra serve is not installed")
from proxygml.serving.log_lines import LINES, PrintableLines, RepeatedLines  # noqa: E402

pytestmark = pytest.mark.xdist_group("serve")

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def folder(run_folder: Path, small_catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gallery_at(tmp_path_factory.mktemp("served") / "gallery", run_folder, small_catalog)


@pytest.fixture
def running(folder: Path, run_folder: Path) -> Iterator[Running]:
    limits = Limits(max_connections=20, max_connections_per_address=10, timeout=1.0)
    with Running(folder, run_folder, limits) as running:
        yield running


def connect(running: Running, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", running.port), timeout=30, source_address=(source, 0))


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def read_health(connection: socket.socket) -> None:
    """Read one whole answer to HEAD, whose body is JSON."""
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(65_536)


def is_healthy(running: Running, source: str = "127.0.0.1") -> bool:
    with connect(running, source) as connection:
        connection.sendall(HEAD + b"Connection: close\r\n\r\n")
        return read_all(connection).startswith(b"HTTP/1.1 200")


def test_an_answer_is_sent_in_one_piece_unless_it_is_large() -> None:
    """Counted in the pieces that reach the socket."""

    class Counting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.pieces: list[int] = []
            self.transport, self.write = transport, transport.write
            transport.write = self.counted  # type: ignore[method-assign]
            self.joined = connections.JoinedWrites(transport, asyncio.get_running_loop())
            made.append(self)

        def counted(self, data: bytes) -> None:
            self.pieces.append(len(data))
            self.write(data)

    made: list[Counting] = []

    async def work() -> tuple[list[int], bytes]:
        server = await asyncio.get_running_loop().create_server(Counting, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        while not made:
            await asyncio.sleep(0)
        joined = made[0].joined
        joined.write(b"head ")
        joined.write(b"body ")
        assert joined.get_write_buffer_size() == 10 and made[0].pieces == []
        await asyncio.sleep(0)
        joined.write(bytes(200_000))
        joined.write(b" end")
        joined.close()  # what was written is sent first
        received = await reader.read()
        writer.close()
        server.close()
        return made[0].pieces, received

    pieces, received = asyncio.run(work())
    assert pieces == [10, 200_000, 4] and received == b"head body " + bytes(200_000) + b" end"


def test_half_sent_heads_of_one_address_make_room_for_others(running: Running) -> None:
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(connect(running)).sendall(HEAD)
            assert len(running.server.connections) <= 10
        assert is_healthy(running) and is_healthy(running, "127.0.0.2")


def test_many_addresses_together_have_a_limit(running: Running) -> None:
    with ExitStack() as stack:
        for number in range(60):
            stack.enter_context(connect(running, f"127.0.1.{number}")).sendall(HEAD)
            assert len(running.server.connections) <= 20
        assert is_healthy(running, "127.0.0.9")


def test_a_head_that_is_not_finished_is_given_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(running.server.connections.allowance, connections.Phase.WAITING, 0.5)
    with connect(running) as trickling, connect(running) as silent:
        trickling.sendall(HEAD + b"X: ")
        trickling.settimeout(0.1)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                trickling.sendall(b"a")
                if not trickling.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() < end
        assert read_all(silent) == b""


def test_the_rest_of_a_body_that_is_refused_is_not_read_for_ever(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(running.server.connections.allowance, connections.Phase.RESTING, 0.5)
    with connect(running) as connection:
        connection.sendall(b"POST /none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 404")


def test_a_client_that_does_not_read_its_answers_is_left(running: Running) -> None:
    with connect(running) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.settimeout(5)
        request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with pytest.raises(OSError):
            for _ in range(100_000):
                connection.sendall(100 * request)
        end = time.monotonic() + 30
        while len(running.server.connections) and time.monotonic() < end:
            time.sleep(0.05)
        assert not len(running.server.connections)


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        b"GET  /health\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n X: folded\r\n: y\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        HEAD + b"X: " + bytes([97]) * 100_000 + b"\r\n\r\n",
        HEAD + b"".join(b"X%d: a\r\n" % number for number in range(20_000)) + b"\r\n",
    ],
)
def test_what_is_no_request_has_an_answer_in_json(running: Running, request_: bytes) -> None:
    with connect(running) as connection:
        try:
            connection.sendall(request_)
        except ConnectionError:
            return  # the server has answered and closed before all was sent
        answer = read_all(connection)
    if answer:  # none where the system has dropped it with the connection
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 4") and b"nosniff" in head
        assert set(json.loads(body)) == {"error"}
    assert is_healthy(running)


def test_a_body_in_tiny_chunks_is_refused(running: Running) -> None:
    with connect(running) as connection:
        connection.sendall(
            b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        with suppress(ConnectionError):
            connection.sendall(20_000 * b"1\r\n-\r\n")
        answer = read_all(connection)
    assert not answer or b" 400 " in answer.partition(b"\r\n")[0]
    assert is_healthy(running)


def test_requests_one_after_another_are_all_answered(running: Running) -> None:
    with connect(running) as connection:
        connection.sendall(200 * (HEAD + b"\r\n") + HEAD + b"Connection: close\r\n\r\n")
        assert read_all(connection).count(b"HTTP/1.1 200") == 201


def test_a_connection_in_use_does_not_count_as_idle(
    folder: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_WATCH_EVERY", 3600.0)  # this test looks instead
    with Running(folder, run_folder, Limits()) as running, connect(running) as connection:
        for look in range(50):
            for _ in range(2):
                connection.sendall(HEAD + b"\r\n")
                read_health(connection)
            (held,) = running.server.connections
            assert held.seconds_in_phase(float(look)) == 0


def test_there_are_never_more_connections_than_files_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (400, 400))
    assert 8 <= connections.Connections(Limits()).most < 300


def test_an_ipv6_network_is_one_client() -> None:
    networks = [connections._network((address, 1, 0, 0)) for address in ("2001:db8::1", "2001:db8::2", "2001:db8:1::1")]
    assert networks[0] == networks[1] != networks[2]
    assert connections._network(("::ffff:192.0.2.1", 1, 0, 0)) == connections._network(("192.0.2.1", 1))


def test_no_text_writes_lines_of_its_own_into_the_log() -> None:
    try:
        raise ValueError("a\x1b[2J\nERROR: forged")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "%s\r\u202e", ("b\nERROR: forged",), sys.exc_info())
    text = PrintableLines(logging.Formatter()).format(record)
    first, *others = text.split("\n")
    assert first == "b" and all(line.startswith("  ") for line in others)
    assert text.replace("\n", "").isprintable() and "\\x1b[2J" in text and "\\r\\u202e" in text


def test_repeated_lines_are_left_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("proxygml.test_repeated_lines")
    log.addFilter(RepeatedLines())
    for number in range(1000):
        log.warning("number %d", number)
    log.warning("another")
    written = [record.getMessage() for record in caplog.records]
    assert written == [*(f"number {n}" for n in range(LINES)), "another"]
    for number in range(1000):
        log.warning(f"a {number}")
        log.warning(f"{chr(1000 + number)} is of a kind of its own")
    assert len(caplog.records) < 300


# The end of the process -----------------------------------------------------------------------------------------------


def started(folder: Path, *options: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "proxygml", "serve", str(folder), "--port", "0", "--page", "false", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PROXYGML_TOKEN": TOKEN},
    )
    assert process.stdout is not None
    port = int(process.stdout.readline().rpartition(":")[2])
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", **TIMES)
            return process, port
        except httpx.HTTPError:
            time.sleep(0.05)


def test_a_request_under_way_at_the_end_is_finished_and_no_other_begins(
    folder: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()
    embed = BatchedEmbedder._embed

    def slow(self: BatchedEmbedder, squares: list[torch.Tensor]) -> list[torch.Tensor]:
        began.set()
        go_on.wait(20)
        return embed(self, squares)

    monkeypatch.setattr(BatchedEmbedder, "_embed", slow)
    answers = []
    with Running(folder, run_folder, Limits()) as running:
        url = f"{running.address}/embed"
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(url, files={"image": picture()}, **TIMES).status_code)
        )
        asking.start()
        assert began.wait(20)
        running.server.should_exit = True
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                connect(running).close()
            except OSError:
                break
            time.sleep(0.02)
        assert time.monotonic() < end
        go_on.set()
        asking.join()
    assert answers == [200]


def test_what_cannot_be_finished_at_the_end_is_told_so(
    folder: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on = threading.Event(), threading.Event()

    def stuck(self: BatchedEmbedder, squares: list[torch.Tensor]) -> list[torch.Tensor]:
        began.set()
        go_on.wait(20)
        return [torch.ones(16)] * len(squares)

    monkeypatch.setattr(BatchedEmbedder, "_embed", stuck)
    answers = []
    with Running(folder, run_folder, Limits()) as running:
        running.server.config.timeout_graceful_shutdown = 1
        url = f"{running.address}/embed"
        asking = threading.Thread(target=lambda: answers.append(httpx.post(url, files={"image": picture()}, **TIMES)))
        asking.start()
        assert began.wait(20)
        running.server.should_exit = True
        asking.join(20)
        go_on.set()
    assert [answer.status_code for answer in answers] == [503]
    assert "is stopping" in answers[0].json()["error"]


def test_a_second_signal_ends_the_server_at_once(folder: Path) -> None:
    process, port = started(folder)
    with socket.create_connection(("127.0.0.1", port)) as half:
        form = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 99\r\n"
        half.sendall(b"POST /embed HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n" + form + b"\r\n")
        assert b"100" in half.recv(100), "the request is under way"
        process.send_signal(signal.SIGTERM)
        wait_until_closed(port)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT


def wait_until_closed(port: int) -> None:
    """Until a server takes no more connections, as it does after the first signal."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            return
        time.sleep(0.02)
    raise AssertionError(f"port {port} is still open")


def test_a_signal_ends_the_server_cleanly(folder: Path) -> None:
    process, _ = started(folder)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
