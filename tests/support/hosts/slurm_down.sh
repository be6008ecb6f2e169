#!/usr/bin/env bash
# Stop the daemons that slurm_up.sh started under ROOT, by their pid files, and no others.
# Usage: slurm_down.sh ROOT
root=$1
shopt -s nullglob
pids=()
for file in "$root"/run/slurmd.*.pid "$root"/run/slurmctld.pid "$root"/run/slurmdbd.pid "$root"/dbrun/mysqld.pid "$root"/munge-run/munged.pid; do
  pid=$(cat "$file" 2>/dev/null) || continue
  tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qE 'slurm|mariadbd|munged' || continue # the pid may have been reused
  kill "$pid" 2>/dev/null && pids+=("$pid")
done
for _ in $(seq 80); do
  alive=0
  for pid in "${pids[@]}"; do [ -d "/proc/$pid" ] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null && alive=1; done
  [ $alive = 0 ] && exit 0
  sleep 0.1
done
for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null; done
