#!/bin/sh
# Installs the Debian packages eigentrace builds with, if any is missing. Other systems: prints the list and stops.
# usage: tools/setup.sh [--check]   (--check also wants the tools of `make check`)
set -eu

packages="g++ cmake ninja-build pkg-config
  libopenblas-dev liblapacke-dev
  libfmt-dev doctest-dev libcli11-dev libyaml-cpp-dev nlohmann-json3-dev
  libutf8proc-dev libarchive-dev libpng-dev libsqlite3-dev zlib1g-dev"
[ "${1:-}" != "--check" ] || packages="$packages clang-format clang-tidy"

if ! command -v dpkg-query >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
  # Not Debian: trust the machine if the compiler and the headers are there, else say what is needed.
  if command -v cmake >/dev/null 2>&1 && command -v ninja >/dev/null 2>&1 && [ "${EIGENTRACE_SKIP_SETUP:-}" = 1 ]; then
    exit 0
  fi
  echo "setup: this is not a Debian system. Install the equivalents of these Debian packages, then run make with" >&2
  echo "EIGENTRACE_SKIP_SETUP=1:" >&2
  echo $packages >&2
  exit 1
fi

missing=""
for package in $packages; do
  status=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
  [ "$status" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

echo "setup: installing$missing" >&2
sudo=""
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null 2>&1 || { echo "setup: not root and no sudo; as root: apt-get install$missing" >&2; exit 1; }
  sudo=sudo
fi
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
$sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
