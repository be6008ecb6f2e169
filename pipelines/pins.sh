#!/usr/bin/env bash
# Write the pins of everything that pyproject.toml and its group `dev` need, for all Pythons and systems at once, from
# metadata alone: a version that OUT has stays as long as it fits. One version a package, so that all compute the same.
# Beside OUT, in OUT-hashes.txt, it writes the sha256 of every file that the package index has of each pinned version.
# Usage: pipelines/pins.sh OUT [options of `uv pip compile`: --upgrade, --upgrade-package torch ...]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
out=$(realpath -- "$1")
shift
# pip's own settings say where packages come from; uv has names of its own for them.
[[ -z ${PIP_INDEX_URL:-} ]] || export UV_DEFAULT_INDEX=$PIP_INDEX_URL
[[ -z ${PIP_CERT:-} ]] || export SSL_CERT_FILE=$PIP_CERT
cd "$root"
compile=(.venv/bin/uv --quiet --no-config --no-python-downloads pip compile pyproject.toml --group dev
  --python .venv/bin/python --universal --python-version 3.11 --fork-strategy fewest --no-build
  --custom-compile-command "just pins")
"${compile[@]}" --annotation-style line --output-file "$out" "$@"
cp -- "$out" "${out%.txt}-hashes.txt" # the versions that are meant
"${compile[@]}" --no-annotate --generate-hashes --output-file "${out%.txt}-hashes.txt" >/dev/null
