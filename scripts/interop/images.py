#!/usr/bin/env python3
"""Writes the test images of interop.sh as an OCI layout, and the sizes of their layers.

Usage: images.py DIRECTORY

DIRECTORY/layout has a tag for each image. DIRECTORY/layers has a line for each layer: digest, compressed size. The same
busybox gives the same bytes.
"""

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import sys
import tarfile

DEEP = 117
BIG = 60 << 20

# What /check prints for an image whose layers were merged by the rules of the OCI image spec.
CHECK = """\
#!/bin/sh
expect() {
    if [ "$2" != "$3" ]; then
        echo "$1: $2, not $3"
        exit 1
    fi
}
expect "layer on top" "$(cat /etc/name)" NAME
expect "layer below" "$(cat /etc/below)" below
expect "whiteout" "$(ls /removed 2>/dev/null)" ""
expect "opaque directory" "$(ls /opaque)" new
expect "setuid" "$(stat -c %a /bin/setuid)" 4755
expect "owner of a file" "$(stat -c %u:%g /data/lower)" 7:8
expect "written file" "$(echo x >/etc/new && cat /etc/new)" x
echo ok
"""


class Layer:
    """A change set: a tar with the entries in the order of the calls."""

    def __init__(self):
        self.raw = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.raw, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name, content=b"", mode=0o644, kind=tarfile.REGTYPE, link="", owner=(0, 0)):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.linkname, entry.mtime = kind, mode, link, 1_600_000_000
        entry.uid, entry.gid = owner
        content = content.encode() if isinstance(content, str) else content
        entry.size = len(content)
        self.tar.addfile(entry, io.BytesIO(content))
        return self

    def directory(self, name, mode=0o755, owner=(0, 0)):
        return self.add(name, mode=mode, kind=tarfile.DIRTYPE, owner=owner)

    def hard_link(self, name, link, mode=0o644):
        """The header of a hard link also sets the mode of the file."""
        return self.add(name, mode=mode, kind=tarfile.LNKTYPE, link=link)

    def finish(self):
        self.tar.close()
        return self.raw.getvalue()


class Layout:
    """An OCI image layout on disk."""

    def __init__(self, path):
        self.path, self.manifests, self.layers = path, [], {}
        os.makedirs(f"{path}/blobs/sha256")
        with open(f"{path}/oci-layout", "w") as file:
            json.dump({"imageLayoutVersion": "1.0.0"}, file)

    def blob(self, content):
        digest = hashlib.sha256(content).hexdigest()
        with open(f"{self.path}/blobs/sha256/{digest}", "wb") as file:
            file.write(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}

    def layer(self, layer):
        """Stores a layer; returns its descriptor and diff ID."""
        tar = layer.finish()
        descriptor = self.blob(gzip.compress(tar, compresslevel=1, mtime=0))
        self.layers[descriptor["digest"]] = descriptor["size"]
        descriptor["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip"
        return descriptor, "sha256:" + hashlib.sha256(tar).hexdigest()

    def image(self, tag, layers, command=("/bin/sh", "/check")):
        config = {
            "created": "2024-01-01T00:00:00Z",
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
            "os": "linux",
            "config": {"Cmd": list(command), "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **self.blob(encode(config))},
            "layers": [descriptor for descriptor, _ in layers],
        }
        descriptor = {"mediaType": manifest["mediaType"], **self.blob(encode(manifest))}
        self.manifests.append({**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}})

    def finish(self):
        index = {"schemaVersion": 2, "manifests": self.manifests}
        with open(f"{self.path}/index.json", "wb") as file:
            file.write(encode(index))


def encode(document):
    return json.dumps(document, sort_keys=True).encode()


def shell():
    """busybox with a link for each program that the tests call."""
    with open(shutil.which("busybox"), "rb") as file:
        busybox = file.read()
    layer = Layer()
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        layer.directory(name)
    layer.add("bin/busybox", busybox, mode=0o755)
    for name in ("sh", "cat", "ls", "stat", "sleep", "id", "wc", "echo", "true"):
        layer.hard_link(f"bin/{name}", "bin/busybox", mode=0o755)
    layer.add("etc/passwd", "root:x:0:0:root:/:/bin/sh\n").add("etc/group", "root:x:0:\n")
    layer.add("pause", "#!/bin/sh\ntrap 'exit 0' TERM\nwhile true; do sleep 1 & wait $!; done\n", mode=0o755)
    return layer


def lower():
    layer = Layer().add("etc/below", "below").add("removed", "x")
    layer.directory("opaque").add("opaque/old", "x").directory("data", mode=0o750, owner=(7, 8))
    return layer.add("data/lower", "lower", owner=(7, 8))


def upper(name):
    """A whiteout, an opaque directory, a setuid program, and a file in a directory that the layer only implies."""
    layer = Layer().add("etc/name", name).add(".wh.removed").directory("opaque").add("opaque/.wh..wh..opq")
    layer.add("opaque/new", "new").add("bin/setuid", "x", mode=0o4755).add("data/upper", "upper")
    return layer.add("check", CHECK.replace("NAME", name), mode=0o755)


def main():
    target = sys.argv[1]
    layout = Layout(f"{target}/layout")
    base, middle = layout.layer(shell()), layout.layer(lower())
    layout.image("pause", [base], ["/pause"])
    for tag in ("app-1", "app-2"):
        layout.image(tag, [base, middle, layout.layer(upper(tag))])
    # podman and containerd cannot pull this image, because its hard link is in another layer than the target.
    links = Layer().hard_link("etc/second", "etc/below").add("check", '#!/bin/sh\nstat -c %h /etc/second\ncat /etc/second\n')
    layout.image("link", [base, middle, layout.layer(links)])
    deep = [layout.layer(Layer().add(f"deep/{number}", str(number))) for number in range(DEEP)]
    layout.image("deep", [base, *deep], ["/bin/sh", "-c", "ls /deep | wc -l"])
    noise = random.Random(1)
    big = Layer().directory("big")
    for number in range(60):
        big.add(f"big/{number}", noise.randbytes(BIG // 60))
    layout.image("big", [base, layout.layer(big)], ["/bin/sh", "-c", "ls /big | wc -l"])
    # Not in any cache, and neither are its layers.
    layout.image("other", [layout.layer(shell().add("check", "#!/bin/sh\necho other\n"))])
    layout.finish()
    with open(f"{target}/layers", "w") as file:
        file.writelines(f"{digest} {size}\n" for digest, size in layout.layers.items())


if __name__ == "__main__":
    main()
