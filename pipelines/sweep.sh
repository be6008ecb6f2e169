#!/usr/bin/env bash
# One policy trained at several values of one key, on one reference pass, and the runs compared: `nemotron-steps run --sweep`
# by hand. What is already there is not made again, so call it again to go on, or with more values.
# Usage: pipelines/sweep.sh PREFS POLICY WORK_DIR KEY=A,B,C [dpo-train's -c CONFIG and KEY.PATH=VALUE ...]
#
# A point that fails does not stop the others; it is named at the end, and the exit status is then 1.
set -euo pipefail
(( $# >= 4 )) && [[ $4 == *=* ]] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
prefs=$1 policy=$2 work=$3 key=${4%%=*}
IFS=, read -ra values <<<"${4#*=}"
shift 4

((${#values[@]})) || { echo "sweep.sh: error: $key: no values: $key=A,B,C" >&2; exit 2; }

mkdir -p "$work"
call=$(printf '%q ' "$prefs" "$policy" "$@")
[[ -e $work/call ]] || echo "$call" >"$work/call"
[[ $(<"$work/call") == "$call" ]] || {
  echo "sweep.sh: error: $work holds a sweep of other arguments: give these, or another WORK_DIR: $(<"$work/call")" >&2
  exit 2
}
[[ -e $work/pairs.arrow ]] || preference-tokenize "$prefs" -o "$work/pairs.arrow" --tokenizer "$policy"
[[ -e $work/scored.arrow ]] || ref-logprobs "$work/pairs.arrow" -o "$work/scored.arrow" --policy "$policy"

runs=() failed=()
for value in "${values[@]}"; do
  run=$work/$key=$value
  if [[ -e $run/done ]] || dpo-train "$work/scored.arrow" --policy "$policy" --run-dir "$run" "$@" "$key=$value"; then
    touch "$run/done"
    runs+=("$run")
  else
    failed+=("$key=$value")
  fi
done

((${#runs[@]} == 0)) || dpo-report "${runs[@]}" -o "$work/compare.html"
((${#failed[@]} == 0)) || { echo "sweep.sh: failed: ${failed[*]}" >&2; exit 1; }
