#!/usr/bin/env bash
# An installed bitconv does its main job: `bitconv` on PATH converts the bundled checkpoint and proves the file right.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
bitconv doctor
for type in i2_s tq2_0; do
    bitconv convert "$here/fixtures/Llama3-1.58-tiny" $type.gguf --type $type
    bitconv verify $type.gguf
done
bitconv diff i2_s.gguf tq2_0.gguf
