#!/bin/bash
# Trains, evaluates, checkpoints, resumes, reads spectra and writes reports of every family in a loop, in one process, and
# fails if its memory, descriptors or threads grow after the first quarter. Measurements go to a CSV.
#   tools/soak.sh [MINUTES] [CSV] [BUILD]
set -euo pipefail
cd "$(dirname "$0")/.."
tests="${3:-build}/eigentrace_tests"
[ -x "$tests" ] || { echo "soak: $tests is missing; run make test first"; exit 1; }
export EIGENTRACE_SOAK_MINUTES=${1:-30} EIGENTRACE_SOAK_CSV=${2:-soak.csv} OMP_NUM_THREADS=1
exec nice -n 19 "$tests" --no-skip --test-case='soak: *'
