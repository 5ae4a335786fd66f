"""Results on standard output."""

from proxygml.console import SafeConsole

output = SafeConsole()


def say(*lines: str) -> None:
    """Results on standard output, as they are."""
    for line in lines:
        output.print(line, markup=False, highlight=False, soft_wrap=True)
