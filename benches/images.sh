# A real registry on loopback with images, for the benchmarks in this directory. To be sourced. `dir` must be
# a temporary directory.

# Starts the registry. Sets `registry` to its process and `host` to its address.
start_registry() {
    local port
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    cat >"$dir/registry.yml" <<YAML
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $dir/registry}}
http: {addr: "127.0.0.1:$port"}
YAML
    docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 &
    registry=$! host=127.0.0.1:$port
    umoci init --layout "$dir/layout"
}

# Properties of each image: bytes of tar, number of layers, and their compressed bytes in the registry.
declare -A bytes layers compressed

new_image() { # image
    bytes[$1]=0 layers[$1]=0
    umoci new --image "$dir/layout:$1"
}

# Adds the layer in layer.tar.
add_layer() { # image
    bytes[$1]=$((bytes[$1] + $(stat --format %s "$dir/layer.tar")))
    layers[$1]=$((layers[$1] + 1))
    umoci raw add-layer --image "$dir/layout:$1" "$dir/layer.tar"
    rm "$dir/layer.tar"
}

# Adds a layer of small files. The tar is written directly, so that no files need to be removed.
small_files() { # image, number of the layer, files
    python3 - "$2" "$3" >"$dir/layer.tar" <<'PYTHON'
import io, random, sys, tarfile
layer, files = int(sys.argv[1]), int(sys.argv[2])
random.seed(layer)
words = [bytes(random.choice(b"etaoinshrdlu") for _ in range(random.randrange(2, 10))) for _ in range(4000)]
text = b" ".join(random.choice(words) for _ in range(400000))
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
    for number in range(files):
        length = int(random.expovariate(1 / 7000))
        start = random.randrange(len(text) - length - 1)
        member = tarfile.TarInfo(f"app/{layer}/{number // 100:03}/file-{number}.js")
        member.size = length
        tar.addfile(member, io.BytesIO(text[start:start + length]))
PYTHON
    add_layer "$1"
}

# Adds a layer of the largest libraries of this machine, or of random bytes if there are too few.
large_files() { # image, number of the first, how many, size of random bytes
    local largest number
    mapfile -t largest < <(find /usr/lib ~/.rustup -name '*.so*' -type f -size +60M -printf '%s %p\n' 2>/dev/null | sort -rn -u -k1,1 | cut -d' ' -f2-)
    mkdir "$dir/large"
    for ((number = $2; number < $2 + $3; number++)); do
        if [[ -n ${largest[number]:-} ]]; then
            ln -s "${largest[number]}" "$dir/large/large-$number"
        else
            head -c "$4" /dev/urandom >"$dir/large/large-$number"
        fi
    done
    tar --create --file "$dir/layer.tar" --dereference --directory "$dir/large" .
    rm -r "$dir/large"
    add_layer "$1"
}

# Adds a layer with a shell.
shell() { # image
    mkdir -p "$dir/shell/bin"
    cp "$(command -v busybox)" "$dir/shell/bin/busybox"
    ln -s busybox "$dir/shell/bin/sh"
    tar --create --file "$dir/layer.tar" --numeric-owner --owner 0 --group 0 --directory "$dir/shell" .
    rm -r "$dir/shell"
    add_layer "$1"
}

# Runs skopeo without its cache of known blobs. With it, skopeo would push a known blob with another
# compression instead.
uncached_skopeo() {
    local cache=/var/lib/containers/cache
    mkdir -p "$cache"
    unshare --mount sh -c 'mount -t tmpfs none "$0" && exec skopeo "$@"' "$cache" "$@"
}

# Pushes all images to the registry. Images whose name ends in zstd are compressed with zstd.
push_images() {
    local image from more
    for image in "${!bytes[@]}"; do
        from=oci:$dir/layout:$image more=()
        if [[ $image == *zstd ]]; then
            # Blobs that are already compressed are pushed without changes.
            skopeo copy --quiet --insecure-policy --dest-decompress "$from" "dir:$dir/plain"
            from=dir:$dir/plain more=(--dest-compress-format zstd)
        fi
        uncached_skopeo copy --quiet --insecure-policy --dest-tls-verify=false "${more[@]}" "$from" "docker://$host/bench/$image:1"
        rm -rf "$dir/plain"
        compressed[$image]=$(skopeo inspect --raw --tls-verify=false "docker://$host/bench/$image:1" |
            python3 -c 'import json, sys; print(sum(layer["size"] for layer in json.load(sys.stdin)["layers"]))')
    done
    rm -rf "$dir/layout"
    sync
}
