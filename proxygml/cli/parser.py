"""How commands read their options: one message for a mistake, either spelling of a dash."""

import re
from collections.abc import Sequence
from typing import NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from proxygml.errors import UserError

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Parser(ArgumentParser):
    """A parser whose errors are one line on standard error, and exit status 2."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"proxygml {command}", description=description, allow_abbrev=False)

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """The options; `--test-classes` and `--test_classes` are the same."""
        known = set(self._option_string_actions)
        options: Namespace = self.parse_args([_spelt_as_known(argument, known) for argument in arguments])
        return options

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(f"{' '.join(self.explain(message).split())} (see {self.prog} --help)")

    def explain(self, message: str) -> str:
        """An unknown option with the nearest right one; any other message as it is."""
        unknown = message.partition("nrecognized arguments: ")[2]
        if not unknown.startswith("--"):
            message = re.sub(r'^Parser key "([^"]*)":', r"--\1:", message).replace("typing.", "")
            return message.replace("Expected a <class 'tuple'>.", "Expected a list such as [3,4].")
        from proxygml.training.recipe import nearest_key

        name = unknown.split()[0].split("=")[0].removeprefix("--")
        known = [option.removeprefix("--") for option in self._option_string_actions if option.startswith("--")]
        nearest = nearest_key(name, known)
        return f"there is no option --{name}" + (f"; did you mean --{nearest}?" if nearest else "")


def _spelt_as_known(argument: str, known: set[str]) -> str:
    name, equals, value = argument.partition("=")
    for spelling in (name, name.replace("-", "_").replace("__", "--", 1), name.replace("_", "-")):
        if spelling in known:
            return spelling + equals + value
    return argument
