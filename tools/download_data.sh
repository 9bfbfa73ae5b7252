#!/bin/sh
# Downloads the public data sets from where their authors publish them, checks them and unpacks them.
#   tools/download_data.sh [--dir DIR] NAME…     NAME: cifar imdb gpt2 wikitext wikitext-103 listops aan pathfinder mnist all
# DIR (default: data) is what the configurations call data_dir. What is there already is not fetched again.
set -eu

dir=data
if [ "${1:-}" = "--dir" ]; then
  [ $# -ge 2 ] || { echo "download_data.sh: --dir: expected a folder" >&2; exit 2; }
  dir=$2
  shift 2
fi
if [ $# -eq 0 ]; then
  sed -n '2,4s/^# \{0,1\}//p' "$0"
  exit 2
fi

say() { printf '%s\n' "download_data.sh: $*" >&2; }

# fetch FILE TOOL CHECKSUM URL…: FILE below $dir from the first URL that gives it with that checksum.
# TOOL: md5sum or sha256sum; "none": the publisher gives no checksum, so the one found is printed.
fetch() {
  file=$dir/$1 tool=$2 sum=$3
  shift 3
  if [ -e "$file" ]; then
    say "$file is there"
    return 0
  fi
  mkdir -p "$(dirname "$file")"
  for url in "$@"; do
    say "$url"
    if command -v curl >/dev/null; then
      curl --fail --location --retry 3 --continue-at - --output "$file.part" "$url" || continue
    else
      wget --continue --output-document="$file.part" "$url" || continue
    fi
    if [ "$tool" = none ]; then
      say "no checksum is published; SHA-256 found: $(sha256sum "$file.part" | cut -d' ' -f1)"
    else
      found=$("$tool" "$file.part" | cut -d' ' -f1)
      if [ "$found" != "$sum" ]; then
        say "$url: expected $tool $sum, found $found; trying the next address"
        rm -f "$file.part"
        continue
      fi
    fi
    mv "$file.part" "$file"
    return 0
  done
  say "$file could not be fetched; is there a network, and do the addresses above still answer?"
  exit 1
}

# unpack ARCHIVE MARK: unpacks below $dir unless MARK is there.
unpack() {
  [ -e "$dir/$2" ] && return 0
  say "unpacking $dir/$1"
  case $1 in
    *.zip) unzip -q -o "$dir/$1" -d "$dir" ;;
    *) tar -xf "$dir/$1" -C "$dir" ;;
  esac
}

# Long Range Arena's archive (7.7 GB) holds ListOps, Retrieval and Pathfinder. It is gzip in spite of its short name.
lra() {
  fetch lra_release.tar.gz none '' https://storage.googleapis.com/long-range-arena/lra_release.gz
  say "unpacking $* from $dir/lra_release.tar.gz"
  tar -xzf "$dir/lra_release.tar.gz" -C "$dir" --wildcards "$@"
}

# lift FILE…: brings files of the archive from whatever depth they stand at to $dir.
lift() {
  for name in "$@"; do
    [ -e "$dir/$name" ] && continue
    found=$(find "$dir" -path "*lra_release*" -name "$name" | head -n 1)
    [ -n "$found" ] || { say "$name is not in the archive"; exit 1; }
    mv "$found" "$dir/$name"
  done
}

get() {
  case $1 in
    cifar)
      fetch cifar-10-binary.tar.gz md5sum c32a1d4ab5d03f1284b67883e8d87530 \
        https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz
      unpack cifar-10-binary.tar.gz cifar-10-batches-bin ;;
    imdb)
      fetch aclImdb_v1.tar.gz md5sum 7c2ac02c03563afcf9b574c7e56c153a \
        https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz
      unpack aclImdb_v1.tar.gz aclImdb ;;
    gpt2)
      fetch gpt2/encoder.json sha256sum 196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783 \
        https://openaipublic.blob.core.windows.net/gpt-2/models/124M/encoder.json
      fetch gpt2/vocab.bpe sha256sum 1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5 \
        https://openaipublic.blob.core.windows.net/gpt-2/models/124M/vocab.bpe ;;
    wikitext)
      get gpt2
      fetch wikitext-2-raw-v1.zip sha256sum ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11 \
        https://wikitext.smerity.com/wikitext-2-raw-v1.zip \
        https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-raw-v1.zip
      unpack wikitext-2-raw-v1.zip wikitext-2-raw ;;
    wikitext-103)
      get gpt2
      fetch wikitext-103-raw-v1.zip sha256sum 91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794 \
        https://wikitext.smerity.com/wikitext-103-raw-v1.zip \
        https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-103-raw-v1.zip
      unpack wikitext-103-raw-v1.zip wikitext-103-raw ;;
    mnist)
      for entry in train-images-idx3-ubyte:f68b3c2dcbeaaa9fbdd348bbdeb94873 \
        train-labels-idx1-ubyte:d53e105ee54ea40749a09fcbcd1e9432 \
        t10k-images-idx3-ubyte:9fb629c4189551a2d022fa330f9573f3 \
        t10k-labels-idx1-ubyte:ec29112dd5afa0611ce80d1b7f02629c; do
        fetch "mnist/${entry%%:*}.gz" md5sum "${entry##*:}" \
          "https://ossci-datasets.s3.amazonaws.com/mnist/${entry%%:*}.gz"
      done ;;
    listops)
      lra '*basic_train.tsv' '*basic_val.tsv' '*basic_test.tsv'
      lift basic_train.tsv basic_val.tsv basic_test.tsv ;;
    aan)
      lra '*new_aan_pairs.*.tsv'
      lift new_aan_pairs.train.tsv new_aan_pairs.eval.tsv new_aan_pairs.test.tsv ;;
    pathfinder)
      lra '*pathfinder32/curv_contour_length_14/*'
      lift pathfinder32 ;;
    all)
      for name in cifar imdb wikitext wikitext-103 mnist listops aan pathfinder; do get "$name"; done ;;
    *)
      say "expected cifar, imdb, gpt2, wikitext, wikitext-103, listops, aan, pathfinder, mnist or all, found '$1'"
      exit 2 ;;
  esac
}

for name in "$@"; do get "$name"; done
