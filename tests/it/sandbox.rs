//! The sandbox of each role, tested from inside: a test program enters it as the processes of a build do, and
//! tries what an attacker would.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use crate::harness::{isolated, succeed};

const ROLES: [&str; 4] = ["fetcher", "extractor", "images", "reader"];

/// A user without privileges (Debian: `nobody`).
const NOBODY: u32 = 65534;

/// The result of each probe for root, in the order of [`ROLES`]: the fetcher, the extractor of directories,
/// the extractor of EROFS images, and a reader of volumes.
const TABLE: &[(&str, [&str; 4])] = &[
    ("walls", ["all"; 4]),
    ("socket-inet-stream", ["ok", "EPERM", "EPERM", "EPERM"]),
    ("socket-inet-datagram", ["ok", "EPERM", "EPERM", "EPERM"]),
    ("socket-inet6-stream", ["ok", "EPERM", "EPERM", "EPERM"]),
    ("socket-inet-raw", ["EPERM"; 4]),
    ("socket-icmp", ["EPERM"; 4]),
    ("socket-unix-stream", ["EPERM"; 4]),
    ("socket-unix-datagram", ["EPERM"; 4]),
    ("socket-netlink", ["EPERM"; 4]),
    ("socket-packet", ["EPERM"; 4]),
    ("socket-vsock", ["EPERM"; 4]),
    ("socket-alg", ["EPERM"; 4]),
    ("socket-mptcp", ["EPERM"; 4]),
    ("pair-stream", ["ok"; 4]),
    ("pair-datagram", ["EPERM"; 4]),
    ("connect-loopback", ["ok", "EPERM", "EPERM", "EPERM"]),
    ("connect-daemon", ["EPERM"; 4]),
    ("daemon-socket-visible", ["ENOENT"; 4]),
    ("listen", ["EPERM"; 4]),
    ("bind", ["EPERM"; 4]),
    ("accept", ["EPERM"; 4]),
    ("resolve-name", ["ok", "error", "error", "error"]),
    ("bpf", ["EPERM"; 4]),
    ("perf-event", ["EPERM"; 4]),
    ("userfaultfd", ["EPERM"; 4]),
    ("io-uring", ["EPERM"; 4]),
    ("fanotify", ["EPERM"; 4]),
    ("inotify", ["EPERM"; 4]),
    ("mount", ["EPERM"; 4]),
    ("umount", ["EPERM"; 4]),
    ("fsopen", ["EPERM"; 4]),
    ("open-tree", ["EPERM"; 4]),
    ("move-mount", ["EPERM"; 4]),
    ("mount-setattr", ["EPERM"; 4]),
    ("pivot-root", ["EPERM"; 4]),
    ("chroot", ["EPERM"; 4]),
    ("unshare-user", ["EPERM"; 4]),
    ("unshare-mounts", ["EPERM"; 4]),
    ("setns", ["EPERM"; 4]),
    ("clone-user-namespace", ["EPERM"; 4]),
    ("clone-process", ["EPERM"; 4]),
    ("clone3", ["ENOSYS"; 4]),
    ("keyctl", ["EPERM"; 4]),
    ("add-key", ["EPERM"; 4]),
    ("request-key", ["EPERM"; 4]),
    ("handle-of-name", ["EPERM"; 4]),
    ("open-by-handle", ["EPERM"; 4]),
    ("init-module", ["EPERM"; 4]),
    ("finit-module", ["EPERM"; 4]),
    ("delete-module", ["EPERM"; 4]),
    ("kexec", ["EPERM"; 4]),
    ("reboot", ["EPERM"; 4]),
    ("swapon", ["EPERM"; 4]),
    ("clock-settime", ["EPERM"; 4]),
    ("sethostname", ["EPERM"; 4]),
    ("syslog", ["EPERM"; 4]),
    ("acct", ["EPERM"; 4]),
    ("quotactl", ["EPERM"; 4]),
    ("memfd", ["EPERM"; 4]),
    ("terminal-input", ["EPERM"; 4]),
    ("capset", ["EPERM"; 4]),
    ("setuid", ["EPERM"; 4]),
    ("personality", ["EPERM"; 4]),
    ("prctl-no-dump", ["EPERM"; 4]),
    ("seccomp", ["EPERM"; 4]),
    ("map-executable", ["EPERM"; 4]),
    ("make-executable", ["EPERM"; 4]),
    ("ptrace", ["EPERM"; 4]),
    ("read-memory", ["EPERM"; 4]),
    ("write-memory", ["EPERM"; 4]),
    ("kcmp", ["EPERM"; 4]),
    ("pidfd", ["EPERM"; 4]),
    ("pidfd-getfd", ["EPERM"; 4]),
    ("signal-parent", ["EPERM"; 4]),
    ("signal-thread-of-parent", ["EPERM"; 4]),
    ("limit-parent", ["EPERM"; 4]),
    ("own-descriptor-signals", ["EPERM"; 4]),
    ("signal-all", ["EPERM"; 4]),
    ("exec", ["EPERM"; 4]),
    ("exec-at", ["EPERM"; 4]),
    ("parent-in-proc", ["ENOENT"; 4]),
    ("environment-of-parent", ["ENOENT"; 4]),
    ("own-environment", ["EACCES"; 4]),
    ("own-status", ["ok"; 4]),
    ("own-memory", ["EACCES"; 4]),
    ("sysctl", ["ENOENT"; 4]),
    ("sysrq", ["ENOENT"; 4]),
    ("read-volume", ["ENOENT", "ok", "ok", "ok"]),
    ("write-volume", ["ENOENT", "ok", "ok", "EROFS"]),
    ("attribute-of-volume", ["EPERM", "ENODATA", "ENODATA", "ENODATA"]),
    ("make-disk-node", ["EPERM", "ok", "EPERM", "EPERM"]),
    ("open-disk-node", ["ENOENT", "EACCES", "ENOENT", "ENOENT"]),
    ("make-memory-node", ["EPERM", "ok", "EPERM", "EPERM"]),
    ("open-memory-node", ["ENOENT", "EACCES", "ENOENT", "ENOENT"]),
    ("read-outside", ["ENOENT"; 4]),
    ("write-outside", ["ENOENT"; 4]),
    ("list-outside", ["ENOENT"; 4]),
    ("read-outside-by-link", ["EPERM", "ENOENT", "ENOENT", "EPERM"]),
    ("leave-volume", ["ENOENT"; 4]),
    ("see-etc-shadow", ["ENOENT"; 4]),
    ("see-etc-passwd", ["ENOENT"; 4]),
    ("see-root", ["ENOENT"; 4]),
    ("see-home", ["ENOENT"; 4]),
    ("see-run", ["ENOENT"; 4]),
    ("see-var", ["ENOENT"; 4]),
    ("see-usr", ["ok", "ENOENT", "ENOENT", "ENOENT"]),
    ("see-sys", ["ENOENT"; 4]),
    ("see-dev-kmsg", ["ENOENT"; 4]),
    ("see-dev-mem", ["ENOENT"; 4]),
    ("see-bin-sh", ["ENOENT"; 4]),
    ("read-hosts", ["ok", "ENOENT", "ENOENT", "ENOENT"]),
    ("write-hosts", ["EROFS", "ENOENT", "ENOENT", "ENOENT"]),
    ("write-root", ["EROFS"; 4]),
    ("read-dev-null", ["ok"; 4]),
    ("read-dev-urandom", ["ok"; 4]),
];

/// Probes with another result without privileges, because such an extractor cannot create devices.
const UNPRIVILEGED: &[(&str, [&str; 4])] = &[
    ("write-hosts", ["EACCES", "ENOENT", "ENOENT", "ENOENT"]),
    ("make-disk-node", ["EPERM", "EPERM", "EPERM", "EPERM"]),
    ("open-disk-node", ["ENOENT", "ENOENT", "ENOENT", "ENOENT"]),
    ("make-memory-node", ["EPERM", "EPERM", "EPERM", "EPERM"]),
    ("open-memory-node", ["ENOENT", "ENOENT", "ENOENT", "ENOENT"]),
];

/// Runs all probes in all roles as the user `uid`, and compares the results with the tables.
fn compare(uid: u32, except: &[(&str, [&str; 4])]) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let probe = dir.path().join("probe");
    fs::copy(env!("CARGO_BIN_EXE_larder-probe"), &probe).unwrap();
    let socket = dir.path().join("larder.sock");
    let _daemon = UnixListener::bind(&socket).unwrap();
    let registry = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = registry.local_addr().unwrap().port();
    let mut wrong = Vec::new();
    for (at, role) in ROLES.into_iter().enumerate() {
        let (volume, outside) =
            (dir.path().join(format!("{role}-volume")), dir.path().join(format!("{role}-outside")));
        for path in [&volume, &outside] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("file"), "content").unwrap();
            chown(path, Some(uid), Some(uid)).unwrap();
            chown(path.join("file"), Some(uid), Some(uid)).unwrap();
        }
        let answers = run(uid, &probe, role, &[&volume, &outside, &socket], port);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{role} wrote outside its volume");
        for (name, wanted) in TABLE {
            let wanted =
                except.iter().find(|(other, _)| other == name).map_or(wanted, |(_, wanted)| wanted)[at];
            let found = answers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            if found != Some(wanted) {
                wrong.push(format!("{role}: {name} is {found:?}, the table says {wanted}"));
            }
        }
        assert_eq!(answers.lines().count(), TABLE.len() + 1, "a probe is in no table:\n{answers}");
    }
    assert!(wrong.is_empty(), "as user {uid}:\n{}", wrong.join("\n"));
}

fn run(uid: u32, probe: &Path, role: &str, paths: &[&Path; 3], port: u16) -> String {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups"]);
    if uid == 0 {
        command = Command::new("env");
    }
    command.arg(probe).arg(role).args(paths).args([port.to_string(), std::process::id().to_string()]);
    succeed(&mut command)
}

#[case]
fn the_sandbox_confines_root() {
    isolated(&[], || compare(0, &[]));
}

#[case]
fn the_sandbox_confines_an_ordinary_user() {
    isolated(&[], || compare(NOBODY, UNPRIVILEGED));
}
