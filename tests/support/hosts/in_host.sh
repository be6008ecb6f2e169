#!/usr/bin/env bash
# Become COMMAND on test host nodeINDEX: its own network, host name and /etc/hosts.
# Usage: in_host.sh PREFIX INDEX COMMAND...
# nsenter, not `ip netns exec`: that remounts /sys and hides /sys/fs/cgroup, without which slurmd does not start.
set -euo pipefail
prefix=$1 index=$2
shift 2
exec nsenter --net="/run/netns/$prefix$index" unshare --uts --mount --propagation private \
  bash -c 'echo "node$0" >/proc/sys/kernel/hostname; mount --bind "$1" /etc/hosts; shift; exec "$@"' \
  "$index" "/run/netns-$prefix.hosts" "$@"
