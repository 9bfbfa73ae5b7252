#!/bin/bash
# Trains on a disk that is really full: a tmpfs of 4 MB in a name space of its own (root or user name spaces needed),
# filled so far that a run stops at one of 40 places. Each time: exit code 1, the path and the cause in the message; with
# room again the run goes on to the bits of an uninterrupted one.
#   tools/try_full_disk.sh [BUILD]
set -euo pipefail
cd "$(dirname "$0")/.."
tests=$(realpath "${1:-build}/eigentrace_tests")
disk=$(mktemp -d)
trap 'rmdir "$disk"' EXIT
unshare --map-root-user --mount bash -c "mount -t tmpfs -o size=4m tmpfs '$disk' &&
  EIGENTRACE_SMALL_DISK='$disk' '$tests' --no-skip --test-case='disk: … a really full one*'"
