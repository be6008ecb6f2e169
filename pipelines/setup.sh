#!/usr/bin/env bash
# Make the virtual environment $1 from configs/pins.txt, unless the one there was made from the same pins.
# Usage: pipelines/setup.sh .venv
set -euo pipefail

venv=$1
root=$(cd "$(dirname "$0")/.." && pwd)
stamp=$(cat "$root/configs/pins.txt" "$root/pyproject.toml" | sha256sum | cut -d' ' -f1)

[[ -x $venv/bin/python && $(cat "$venv/pins.sha256" 2>/dev/null) == "$stamp" ]] && exit 0
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setup: error: Python 3.11 or later is needed" >&2; exit 1; }
echo "setup: making $venv (once; torch is large)" >&2
python3 -m venv --clear "$venv"
"$venv/bin/python" -m pip install --quiet --no-deps -r "$root/configs/pins.txt"
"$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation -e "$root"
"$venv/bin/python" -m pip check >&2
echo "$stamp" > "$venv/pins.sha256"
