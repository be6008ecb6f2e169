#!/usr/bin/env bash
# The whole chain as one pipe: nothing but the run folder touches the disk.
# Usage: pipelines/dpo_pipe.sh PREFS POLICY RUN_DIR [dpo-train's -c CONFIG and KEY.PATH=VALUE ...]
#
# dpo-train waits for the trailer of the scored pairs before it builds its model, so two models never share memory, and
# keeps them in RUN_DIR/input.arrow. A stage that fails makes the next one fail; `pipefail` makes the script fail.
set -euo pipefail
(( $# >= 3 )) || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
prefs=$1 policy=$2 run=$3
shift 3

preference-tokenize "$prefs" -o - --tokenizer "$policy" |
  ref-logprobs - -o - --policy "$policy" |
  dpo-train - --policy "$policy" --run-dir "$run" "$@"
