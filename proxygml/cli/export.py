"""`proxygml export`."""

from collections.abc import Sequence
from pathlib import Path

from proxygml.cli.inputs import check_inputs
from proxygml.cli.options import add_force
from proxygml.cli.output import say
from proxygml.cli.parser import Parser


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Export a run to ONNX."""
    parser.usage = "%(prog)s RUN --onnx FILE [options]"
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--onnx", type=Path, required=True, help="the file to write, such as birds.onnx")
    add_force(parser)
    options = parser.parse(arguments)
    check_inputs(run=options.run)
    from proxygml.models.onnx_export import export

    difference = export(options.run, options.onnx, force=options.force)
    say(f"model:         {options.onnx} (differs from PyTorch by at most {difference:.1e})")
    say(f"preprocessing: {options.onnx.with_suffix('.json')}")
