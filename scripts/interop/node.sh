# shellcheck shell=bash disable=SC2034,SC2154  # Variables of the other parts.
# A node: a copy-on-write copy of this machine with the programs of one runtime, and Larder's processes on it.

icv=/icv

enter_node() {
    local node=$memory/node root=$memory/node/root name
    mkdir -p "$node"/{root,upper,work}
    mount -t overlay larder-interop "$root" \
        -o "lowerdir=$memory/programs/$1:/,upperdir=$node/upper,workdir=$node/work"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t sysfs sysfs "$root/sys"
    mount -t tmpfs -o mode=0755 tmpfs "$root/run"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    # Results and volumes are the only directories that the node shares with the machine.
    mkdir -p "$root$memory" "$root$disk"
    mount --bind "$memory" "$root$memory"
    mount --bind "$disk" "$root$disk"
    # Runtimes and the snapshotter need a file system that supports upper directories of overlayfs.
    for name in containerd containers crio larder; do
        mkdir -p "$disk/node/$name" "$root/var/lib/$name"
        mount --bind "$disk/node/$name" "$root/var/lib/$name"
    done
    # The cgroup of the cell, which has no controllers: see without_controllers.
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    cd "$root" || return
    mkdir -p .old
    pivot_root . .old
    cd /
    umount --lazy /.old
    rmdir /.old
    rm -rf /etc/{containerd,crio,larder,cni} /etc/containers/storage.conf{,.d} /etc/systemd/system/larder* /icv*
    rm -rf /usr/share/containers/storage.conf /opt/containerd /opt/cni
    mkdir -p /volumes /run/lock
    mount --bind "$disk/volumes" /volumes
    mkdir -p /etc/containers/registries.conf.d
    printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$address" >/etc/containers/registries.conf.d/interop.conf
    unset XDG_RUNTIME_DIR DBUS_SESSION_BUS_ADDRESS NOTIFY_SOCKET
    export HOME=/root TMPDIR=/tmp
}

# Writes /usr/local/bin/NAME-without-controllers, which runs NAME on a bundle without limits. The cgroup of a
# cell has processes, so its children cannot have controllers. On a machine with cgroup 1 there are none.
without_controllers() {
    cat >"/usr/local/bin/$1-without-controllers" <<SH
#!/bin/bash
for ((i = 1; i < \$#; i++)); do
    next=\$((i + 1))
    case \${!i} in
        --bundle | -b) config=\${!next}/config.json ;;
    esac
done
if [[ -f \${config:-} ]]; then
    jq 'del(.linux.resources)' "\$config" >"\$config.new" && mv "\$config.new" "\$config"
fi
exec $1 "\$@"
SH
    chmod 755 "/usr/local/bin/$1-without-controllers"
}

# Runs larder as an operator does.
larder() { /usr/bin/larder --log-level warn "$@"; }

socket_unit() { [[ -f $memory/systemd/larder-snapshotter.socket ]]; }

# Starts the command of larder-snapshotter.service. If Larder has a socket unit, systemd owns the socket.
start_snapshotter() {
    local start=(/usr/bin/larder snapshotter)
    mkdir -p /run/larder-snapshotter
    if socket_unit; then
        rm -f /run/larder-snapshotter/snapshotter.sock
        start=(systemd-socket-activate --listen=/run/larder-snapshotter/snapshotter.sock "${start[@]}")
    fi
    "${start[@]}" >>"$result/snapshotter.out" 2>&1 &
    snapshotter=$!
    until_ok test -S /run/larder-snapshotter/snapshotter.sock
}

kill_snapshotter() {
    kill -KILL "$snapshotter"
    wait "$snapshotter" 2>/dev/null || true
}

attach() { try larder attach "$@"; }
detach() { try larder detach "$@"; }

attached() {
    attach "$@"
    succeeded attach
}

# Attaches a volume in a combination that Larder is allowed to refuse, if it does so before any change.
attached_or_refused() {
    attach "$@"
    ((code == 0)) || compgen -G '/icv*' >/dev/null || compgen -G '/etc/containerd/conf.d/*larder*' >/dev/null ||
        not_run "attach refuses it, and changes nothing: $(why)"
    succeeded attach
}

detached() {
    detach "$@"
    succeeded detach
}

# Detaches a volume that no container uses. If Larder refuses because of dependent images, the operator
# agrees.
detach_with_consent() {
    local consent=--remove-images
    detach "$@"
    if ((code != 0)) && [[ $output == *"$consent"* ]]; then
        note "detach needs $consent: $(why)"
        detach "$@" "$consent"
    fi
    return "$code"
}

# Attaches a newer cache while a container runs from an older one. $1 is the newer one, the rest are options.
attach_the_new_cache() {
    timed "attach the new cache" larder attach "/volumes/$1" "${@:2}"
    succeeded "attach of the new cache"
}

# Detaches the older cache: at once if the newer one has the layers of the running container, otherwise after
# its end.
detach_the_old_cache() {
    local first
    timed "detach the old cache under a running container" detach_with_consent "/volumes/$1"
    first=$code
    still_runs
    if ((first != 0)); then
        expect "exit code of detach under a running container" "$first" 75
        "$2"
        timed "detach the old cache, its container ended" detach_with_consent "/volumes/$1"
        succeeded "detach of the old cache"
    fi
}

# Prints the bytes below /var/lib/$1 without mounts inside it, because views of a volume can be on the same
# file system.
written() { du --summarize --block-size 1 "$disk/node/$1" | cut -f 1; }

# Simulates a power cut: no process, no mount, an empty /run. Only this process stays, the first of its
# namespace.
power_cut() {
    local path
    (($$ == 1)) || fails "this is not the first process of a namespace"
    kill -KILL -1
    sleep 0.5
    # Unmount in reverse order, because mounts can be nested.
    awk '{ print $5 }' /proc/self/mountinfo | tac | while read -r path; do
        case $path in
            /icv* | /run/?* | /var/lib/*/?*) umount --lazy "$path" ;;
        esac
    done
    find /run -mindepth 1 -delete
}

# Simulates a reboot at which the volumes are missing, for example because a disk failed. Units can fail, but
# nothing else.
reboot_without_volumes() {
    local unit
    power_cut "$@"
    umount /volumes
    for unit in /etc/systemd/system/larder-attach-*.service; do
        try bash -c "$(sed -n 's/^ExecStart=//p' "$unit")"
        ((code != 0)) || fails "$(basename "$unit") succeeds without the volume"
    done
    start_registry "$result/registry" true
}

# Runs the units of attached volumes, as systemd does at boot.
boot_units() {
    local unit
    for unit in /etc/systemd/system/larder-attach-*.service; do
        try bash -c "$(sed -n 's/^ExecStart=//p' "$unit")"
        succeeded "$(basename "$unit")"
    done
}
