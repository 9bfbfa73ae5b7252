#!/bin/bash
# Every GPU test under compute-sanitizer's memcheck and racecheck: a process a case, as many at once as there are cores.
# sanitize_gpu.sh TESTS [SECONDS a case, 1800] [CASES, a doctest filter]. Exit code 1: an error, a hazard or no verdict.
set -euo pipefail
tests=$1 limit=${2:-1800} cases=${3:-cuda*,train step*}
command -v compute-sanitizer > /dev/null || { echo "sanitize_gpu: compute-sanitizer is not in PATH: it comes with the CUDA Toolkit"; exit 2; }

check() {
  local tool=$1 case=$2 log status verdict
  log=$(mktemp)
  # doctest cuts a filter at commas
  timeout "$limit" compute-sanitizer --tool "$tool" --show-backtrace device --error-exitcode 9 \
    "$tests" --test-case="${case//,/?}" > "$log" 2>&1 && status=0 || status=$?
  verdict=$(grep -oE '(ERROR|RACECHECK) SUMMARY: .*' "$log" || true)
  if grep -q 'before first instrumented API call' "$log"; then status=0 verdict="no kernel"; fi
  [ $status = 124 ] && verdict="no verdict in $limit s"
  echo "$tool, ${SECONDS} s, $case: ${verdict:-exit code $status}"
  [ $status = 0 ] || grep -vE '^={9}$' "$log" | head -60
  rm "$log"
  return $((status != 0))
}
export -f check
export tests limit EIGENTRACE_SANITIZER=1

# Central differences run the ops' kernels thousands of times over and nothing else.
"$tests" --list-test-cases --test-case="$cases" | grep -E '^[a-z].*: ' | grep -v 'central differences' |
  while read -r case; do printf '%s\0%s\0' memcheck "$case" racecheck "$case"; done |
  xargs -0 -n 2 -P "$(nproc)" bash -c 'check "$0" "$1"'
