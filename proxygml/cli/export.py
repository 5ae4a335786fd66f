"""`proxygml export`."""

from collections.abc import Sequence
from pathlib import Path

from proxygml.cli.inputs import check_inputs
from proxygml.cli.options import add_force
from proxygml.cli.output import say
from proxygml.cli.parser import Parser
from proxygml.errors import UserError


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Export a run: its embedder to ONNX, the proxies of its loss to safetensors, or both."""
    parser.usage = "%(prog)s RUN --onnx FILE | --proxies FILE [options]"
    parser.add_argument("run", type=Path, help="the run folder")
    words = "the file to write the embedder to, such as birds.onnx; its preprocessing goes to birds.json"
    parser.add_argument("--onnx", type=Path | None, default=None, help=words)
    words = "the file to write all proxies of the loss to, such as proxies.safetensors"
    parser.add_argument("--proxies", type=Path | None, default=None, help=words)
    add_force(parser)
    options = parser.parse(arguments)
    if options.onnx is None and options.proxies is None:
        raise UserError("nothing to export is named: give --onnx FILE, --proxies FILE, or both")
    check_inputs(run=options.run)
    if options.onnx is not None:
        from proxygml.models.onnx_export import export

        difference = export(options.run, options.onnx, force=options.force)
        say(f"model:         {options.onnx} (differs from PyTorch by at most {difference:.1e})")
        say(f"preprocessing: {options.onnx.with_suffix('.json')}")
    if options.proxies is not None:
        from proxygml.training.checkpoint import export_proxies

        count, size = export_proxies(options.run, options.proxies, force=options.force)
        say(f"proxies:       {options.proxies} ({count:,} x {size})")
