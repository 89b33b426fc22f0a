# shellcheck shell=bash disable=SC2034,SC2154  # Variables of the other parts.
# The registry, and the volumes that nodes attach: created once, then read-only.

address=127.0.0.1:5000

# Starts the registry with the content of "$disk/registry", and waits for it. It logs to "$1".
start_registry() {
    local mode=$2
    cat >"$1.yml" <<YAML
version: 0.1
storage: {filesystem: {rootdirectory: $disk/registry}, maintenance: {readonly: {enabled: $mode}}}
http: {addr: "$address"}
YAML
    busybox ip link set lo up
    OTEL_TRACES_EXPORTER=none docker-registry serve "$1.yml" >>"$1" 2>&1 &
    registry=$!
    for _ in {1..100}; do
        if (: <"/dev/tcp/${address/:/\/}") 2>/dev/null; then return; fi
        sleep 0.1
    done
    cat "$1"
    return 1
}

stop_registry() {
    kill "$registry"
    wait "$registry" 2>/dev/null || true
}

# Cache a is the current one of a node. Cache b is the next one, with app:1 and app:2.
volumes=(a-directory a-disk a-erofs a-verity b-directory b-erofs)

make_volumes() {
    local name images options
    # Nodes have a private /tmp.
    cp -r "$here/../systemd" "$memory/systemd"
    echo "interop: creating images and volumes" >&2
    python3 "$parts/images.py" "$memory"
    start_registry "$memory/registry.log" false
    for name in pause:pause app:app-1 app:app-2 link:link deep:deep big:big other:other; do
        skopeo copy --quiet --insecure-policy --dest-tls-verify=false "oci:$memory/layout:${name#*:}" \
            "docker://$address/$(tag "${name#*:}")"
    done
    rm -r "$memory/layout"
    mkdir "$disk/volumes"
    for name in "${volumes[@]}"; do
        case $name in
            a-*) images=(pause:1 app:1 link:1 deep:1 big:1) ;;
            b-*) images=(pause:1 app:1 app:2) ;;
        esac
        case $name in
            *-disk) options=(--volume-kind disk --shrink) ;;
            *-erofs) options=(--layer-format erofs) ;;
            *-verity) options=(--layer-format erofs --verity) ;;
            *) options=() ;;
        esac
        LARDER_STATE__DIR=$memory/state "$LARDER" --log-level warn build --volume "$disk/volumes/$name" --size 512MiB \
            "${options[@]}" "${images[@]/#/$address/}" >"$memory/build.log" 2>&1 || {
            cat "$memory/build.log" >&2
            die "building the volume $name failed"
        }
    done
    stop_registry
}

# Converts "app-2" to app:2, and "pause" to pause:1.
tag() {
    case $1 in
        *-*) echo "${1/-/:}" ;;
        *) echo "$1:1" ;;
    esac
}
