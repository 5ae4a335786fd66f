#!/usr/bin/env bash
# Everything that only a GPU shows, in at most six minutes on one H100-class card: tables as JSON and Markdown, and the
# tests that are marked `gpu`. `benchmarks/gpu.sh FOLDER --quick` runs small sizes, on a CPU too.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-gpu-results}
shift || true
python3 -m benchmarks.gpu --out "$folder" "$@"
python3 -m pytest -q -p no:cacheprovider -m gpu tests/loss tests/evaluation
