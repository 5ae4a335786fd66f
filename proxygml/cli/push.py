"""`proxygml push`."""

from collections.abc import Sequence
from pathlib import Path

from proxygml.cli.inputs import check_inputs
from proxygml.cli.output import say
from proxygml.cli.parser import Parser


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Send a run's model to the Hugging Face Hub, with a card made from what is known of the run."""
    parser.usage = "%(prog)s RUN USER/NAME [options]"
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("repo", metavar="USER/NAME", help="the repository; it is made where there is none")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    words = "what the card says, an identifier of the Hub such as apache-2.0"
    parser.add_argument("--license", default="", help=words)
    parser.add_argument("--message", default="", help="of the commit")
    options = parser.parse(arguments)
    check_inputs(run=options.run)

    from proxygml.hub.push import push

    address = push(options.run, options.repo, private=options.private, license=options.license, message=options.message)
    say(f"sent: {address}", f'load: Embedder.load("hf://{options.repo}")')
