#!/usr/bin/env bash
# Writes an OCI layout with two images made from the machine's own files:
#   shell  one layer: the static busybox and a few files of /etc
#   app    the same layer, one with Python as this machine has it, and one with a program on top; the last layer
#          removes, replaces and links files of the ones below
# Usage: demo-image.sh DIRECTORY
set -euo pipefail

layout=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pack() { tar --create --file "$work/$1.tar" --numeric-owner --owner 0 --group 0 --sort name --directory "$work/$1" .; }

# Layer 1: a shell.
mkdir -p "$work"/base/{bin,dev,etc,proc,root,sys,tmp}
chmod 1777 "$work/base/tmp"
install "$(command -v busybox)" "$work/base/bin/busybox"
for name in sh cat echo ls id stat test; do
    ln "$work/base/bin/busybox" "$work/base/bin/$name"
done
echo 'root:x:0:0:root:/root:/bin/sh' >"$work/base/etc/passwd"
echo 'root:x:0:' >"$work/base/etc/group"
echo 'removed by the last layer' >"$work/base/etc/motd"
pack base

# Layer 2: the distribution's Python with its library and what the loader needs.
python=$(realpath /usr/bin/python3)
mapfile -t libraries < <(ldd "$python" | grep --only-matching '/[^ ]*')
tar --create --file "$work/python.tar" --numeric-owner --dereference --hard-dereference --exclude '__pycache__' \
    --exclude "${python##*/}/config-*" --absolute-names --transform 's,^/,,' \
    "$python" "/usr/lib/${python##*/}" "${libraries[@]}"

# Layer 3: a program; a whiteout, a setuid file, a hard link.
mkdir -p "$work"/app/{etc,usr/bin,srv}
: >"$work/app/etc/.wh.motd"
ln -s "${python##*/}" "$work/app/usr/bin/python3"
install -m 4755 "$(command -v busybox)" "$work/app/usr/bin/su-box"
ln "$work/app/usr/bin/su-box" "$work/app/usr/bin/su-box-again"
cat >"$work/app/srv/app.py" <<'PYTHON'
import os, stat, sys
box = os.stat("/usr/bin/su-box")
print(f"hello from Python {sys.version.split()[0]} in a container")
print(f"  modules on the image:  {sum(len(f) for _, _, f in os.walk(os.path.dirname(os.__file__)))} files")
print(f"  setuid kept:           {bool(box.st_mode & stat.S_ISUID)}, names of that file: {box.st_nlink}")
print(f"  whiteout in effect:    {not os.path.exists('/etc/motd')}")
PYTHON
pack app

umoci init --layout "$layout"
umoci new --image "$layout:shell"
umoci raw add-layer --image "$layout:shell" "$work/base.tar"
umoci config --image "$layout:shell" --config.env PATH=/bin:/usr/bin --config.cmd /bin/sh
umoci tag --image "$layout:shell" app
umoci raw add-layer --image "$layout:app" "$work/python.tar"
umoci raw add-layer --image "$layout:app" "$work/app.tar"
umoci config --image "$layout:app" --config.cmd /usr/bin/python3 --config.cmd /srv/app.py
