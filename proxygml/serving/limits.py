"""What clients may ask of the server, and the error that refuses more."""

from dataclasses import dataclass

from proxygml.errors import UserError


@dataclass(frozen=True)
class Limits:
    """What clients may ask for.

    Raises:
        UserError: a limit that is not positive.
    """

    max_upload_mb: float = 20.0
    """Size of a request, in 10**6 bytes."""

    max_pixels: int = 25_000_000
    """Width times height of an image, which are read before it is decoded."""

    max_k: int = 100
    """Neighbors that a search may ask for."""

    timeout: float = 30.0
    """Seconds in which a request must arrive, as many in which it is answered, and as many in which the client must
    read the answer."""

    queue: int = 64
    """Requests that may be under way, and as many more that may be arriving. A further one under way gets status 429;
    where too many are arriving, the slowest of them does."""

    max_connections: int = 512
    """Open connections; one more closes the one that has been without a request for longest. Never more than the limit
    on open files leaves room for (`ulimit -n`)."""

    max_connections_per_address: int = 256
    """Open connections from one client address, an IPv6 network of 64 bits counting as one. Behind a proxy all clients
    have the proxy's address: set it to max_connections there."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UserError(f"--{name} is {value}, but must be more than 0")


class RequestError(Exception):
    """A request that is refused, with the HTTP status that says why.

    Args:
        status: 400 to 599.
        message: for the client: it says what was found, what was expected and how to fix it, and nothing of the server.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def too_many(limits: Limits) -> RequestError:
    """The error of a request that comes while as many as allowed are under way, or arriving."""
    return RequestError(
        429,
        f"as many requests as are allowed ({limits.queue:,}) are under way or arriving: try again in a second",
    )
