# The id of an array's last task is that of the whole array, which would be signalled with it.
own_id=${SLURM_JOB_ID:-} out_of_time='' stopped='' requeued=''
[[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || own_id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
say() { printf 'nemotron-steps: %s\n' "$*" >&2; }
# state STATUS EXIT REASON: how the job stands, for `nemotron-steps runs`
state() {
  printf '{"status": "%s", "exit": %s, "reason": "%s", "stage": "%s", "host": "%s", "slurm_job": "%s"}\n' \
    "$1" "$2" "${3//[\"\\]/}" "$name" "$(uname -n)" "$own_id" >"$job/.state.json" && mv -f -- "$job/.state.json" "$job/state.json"
}
give_up() {
  forget
  state failed "$1" "$2"
  say "error: $2"
  exit "$1"
}

# What may be secret lies in a file of the owner's while the job is queued: read once, removed, and put back only where
# the job will be started again. OMP_NUM_THREADS of whoever submitted it was meant for another machine.
load_environment() {
  unset OMP_NUM_THREADS
  [[ -n $secrets ]] || return 0
  environment=$(cat -- "$job/$secrets") || give_up 1 "$job/$secrets is gone: submit the job anew"
  rm -f -- "$job/$secrets"
  eval "$environment"
}
keep_environment() {
  [[ -n $secrets ]] || return 0
  (umask 077 && printf '%s\n' "$environment" >"$job/.$secrets" && mv -f -- "$job/.$secrets" "$job/$secrets")
}
# The jobs that wait for this one will never be started, and read theirs no more.
forget() { rm -f -- "$job"/{,before-,after-}env.sh; }

# Slurm sends USR1 to this script alone when time is nearly up. Stages then get TERM, by scancel: srun would kill them.
on_out_of_time() {
  signalled=yes out_of_time=yes
  say "time is nearly up: $name is told to save and end"
  scancel --signal=TERM "$own_id" 2>/dev/null
}
# TERM comes to everything in the job at once: it was cancelled, unless Slurm already counts it as started once more.
on_stop() {
  signalled=yes stopped=yes
  local shown
  shown=$(trap '' TERM && scontrol --oneliner show job "$own_id" 2>/dev/null)
  if [[ $shown =~ Restarts=([0-9]+) ]] && ((BASH_REMATCH[1] > ${SLURM_RESTART_COUNT:-0})); then
    requeued=yes
    keep_environment # now: there may be no time later
  fi
}

progress() { ls -1 -- "$job/done" "$checkpoints" 2>/dev/null; }

start() {
  trap on_out_of_time USR1
  trap on_stop TERM
  load_environment
  cd -- "$folder" || give_up 1 "$folder: no such folder on $(uname -n)"
  mkdir -p -- "$job/done" "$job/begun"
  rm -f -- "$job/failed"
  state running null ""
  before=$(progress)
  find_each_other
  threads=$((${SLURM_CPUS_ON_NODE:-1} / processes_per_node))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
}

# The words by which torchrun starts processes_per_node workers on every node and finds the other nodes.
find_each_other() {
  rendezvous=(--standalone --local-addr 127.0.0.1 --nproc-per-node "$processes_per_node" --no-python)
  ((num_nodes > 1)) || return 0
  local head
  head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  rendezvous=(--nnodes "$num_nodes" --nproc-per-node "$processes_per_node" --rdzv-backend c10d
    --rdzv-endpoint "$head:$((20000 + SLURM_JOB_ID % 20000))" --rdzv-id "$own_id" --no-python)
}

# stage NUMBER NAME NODES COMMAND...: one task on each of that many nodes makes what `makes` lists, unless that was done
# before the job was requeued.
stage() {
  local number=$1 nodes=$3 status=0 code
  name=$2
  shift 3
  if [[ -e $job/done/$number ]]; then
    say "$name: done before"
    return 0
  fi
  [[ -z $out_of_time ]] || requeue
  say "$name"
  state running null ""
  ((${#makes[@]} == 0)) || clear_way "$number" "${makes[@]}"
  srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1 "${step_options[@]}" \
    bash "$job/task.sh" "$@" </dev/null &
  while true; do
    signalled=
    wait $!
    code=$?
    ((code == 127)) || status=$code
    [[ -n $signalled ]] || break
  done
  [[ -z $stopped ]] || end_stopped
  if ((status == 0)); then
    : >"$job/done/$number"
  elif [[ -n $out_of_time ]] || was_preempted; then
    requeue
  else
    # of several nodes the first to fail tells why; the others were ended for it
    [[ ! -s $job/failed ]] || status=$(<"$job/failed")
    forget
    state failed "$status" "$name failed"
    say "$name failed (exit $status)"
    exit "$status"
  fi
}

# Where a partition gives jobs time to end before it takes their nodes, Slurm sends TERM to the stage alone.
was_preempted() { [[ $(scontrol --oneliner show job "$own_id" 2>/dev/null) =~ PreemptTime=[0-9] ]]; }

# The job was cancelled, or its nodes were taken for another and it goes on later.
end_stopped() {
  if [[ -n $requeued ]]; then
    state submitted null "requeued: it goes on from what was saved"
  else
    forget
    state stopped 143 "cancelled"
  fi
  exit 143
}

# Start the job again from what it saved, unless it saved nothing since it was started: it never would.
requeue() {
  [[ $(progress) != "$before" ]] || give_up 124 "nothing was saved before time was up: raise time in the profile"
  keep_environment
  state submitted null "requeued: it goes on from what was saved"
  say "requeued: it goes on from what was saved"
  timeout 60 scontrol requeue "$own_id" || give_up 1 "job $own_id could not be requeued"
  sleep 120 # Slurm ends this script
  exit 1
}
