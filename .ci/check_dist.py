"""What a wheel and a source distribution must contain, checked before they are published: `check_dist.py FOLDER`.

The wheel holds everything that git tracks in the package, and its metadata. The source distribution holds
tracked files alone. Run it from the root of a checkout.
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

NEEDED = ("proxygml/py.typed", "proxygml/recipes/cub200.yaml", "proxygml/recipes/compare/omniglot.yaml")
ADDED = {"PKG-INFO", ".gitignore"}  # what hatchling adds to a source distribution
LARGEST = 5 * 2**20


def tracked(*under: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z", *under], capture_output=True, text=True, check=True).stdout
    return set(filter(None, listed.split("\0")))


def faults_of_wheel(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        described = archive.read(metadata).decode()
    expected = tracked("proxygml")
    faults = [f"{wheel.name} lacks {name}" for name in sorted((expected | set(NEEDED)) - names)]
    faults += [f"{wheel.name} contains {name}, which git does not track" for name in sorted(names - expected)]
    version = described.split("\nVersion: ")[1].split("\n")[0]
    if f"-{version}-" not in wheel.name:
        faults.append(f"{wheel.name} says version {version} in its metadata")
    return faults


def faults_of_source(source: Path) -> list[str]:
    with tarfile.open(source) as archive:
        names = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    expected = tracked()
    needed = {name for name in expected if name.startswith(("proxygml/", "tests/"))} | {"README.md", "LICENSE"}
    faults = [f"{source.name} lacks {name}" for name in sorted(needed - names)]
    faults += [f"{source.name} contains {name}, which git does not track" for name in sorted(names - expected - ADDED)]
    return faults


def main(folder: Path) -> int:
    wheels, sources = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sources) != 1:
        print(f"{folder} holds {len(wheels)} wheels and {len(sources)} source distributions: build one of each")
        return 1
    faults = faults_of_wheel(wheels[0]) + faults_of_source(sources[0])
    for path in (wheels[0], sources[0]):
        size = path.stat().st_size
        print(f"{path.name}: {size / 2**10:.0f} KiB")
        if size > LARGEST:
            faults.append(f"{path.name} has {size} bytes, more than {LARGEST}")
    print("\n".join(faults) or "both contain what git tracks, and nothing else")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
