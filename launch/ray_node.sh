#!/bin/bash
# One node of a Ray cluster, in the foreground, until it is told to stop (TERM):
#
#     launch/ray_node.sh head IP:PORT            the first node
#     launch/ray_node.sh worker HEAD_IP:PORT     every other node
#     launch/ray_node.sh address                 prints this node's IP address and ends
#
# Environment, all of it optional:
#     AMFT_PYTHON     the Python whose Ray is started (.venv/bin/python)
#     AMFT_RAY_TEMP   folder of Ray's session on this node, deleted at the end (amft-ray-UID in TMPDIR or /tmp)
#     AMFT_RAY_LOGS   shared folder; the node's logs are copied into it when Ray failed, or it holds a file `failed`
#     AMFT_INTERFACE  network interface that the nodes talk over (that of the first address of the host)
#     AMFT_CPUS, AMFT_GPUS  slots that the node offers (what Ray finds); a node without GPUs offers one GPU slot per rank
#     AMFT_OBJECT_STORE_BYTES  size of Ray's shared memory on this node (30 % of its memory)
set -euo pipefail
role=${1:-} address=${2:-}
python=${AMFT_PYTHON:-.venv/bin/python}
temp=${AMFT_RAY_TEMP:-${TMPDIR:-/tmp}/amft-ray-$UID}

if [ -n "${AMFT_INTERFACE:-}" ]; then
    export GLOO_SOCKET_IFNAME=$AMFT_INTERFACE NCCL_SOCKET_IFNAME=$AMFT_INTERFACE
    own=$(ip -4 -o addr show dev "$AMFT_INTERFACE" | awk '{print $4; exit}')
    own=${own%/*}
else
    read -r own _ < <(hostname -I)
fi
if [ "$role" = address ]; then
    echo "$own"
    exit
fi
options=(--block --disable-usage-stats --node-ip-address="$own")
if [ -n "${AMFT_CPUS:-}" ]; then options+=(--num-cpus="$AMFT_CPUS"); fi
if [ -n "${AMFT_GPUS:-}" ]; then options+=(--num-gpus="$AMFT_GPUS"); fi
if [ -n "${AMFT_OBJECT_STORE_BYTES:-}" ]; then options+=(--object-store-memory="$AMFT_OBJECT_STORE_BYTES"); fi
case $role in
    head) options+=(--head --port="${address##*:}" --include-dashboard=false --temp-dir="$temp") ;;
    worker) options+=(--address="$address") ;;
    *) echo "error: '$role' is no role of a node; give head IP:PORT, worker HEAD_IP:PORT, or address" >&2; exit 2 ;;
esac

leave() {
    status=$?
    set +e
    trap '' TERM INT
    if [ -n "${ray:-}" ]; then
        kill -TERM "$ray" 2>/dev/null
        wait "$ray" 2>/dev/null
    fi
    if [ -n "${AMFT_RAY_LOGS:-}" ] && { [ $status -ne 0 ] || [ -e "$AMFT_RAY_LOGS/failed" ]; }; then
        cp -rL "$temp/session_latest/logs" "$AMFT_RAY_LOGS/$(hostname)" 2>/dev/null
    fi
    rm -rf "$temp" "$temp.out"
}
trap leave EXIT
trap 'exit 0' TERM INT
echo "$(hostname) $own: ray start ${options[*]}"
# The node joins as soon as the head answers; Ray itself gives up earlier.
if [ "$role" = worker ]; then
    until (exec 3<>"/dev/tcp/${address%:*}/${address##*:}") 2>/dev/null; do sleep 0.5; done
fi
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # the default of 30 s is longer than a scheduler waits before it kills
# Ray gives up when a node is not up after 30 s, which a slow file system or a busy machine may need: once more, twice.
# A node that was up and ended stays away, so that whoever watches this process sees it.
for attempt in 1 2 3; do
    status=0
    "$python" -m ray.scripts.scripts start "${options[@]}" >"$temp.out" 2>&1 &
    ray=$!
    wait "$ray" || status=$?
    cat "$temp.out"
    if [ $attempt = 3 ] || grep -q "Ray runtime started" "$temp.out"; then exit "$status"; fi
    echo "Ray did not come up on $(hostname) (status $status): once more"
done
