"""The parser of options: types from annotations, help in plain words, one message for a mistake.

An option is spelt like the key of a recipe, with underscores; a dash may stand for each of them, in names and in values
that are one of several words.
"""

import re
from argparse import SUPPRESS, Action
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings
from jsonargparse.typing import register_type

from proxygml.errors import UserError, did_you_mean
from proxygml.files import check_local
from proxygml.urls import Url, as_place, url_of

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def _read_url(text: str) -> Url:
    """The URL that a word is; ValueError for any other word, which is then tried as a path."""
    url = url_of(text)
    if url is None:
        raise ValueError("no URL")
    return url


register_type(Url, serializer=str, deserializer=_read_url, fail_already_registered=False)

PLACEHOLDERS = {
    Path: "PATH",
    Url: "PATH|URL",
    int: "N",
    float: "NUMBER",
    str: "TEXT",
    bool: "true|false",
    tuple: "LIST",
    dict: "MAPPING",
}
"""What stands for a value in the help."""
EXPECTED = {
    Path: "a path",
    Url: "a path or a URL",
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    tuple: "a list such as [3,4]",
    dict: "keys and values such as {margin: 0.1}",
    NoneType: "null",
}
"""The same in a message."""

LONGEST_SHOWN = 200
"""Characters of a wrong value that a message shows."""

CONDITIONS = "column=value (or !=, <, <=, > or >=), in quotes if it has blanks"
"""How the conditions of `--where` and `--remove` are written."""

CONFIG_HELP = "a YAML file with keys of this section"


class HelpFormatter(DefaultHelpFormatter):
    """Help that says what an option does, whether it is required and its default, in words and not in Python types."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)  # type: ignore[no-untyped-call]

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        kinds = [kind for kind in _shown_kinds(action) if kind is not NoneType]
        return "|".join(dict.fromkeys(PLACEHOLDERS.get(kind, str(kind)) for kind in kinds)) or "TEXT"

    def _get_help_string(self, action: Action) -> str:
        text = CONFIG_HELP if action.metavar == "CONFIG" else _as_phrase(action.help or "")
        if action.required:
            return f"{text} (required)"
        default = _default_text(action)
        return f"{text} (default: {default})" if action.option_strings and default else text


class Parser(ArgumentParser):
    """The options of one command. Every mistake in them becomes one UserError."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"proxygml {command}",
            description=description,
            allow_abbrev=False,
            formatter_class=HelpFormatter,
            print_config=None,
        )
        self._galleries: set[str] = set()
        self._texts_of_places: set[str] = set()
        self._conditions: set[str] = set()
        self._run: Action | None = None
        self._reading: tuple[Action, Sequence[str]] | None = None  # the option whose value is being converted

    def parse(self, arguments: Sequence[str], *, only_given: bool = False) -> Namespace:
        """The options, each with its default unless `only_given`."""
        for option, action in list(self._option_string_actions.items()):
            self._option_string_actions.setdefault(option.replace("_", "-"), action)
        try:
            options: Namespace = self.parse_args(self._positionals_first(arguments), defaults=not only_given)
        except OverflowError as error:  # a whole number beyond all floats
            self.error(str(error), error)
        for action in self._actions:
            if action.dest in options:
                name = _name_of(action)
                for value in _values(options[action.dest]):
                    _check_text(str(value), name)
                    self._check_place(value, action, name)
        return options

    def _check_place(self, value: object, action: Action, name: str) -> None:
        """Raise UserError where a value is a URL that the option does not take."""
        if Url in _kinds(action) or action.dest in self._texts_of_places:
            if isinstance(value, (str, Path)):
                as_place(value, name)
        else:
            check_local(value, name, gallery=action.dest in self._galleries)

    def takes_conditions(self, action: Action) -> None:
        """Let an option of many values end at the first word that is no condition, such as a query after `--where`."""
        self._conditions.add(action.dest)

    def takes_run(self, action: Action) -> None:
        """Let a run folder behind the values of an option, as in `--images a.jpg RUN`, be the command's run folder."""
        self._run = action

    def _positionals_first(self, arguments: Sequence[str]) -> list[str]:
        """The words of the command line with those that belong to no option in front, wherever they stood."""
        positionals: list[str] = []
        others: list[str] = []
        left = list(arguments)
        while left:
            word = left.pop(0)
            if word == "--":
                return [*positionals, *others, word, *left]
            if not word.startswith("-"):
                positionals.append(word)
                continue
            values, behind = self._values_behind(word, left)
            others += [word, *values]
            positionals += behind
        return [*positionals, *others]

    def _values_behind(self, word: str, left: list[str]) -> tuple[list[str], list[str]]:
        """Take an option's values from the words that are left, and the words among them that are positionals."""
        action = self._option_string_actions.get(word)
        count = 1 if action is None or action.nargs in (None, "?") else action.nargs
        most = 0 if "=" in word else count if isinstance(count, int) else len(left)
        values: list[str] = []
        while len(values) < most and left and not left[0].startswith("--"):
            values.append(left.pop(0))
        if action is None or count != "+":
            return values, []
        if action.dest in self._conditions:
            if values and not _is_condition(values[0]):
                check_local(values[0], word)
                raise UserError(f"{word} is {values[0]}, which has no operator: expected {CONDITIONS}")
            return [value for value in values if _is_condition(value)], [v for v in values if not _is_condition(v)]
        runs = [value for value in values if self._run is not None and _is_run(value)]
        return (values, []) if len(runs) != 1 else ([value for value in values if value not in runs], runs)

    def takes_gallery(self, action: Action) -> None:
        """Let the value of an option also be the address of a Milvus server."""
        self._galleries.add(action.dest)

    def takes_urls(self, *names: str) -> None:
        """Let options whose values are text, as in a recipe, be URLs too; those of the type Place may be anyway."""
        self._texts_of_places |= set(names)

    def _get_values(self, action: Action, arg_strings: list[str]) -> Any:
        """Argparse's step from the words of the command line to an option's value."""
        self._reading = action, arg_strings
        is_place = Path in _kinds(action) or action.dest in self._galleries
        if "" in arg_strings and is_place:  # it would be the current folder
            raise UserError(f"{_name_of(action)} is empty: give a path")
        choices = [kind for kind in _kinds(action) if isinstance(kind, str)]
        return super()._get_values(action, [_as_choice(text, choices) for text in arg_strings])

    def validate(self, *arguments: Any, **settings: Any) -> None:
        """Check the options as a whole, after each of them has been read."""
        self._reading = None
        super().validate(*arguments, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UserError with one message."""
        found = self._unknown_option()
        if not found:
            self._check_words()
            found = _missing_value(message) or _left_over(message) or self._wrong_value() or self._missing(message)
        raise UserError(f"{found or message} (see {self.prog} --help)") from ex

    def _check_words(self) -> None:
        """Refuse a URL where no other message would name it, such as that of a file with the keys of a section."""
        for before, word in zip(["", *self.args], self.args, strict=False):
            option, _, value = word.partition("=") if word.startswith("--") else (before, "", word)
            name = option if option.startswith("--") else "an argument"
            _check_text(word, name)
            action = self._option_string_actions.get(option)
            if action is None and any(Url in _kinds(known) for known in self._actions if not known.option_strings):
                continue
            if action is None or (Url not in _kinds(action) and action.dest not in self._texts_of_places):
                check_local(value, name, gallery=bool(self._galleries))

    def _unknown_option(self) -> str:
        known = self._option_string_actions
        mappings = tuple(f"{option}." for option, action in known.items() if dict in _kinds(action))
        for word in self.args:
            name = word.partition("=")[0]
            if name.startswith("--") and name not in known and not name.startswith(mappings):
                spelt = [option for option in known if option.startswith("--") and "-" not in option[2:]]
                return (
                    f"there is no option {name}: {did_you_mean(name.replace('-', '_').replace('__', '--', 1), spelt)}"
                )
        return ""

    def _missing(self, message: str) -> str:
        """The arguments that are missing, as a user would type them."""
        names = re.search(r"arguments are required: (.+)", message)
        if not names:
            return ""
        missing = [action for action in self._actions if action.dest in names[1].split(", ")]
        if any(action.dest == "run" and not action.option_strings for action in missing):
            return f"no run folder is given: put it first, as in `{self.prog} RUN ...`"
        return f"{' and '.join(map(_name_of, missing))} must be given" if missing else ""

    def _wrong_value(self) -> str:
        if self._reading is None:
            return ""
        action, words = self._reading
        kinds = _shown_kinds(action)
        choices = [kind for kind in kinds if isinstance(kind, str)]
        expected = [EXPECTED[kind] for kind in kinds if kind in EXPECTED]
        if choices:
            expected.insert(0, f"one of {', '.join(choices)}")
        if not words or not expected:
            return ""
        name = _name_of(action)
        found = " ".join(words)
        shown = found if len(found) <= LONGEST_SHOWN else f"{found[:LONGEST_SHOWN]}..."
        return f"{name} is {shown}, but must be {' or '.join(expected)}"


def _name_of(action: Action) -> str:
    """What a user types for an argument: its option, or its word in the usage."""
    return action.option_strings[0] if action.option_strings else action.dest.upper()


def _missing_value(message: str) -> str:
    """What is wrong where argparse met an option and then no value for it."""
    option = re.match(r"argument (\S+): expected (one|at least one|\d+) argument", message)
    return f"{option[1].split('/')[0]} has no value: give one behind it" if option else ""


def _left_over(message: str) -> str:
    """The words that belong to no argument."""
    words = re.match("unrecognized arguments: (.*)", message)
    return f"{words[1]!r} is more than the command takes: leave it out" if words else ""


def _check_text(text: str, name: str) -> None:
    """Raise UserError for a word of the command line whose bytes are no text: nothing could store or print it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} is {ascii(text)[1:-1]}, which is no text: its bytes are not UTF-8; rename the file or folder"
        ) from error


def _is_condition(word: str) -> bool:
    return bool(set("=<>") & set(word))


def _is_run(word: str) -> bool:
    """Whether a word is the path of a run folder."""
    return any((Path(word) / name).is_file() for name in ("recipe.yaml", "model.json"))


def _values(value: object) -> Iterator[object]:
    """A value, or those within a list or a mapping."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _values(part)
    elif isinstance(value, dict):
        yield from _values(list(value.values()))
    else:
        yield value


def _as_phrase(text: str) -> str:
    """Help in the form of the rest: the docstrings of settings, where it may come from, are sentences."""
    first, space, rest = text.removesuffix(".").partition(" ")
    return (first.lower() if re.fullmatch("A|[A-Z][a-z]+,?", first) else first) + space + rest


def _default_text(action: Action) -> str:
    """An option's default as a user would type it; empty for a flag, or where there is no default."""
    default = action.default
    if default is None or default == SUPPRESS or action.nargs == 0:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return str(list(default)) if isinstance(default, tuple) else str(default or ("" if default != 0 else default))


def _kinds(action: Action) -> list[Any]:
    """The types that an option's value may have, and the words that it may be: `Path | None` gives [Path, NoneType]."""
    return _flattened(getattr(action, "_typehint", None) or action.type or str)  # jsonargparse keeps the annotation so


def _shown_kinds(action: Action) -> list[Any]:
    """The same as the help and messages name them: a place is a path or a URL."""
    kinds = _kinds(action)
    return [kind for kind in kinds if kind is not Path] if Url in kinds else kinds


def _flattened(hint: Any) -> list[Any]:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return [kind for part in get_args(hint) for kind in _flattened(part)]
    return list(get_args(hint)) if origin is Literal else [origin or hint]


def _as_choice(text: str, choices: Sequence[str]) -> str:
    """The choice that differs from the text in dashes alone, if there is one."""
    return next((choice for choice in choices if choice.replace("-", "_") == text.replace("-", "_")), text)
