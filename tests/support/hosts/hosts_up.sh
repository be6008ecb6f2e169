#!/usr/bin/env bash
# Make COUNT test hosts: network namespaces PREFIX1.. at SUBNET.11.. behind the bridge PREFIXbr at SUBNET.1, no way out. As root.
# Usage: hosts_up.sh PREFIX COUNT SUBNET        PREFIX of at most 12 letters, SUBNET such as 10.88.0
set -euo pipefail
prefix=$1 count=$2 subnet=$3

ip link add "${prefix}br" type bridge
ip addr add "$subnet.1/24" dev "${prefix}br"
ip link set "${prefix}br" up
{
  echo "127.0.0.1 localhost"
  echo "$subnet.1 $(uname -n)"
  for i in $(seq "$count"); do echo "$subnet.$((10 + i)) node$i"; done
} >"/run/netns-$prefix.hosts"
for i in $(seq "$count"); do
  ip netns add "$prefix$i"
  ip link add "${prefix}v$i" type veth peer name eth0 netns "$prefix$i"
  ip link set "${prefix}v$i" master "${prefix}br" up
  ip -n "$prefix$i" addr add "$subnet.$((10 + i))/24" dev eth0
  ip -n "$prefix$i" link set eth0 up
  ip -n "$prefix$i" link set lo up
done
