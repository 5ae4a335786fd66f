"""Messages that name a number of things say `1 item`, not `1 items`: such texts are made by `counted`."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import proxygml
from proxygml.errors import counted

PACKAGE = Path(proxygml.__file__).parent

THINGS = re.compile(r" (?!(?:as|has|is|its|was) |of its )(?:[\w-]+ )?\w+s\b")
"""The start of a text behind a number: a noun in the plural, maybe behind an adjective."""

ALWAYS_SEVERAL = {
    ("{most:,}", "chunks"),  # 1,000 and more
    ("{number:,}", "classes"),  # that are similar to each other
    ("{len(digests):,}", "vectors"),  # that equal each other
    ("{height:,}", "pixels"),  # of WIDTH x HEIGHT
    ("{size[0]:,}", "pixels"),
    ("{len(known)}", "names"),  # too many to list
    ("{len(own)}", "numbers"),  # four
}


def numbers_before_plurals(source: str) -> Iterator[tuple[int, str]]:
    """The line and the text where an f-string puts a number that may be 1 before a noun in the plural."""
    for node in ast.walk(ast.parse(source)):
        for value, text in zip(node.values, node.values[1:], strict=False) if isinstance(node, ast.JoinedStr) else ():
            if not isinstance(value, ast.FormattedValue) or not isinstance(text, ast.Constant):
                continue
            shown = ast.unparse(ast.JoinedStr([value])).removeprefix("f")[1:-1]
            is_count = shown.endswith(":,}") or shown.startswith("{len(")
            is_constant = isinstance(value.value, ast.Name) and value.value.id.isupper()
            found = THINGS.match(str(text.value))
            if is_count and not is_constant and found and (shown, found[0].split()[-1]) not in ALWAYS_SEVERAL:
                yield value.lineno, f"{shown}{found[0]}"


def test_no_message_puts_a_number_that_may_be_one_before_a_plural() -> None:
    """Every text of the package."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in numbers_before_plurals(path.read_text(encoding="utf-8"))
    ]
    assert not found, "use proxygml.errors.counted"


@pytest.mark.parametrize(
    ("source", "number"),
    [
        ('f"{n:,} images"', 1),
        ('f"of {len(rows)} bad rows: {why}"', 1),
        ("f\"{counted(n, 'image')} {'is'} bad\"", 0),
        ('f"{MOST:,} images"', 0),
        ('f"{path} holds {n:,}"', 0),
    ],
)
def test_such_a_text_is_found(source: str, number: int) -> None:
    """So that the test above can fail."""
    assert len(list(numbers_before_plurals(source))) == number


@pytest.mark.parametrize(
    ("number", "thing", "text"),
    [
        (1, "class", "1 class"),
        (0, "class", "0 classes"),
        (2, "match", "2 matches"),
        (2, "epoch", "2 epochs"),
        (3, "proxy", "3 proxies"),
        (4, "query", "4 queries"),
        (1500, "key", "1,500 keys"),
        (2, "test class", "2 test classes"),
    ],
)
def test_counted(number: int, thing: str, text: str) -> None:
    """The nouns that messages use."""
    assert counted(number, thing) == text
