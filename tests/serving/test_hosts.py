"""Which names a request may call the server by, and which web sites may send it requests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from proxygml.errors import UserError
from proxygml.serving.limits import Limits
from tests.helpers.models import untrained
from tests.helpers.server import AUTHORISED, TIMES, Running, gallery_at, picture

httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")
hosts = pytest.importorskip("proxygml.serving.hosts", reason="the extra serve is not installed")

pytestmark = pytest.mark.xdist_group("serve")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, small_catalog: Path) -> Iterator[Running]:
    run = untrained(tmp_path_factory.mktemp("run"))
    folder = gallery_at(tmp_path_factory.mktemp("served") / "gallery", run, small_catalog)
    with Running(folder, run, Limits()) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator["httpx.Client"]:
    with httpx.Client(base_url=server.address, **TIMES) as client:
        yield client


ROUTES = ("/health", "/metrics", "/openapi.json", "/docs", "/items/0/image", "/none", "/")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "evil-localhost",
        "127.0.0.1.evil.example",
        "localhost:8000@evil.example",
        "localhost, evil.example",
        "localhost:port",
        "localhost:123456",
        "[::1].evil.example",
        "[::1",
        "10.0.0.1",
        "0.0.0.0",
        "",
    ],
)
def test_another_servers_name_is_refused_on_every_route(client: "httpx.Client", path: str, host: str) -> None:
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == 421
    assert "--allowed_host" in answer.json()["error"]


def test_changes_under_another_name_are_refused_before_their_token_is_looked_at(client: "httpx.Client") -> None:
    answer = client.post("/items", files={"image": picture()}, headers={"Host": "evil.example", **AUTHORISED})
    assert answer.status_code == 421
    assert client.get("/health").json()["items"] == 48


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1:1", "[::1]", "[::1]:8000"])
def test_this_machines_names_pass(client: "httpx.Client", host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://localhost"},
        {"Origin": "http://localhost:8000.evil.example"},
        {"Origin": "file://localhost:8000"},
        {"Origin": "http://localhost:port"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:8000"},
    ],
)
def test_a_page_of_another_site_changes_nothing(client: "httpx.Client", headers: dict[str, str]) -> None:
    sent = {"Host": "localhost:8000", **headers, **AUTHORISED}
    for answer in (
        client.post("/items", files={"image": picture()}, headers=sent),
        client.delete("/items/0", headers=sent),
        client.post("/search", files={"image": picture()}, headers=sent),
        client.put("/health", headers=sent),
    ):
        assert answer.status_code == 403
        assert "another web site" in answer.json()["error"]
    assert client.get("/health").json()["items"] == 48


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("localhost:8000", {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}),
        ("localhost", {"Origin": "https://localhost"}),  # behind a proxy that speaks TLS
        ("localhost:443", {"Origin": "https://LOCALHOST"}),
        ("localhost:8000", {"Sec-Fetch-Site": "none"}),
        ("localhost:8000", {}),
    ],
)
def test_its_own_page_and_plain_clients_may_send_images(
    client: "httpx.Client", host: str, headers: dict[str, str]
) -> None:
    answer = client.post("/search", files={"image": picture()}, headers={"Host": host, **headers})
    assert answer.status_code == 200


def test_no_other_site_is_allowed_to_read(client: "httpx.Client") -> None:
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for answer in (client.options("/search", headers=asked), client.get("/health", headers=asked)):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", ROUTES)
def test_every_answer_has_the_security_headers(client: "httpx.Client", path: str) -> None:
    for answer in (client.get(path), client.get(path, headers={"Host": "evil.example"})):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


@pytest.mark.parametrize("name", ["http://x", "a b", "x:80", "a/b", "", "[::1", "x\ny"])
def test_an_allowed_host_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="must be a host name"):
        hosts.host_name(name)


def test_the_star_allows_every_name_but_no_nonsense() -> None:
    check = hosts.HostCheck(lambda *_: None, ["*"])
    scope = {"method": "GET", "headers": [(b"host", b"any.example:80")]}
    assert check._refused(scope) is None
    scope["headers"] = [(b"host", b"any.example/x")]
    assert check._refused(scope) is not None


def test_the_address_of_the_connection_passes_where_every_interface_is_listened_on() -> None:
    scope = {"method": "GET", "headers": [(b"host", b"192.0.2.7:8000")], "server": ("192.0.2.7", 8000)}
    assert hosts.HostCheck(lambda *_: None, hosts.local_names("0.0.0.0"))._refused(scope) is None
    assert hosts.HostCheck(lambda *_: None, hosts.local_names())._refused(scope) is not None
    scope["server"] = ("192.0.2.8", 8000)
    assert hosts.HostCheck(lambda *_: None, hosts.local_names("0.0.0.0"))._refused(scope) is not None
