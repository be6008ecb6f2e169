#!/usr/bin/env bash
# A real Slurm: munge, MariaDB, slurmdbd and slurmctld here, a slurmd in each host that hosts_up.sh made. As root, no systemd.
# Usage: slurm_up.sh ROOT COUNT PORT PREFIX SUBNET        all state below ROOT; ports PORT..PORT+2 and PORT+11..
# Then SLURM_CONF=ROOT/etc/slurm.conf: partitions batch (default) and interactive, account test.
set -euo pipefail
root=$1 nodes=$2 port=$3 prefix=$4 subnet=$5 host=$(uname -n)
here=$(cd "$(dirname "$0")" && pwd) controller=$subnet.1
mkdir -p "$root"/{etc,state,log,run,spool}
chmod 755 "$root"
trap 'echo "slurm_up.sh: line $LINENO: $BASH_COMMAND" >&2; head -n 40 "$root"/log/*.log "$root"/munge-log/*.log >&2' ERR

# answers WHAT COMMAND...: wait until the command succeeds, for two minutes at most: beside other work a database is slow to rise.
answers() {
  local what=$1 end=$((SECONDS + 120)); shift
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS > end)); then
      echo "slurm_up.sh: $what did not answer in 120 s:"
      "$@"
      return 1
    fi
    sleep 0.1
  done
}

socket=$root/munge-run/munge.socket.2
install -d -m 700 -o munge -g munge "$root/munge-etc" "$root/munge-log"
install -d -m 755 -o munge -g munge "$root/munge-run"
dd if=/dev/urandom of="$root/munge-etc/munge.key" bs=128 count=1 status=none
chown munge:munge "$root/munge-etc/munge.key" && chmod 400 "$root/munge-etc/munge.key"
setpriv --reuid=munge --regid=munge --clear-groups /usr/sbin/munged --force --num-threads=2 \
  --key-file="$root/munge-etc/munge.key" --socket="$socket" --pid-file="$root/munge-run/munged.pid" \
  --log-file="$root/munge-log/munged.log" --seed-file="$root/munge-log/munged.seed"

# a temporary folder of its own: a server that starts removes what it takes for a dead one's, of another cluster too
install -d -m 755 -o mysql -g mysql "$root/db" "$root/dbrun" "$root/dbtmp"
sql() { mariadb --no-defaults --socket="$root/dbrun/mysqld.sock" -uroot -e "$1"; }
[ -d "$root/db/mysql" ] || TMPDIR=$root/dbtmp mariadb-install-db --no-defaults --user=mysql --datadir="$root/db" --auth-root-authentication-method=socket --skip-test-db >"$root/log/dbinstall.log" 2>&1
TMPDIR=$root/dbtmp setsid /usr/sbin/mariadbd --no-defaults --user=mysql --datadir="$root/db" --socket="$root/dbrun/mysqld.sock" --pid-file="$root/dbrun/mysqld.pid" \
  --bind-address=127.0.0.1 --port=$((port + 2)) --innodb-buffer-pool-size=64M --innodb-log-file-size=32M --innodb-lock-wait-timeout=900 >"$root/log/mariadbd.log" 2>&1 </dev/null &
answers mariadbd sql "select 1"
for from in localhost 127.0.0.1; do sql "create database if not exists slurm_acct; create user if not exists 'slurm'@'$from' identified by 'slurm'; grant all on slurm_acct.* to 'slurm'@'$from';"; done

cat >"$root/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$socket
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((port + 1))
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 2))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
LogFile=$root/log/slurmdbd.log
PidFile=$root/run/slurmdbd.pid
CONF
chmod 600 "$root/etc/slurmdbd.conf"
{
  cat <<CONF
ClusterName=c$port
SlurmctldHost=$host($controller)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$socket,cred_expire=5
SlurmctldPort=$port
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool/%n
SlurmctldPidFile=$root/run/slurmctld.pid
SlurmdPidFile=$root/run/slurmd.%n.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$host
AccountingStoragePort=$((port + 1))
AccountingStoragePass=$socket
AccountingStorageEnforce=associations
MessageTimeout=5
SelectType=select/cons_tres
GresTypes=gpu
AccountingStorageTRES=gres/gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SelectTypeParameters=CR_Core
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=2
KillWait=15
InactiveLimit=0
CONF
  for i in $(seq "$nodes"); do
    mkdir -p "$root/spool/node$i"
    echo "NodeName=node$i NodeHostname=node$i NodeAddr=$subnet.$((10 + i)) Port=$((port + 10 + i)) CPUs=2 RealMemory=2000 Gres=gpu:2 State=UNKNOWN"
  done
  echo "PartitionName=batch Nodes=node[1-$nodes] Default=YES MaxTime=INFINITE State=UP"
  echo "PartitionName=interactive Nodes=node[1-$nodes] Default=NO MaxTime=INFINITE State=UP"
} >"$root/etc/slurm.conf"

# GPUs are two device files, which Slurm counts and nobody opens
for i in 0 1; do [ -e "$root/gpu$i" ] || mknod "$root/gpu$i" c 1 3; done
echo "Name=gpu File=$root/gpu[0-1]" >"$root/etc/gres.conf"
export SLURM_CONF=$root/etc/slurm.conf
/usr/sbin/slurmdbd
answers slurmdbd sacctmgr -n -i show cluster
sacctmgr -i add cluster "c$port" >/dev/null 2>&1 || true
sacctmgr -i add account test Cluster="c$port" >/dev/null 2>&1 || true
sacctmgr -i add user root Account=test >/dev/null 2>&1 || true
/usr/sbin/slurmctld -c
for i in $(seq "$nodes"); do
  "$here/in_host.sh" "$prefix" "$i" /usr/sbin/slurmd -N "node$i"
done
idle() { local states; states=$(sinfo -h -p batch -o %T) && echo "the states of batch are: $states" && [ "$states" = idle ]; }
answers slurmctld idle
