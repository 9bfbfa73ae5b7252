#!/bin/bash
# Kills short training runs of every family with SIGKILL at moments drawn from a seed: uniformly over the run's time, or
# at one of its system calls that change a file (inside writes of checkpoints, metrics, spectra). Each run is resumed
# (every third time killed again) and must end with the bits of an uninterrupted one: tensors, metrics, spectra.
# A line a moment; a failure names its seed and number, which --only repeats.
#   tools/try_kill.sh [--count 200] [--seed 1] [--only NUMBER] [--build build]
set -euo pipefail
cd "$(dirname "$0")/.."
count=200 seed=1 only='' build=build
while [ $# -gt 0 ]; do
  case "$1" in
    --count) count=$2 ;;
    --seed) seed=$2 ;;
    --only) only=$2 ;;
    --build) build=$2 ;;
    *) sed -n '2,6s/^# //p' "$0"; exit 2 ;;
  esac
  shift 2
done
[ -x "$build/eigentrace_tests" ] || { echo "try_kill: $build/eigentrace_tests is missing; run make test first"; exit 1; }
export EIGENTRACE_KILLS=$count EIGENTRACE_KILL_SEED=$seed
[ -z "$only" ] || export EIGENTRACE_KILL_ONLY=$only
exec "$build/eigentrace_tests" --no-skip --test-case='kill: … at any of 200 moments'
