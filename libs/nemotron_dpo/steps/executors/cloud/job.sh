say() { printf 'nemotron-steps: %s\n' "$*"; }

# What is said goes to the container's log, and to the job folder: a container's log goes with it. Not by a pipe, which
# would be the one whose exit status counts.
keep_log() {
  exec > >(trap '' TERM INT && exec tee -a -- "$job/log-$node.txt") 2>&1
  log_keeper=$!
}

# Neither platform tells a job's exit status, so the log does. Whoever follows it needs a moment to read it.
finish() {
  local status=$?
  trap - EXIT TERM
  say "job $job_name ends with exit status $status"
  [[ -n $stopped ]] || sleep "${NEMOTRON_LINGER_SECONDS:-10}"
  exec >&- 2>&-
  wait "$log_keeper"
  exit "$status"
}

# A container gets TERM when its job is cancelled or its node is needed: the stage saves and ends.
on_stop() {
  signalled=yes stopped=yes
  [[ -z $child ]] || kill -TERM -- "-$child" 2>/dev/null
}

start() {
  node=${LEPTON_JOB_WORKER_INDEX:-${RANK:-0}}
  ((num_nodes > 1)) || node=0
  stopped='' child=''
  mkdir -p -- "$job/done" "$job/begun" || exit 1
  keep_log
  trap finish EXIT
  trap on_stop TERM
  if [[ -s $job/failed ]]; then
    say "error: this job failed before, and would again: submit it anew"
    exit "$(<"$job/failed")"
  fi
  cd -- "$folder" || exit 1
  find_each_other
  threads=$(($(nproc) / processes_per_node))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
}

# The words by which torchrun starts processes_per_node workers on every node and finds the other nodes. What else the
# platform says of processes would make a stage that is one process believe that there are more.
find_each_other() {
  rendezvous=(--standalone --local-addr 127.0.0.1 --nproc-per-node "$processes_per_node" --no-python)
  if ((num_nodes > 1)); then
    local head=${MASTER_ADDR:-}
    if [[ -n ${LEPTON_JOB_NAME:-} ]]; then
      head=${LEPTON_JOB_SERVICE_PREFIX:-$LEPTON_JOB_NAME}-0.${LEPTON_SUBDOMAIN:-$LEPTON_JOB_NAME-job-svc}
      head+=.ws-$LEPTON_WORKSPACE_ID.svc.cluster.local
    fi
    [[ -n $head ]] || { say "error: nobody says where the first node is (MASTER_ADDR)"; exit 1; }
    rendezvous=(--nnodes "$num_nodes" --nproc-per-node "$processes_per_node" --node-rank "$node"
      --master-addr "$head" --master-port "${MASTER_PORT:-29400}" --no-python)
  fi
  unset RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT "${!PET_@}"
}

# stage NUMBER NAME NODES COMMAND...: on the first node or on all of them, it makes what `makes` lists, unless that was done
# before the job was restarted.
stage() {
  local number=$1 nodes=$3 status=0 code
  name=$2
  shift 3
  if [[ -e $job/done/$number ]]; then
    say "$name: done before"
    return 0
  fi
  if ((nodes == 1 && node > 0)); then
    wait_for "$number"
    return 0
  fi
  [[ -z $stopped ]] || exit 143
  say "$name"
  ((node > 0 || ${#makes[@]} == 0)) || clear_way "$number" "${makes[@]}"
  set -m # a process group of its own, which on_stop reaches as a whole
  bash "$job/task.sh" "$@" </dev/null &
  child=$!
  set +m
  while true; do
    signalled=
    wait "$child"
    code=$?
    ((code == 127)) || status=$code
    [[ -n $signalled ]] || break
  done
  child=
  if [[ -n $stopped ]]; then
    rm -f -- "$job/failed"
    exit 143
  elif ((status == 0)); then
    ((node > 0)) || : >"$job/done/$number"
  else
    # of several nodes the first to fail tells why
    [[ ! -s $job/failed ]] || status=$(<"$job/failed")
    say "$name failed (exit $status)"
    ((num_nodes == 1)) || say "what each node said is in $job/log-*.txt"
    exit "$status"
  fi
}

# The first node runs a stage that is one process; ls makes a network file system look again.
wait_for() {
  until [[ -e $job/done/$1 ]]; do
    [[ ! -s $job/failed ]] || exit "$(<"$job/failed")"
    [[ -z $stopped ]] || exit 143
    sleep 1
    ls -- "$job/done" >/dev/null
  done
}
