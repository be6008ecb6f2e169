#!/usr/bin/env bash
# All that only a GPU can show, in one call of at most 8 minutes; see README.md beside this file.
#
#   tests/gpu/run.sh [--wheels DIR] [--only NAME,NAME] [--budget SECONDS] [-o DIR] [--python PYTHON]
#                    [--hh FILE --tokenizer DIR]
#   tests/gpu/run.sh --cpu      the same checks at small sizes on a CPU
#   tests/gpu/run.sh --list     their names, and the seconds that each is given at least
#
# It says a line a check as it goes, then a table, and ends with status 1 if any failed. -o keeps report.md, report.json, log.txt.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$(dirname "$here")")

# A check a line: its name, the seconds without which it is not begun, and what runs it. The first are those that matter most.
# To add one: a line here, and a module beside this file that begins with check.begin and ends with check.tell.
CHECKS=(
    "machine        10 module machine"
    "kernels        30 module kernels"
    "tiny           30 module tiny"
    "resume_export  50 module resume_export"
    "lora           25 module lora"
    "mixture        25 module mixture"
    "recurrence     30 recurrence"
    "shape_1b       40 module shape_1b"
    "length_8192    40 module length_8192"
    "bench          90 bench"
)

budget=480 only="" out="" wheels="" python=python3 cpu="" hh="" tokenizer=""

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }

list() { printf '%s\n' "${CHECKS[@]}" | while read -r name seconds _; do printf '%-13s %4s s\n' "$name" "$seconds"; done; }

die() { echo "run.sh: error: $*" >&2; exit 2; }

main() {
    parse "$@"
    scratch=$(mktemp -d) began=$SECONDS failed=0
    trap finish EXIT
    trap 'exit 143' TERM INT
    out=${out:-$scratch/out}
    mkdir -p "$out"
    prepare || die "the wheels could not be installed"
    local line name least command
    for line in "${CHECKS[@]}"; do
        read -r name least command <<<"$line"
        if wanted "$name"; then one "$name" "$least" $command; fi
    done
    return "$failed"
}

parse() {
    while [[ $# -gt 0 ]]; do
        case $1 in
            -h | --help) usage; exit 0 ;;
            --list) list; exit 0 ;;
            --cpu) cpu=--cpu; shift; continue ;;
            --budget | --only | -o | --wheels | --python | --hh | --tokenizer) ;;
            *) die "no such option: $1" ;;
        esac
        [[ $# -gt 1 ]] || die "$1 needs a value"
        case $1 in
            --budget) budget=$2; [[ $2 =~ ^[0-9]+$ ]] || die "--budget: $2 is no number of seconds" ;;
            --only) only=$2 ;;
            -o) out=$2 ;;
            --wheels) wheels=$(realpath -e -- "$2") || die "--wheels: $2 is not there" ;;
            --python) python=$2 ;;
            --hh) hh=$(realpath -e -- "$2") || die "--hh: $2 is not there" ;;
            --tokenizer) tokenizer=$(realpath -e -- "$2") || die "--tokenizer: $2 is not there" ;;
        esac
        shift 2
    done
    local name
    for name in ${only//,/ }; do
        list | grep "^$name " >/dev/null || die "--only: there is no check $name; --list names them"
    done
}

wanted() { [[ -z $only || ,$only, == *,$1,* ]]; }

# Python's modules that are missing here, from the wheels; this checkout's packages and programs, which need no installing.
prepare() {
    python=$(realpath -es -- "$(command -v "$python")") || die "--python: no such program"  # not resolved: a venv's is a link
    local missing=()
    if [[ -n $wheels ]]; then
        mapfile -t missing < <("$python" "$here/missing_wheels.py" "$wheels"/*.whl)
    fi
    if [[ ${#missing[@]} -gt 0 ]]; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --root-user-action=ignore \
            --target "$scratch/site" "${missing[@]}" || return
    fi
    export PYTHONPATH="$root/libs:$root/bin:$root/tests:$scratch/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
    if [[ -n $cpu ]]; then export CUDA_VISIBLE_DEVICES=""; fi
    mkdir "$scratch/bin"
    local program
    for program in "$root"/bin/*.py; do
        printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$python" "$program" >"$scratch/bin/$(basename "${program%.py}" | tr _ -)"
    done
    chmod +x "$scratch"/bin/*
    export PATH="$scratch/bin:$PATH"
}

# Run one check, say how it ended, and note it for the table. Status 77: it cannot run here.
one() {
    local name=$1 least=$2 started=$SECONDS
    shift 2
    left=$((budget - (SECONDS - began)))
    folder=$scratch/$name
    if [[ $left -lt $least && -z $cpu ]]; then
        note left_out "$name" 0
        return
    fi
    printf '== %s\n' "$name" >>"$out/log.txt"
    "$@" >>"$out/log.txt" 2>&1
    local status=$? state=ok
    case $status in
        0) ;;
        77) state=skipped ;;
        *) state=FAILED failed=1 ;;
    esac
    note "$state" "$name" $((SECONDS - started))
    if [[ $status -eq 124 || $status -eq 137 ]]; then echo "    stopped: the $budget s are over"; fi
    if [[ $state == FAILED ]]; then tail -n 15 "$out/log.txt" | sed 's/^/    /'; fi
}

note() {
    printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$scratch/states.tsv"
    "$python" -S "$here/report.py" line "$scratch" "$2"
}

module() { limited "$python" "$here/$1.py" "$folder" $cpu; }

# Nemotron-3-Nano's recurrence by torch's operations, and by mamba_ssm where it is installed.
recurrence() {
    local options=(--json "$folder/figures.json" --shapes nano3 --backends torch)
    mkdir "$folder"
    if [[ -n $cpu ]]; then
        options+=(--shapes nano3-tp8 --precisions bfloat16 --rows hh --tokens 200 --rounds 1)
    else
        options+=(--tokens 16384 --rounds 5)
    fi
    limited "$python" "$root/tests/benchmarks/bench_recurrence.py" "${options[@]}"
}

# Ours, and TRL once its setting is found, take some 190 s of a fast card; the rest of the time is for finding it, twice.
bench() {
    local options=(--json "$folder/figures.json")
    mkdir "$folder"
    if [[ -n $cpu ]]; then
        options+=(--size 1M --kind hh --length 128 --batch 4 --micro-batch 2 --steps 1 --scored 1 --seconds 1 --trial-pairs 4)
    else
        local search=$(((left - 190) / 2))
        options+=(--scored 1000000 --seconds $((search > 10 ? search : 10)))
    fi
    if [[ -n $hh ]]; then options+=(--hh "$hh"); fi
    if [[ -n $tokenizer ]]; then options+=(--tokenizer "$tokenizer"); fi
    if "$python" -c 'import trl, datasets' 2>/dev/null; then
        options+=(--peer "$python")
    else
        echo "TRL is not installed here: ours alone"
    fi
    limited "$python" "$root/tests/benchmarks/bench_gpu.py" "${options[@]}"
}

limited() {
    if [[ -n $cpu ]]; then "$@"; else timeout --kill-after=5 "$left" "$@"; fi
}

finish() {
    local status=$?
    trap '' TERM INT # whoever ends a group of processes may signal this one twice
    if [[ -s $scratch/states.tsv ]]; then
        "$python" -S "$here/report.py" table "$scratch" "$out" $((SECONDS - began))
    fi
    rm -rf "$scratch"
    exit "$status"
}

main "$@"; exit  # in one line: the shell would go on reading where this file is changed meanwhile
