#!/bin/bash
# Runs one node of the job's Ray until it is told to stop; started by dgx_train.slurm on each node.
#
#   ray_node.sh head IP           writes IP:PORT to $TAUDOJO_RAY_STATE/address once it is up
#   ray_node.sh worker ADDRESS    joins the head
#
# All ports are chosen free, so that two jobs share a node; Ray's folder is this job's own and is removed at the end.
set -uo pipefail

role=$1
mapfile -t ports < <("$PYTHON" -c '
import socket
sockets = [socket.create_server(("", 0)) for _ in range(5)]
print(*(s.getsockname()[1] for s in sockets), sep="\n")')
folder=$(mktemp -d "${TMPDIR:-/tmp}/ray-${SLURM_JOB_ID}-XXXX")
options=(
    --block --disable-usage-stats
    --temp-dir="$folder"
    --num-cpus="${SLURM_CPUS_ON_NODE}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
    --dashboard-agent-listen-port="${ports[1]}" --metrics-export-port="${ports[2]}" --runtime-env-agent-port="${ports[3]}"
)
if [ "$role" = head ]; then
    ip=$2
    options+=(--head --node-ip-address="$ip" --port="${ports[0]}" --ray-client-server-port="${ports[4]}" --include-dashboard=false)
else
    options+=(--address="$2")
fi
[ -z "${RAY_OBJECT_STORE_BYTES:-}" ] || options+=(--object-store-memory="$RAY_OBJECT_STORE_BYTES")

stop() {
    trap '' TERM INT
    kill -TERM "$ray" 2>/dev/null
    wait "$ray"
    rm -rf "$folder"
    exit 0
}
trap stop TERM INT

export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # a cancelled job has seconds to go, and nothing here to drain
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0 # actors inherit it: one that asks for no GPU keeps the node's CUDA_VISIBLE_DEVICES
"$PYTHON" -m ray.scripts.scripts start "${options[@]}" >"$folder/start.log" 2>&1 &
ray=$!
if [ "$role" = head ]; then
    # The port answers once the head is up; only then is the address told.
    until (exec 3<>"/dev/tcp/$ip/${ports[0]}") 2>/dev/null; do
        kill -0 "$ray" 2>/dev/null || break
        sleep 0.5
    done
    echo "$ip:${ports[0]}" >"$TAUDOJO_RAY_STATE/address.new" && mv "$TAUDOJO_RAY_STATE/address.new" "$TAUDOJO_RAY_STATE/address"
fi
wait "$ray"
status=$?
echo "taudojo: Ray on $(hostname) stopped with status $status:" >&2
tail -n 30 "$folder/start.log" >&2
rm -rf "$folder"
exit "$status"
