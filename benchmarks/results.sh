#!/usr/bin/env bash
# The methods at the real size of photos, with tables and a Pareto picture: benchmarks/results.sh DATA OUT [--quick]
#
# DATA holds groceries.csv, packshots.csv and birds.csv (docs/protocols.md says how they are made) and the weights
# mobilenetv2_100.imagenet.safetensors and tf_efficientnet_lite2.imagenet.safetensors. It stops after TIME (570 seconds
# unless the environment says otherwise); what is done stays in OUT, and the same command goes on from there.
# `--parallel 8` trains eight models at a time, which share one GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
data=$(realpath "$1") out=$(realpath -m "$2")
shift 2
code=0
timeout --signal INT "${TIME:-570}" python3 -m benchmarks.results "$data" "$out" "$@" || code=$?
if [ "$code" -eq 124 ] || [ "$code" -eq 130 ]; then
  echo "stopped after ${TIME:-570} seconds: run the same command again to go on"
  exit 0
fi
exit "$code"
