#!/usr/bin/env bash
# Remove the job folders in FOLDER/jobs, and FOLDER: clean_jobs.sh FOLDER [ask|yes]. What goes is listed with its size, and
# removed when that is confirmed: by an answer on the terminal, or by "yes" as the second argument. Where FOLDER or its jobs
# lie elsewhere behind a link, the jobs go there; of a job that is a link, the link alone goes.
set -euo pipefail
folder=$1 answer=${2:-ask}

shopt -s nullglob dotglob
jobs=("$folder"/jobs/*)
if ((${#jobs[@]})); then
  du -sh -- "${jobs[@]}"
  if [[ -L $folder || -L $folder/jobs ]]; then echo "$folder/jobs leads to $(realpath -- "$folder/jobs"): they go from there."; fi
  for job in "${jobs[@]}"; do
    if [[ -L $job ]]; then echo "$job is a link: it goes, and what it leads to stays: $(readlink -- "$job")"; fi
  done
  what="${#jobs[@]} job folders, with the checkpoints in them, are"
  if ((${#jobs[@]} == 1)); then what="1 job folder, with the checkpoints in it, is"; fi
  echo "$what about to be removed for good."
  if [[ $answer == ask ]]; then
    [[ -t 0 ]] || { echo "nothing is removed: there is nobody to ask; just clean-all yes" >&2; exit 1; }
    read -rp "Remove? [y/N] " answer
  fi
  [[ $answer == [yY] || $answer == [yY][eE][sS] ]] || { echo "nothing is removed" >&2; exit 1; }
  rm -rf -- "${jobs[@]}"
fi
# What lies behind a link and is not of a run stays; without the link it is no longer ours
if [[ -L $folder ]]; then rm -rf -- "$folder/jobs" "$folder/cache"; fi
rm -rf -- "$folder"
