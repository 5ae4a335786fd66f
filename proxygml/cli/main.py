"""The command line: finds the command that is named first, and runs it.

A user's mistake leads to one message and exit status 2; a traceback means a bug. The commands are not jsonargparse's
subcommands: those need every command's parser, whose options are read from classes that load PyTorch, before the first
can print its help. Here a command is imported when it is named, and `proxygml --help` loads no parser at all.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from proxygml import __version__
from proxygml.cli.output import say
from proxygml.console import console
from proxygml.errors import UserError, did_you_mean
from proxygml.files import translating_os_errors

COMMANDS = {
    "demo": "Train on built-in data and report on it; a few minutes on two cores.",
    "prepare": "Turn an official download, or your own images or vectors, into a checked catalog.",
    "train": "Train an embedder by a recipe, then evaluate it.",
    "evaluate": "Evaluate a run on the test split of its catalog, or of another one.",
    "compare": "Compare losses over several seeds under one protocol, in one table.",
    "embed": "Write the vectors of images, or better ones of vectors, to a Parquet file.",
    "index": "Build a gallery to search in; add items to it, or remove some.",
    "search": "Find the items of a gallery that are most similar to yours.",
    "cluster": "Sort images or vectors into clusters, and list near-duplicates.",
    "serve": "Answer searches over HTTP, with a page to search on.",
    "export": "Write an embedder as an ONNX file or as plain arrays, or the proxies of its loss.",
}
"""Each is the file of its name beside this one, with a function `run(parser, arguments)`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit status 2 for a user's mistake, 130 for Ctrl-C."""
    if "RANK" in os.environ:  # read when PyTorch is loaded: each of several processes would print its warnings
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        with translating_os_errors():
            _run(sys.argv[1:] if arguments is None else arguments)
            _leave_process_group()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks for all
            console.print(f"proxygml: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print(
            "stopped; to continue, repeat the command (embed, index, cluster, compare), or use train --resume RUN",
            markup=False,
        )
        sys.exit(130)


def _leave_process_group() -> None:
    """Leave the other processes of a run, if any: threads that still talk to them at the exit would abort it."""
    distributed = sys.modules.get("torch.distributed")  # not loaded by commands that need no torch
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _run(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        _print_commands()
    elif arguments[0] == "--version":
        say(f"proxygml {__version__}")
    elif arguments[0] in COMMANDS:
        from proxygml.cli.parser import Parser

        name = arguments[0]
        import_module(f"proxygml.cli.{name}").run(Parser(name, COMMANDS[name]), arguments[1:])
    else:
        raise UserError(f"there is no command {arguments[0]!r}: {did_you_mean(arguments[0], COMMANDS)}")


def _print_commands() -> None:
    say("usage: proxygml COMMAND [options]", "", "Image embeddings for classes never seen in training.", "")
    say(*(f"  {name:<10}{purpose}" for name, purpose in COMMANDS.items()))
    say("", "proxygml COMMAND --help lists the options of a command.", "proxygml --version prints the version.")
