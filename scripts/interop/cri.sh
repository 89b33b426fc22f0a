# shellcheck shell=bash disable=SC2034,SC2154  # Variables of the other parts.
# What a kubelet asks of a runtime, by crictl.

number=0

crictl() { command crictl --timeout 60s "$@"; }

cri_at() {
    export CONTAINER_RUNTIME_ENDPOINT=unix://$1 IMAGE_SERVICE_ENDPOINT=unix://$1
}

pull() {
    try crictl pull "$address/$1"
    ((code == 0)) || fails "pulling $1: $(why)"
}

# Starts a pod on the network of the node, and a container of an image with a command, by default /pause. Sets "pod" and
# "container".
start() {
    local image=$address/$1 dir namespaces='{"network": 2, "pid": 1, "ipc": 2}'
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
    ((code == 0)) || fails "a pod does not start: $(why)"
    pod=$(tail -n 1 <<<"$output")
    try crictl create "$pod" "$dir/container.json" "$dir/pod.json"
    ((code == 0)) || fails "a container of ${image#*/} is not created: $(why)"
    container=$(tail -n 1 <<<"$output")
    try crictl start "$container"
    ((code == 0)) || fails "a container of ${image#*/} does not start: $(why)"
}

ended() { [[ $(crictl inspect --output go-template --template '{{.status.state}}' "$container") == CONTAINER_EXITED ]]; }

# Runs a command in a container of an image to its end; sets "printed".
printed=''
runs() {
    start "$@"
    until_ok ended
    # "TIME stdout F TEXT"
    printed=$(cut -d ' ' -f 4- "/run/pods/$number/main.log")
    printf '%s\n' "$printed"
    stop_pod "$pod"
}

# Runs a program in the container that was started last, and expects what it prints.
expect_exec() {
    try crictl exec "$container" "${@:2}"
    expect "in a running container" "$output" "$1"
}

stop_pod() {
    try crictl stopp "$1"
    try crictl rmp --force "$1"
}

checks() {
    runs "$1" /bin/sh /check
    expect "tree of $1" "$printed" "${2:-ok}"
}
