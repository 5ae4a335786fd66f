"""The command line: runs the command that is named first.

A user's mistake is one message and exit status 2; a traceback means a bug. Each command is a file beside this one; it
imports what it needs when it runs, so that `--help` answers at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from proxygml import __version__
from proxygml.cli.cluster import cluster
from proxygml.cli.compare import compare
from proxygml.cli.demo import demo
from proxygml.cli.embed import embed
from proxygml.cli.evaluate import evaluate
from proxygml.cli.export import export
from proxygml.cli.index import index
from proxygml.cli.output import say
from proxygml.cli.prepare import prepare
from proxygml.cli.search import search
from proxygml.cli.serve import serve
from proxygml.cli.train import train
from proxygml.console import console
from proxygml.errors import UserError

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": demo,
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "embed": embed,
    "index": index,
    "search": search,
    "cluster": cluster,
    "serve": serve,
    "export": export,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit status 2 for a user's mistake, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _run(arguments)
        _part()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks for all
            console.print(f"proxygml: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        console.print(f"proxygml: {error.filename}: {error.strerror}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print(
            "stopped; the same command goes on with an embed, index, cluster or compare, train --resume RUN with a run",
            markup=False,
        )
        sys.exit(130)


def _part() -> None:
    """Part from the other processes of a run, if any: threads that still talk to them at the exit would abort it."""
    distributed = sys.modules.get("torch.distributed")  # not loaded by commands that need no torch
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _run(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        say("usage: proxygml COMMAND [options]", "", "Image embeddings for classes never seen in training.", "")
        say(*(f"  {name:<10}{function.__doc__}" for name, function in COMMANDS.items()))
        say("", "proxygml COMMAND --help lists the options of one.")
    elif arguments[0] == "--version":
        say(__version__)
    elif arguments[0] in COMMANDS:
        COMMANDS[arguments[0]](arguments[1:])
    else:
        close = get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"those are {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {arguments[0]!r}: {hint}")
