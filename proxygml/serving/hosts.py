"""Which names a request may call the server by, and which web sites may send it requests.

A browser that can reach the server runs the scripts of any web site. Such a script gives the server's address a name of
its own (DNS rebinding), which the Host header shows, or sends requests across origins, which Origin and Sec-Fetch-Site
show.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from proxygml.errors import UserError
from proxygml.serving.limits import RequestError
from proxygml.serving.refusals import refuse

ANY = "*"
"""The allowed host that lets every name pass."""

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?\.?|\[[0-9a-f:.]+\]")
_PORT = re.compile(r":[0-9]{0,5}")


def local_names(listening_on: str = "127.0.0.1") -> list[str]:
    """This machine's names: those of the loopback interface, its host name, and the address that it listens on."""
    names = ["localhost", "127.0.0.1", "[::1]", socket.gethostname(), listening_on]
    return [host_name(name) for name in dict.fromkeys(names)]


class HostCheck:
    """ASGI middleware that refuses requests whose Host header has a name that is not allowed, and changes that another
    web site has sent.

    If the server listens on every interface (0.0.0.0 or ::), the address that a connection came in on is allowed too.

    Args:
        app: what the other requests reach.
        allowed: as `host_name` returns them.
        origins: of web sites whose pages may send changes too, as `web_origin` returns them.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str], origins: Sequence[str] = ()) -> None:
        self.app = app
        self.origins = frozenset(origins)
        self.any = ANY in allowed
        self.allowed = set(allowed)
        self.local_addresses = bool(self.allowed & {"0.0.0.0", "[::]"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._refused(scope)) is not None:
            await refuse(error)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refused(self, scope: Scope) -> RequestError | None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        host = hosts[0].strip().lower() if len(hosts) == 1 else ""
        if not self._is_allowed(host, scope):
            return RequestError(
                421,
                f"the Host header is {host[:100]!r}, which is not a name of this server: its operator may allow it "
                "with --allowed_host",
            )
        if scope["method"] not in _SAFE_METHODS and self._is_cross_origin(scope, host):
            return RequestError(403, "a page of another web site has sent this request: only this server's own may")
        return None

    def _is_allowed(self, host: str, scope: Scope) -> bool:
        name = _without_port(host)
        if name is None:
            return False
        if self.any or name.rstrip(".") in self.allowed:
            return True
        address = scope.get("server")
        return self.local_addresses and address is not None and name == _bracketed(address[0])

    def _is_cross_origin(self, scope: Scope, host: str) -> bool:
        """Whether a browser says that the request comes from a page that may not send it; other clients say nothing."""
        headers = [(name, value.decode("latin-1").strip().lower()) for name, value in scope["headers"]]
        origins = [text for name, text in headers if name == b"origin"]
        if origins and self.origins.issuperset(origins):
            return False
        sites = [text for name, text in headers if name == b"sec-fetch-site"]
        return any(site not in ("same-origin", "none") for site in sites) or not all(
            _is_origin_of(origin, host) for origin in origins
        )


def _is_origin_of(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
        here = urlsplit(f"//{host}")
        default = {"http": 80, "https": 443}.get(parts.scheme)
        return default is not None and (parts.hostname, parts.port or default) == (here.hostname, here.port or default)
    except ValueError:  # no port is written so
        return False


def _without_port(host: str) -> str | None:
    """The name of a Host header in lower case, or None for what is no name."""
    found = _NAME.match(host)
    if found is None or (found.end() < len(host) and not _PORT.fullmatch(host, found.end())):
        return None
    return found[0]


def host_name(name: str) -> str:
    """An allowed host as requests are compared with it: lower case, an IPv6 address in brackets; `*` allows every one.

    Raises:
        UserError: it is no host name.
    """
    plain = _bracketed(name.strip().lower())
    if plain == ANY:
        return ANY
    if _without_port(plain) != plain:
        raise UserError(
            f"--allowed_host is {name!r}, but must be a host name or an address without a port, such as "
            "gallery.example.org, or * for every name"
        )
    return plain.rstrip(".")


def web_origin(origin: str) -> str:
    """The origin of a web site as browsers send it: lower case, without the usual port.

    Raises:
        UserError: it is no origin.
    """
    text = origin.strip().lower().rstrip("/")
    found = re.fullmatch(r"(https?)://([^/?#@]+)", text)
    name = _without_port(found[2]) if found else None
    if found is None or name is None or name.endswith("."):
        raise UserError(
            f"--cors_origin is {origin!r}, but must be the address of a web site without a path, such as "
            "https://shop.example.org; give the option once for each of several"
        )
    usual = {"http": ":80", "https": ":443"}[found[1]]
    return f"{found[1]}://{found[2].removesuffix(usual)}"


def _bracketed(name: str) -> str:
    try:
        return f"[{ipaddress.IPv6Address(name)}]"
    except ValueError:
        return name
