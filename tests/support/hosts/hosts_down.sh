#!/usr/bin/env bash
# Remove what hosts_up.sh made, whole or half, and end what still runs there.
# Usage: hosts_down.sh PREFIX COUNT
prefix=$1 count=$2
for i in $(seq "$count"); do
  ip netns pids "$prefix$i" 2>/dev/null | xargs -r kill -KILL 2>/dev/null
  ip netns del "$prefix$i" 2>/dev/null
done
ip link del "${prefix}br" 2>/dev/null
rm -f "/run/netns-$prefix.hosts"
