#!/usr/bin/env bash
# Runs the commands of a page as root on a machine of its own: new /etc, /root, /run, /tmp and /var, and a network with
# a registry on 127.0.0.1:5000, which is also the mirror of all registries that the pages name.
# Usage: unshare --mount --net --pid --fork machine.sh DIRECTORY SOURCES PROGRAM
# DIRECTORY has the file `commands`, and gets the file `output`.
set -euo pipefail
files=$1 sources=$2 program=$3
[ $$ = 1 ] || { echo "$0: this is not the first process of new namespaces" >&2; exit 1; }
exec >"$files/output" 2>&1

root=$files/machine
mkdir -p "$root" "$files"/own/{tmp,run,root/bin,var/tmp,var/lib/containers}
cp -a /etc "$files/own/etc"
rm -rf "$files"/own/etc/larder "$files"/own/etc/containers/storage.conf
cp -r "$sources"/{scripts,config,systemd} "$files/commands" "$files/own/root"
mount --make-rprivate /
mount -t tmpfs none "$root"
for name in bin dev lib lib64 opt sbin sys usr; do
    if [ -L "/$name" ]; then
        cp -P "/$name" "$root"
    elif [ -d "/$name" ]; then
        mkdir "$root/$name"
        mount --rbind "/$name" "$root/$name"
    fi
done
for name in etc root run tmp var; do
    mkdir "$root/$name"
    mount --bind "$files/own/$name" "$root/$name"
done
mkdir "$root"/{mnt,old,proc}
mount -t proc proc "$root/proc"
touch "$root/root/bin/larder"
mount --bind "$program" "$root/root/bin/larder"
if [ "$(stat -f -c %T /sys/fs/cgroup)" != cgroup2fs ]; then
    umount -R "$root/sys/fs/cgroup"
    mount -t cgroup2 none "$root/sys/fs/cgroup"
fi
cd "$root"
pivot_root . old
umount -l /old
chmod 1777 /tmp /var/tmp
cd /root
ip link set lo up
unset "${!LARDER_@}" TMPDIR XDG_RUNTIME_DIR
export HOME=/root PATH=/root/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

mkdir -p /etc/larder /etc/containers
cat >/etc/larder/larder.toml <<'TOML'
[[registry.host]]
name = "docker.io"
mirrors = ["http://127.0.0.1:5000"]
[[registry.host]]
name = "registry.example.com"
mirrors = ["http://127.0.0.1:5000"]
[caches]
sparse = true
TOML
# Limits of a container host without all privileges.
cat >/etc/containers/containers.conf <<'TOML'
[containers]
netns = "host"
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
TOML

# Programs that the pages use, and that this machine does not run.
cat >bin/ssh <<'BASH'
#!/bin/bash
shift
exec "$@"
BASH
cat >bin/docker <<'BASH'
#!/bin/bash
skopeo copy --quiet --insecure-policy oci:/tmp/layout:app "docker-archive:/tmp/saved:$2" && cat /tmp/saved
BASH
chmod +x bin/*

# Starts the registry with images of the pages. The tutorial starts its own.
registry() {
    printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: /var/registry}}\nhttp: {addr: "127.0.0.1:5000"}\n' >/etc/registry.yml
    docker-registry serve /etc/registry.yml >/tmp/registry.log 2>&1 &
    scripts/demo-image.sh /tmp/layout >/tmp/layout.log 2>&1
    local name
    for name in "$@"; do
        skopeo copy --quiet --insecure-policy --dest-tls-verify=false "oci:/tmp/layout:app" "docker://127.0.0.1:5000/$name"
    done
}

# Starts the daemon, and waits until it accepts requests.
daemon() {
    larder serve "$@" >/tmp/daemon.log 2>&1 &
    for _ in $(seq 200); do
        larder cache ls >/dev/null 2>&1 && return
        sleep 0.1
    done
    cat /tmp/daemon.log
    return 1
}

# shellcheck source=/dev/null
. ./commands
