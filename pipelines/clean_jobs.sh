#!/usr/bin/env bash
# Remove the job folders in FOLDER/jobs, and FOLDER: clean_jobs.sh FOLDER [ask|yes]. What goes is listed with its size, and
# removed when that is confirmed: by an answer on the terminal, or by "yes" as the second argument.
set -euo pipefail
folder=$1 answer=${2:-ask}

shopt -s nullglob
jobs=("$folder"/jobs/*)
if ((${#jobs[@]})); then
  du -sh -- "${jobs[@]}"
  echo "${#jobs[@]} job folders, with the checkpoints in them, are about to be removed for good."
  if [[ $answer == ask ]]; then
    [[ -t 0 ]] || { echo "nothing is removed: there is nobody to ask; just clean-all yes" >&2; exit 1; }
    read -rp "Remove them? [y/N] " answer
  fi
  [[ $answer == [yY] || $answer == [yY][eE][sS] ]] || { echo "nothing is removed" >&2; exit 1; }
fi
rm -rf -- "$folder"
