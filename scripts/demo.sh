#!/usr/bin/env bash
# Runs the whole workflow in a minute: a real registry with real images, an image cache ordered from the
# daemon, and a container from its sealed volume while the registry and the daemon are stopped. All files are
# in one temporary directory, which is removed at the end. Needs root.
set -euo pipefail

larder=${LARDER:-$(dirname "$0")/../target/release/larder}
larder=$(realpath "$larder")

if ((EUID != 0)); then
    echo "demo: run this script as root, because layers keep owners and devices, and podman starts a container" >&2
    exit 77
fi
if [[ ${1:-} != --in-namespace ]]; then
    # A private mount namespace: all mounts below are removed with its last process.
    exec unshare --mount --propagation private "$0" --in-namespace
fi

dir=$(mktemp -d)
registry=
daemon=
cleanup() {
    stop_daemon
    stop_registry
    # podman leaves its own store mounted on itself.
    umount --quiet --lazy "$dir/root/overlay" "$dir/icv" 2>/dev/null || true
    rm -rf "$dir"
}
stop_registry() {
    if [[ -n $registry ]]; then
        kill "$registry" 2>/dev/null || true
        wait "$registry" 2>/dev/null || true
        registry=
    fi
}
stop_daemon() {
    if [[ -n $daemon ]]; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
        daemon=
    fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

bold='' dim='' plain=''
if [[ -t 1 ]]; then
    bold=$'\033[1m' dim=$'\033[2m' plain=$'\033[0m'
fi
step() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
show() {
    printf '%s$ %s%s\n' "$dim" "${*//"$larder"/larder}" "$plain"
    "$@"
}

step "A registry on loopback"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
host=127.0.0.1:$port
cat >"$dir/registry.yml" <<YAML
version: 0.1
storage: {filesystem: {rootdirectory: $dir/registry}}
http: {addr: "$host"}
YAML
docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 &
registry=$!
for _ in {1..100}; do
    if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
    if ! kill -0 "$registry" 2>/dev/null; then
        cat "$dir/registry.log" >&2
        exit 69
    fi
    sleep 0.1
done
echo "docker-registry at $host"

step "Two images made from this machine's own files, pushed to it"
"$(dirname "$0")/demo-image.sh" "$dir/layout"
for image in shell app; do
    skopeo copy --quiet --insecure-policy --dest-tls-verify=false \
        "oci:$dir/layout:$image" "docker://$host/demo/$image:1"
    echo "$host/demo/$image:1"
done

step "The daemon"
cat >"$dir/larder.toml" <<TOML
[state]
dir = "$dir/state"
[api]
socket = "$dir/larder.sock"
[caches]
capacity = "20GiB"
sparse = true
TOML
"$larder" --config "$dir/larder.toml" --log-level warn serve &
daemon=$!
export LARDER_HOST=unix://$dir/larder.sock
for _ in {1..100}; do
    if [[ -S $dir/larder.sock ]]; then break; fi
    if ! kill -0 "$daemon" 2>/dev/null; then exit 69; fi
    sleep 0.1
done
echo "larder serve at $LARDER_HOST"

step "Plan: the layers that an image cache of both images would fetch"
show "$larder" cache plan demo "$host/demo/app:1" "$host/demo/shell:1"

step "Create: a sealed volume with both images"
show "$larder" cache create demo "$host/demo/app:1" "$host/demo/shell:1" --wait
show "$larder" cache ls
show "$larder" cache show demo

step "The daemon stops. The content of the volume, and its verification"
stop_daemon
volume=$(echo "$dir"/state/tenants/admin/volumes/*)
show "$larder" inspect "$volume"
show "$larder" verify "$volume"

step "The registry stops"
stop_registry
rm -rf "$dir/registry"
if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    echo "demo: a process still answers at $host" >&2
    exit 70
fi
echo "nothing answers at $host any more"

step "A container from the volume, mounted read-only; podman's own store is empty, and there is no network"
if [[ $(stat --file-system --format %T /sys/fs/cgroup) != cgroup2fs ]]; then
    # crun refuses a hybrid of cgroup versions. The change is visible only in this namespace.
    umount --recursive /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
fi
mkdir "$dir/icv"
if [[ -f $volume/disk.img ]]; then
    mount -o loop,ro,noload,nodev,nosuid "$volume/disk.img" "$dir/icv"
else
    mount --bind "$volume" "$dir/icv"
    mount -o remount,bind,ro "$dir/icv"
fi
podman() {
    command podman --root "$dir/root" --runroot "$dir/run" --tmpdir "$dir/tmp" --storage-driver overlay \
        --storage-opt "additionalimagestore=$dir/icv" --cgroup-manager cgroupfs --events-backend none "$@"
}
podman images --format '{{.Repository}}:{{.Tag}}  read-only: {{.ReadOnly}}'
start=$(date +%s%N)
podman run --rm --pull never --network none --cgroups disabled --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 \
    "$host/demo/app:1"
echo "started, run and removed in $((($(date +%s%N) - start) / 1000000)) ms"
