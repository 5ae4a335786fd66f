"""The mistakes a user can make, one type for each kind.

Every message names the thing, what was found, what was expected and how to fix it. Commands print it without a
traceback and exit with 2; anything else that escapes is a bug.
"""

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from operator import index
from pathlib import Path

MOST_NAMED = 40
"""Known names that a message still lists."""

MOST_WORKERS = 256
"""Processes that decode images, for each process that computes: more would only wait for each other."""


LARGEST_BATCH = 2**14
"""Images embedded at a time."""


class UserError(ValueError):
    """The base of all: something in the input is wrong, and the message says what it is and how to fix it."""


class CatalogError(UserError):
    """A catalog that cannot be read, or that cannot be trained on or judged."""


class DatasetError(UserError):
    """A download that is incomplete, unsafe to unpack, or not of the stated data set."""


class ImageError(UserError):
    """A file that is no image, or an image that cannot be decoded whole."""


class RecipeError(UserError):
    """An unknown key, a wrong type or an impossible value in a recipe."""


class WeightsError(UserError):
    """Weights that are missing or that do not fit the network."""


class RunError(UserError):
    """A run folder that is missing, incomplete or of another model."""


class OverwriteError(UserError):
    """A file or folder exists already, and `--force` was not given."""


class DivergedError(UserError):
    """Training produced a loss that is not a number."""


class OtherProcessError(RuntimeError):
    """Another of the processes that share some work has failed or ended; its own message says more."""


class GalleryError(UserError):
    """A gallery that is missing, damaged or of another model; or a query that it cannot answer."""


class GalleryServerError(GalleryError):
    """A gallery's server has refused a call, or failed: nothing that a client of ours has sent is at fault."""


class GalleryUnavailableError(GalleryServerError):
    """A gallery whose server does not answer now, though it may later."""


class EmptyGalleryError(GalleryError):
    """A removal that would leave a gallery without items."""


LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
"""What gloo and NCCL say of an exchange with a process that has ended."""


def has_lost_another(error: RuntimeError) -> bool:
    """Whether an error says no more than that another process has failed or ended."""
    return isinstance(error, OtherProcessError) or any(words in str(error) for words in LOST)


def check_extra(extra: str, *packages: str) -> None:
    """Raise UserError where a package of one of our extras is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"{package} is not installed, which this needs: {install_command(extra)}")


def install_command(extra: str) -> str:
    """The command that installs one of our extras, for the way in which this package was installed.

    A checkout (cloned, or installed with `pip install -e`) has its pyproject.toml beside the package's folder.
    """
    checkout = Path(__file__).resolve().parent.parent
    place = str(checkout) if (checkout / "pyproject.toml").is_file() else "proxygml"
    option = "-e " if place != "proxygml" else ""
    return f"{Path(sys.executable).name} -m pip install {option}{shlex.quote(f'{place}[{extra}]')}"


def check_setting(holds: bool, key: str, found: object, expected: str) -> None:
    """Raise RecipeError for a value of a recipe that is not what was expected."""
    if not holds:
        raise RecipeError(f"{key} is {found!r}, but must be {expected}")


def check_whole(name: str, value: object, least: int, most: int, kind: type[UserError] = UserError) -> int:
    """An argument as a whole number, also one of NumPy's; an error of that kind where it is none from least to most."""
    try:
        number = None if isinstance(value, bool) else index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        shown = repr(value) if number is None or abs(number) < 10**30 else "a number of more than 30 digits"
        limit = f"to {most:,}" if most < 2**48 else "or more"
        raise kind(f"{name} is {shown}, but must be {least} {limit}, a whole number")
    return number


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """The end of a message about an unknown name: the known names that are spelt most like it; or all, if they are few.

    Args:
        name: what was given.
        known: what could have been given.
        most: how many names to suggest.
    """
    known = list(known)
    if not known:
        return "there are none"
    ending = name.rpartition(".")[2].strip("-")
    same_ending = [other for other in known if "." in other and other.rpartition(".")[2] == ending]
    close = list(dict.fromkeys((*get_close_matches(name, known, n=most), *same_ending)))[:most]
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    if len(known) > MOST_NAMED:
        return f"none of the {len(known)} known names is spelt like it"
    return f"choose one of {', '.join(known)}"


def first_few(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are: `a, b and 3 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(number: int, thing: str) -> str:
    """A number of things in words: `1 item`, `2 items`, `3,000 queries`, `0 classes`.

    Args:
        number: how many.
        thing: one of them.
    """
    if number == 1:
        return f"1 {thing}"
    ending = "es" if re.search("(ss|[^o]ch)$", thing) else "s"
    plural = f"{thing[:-1]}ies" if re.search("[^aeiou]y$", thing) else f"{thing}{ending}"
    return f"{number:,} {plural}"
