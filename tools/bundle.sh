#!/usr/bin/env bash
# A folder that runs elsewhere: the program, the libraries it needs, experiments, licences; as eigentrace-VERSION.tar.xz
# too. For x86-64-v3 machines with a C library at least as new as this one's. NVIDIA's libraries are not in it: on a
# GPU node the launcher takes CUDA 13's own (CUDA_HOME, LD_LIBRARY_PATH, the toolkit's usual place).
#   tools/bundle.sh [BUILD_FOLDER] [OUT]      with PROGRAMS="eigentrace eigentrace_tests": those programs
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build-bundle} out=${2:-bundle}
programs=${PROGRAMS:-eigentrace}
name=eigentrace
if [ ! -x "$build/eigentrace" ]; then
  cmake -S . -B "$build" -DEIGENTRACE_PORTABLE=ON ${CUDA_ARCHS:+-DEIGENTRACE_CUDA_ARCHS="$CUDA_ARCHS"} >&2
  cmake --build "$build" --target eigentrace -j"$(nproc)" >&2
fi
rm -rf "$out/$name"
mkdir -p "$out/$name/bin" "$out/$name/lib" "$out/$name/licences"

# What the loader finds, without what every machine has (C library) and what must fit the node's driver (NVIDIA's).
system='^(linux-vdso|ld-linux.*|libc|libm|libdl|librt|libpthread|libresolv)\.so'
nvidia='^(libcuda|libcudart|libcublas|libcublasLt|libcufft)\.so'
needs_cuda=no
for program in $programs; do
  install -m755 "$build/$program" "$out/$name/bin/$program.bin"
  strip "$out/$name/bin/$program.bin"
  while read -r library path; do
    if [[ $library =~ $nvidia ]]; then needs_cuda=yes; continue; fi
    [[ $library =~ $system || -z $path ]] && continue
    install -m644 "$path" "$out/$name/lib/$library"
  done < <(ldd "$build/$program" | awk '/=> \//{print $1, $3}')
  cat > "$out/$name/bin/$program" <<'LAUNCHER'
#!/bin/sh
# Starts the program with the libraries beside it and, if it was built for GPUs, the node's CUDA 13.
here=$(dirname "$(readlink -f "$0")")
export LD_LIBRARY_PATH="$here/../lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
if [ "NEEDS_CUDA" = yes ]; then
  find_library() {
    for folder in $(echo "$LD_LIBRARY_PATH" | tr ':' ' ') ${CUDA_HOME:+"$CUDA_HOME/lib64" "$CUDA_HOME/targets/x86_64-linux/lib"} \
        /usr/local/cuda/lib64 /usr/local/cuda-13*/lib64 /usr/lib/x86_64-linux-gnu; do
      [ -e "$folder/$1" ] && { echo "$folder"; return 0; }
    done
    return 1
  }
  for library in NVIDIA_LIBRARIES; do
    if folder=$(find_library "$library"); then
      case ":$LD_LIBRARY_PATH:" in *":$folder:"*) ;; *) LD_LIBRARY_PATH="$LD_LIBRARY_PATH:$folder" ;; esac
    else
      echo "eigentrace: $library is not on this machine: looked in LD_LIBRARY_PATH, CUDA_HOME/lib64 and /usr/local/cuda/lib64; install CUDA 13's run-time libraries or set CUDA_HOME" >&2
      exit 1
    fi
  done
fi
exec "$here/$(basename "$0").bin" "$@"
LAUNCHER
  libraries=$(ldd "$build/$program" | awk '{print $1}' | grep -E "${nvidia}" | tr '\n' ' ' || true)
  sed -i "s/NEEDS_CUDA/$needs_cuda/; s/NVIDIA_LIBRARIES/${libraries:-none}/" "$out/$name/bin/$program"
  chmod 755 "$out/$name/bin/$program"
done
mkdir -p "$out/$name/share/eigentrace"
cp -r tasks/experiments "$out/$name/share/eigentrace/experiments"
cp LICENSE THIRD_PARTY.md README.md "$out/$name/licences/"
for library in "$out/$name"/lib/*; do  # the licences of the libraries that travel along
  package=$(dpkg -S "$(readlink -f "$(ldconfig -p | awk -v l="$(basename "$library")" '$1 == l {print $NF; exit}')")" 2>/dev/null | cut -d: -f1 | head -1 || true)
  [ -n "$package" ] && [ -f "/usr/share/doc/$package/copyright" ] && cp "/usr/share/doc/$package/copyright" "$out/$name/licences/$package" || true
done
tar -C "$out" -cJf "$out/$name.tar.xz" "$name"
echo "$out/$name.tar.xz: $(du -h "$out/$name.tar.xz" | cut -f1) compressed, $(du -sh "$out/$name" | cut -f1) unpacked" >&2
