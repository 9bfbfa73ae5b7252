#!/bin/bash
# Style and hygiene: format, no source file over 500 lines, no marks left for later, README commands exist,
# clang-tidy on files changed since the merge base (or all with --all).
set -euo pipefail
cd "$(dirname "$0")/.."
tools/setup.sh --check
failed=0

mapfile -t sources < <(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')
if ! clang-format --dry-run -Werror "${sources[@]}" 2>/tmp/eigentrace-format.log; then
  grep -o '^[^:]*:[0-9]*' /tmp/eigentrace-format.log | head -20
  echo "check: format differs; run make format"
  failed=1
fi

while read -r lines file; do
  [ "$file" = total ] && continue
  if [ "$lines" -gt 500 ]; then echo "check: $file has $lines lines, at most 500 allowed"; failed=1; fi
done < <(git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' '*.sh' 'Makefile' 'CMakeLists.txt' '*.md' | xargs wc -l)

if git grep -nE '\b(TODO|FIXME|XXX|HACK)\b' -- '*.h' '*.cpp' '*.cu' '*.cuh' Makefile CMakeLists.txt; then
  echo "check: marks left for later"
  failed=1
fi

# Every make target and every program subcommand that a README names must exist.
while read -r target; do
  grep -qE "^$target:" Makefile || { echo "check: a README names 'make $target', which does not exist"; failed=1; }
done < <(git ls-files '*README.md' | xargs grep -hoE '(^|`)make [a-z][a-z-]*' | awk '{print $2}' | sort -u)

# Links in READMEs lead somewhere.
for readme in $(git ls-files '*.md'); do
  while read -r link; do
    [ -e "$(dirname "$readme")/${link%%#*}" ] || { echo "check: $readme links to $link, which does not exist"; failed=1; }
  done < <(grep -oE '\]\([^)#][^)]*\)' "$readme" | sed 's/^](//; s/)$//' | grep -vE '^https?:' || true)
done

if [ -f build/compile_commands.json ]; then
  if [ "${1:-}" = "--all" ]; then
    mapfile -t tidy < <(git ls-files '*.cpp')
  else
    base=$(git merge-base HEAD origin/main 2>/dev/null || git rev-parse HEAD~1 2>/dev/null || git rev-parse HEAD)
    mapfile -t tidy < <(git diff --name-only --diff-filter=d "$base" -- '*.cpp')
  fi
  if [ "${#tidy[@]}" -gt 0 ]; then
    printf '%s\n' "${tidy[@]}" | xargs -P 2 -n 4 clang-tidy -p build --quiet 2>/dev/null || failed=1
  fi
else
  echo "check: clang-tidy skipped (no build/compile_commands.json; run make build first)"
fi

[ "$failed" -eq 0 ] && echo "check: clean"
exit "$failed"
