#!/usr/bin/env bash
# The one command for a GPU machine: build, test, check memory accesses, measure. No network needed.
#   bash benchmarks/gpu.sh            everything;  --help says more
#   PYTHON=/path/to/python bash benchmarks/gpu.sh --quick
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python3}" benchmarks/gpu.py "$@"
