# A real registry on loopback and images in it, for the benchmarks here; sourced. `dir` is a directory that goes.

# Starts it; `registry` is its process, `host` where it is.
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

# Bytes of tar in each image.
declare -A bytes

new_image() { # image
    bytes[$1]=0
    umoci new --image "$dir/layout:$1"
}

# Adds the layer that is in layer.tar.
add_layer() { # image
    bytes[$1]=$((bytes[$1] + $(stat --format %s "$dir/layer.tar")))
    umoci raw add-layer --image "$dir/layout:$1" "$dir/layer.tar"
    rm "$dir/layer.tar"
}

# A layer of 20,000 small files, straight into a tar: what is never there need not be removed.
small_files() { # image, number of the layer
    python3 - "$2" >"$dir/layer.tar" <<'PYTHON'
import io, random, sys, tarfile
layer = int(sys.argv[1])
random.seed(layer)
words = [bytes(random.choice(b"etaoinshrdlu") for _ in range(random.randrange(2, 10))) for _ in range(4000)]
text = b" ".join(random.choice(words) for _ in range(400000))
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
    for number in range(20000):
        length = int(random.expovariate(1 / 7000))
        start = random.randrange(len(text) - length - 1)
        member = tarfile.TarInfo(f"app/{layer}/{number // 100:03}/file-{number}.js")
        member.size = length
        tar.addfile(member, io.BytesIO(text[start:start + length]))
PYTHON
    add_layer "$1"
}

# A layer of one of the largest libraries of this machine, or of random bytes where there are not so many.
large_file() { # image, number of the layer, size of random bytes
    local largest
    mapfile -t largest < <(find /usr/lib ~/.rustup -name '*.so*' -type f -size +60M -printf '%s %p\n' 2>/dev/null | sort -rn -u -k1,1 | cut -d' ' -f2-)
    mkdir "$dir/large"
    if [[ -n ${largest[$2]:-} ]]; then
        ln -s "${largest[$2]}" "$dir/large/large-$2"
    else
        head -c "$3" /dev/urandom >"$dir/large/large-$2"
    fi
    tar --create --file "$dir/layer.tar" --dereference --directory "$dir/large" .
    rm -r "$dir/large"
    add_layer "$1"
}

# A layer with a shell.
shell() { # image
    mkdir -p "$dir/shell/bin"
    cp "$(command -v busybox)" "$dir/shell/bin/busybox"
    ln -s busybox "$dir/shell/bin/sh"
    tar --create --file "$dir/layer.tar" --numeric-owner --owner 0 --group 0 --directory "$dir/shell" .
    rm -r "$dir/shell"
    add_layer "$1"
}

# Moves all images into the registry.
push_images() {
    local image
    for image in "${!bytes[@]}"; do
        skopeo copy --quiet --insecure-policy --dest-tls-verify=false "oci:$dir/layout:$image" "docker://$host/bench/$image:1"
    done
    rm -rf "$dir/layout"
    sync
}
