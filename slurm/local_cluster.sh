#!/bin/bash
# A SLURM of your own on this machine, to try the batch scripts: no systemd, no cgroups, no root needed, nothing outside one folder.
#
#   apt-get install munge slurmctld slurmd slurm-client
#   slurm/local_cluster.sh start DIR [NODES]    prints the line that points sbatch and squeue at it: export SLURM_CONF=DIR/slurm.conf
#   slurm/local_cluster.sh stop DIR             ends what start began
#
# NODES above 1 are several slurmd on this machine that share its cores between them.
set -euo pipefail
PATH=$PATH:/usr/sbin

fail() {
    echo "local_cluster: $*" >&2
    exit 2
}

free_ports() {
    python3 -c '
import socket, sys
sockets = [socket.create_server(("", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in sockets))' "$1"
}

start() {
    local dir=$1 count=$2 host cores memory i
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" >/dev/null || fail "$program is missing; on Debian and Ubuntu: apt-get install munge slurmctld slurmd slurm-client"
    done
    mkdir -p "$dir" && dir=$(realpath "$dir")
    [ -z "$(ls -A "$dir")" ] || fail "$dir is not empty; stop what runs there, or choose another folder."
    chmod 755 "$dir" # munged refuses a key below a folder that others may write
    mkdir -m 700 "$dir/munge"
    mkdir "$dir/ctld" "$dir/log"
    host=$(hostname -s)
    read -r -a ports <<<"$(free_ports $((count + 1)))"
    cores=$(($(nproc) / count))
    [ "$cores" -ge 1 ] || fail "$count nodes need as many cores; this machine has $(nproc)."
    memory=$(awk -v n="$count" '/^MemTotal/ {print int($2 / 1024 / n)}' /proc/meminfo)

    head -c 128 /dev/urandom >"$dir/munge/key"
    chmod 600 "$dir/munge/key"
    {
        cat <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
StateSaveLocation=$dir/ctld
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=10
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
        for ((i = 1; i <= count; i++)); do
            echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[i]} CPUs=$cores RealMemory=$memory State=UNKNOWN"
        done
    } >"$dir/slurm.conf"

    munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
        --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" 2>"$dir/log/munged.err" || fail "munged did not start: $(tail -n 3 "$dir/log/munged.err")"
    export SLURM_CONF=$dir/slurm.conf
    slurmctld -f "$SLURM_CONF"
    for ((i = 1; i <= count; i++)); do
        mkdir "$dir/spool-n$i"
        slurmd -f "$SLURM_CONF" -N "n$i"
    done
    for ((i = 0; i < 60; i++)); do
        if [ "$(sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | wc -l)" -eq "$count" ]; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.5
    done
    echo "$(sinfo 2>&1; tail -n 5 "$dir"/log/*)" >&2
    stop "$dir"
    fail "the nodes did not become idle within 30 s; the logs are above."
}

stop() {
    local dir pidfile pid
    dir=$(realpath "$1")
    export SLURM_CONF=$dir/slurm.conf
    # The daemons go last: without them nobody would end what the jobs started.
    timeout 10 scancel --user="$(id -un)" 2>/dev/null || true
    for _ in $(seq 60); do
        [ -n "$(timeout 10 squeue --noheader 2>/dev/null)" ] || break
        sleep 0.5
    done
    for pidfile in "$dir"/slurmd-*.pid "$dir/slurmctld.pid" "$dir/munge/pid"; do
        [ -s "$pidfile" ] || continue
        pid=$(cat "$pidfile")
        kill -TERM "$pid" 2>/dev/null || continue
        for _ in $(seq 100); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
    done
}

case ${1:-} in
start) start "${2:?a folder}" "${3:-1}" ;;
stop) stop "${2:?a folder}" ;;
*) fail "usage: local_cluster.sh start DIR [NODES] | stop DIR" ;;
esac
