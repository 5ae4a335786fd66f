"""Names of strangers reach neither the terminal nor a spreadsheet program as commands."""

import io
import re

import pandas as pd
import pytest
from rich.table import Table

from proxygml.console import SafeConsole, printable
from proxygml.spreadsheet import without_formulas

HOSTILE = "a\x1b[31m\x1b]0;title\x07\x9b2J\u202egpj.\udcff"


def test_characters_that_a_terminal_obeys_are_written_out() -> None:
    assert printable("naïve 名前 a\tb\n") == "naïve 名前 a\tb\n"
    assert printable(HOSTILE) == "a\\x1b[31m\\x1b]0;title\\x07\\x9b2J\\u202egpj.\\udcff"


@pytest.mark.parametrize("terminal", [False, True])
def test_whatever_is_printed_is_written_out(terminal: bool) -> None:
    file = io.StringIO()
    console = SafeConsole(file=file, width=200, force_terminal=terminal, color_system="truecolor" if terminal else None)
    table = Table("image", title=HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    console.print(HOSTILE, style="red", markup=False)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()) if terminal else file.getvalue()  # without its own colours
    assert "\\x1b" in shown and "\\x9b" in shown
    assert not set(shown) & set("\x1b\x07\x9b\u202e\udcff")


def test_names_with_colons_are_printed_as_they_are() -> None:
    """Rich writes :dog: as an emoji, so that the name of a file would be another."""
    file = io.StringIO()
    table = Table("image")
    table.add_row("a:dog:b.jpg")
    for printed in (table, "c:100:d.jpg"):
        SafeConsole(file=file, width=200).print(printed, markup=False)
    assert "a:dog:b.jpg" in file.getvalue() and "c:100:d.jpg" in file.getvalue()


def test_text_is_no_formula_and_numbers_stay() -> None:
    table = pd.DataFrame(
        {"label": ["=cmd|'/C calc'!A0", "+1", "a=b", "@x", "-2+3", "-12.5", None], "score": range(-1, 6)}
    )
    safe = without_formulas(table)
    assert safe["label"].tolist()[:6] == ["'=cmd|'/C calc'!A0", "'+1", "a=b", "'@x", "'-2+3", "-12.5"]
    assert safe["score"].tolist() == list(range(-1, 6))
    assert table["label"][0].startswith("="), "the caller's table is not changed"
