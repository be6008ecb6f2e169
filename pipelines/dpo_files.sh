#!/usr/bin/env bash
# The whole chain stage by stage, through files: what is already there is not made again, so call it again to go on.
# Usage: pipelines/dpo_files.sh PREFS POLICY WORK_DIR [dpo-train's -c CONFIG and KEY.PATH=VALUE ...]
#
# Every stage publishes its output by rename: a file that exists is whole. Delete one to make it, and what follows, again.
set -euo pipefail
(( $# >= 3 )) || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
prefs=$1 policy=$2 work=$3
shift 3

mkdir -p "$work"
[[ -e $work/pairs.arrow ]] || preference-tokenize "$prefs" -o "$work/pairs.arrow" --tokenizer "$policy"
[[ -e $work/scored.arrow ]] || ref-logprobs "$work/pairs.arrow" -o "$work/scored.arrow" --policy "$policy"
[[ -e $work/run/done ]] || { dpo-train "$work/scored.arrow" --policy "$policy" --run-dir "$work/run" "$@"; touch "$work/run/done"; }
[[ -e $work/checkpoint_megatron ]] || ckpt-export "$work/run" -o "$work/checkpoint_megatron" --to megatron
echo "$work/checkpoint_megatron"
