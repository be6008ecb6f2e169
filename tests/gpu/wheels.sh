#!/usr/bin/env bash
# Fetch the wheels that tests/gpu/run.sh installs on a machine without network: tests/gpu/wheels.sh DIR [NAME...]
#
# For Python 3.12 on x86-64 Linux: what a machine for deep learning lacks of ours and of TRL's (8 wheels, 6 MB), and the packages
# NAME. None of their dependencies is fetched: where something is missing, the check `machine` names it.
set -euo pipefail

LACKING=(megatron-core==0.16.1 omegaconf==2.4.0 orjson==3.13.0 trl==1.16.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19
    liger-kernel==0.8.5)

[[ $# -ge 1 && $1 != -* ]] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 2; }
folder=$1
shift
platforms=()
for minor in 5 12 17 24 27 28 31 34; do platforms+=(--platform "manylinux_2_${minor}_x86_64"); done
for old in manylinux1 manylinux2010 manylinux2014; do platforms+=(--platform "${old}_x86_64"); done
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
    --python-version 3.12 "${platforms[@]}" -d "$folder" "${LACKING[@]}" "$@"
echo "$(find "$folder" -name '*.whl' | wc -l) wheels, $(du -cm "$folder"/*.whl | tail -n 1 | cut -f 1) MB in $folder"
