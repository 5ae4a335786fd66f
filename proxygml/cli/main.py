"""The command line: finds the command that is named first, and runs it.

A user's mistake leads to one message and exit status 2; a traceback means a bug. The commands are not jsonargparse's
subcommands: those need every command's parser, whose options are read from classes that load PyTorch, before the first
can print its help. Here a command is imported when it is named, and `proxygml --help` loads no parser at all.
"""

import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module

from proxygml import __version__
from proxygml.cli.output import say
from proxygml.console import console, note
from proxygml.errors import OtherProcessError, UserError, did_you_mean, has_lost_another
from proxygml.files import translating_os_errors

COMMANDS = {
    "demo": "Train on built-in data and report on it; a few minutes on two cores.",
    "prepare": "Turn an official download, or your own images or vectors, into a checked catalog.",
    "train": "Train an embedder by a recipe, then evaluate it.",
    "evaluate": "Evaluate a run on the test split of its catalog, or of another one.",
    "compare": "Compare losses over several seeds under one protocol, in one table.",
    "audit": "Find labels of a catalog that are probably wrong, and say how sure that is.",
    "embed": "Write the vectors of images, or better ones of vectors, to a Parquet file.",
    "index": "Build a gallery to search in; add items to it, or remove some.",
    "search": "Find the items of a gallery that are most similar to yours.",
    "cluster": "Sort images or vectors into clusters, and list near-duplicates.",
    "serve": "Answer searches over HTTP, with a page to search on.",
    "push": "Send a run's model to the Hugging Face Hub, with a model card.",
    "export": "Write an embedder as an ONNX file or as plain arrays, or the proxies of its loss.",
}
"""Each is the file of its name beside this one, with a function `run(parser, arguments)`."""

SHARING = ("train", "evaluate", "compare")
"""Commands whose work several processes share, as `accelerate launch` starts them."""

SECONDS_FOR_FIRST = 5
"""How long a process waits with its message for the first one, which may have the same: the launcher then ends all."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit status 2 for a user's mistake, 130 for Ctrl-C."""
    if "RANK" in os.environ:  # read when PyTorch is loaded: each of several processes would print its warnings
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        with translating_os_errors():
            _run(sys.argv[1:] if arguments is None else arguments)
            _leave_process_group()
    except UserError as error:
        _print_error(str(error))
        sys.exit(2)
    except RuntimeError as error:
        if not has_lost_another(error):
            raise
        # The other process prints what is wrong. A traceback of this one would only hide it.
        why = str(error) if isinstance(error, OtherProcessError) else "another one has stopped"
        note(f"proxygml: process {_process()} stops, because {why}")
        sys.exit(1)
    except KeyboardInterrupt:
        if _process() == 0:
            note("stopped; to continue, repeat the command (embed, index, cluster, compare), or use train --resume RUN")
        sys.exit(130)


def _process() -> int:
    """The number of this process among those that were launched together, from 0."""
    number = os.environ.get("RANK", "")
    return int(number) if number.isdecimal() else 0


def _print_error(message: str) -> None:
    """Print an error once, though several processes may find it: each other one waits whether the first one does."""
    if _process() > 0:
        time.sleep(SECONDS_FOR_FIRST)
        message = f"process {_process()}: {message}"
    console.print(f"proxygml: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


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
        _check_launch(name)
        import_module(f"proxygml.cli.{name}").run(Parser(name, COMMANDS[name]), arguments[1:])
    else:
        raise UserError(f"there is no command {arguments[0]!r}: {did_you_mean(arguments[0], COMMANDS)}")


def _check_launch(name: str) -> None:
    """Raise UserError where several processes would each do the whole work of a command, and write the same files."""
    processes = os.environ.get("WORLD_SIZE", "1")
    if name not in SHARING and "RANK" in os.environ and processes not in ("", "1"):
        raise UserError(
            f"{name} is the work of one process, but {processes} were launched: run proxygml {name} by itself "
            f"({', '.join(SHARING)} share their work)"
        )


def _print_commands() -> None:
    say("usage: proxygml COMMAND [options]", "", "Image embeddings for classes never seen in training.", "")
    say(*(f"  {name:<10}{purpose}" for name, purpose in COMMANDS.items()))
    say("", "proxygml COMMAND --help lists the options of a command.", "proxygml --version prints the version.")
