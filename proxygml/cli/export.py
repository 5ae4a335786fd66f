"""`proxygml export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from proxygml.cli.inputs import check_inputs
from proxygml.cli.options import add_force
from proxygml.cli.output import say
from proxygml.cli.parser import Parser
from proxygml.errors import UserError, counted


def run(parser: Parser, arguments: Sequence[str]) -> None:
    """Export a run: its embedder to ONNX or to plain arrays, the proxies of its loss to safetensors."""
    parser.usage = "%(prog)s RUN (--onnx FILE | --safetensors FILE | --proxies FILE) ... [options]"
    parser.add_argument("run", type=Path, help="the run folder")
    words = "the file to write the embedder to, such as birds.onnx; its preprocessing goes to birds.json"
    parser.add_argument("--onnx", type=Path | None, default=None, help=words)
    words = "of the ONNX file; int8 is quantised on training images of the run's catalog"
    parser.add_argument("--precision", type=Literal["float32", "float16", "int8"], default="float32", help=words)
    words = "compare Recall@1 of the ONNX file and of PyTorch on the test split of the run's catalog"
    parser.add_argument("--recall", action="store_true", help=words)
    words = "of a model of vectors: the file to write its arrays to, such as products.safetensors"
    parser.add_argument("--safetensors", type=Path | None, default=None, help=words)
    words = "the file to write all proxies of the loss to, such as proxies.safetensors"
    parser.add_argument("--proxies", type=Path | None, default=None, help=words)
    add_force(parser)
    options = parser.parse(arguments)
    if options.onnx is None and options.proxies is None and options.safetensors is None:
        raise UserError("nothing to export is named: give --onnx FILE, --safetensors FILE or --proxies FILE")
    if options.onnx is None and (options.recall or options.precision != "float32"):
        raise UserError("--precision and --recall are for ONNX files: give --onnx FILE beside them")
    check_inputs(run=options.run)
    if options.safetensors is not None:
        from proxygml.models.numpy_export import export_arrays

        arrays = export_arrays(options.run, options.safetensors, force=options.force)
        shapes = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in arrays.items())
        say(f"arrays:        {options.safetensors} ({shapes})")
    if options.onnx is not None:
        _export_onnx(options)
    if options.proxies is not None:
        from proxygml.training.checkpoint import export_proxies

        count, size = export_proxies(options.run, options.proxies, force=options.force)
        say(f"proxies:       {options.proxies} ({count:,} x {size})")


def _export_onnx(options: Namespace) -> None:
    from proxygml.training.export import export, exported_recall

    agreement = export(options.run, options.onnx, precision=options.precision, force=options.force)
    if options.precision == "float32":
        say(f"model:         {options.onnx} (differs from PyTorch by at most {agreement.difference:.1e})")
    else:
        say(
            f"model:         {options.onnx} ({options.precision}; cosine with PyTorch {agreement.cosine:.4f} on "
            f"average, {agreement.least_cosine:.4f} at least, {counted(agreement.images, 'image')})"
        )
    say(f"preprocessing: {options.onnx.with_suffix('.json')}")
    if options.recall:
        found = exported_recall(options.run, options.onnx)
        say(
            f"Recall@1:      {100 * found.exported:.2f}; PyTorch {100 * found.torch:.2f} "
            f"({counted(found.images, 'test image')})"
        )
