#!/bin/sh
# The main job, small: train softmax, linear and norm attention on the same MQAR, read every layer's eigenvalues before
# and after, and put them side by side in one report. usage: tools/demo.sh PROGRAM FOLDER
set -eu
program=$1 folder=$2
here=$(dirname "$0")/../tasks/experiments
say() { printf '\n$ %s\n' "$*" >&2; "$@"; }
for model in softmax linear norm; do
  say "$program" train "$here/demo-$model.yaml" --out "$folder/$model" --force
done
say "$program" report "$folder/softmax" "$folder/linear" "$folder/norm" --out "$folder/report.html"
echo "Open $folder/report.html in a browser." >&2
