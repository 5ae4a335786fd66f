"""Memory that networks free is kept while they compute, and returned after that."""

import subprocess
import sys

import pytest

SCRIPT = """
import re
from pathlib import Path
import numpy as np
from proxygml.kept_memory import freed_memory_kept

def held():
    return int(re.search(r"VmRSS:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

def use():
    for _ in range(3):
        np.ones(2**25)  # 256 MiB

use()
before = held()
with freed_memory_kept():
    with freed_memory_kept():
        use()
    print(held() - before > 200)
print(held() - before > 200)
use()
print(held() - before > 200)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other C libraries")
@pytest.mark.parametrize("chosen", [False, True])
def test_freed_memory_is_kept_inside_and_returned_after(chosen: bool) -> None:
    """Unless the environment has chosen otherwise."""
    environment = {"MALLOC_TRIM_THRESHOLD_": str(2**20)} if chosen else {}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["False" if chosen else "True", "False", "False"]
