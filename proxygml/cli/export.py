"""`proxygml export`."""

from collections.abc import Sequence
from pathlib import Path

from proxygml.cli.output import say
from proxygml.cli.parser import Parser


def export(arguments: Sequence[str]) -> None:
    """Write a trained embedder as an ONNX file, and how to prepare images for it as JSON beside it."""
    parser = Parser("export", str(export.__doc__))
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--onnx", type=Path, required=True, help="the file to write, such as birds.onnx")
    parser.add_argument("--force", action="store_true", help="replace what is there already")
    options = parser.parse(arguments)
    from proxygml.models.onnx_export import export_onnx

    difference = export_onnx(options.run, options.onnx, force=options.force)
    say(f"model:         {options.onnx} (differs from PyTorch by at most {difference:.1e})")
    say(f"preprocessing: {options.onnx.with_suffix('.json')}")
