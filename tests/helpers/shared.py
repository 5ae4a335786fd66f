"""The real data that lie beside the repository on some machines."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def shared_file(name: str) -> Path:
    """The real file of that name, or a skip that says which one is missing."""
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"the real data file {name} is not on this machine")
    return path
