# shellcheck shell=bash disable=SC2034,SC2154  # Variables of the other parts.
# Requests of a kubelet to a runtime, sent by crictl.

number=0
# Namespaces of pods that use the network of the node.
namespaces='{"network": 2, "pid": 1, "ipc": 2}'
# User namespace of pods, which have their own network.
ids='[{"host_id": 100000, "container_id": 0, "length": 65536}]'
user_namespaces='{"network": 0, "pid": 1, "ipc": 0, "userns_options": {"mode": 0, "uids": '$ids', "gids": '$ids'}}'

crictl() { command crictl --timeout 60s "$@"; }

cri_at() { printf 'runtime-endpoint: unix://%s\nimage-endpoint: unix://%s\n' "$1" "$1" >/etc/crictl.yaml; }

pull() {
    try crictl pull "$address/$1"
    succeeded "pulling $1"
}

# Creates a network for pods that do not use the node's. Fails without the plugins.
pod_network() {
    local plugins
    for plugins in /opt/cni/bin /usr/lib/cni /usr/libexec/cni; do
        [[ ! -x $plugins/ptp || ! -x $plugins/host-local ]] || break
    done
    [[ -x $plugins/ptp ]] || return 1
    mkdir -p /etc/cni/net.d /opt/cni/bin
    cp "$plugins"/{ptp,host-local,loopback} /opt/cni/bin/ 2>/dev/null || true
    printf '{"cniVersion": "0.4.0", "name": "interop", "plugins": [{"type": "ptp",
        "ipam": {"type": "host-local", "subnet": "10.88.0.0/24"}}]}\n' >/etc/cni/net.d/10-interop.conflist
}

# Runs an image of 60 MiB in a pod with a user namespace. A copy of the image would be below /var/lib/$1.
in_a_user_namespace() {
    local before after
    before=$(written "$1")
    namespaces=$user_namespaces
    start big:1 /bin/sh -c 'ls /big | wc -l; stat -c %u:%g /big; cut -c 1-32 /proc/self/uid_map; sleep 60'
    until_ok grep --quiet 100000 "/run/pods/$number/main.log"
    expect "files and owner" "$(head -n 2 "/run/pods/$number/main.log" | cut -d ' ' -f 4- | paste --serial)" "60"$'\t'"0:0"
    after=$(written "$1")
    note "$(bytes $((after - before))) written"
    ((after - before < 1 << 20)) || fails "$(bytes $((after - before))) written for one pod, a copy of the image"
}

# Starts a pod, and a container of an image with a command, by default /pause. Sets "pod" and "container".
start() {
    local image=$address/$1 dir
    shift
    (($#)) || set -- /pause
    number=$((number + 1))
    dir=/run/pods/$number
    mkdir -p "$dir"
    jq -n --arg name "interop-$number" --arg dir "$dir" --argjson namespaces "$namespaces" \
        '{metadata: {name: $name, uid: $name, namespace: "test"}, log_directory: $dir,
          linux: {security_context: {namespace_options: $namespaces}}}' >"$dir/pod.json"
    jq -n --arg image "$image" --argjson namespaces "$namespaces" \
        '{metadata: {name: "main"}, image: {image: $image}, command: $ARGS.positional, log_path: "main.log",
          linux: {security_context: {namespace_options: $namespaces}}}' --args -- "$@" >"$dir/container.json"
    try crictl runp "$dir/pod.json"
    succeeded "starting a pod"
    pod=$(tail -n 1 <<<"$output")
    try crictl create "$pod" "$dir/container.json" "$dir/pod.json"
    succeeded "creating a container of ${image#*/}"
    container=$(tail -n 1 <<<"$output")
    try crictl start "$container"
    succeeded "starting a container of ${image#*/}"
}

ended() { [[ $(crictl inspect --output go-template --template '{{.status.state}}' "$container") == CONTAINER_EXITED ]]; }

# Runs a command in a container of an image to its end. Sets "printed".
printed=''
runs() {
    # Local, to keep the variables of a pod that stays.
    local pod container
    start "$@"
    until_ok ended
    # "TIME stdout F TEXT"
    printed=$(cut -d ' ' -f 4- "/run/pods/$number/main.log")
    printf '%s\n' "$printed"
    stop_pod "$pod"
}

# Runs a program in the container that was started last, and checks its output.
expect_exec() {
    try crictl exec "$container" "${@:2}"
    expect "in a running container" "$output" "$1"
}

# Stops a pod, by default the one that was started last.
stop_pod() {
    try crictl stopp "${1:-$pod}"
    try crictl rmp --force "${1:-$pod}"
}

checks() {
    runs "$1" /bin/sh /check
    expect "tree of $1" "$printed" "${2:-ok}"
}

still_runs() { expect_exec ok /bin/sh /check; }
