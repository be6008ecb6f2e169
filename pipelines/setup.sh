#!/usr/bin/env bash
# Make the virtual environment VENV of this checkout, unless the one there is up to date, which costs nothing to see.
# Usage: pipelines/setup.sh VENV [auto|cpu|cuda|URL of a package index]: which build of torch; see torch_build.py.
set -euo pipefail

venv=$1 torch=${2:-auto}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
sum=(sha256sum)
command -v sha256sum >/dev/null || sum=(shasum -a 256)
stamp=$({ cat "$root/configs/pins.txt" "$root/pyproject.toml"; echo "$root"; } | "${sum[@]}")
stamp=${stamp%% *}

made="" build=""
[[ ! -r $venv/setup.stamp ]] || read -r made build <"$venv/setup.stamp" || true
if [[ -x $venv/bin/python && $made == "$stamp" && ($torch == auto || $torch == "$build") ]]; then
  [[ $torch != auto || $build != cpu || ! -e /dev/nvidia0 ]] ||
    echo "setup: note: this machine has a GPU and $venv has torch's CPU build: \`just torch=cuda setup\` changes that" >&2
  exit 0
fi

# Versions that torch has wheels of, and an interpreter for which they were built.
suits='import sys, sysconfig
free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")
sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 13) and sys.implementation.name == "cpython" and not free_threaded))'
for python in python3 python3.13 python3.12 python3.11; do
  # -E and -s: what PYTHONPATH and the user's own folder hold is no part of this environment.
  ! "$python" -E -s -c "$suits" >/dev/null 2>&1 || exec "$python" -E -s -B "$root/pipelines/make_venv.py" "$venv" "$stamp" "$torch"
done
found=$(python3 --version 2>/dev/null || echo "no python3")
echo "setup: error: $found on PATH, and neither python3.11, python3.12 nor python3.13: install one of them (Python 3.12, say)" >&2
exit 1
