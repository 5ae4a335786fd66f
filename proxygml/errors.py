"""The mistakes a user can make, one type for each kind.

Every message names the thing, what was found, what was expected and the mend. Commands print it without a traceback
and exit with 2; anything else that escapes is a bug.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec


class UserError(ValueError):
    """The base of all: something in the input is wrong, and the message says what and how to mend it."""


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
    """Something is already there, and nobody said that it may go."""


class DivergedError(UserError):
    """Training produced a loss that is not a number."""


class GalleryError(UserError):
    """A gallery that is missing, damaged or of another model; or a question that it cannot answer."""


def check_extra(extra: str, *packages: str) -> None:
    """Raise UserError where a package of one of our extras is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"{package} is not installed, which this needs: pip install proxygml[{extra}]")


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """The end of a message about an unknown name: the known names that are spelt most like it, or all of them.

    Args:
        name: what was given.
        known: what could have been given.
        most: how many names to suggest.
    """
    known = list(known)
    close = get_close_matches(name, known, n=most)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"choose one of {', '.join(known)}" if known else "there are none"
