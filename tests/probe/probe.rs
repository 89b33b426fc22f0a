//! Enters the sandbox of a role and reports what is still possible in it. It prints one line per probe: `name
//! result`, where the result is `ok` or the name of an error. `tests/it/sandbox.rs` has the table of expected
//! results.

#![expect(unsafe_code, reason = "probes call the kernel with arguments that libraries reject")]
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

use larder_sys::confine::{Confinement, Privileges, Role, Signals};
use libc::{c_int, c_long, c_void};

/// Arguments: role, volume, outside directory, socket of a daemon, TCP port, process ID of the test.
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [role, volume, outside, socket, port, parent] = <[String; 6]>::try_from(args).unwrap();
    let (volume, outside) = (PathBuf::from(volume), PathBuf::from(outside));
    let (role, privileges) = match role.as_str() {
        "fetcher" => (Role::Fetcher, Privileges::None),
        "extractor" => (Role::Extractor, Privileges::WriteLayers),
        "images" => (Role::Extractor, Privileges::None),
        "reader" => (Role::Reader, Privileges::ReadLayers),
        other => panic!("unknown role {other}"),
    };
    let paths = vec![volume.clone()];
    let (writable, readable) = match role {
        Role::Extractor | Role::Writer => (paths, Vec::new()),
        Role::Reader => (Vec::new(), paths),
        Role::Fetcher => (Vec::new(), Vec::new()),
    };
    let confined = Confinement {
        role,
        privileges,
        writable,
        readable,
        temporary: role == Role::Reader,
        signals: Signals::End,
    }
    .enter()
    .unwrap();
    println!("walls {}", confined.isolation.missing().unwrap_or_else(|| "all".to_owned()).replace(' ', "_"));
    sockets(&socket, port.parse().unwrap());
    kernel();
    processes(parent.parse().unwrap());
    files(&volume, &outside);
}

fn say(name: &str, result: io::Result<()>) {
    let result = match result {
        Ok(()) => "ok".to_owned(),
        Err(e) => match e.raw_os_error() {
            Some(number) => format!("{:?}", nix::errno::Errno::from_raw(number)),
            None => "error".to_owned(),
        },
    };
    println!("{name} {result}");
}

/// Makes a system call. Arguments are integers, and pointers to zeros. The effect of a successful call is not
/// undone.
fn call(name: &str, number: c_long, arguments: &[c_long]) {
    let of = |at: usize| arguments.get(at).copied().unwrap_or(0);
    // SAFETY: pointers among the arguments are null or point to `ZEROS`, and no call of the probes writes
    // beyond it.
    let answer = unsafe { libc::syscall(number, of(0), of(1), of(2), of(3), of(4), of(5)) };
    say(name, if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
}

static ZEROS: [u8; 4096] = [0; 4096];

fn zeros() -> c_long {
    ZEROS.as_ptr() as c_long
}

fn socket(name: &str, family: c_int, kind: c_int) {
    call(name, libc::SYS_socket, &[family.into(), kind.into(), 0]);
}

fn sockets(daemon: &str, port: u16) {
    socket("socket-inet-stream", libc::AF_INET, libc::SOCK_STREAM);
    socket("socket-inet-datagram", libc::AF_INET, libc::SOCK_DGRAM);
    socket("socket-inet6-stream", libc::AF_INET6, libc::SOCK_STREAM);
    socket("socket-inet-raw", libc::AF_INET, libc::SOCK_RAW);
    call("socket-icmp", libc::SYS_socket, &[libc::AF_INET.into(), libc::SOCK_DGRAM.into(), 1]);
    socket("socket-unix-stream", libc::AF_UNIX, libc::SOCK_STREAM);
    socket("socket-unix-datagram", libc::AF_UNIX, libc::SOCK_DGRAM);
    socket("socket-netlink", libc::AF_NETLINK, libc::SOCK_RAW);
    socket("socket-packet", libc::AF_PACKET, libc::SOCK_RAW);
    socket("socket-vsock", libc::AF_VSOCK, libc::SOCK_STREAM);
    socket("socket-alg", libc::AF_ALG, libc::SOCK_SEQPACKET);
    call("socket-mptcp", libc::SYS_socket, &[libc::AF_INET.into(), libc::SOCK_STREAM.into(), 262]);
    let mut pair = [0; 2];
    for (name, kind) in [("pair-stream", libc::SOCK_STREAM), ("pair-datagram", libc::SOCK_DGRAM)] {
        call(
            name,
            libc::SYS_socketpair,
            &[libc::AF_UNIX.into(), kind.into(), 0, pair.as_mut_ptr() as c_long],
        );
    }
    say("connect-loopback", TcpStream::connect(("127.0.0.1", port)).map(drop));
    say("connect-daemon", std::os::unix::net::UnixStream::connect(daemon).map(drop));
    say("daemon-socket-visible", fs::symlink_metadata(daemon).map(drop));
    call("listen", libc::SYS_listen, &[0, 1]);
    call("bind", libc::SYS_bind, &[0, zeros(), 16]);
    call("accept", libc::SYS_accept4, &[0, 0, 0, 0]);
    say(
        "resolve-name",
        ("localhost", 80).to_socket_addrs().map(drop).map_err(|_| io::ErrorKind::Other.into()),
    );
}

fn kernel() {
    let z = zeros();
    call("bpf", libc::SYS_bpf, &[5, z, 64]);
    call("perf-event", libc::SYS_perf_event_open, &[z, 0, -1, -1, 0]);
    call("userfaultfd", libc::SYS_userfaultfd, &[0]);
    call("io-uring", libc::SYS_io_uring_setup, &[1, z]);
    call("fanotify", libc::SYS_fanotify_init, &[0, 0]);
    call("inotify", libc::SYS_inotify_init1, &[0]);
    call("mount", libc::SYS_mount, &[z, z, z, 0, 0]);
    call("umount", libc::SYS_umount2, &[z, 0]);
    call("fsopen", libc::SYS_fsopen, &[z, 0]);
    call("open-tree", libc::SYS_open_tree, &[-100, z, 0]);
    call("move-mount", libc::SYS_move_mount, &[-1, z, -1, z, 0]);
    call("mount-setattr", libc::SYS_mount_setattr, &[-1, z, 0, z, 32]);
    call("pivot-root", libc::SYS_pivot_root, &[z, z]);
    call("chroot", libc::SYS_chroot, &[z]);
    call("unshare-user", libc::SYS_unshare, &[libc::CLONE_NEWUSER.into()]);
    call("unshare-mounts", libc::SYS_unshare, &[libc::CLONE_NEWNS.into()]);
    call("setns", libc::SYS_setns, &[0, 0]);
    call(
        "clone-user-namespace",
        libc::SYS_clone,
        &[(libc::CLONE_NEWUSER | libc::SIGCHLD).into(), 0, 0, 0, 0],
    );
    call("clone-process", libc::SYS_clone, &[libc::SIGCHLD.into(), 0, 0, 0, 0]);
    call("clone3", libc::SYS_clone3, &[z, 88]);
    call("keyctl", libc::SYS_keyctl, &[0, -3, 0]);
    call("add-key", libc::SYS_add_key, &[z, z, z, 0, -3]);
    call("request-key", libc::SYS_request_key, &[z, z, z, 0]);
    call("handle-of-name", libc::SYS_name_to_handle_at, &[-100, z, z, z, 0]);
    call("open-by-handle", libc::SYS_open_by_handle_at, &[-100, z, 0]);
    call("init-module", libc::SYS_init_module, &[z, 0, z]);
    call("finit-module", libc::SYS_finit_module, &[0, z, 0]);
    call("delete-module", libc::SYS_delete_module, &[z, 0]);
    call("kexec", libc::SYS_kexec_load, &[0, 0, 0, 0]);
    call("reboot", libc::SYS_reboot, &[0, 0, 0, 0]);
    call("swapon", libc::SYS_swapon, &[z, 0]);
    call("clock-settime", libc::SYS_clock_settime, &[0, z]);
    call("sethostname", libc::SYS_sethostname, &[z, 0]);
    call("syslog", libc::SYS_syslog, &[3, 0, 0]);
    call("acct", libc::SYS_acct, &[0]);
    call("quotactl", libc::SYS_quotactl, &[0, z, 0, z]);
    call("memfd", libc::SYS_memfd_create, &[z, 0]);
    call("terminal-input", libc::SYS_ioctl, &[0, 0x5412, z]);
    call("capset", libc::SYS_capset, &[z, z]);
    call("setuid", libc::SYS_setuid, &[0]);
    call("personality", libc::SYS_personality, &[0xffff_ffff]);
    call("prctl-no-dump", libc::SYS_prctl, &[libc::PR_SET_DUMPABLE.into(), 1]);
    call("seccomp", libc::SYS_seccomp, &[2, 0, z]);
    let executable = (libc::PROT_READ | libc::PROT_EXEC).into();
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).into();
    call("map-executable", libc::SYS_mmap, &[0, 4096, executable, anonymous, -1, 0]);
    call("make-executable", libc::SYS_mprotect, &[z & !4095, 4096, executable]);
}

fn processes(parent: c_long) {
    let z = zeros();
    call("ptrace", libc::SYS_ptrace, &[libc::PTRACE_TRACEME.into(), 0, 0, 0]);
    call("read-memory", libc::SYS_process_vm_readv, &[parent, z, 0, z, 0, 0]);
    call("write-memory", libc::SYS_process_vm_writev, &[parent, z, 0, z, 0, 0]);
    call("kcmp", libc::SYS_kcmp, &[parent, parent, 0, 0, 0]);
    call("pidfd", libc::SYS_pidfd_open, &[parent, 0]);
    call("pidfd-getfd", libc::SYS_pidfd_getfd, &[0, 0, 0]);
    call("signal-parent", libc::SYS_kill, &[parent, 0]);
    call("signal-thread-of-parent", libc::SYS_tgkill, &[parent, parent, 0]);
    call("limit-parent", libc::SYS_prlimit64, &[parent, 7, 0, z]);
    call("own-descriptor-signals", libc::SYS_fcntl, &[0, libc::F_SETOWN.into(), parent]);
    call("signal-all", libc::SYS_kill, &[-1, 0]);
    let path = c"/bin/true";
    let argv: [*const c_void; 2] = [path.as_ptr().cast(), std::ptr::null()];
    call("exec", libc::SYS_execve, &[path.as_ptr() as c_long, argv.as_ptr() as c_long, 0]);
    call("exec-at", libc::SYS_execveat, &[-100, path.as_ptr() as c_long, argv.as_ptr() as c_long, 0, 0]);
    say("parent-in-proc", fs::symlink_metadata(format!("/proc/{parent}")).map(drop));
    say("environment-of-parent", fs::read(format!("/proc/{parent}/environ")).map(drop));
    say("own-environment", fs::read("/proc/self/environ").map(drop));
    say("own-status", fs::read("/proc/self/status").map(drop));
    say("own-memory", File::open("/proc/self/mem").map(drop));
    say("sysctl", fs::symlink_metadata("/proc/sys/kernel/core_pattern").map(drop));
    say("sysrq", OpenOptions::new().write(true).open("/proc/sysrq-trigger").map(drop));
}

fn files(volume: &Path, outside: &Path) {
    let write = |path: &Path| OpenOptions::new().write(true).create(true).truncate(true).open(path).map(drop);
    say("read-volume", fs::read(volume.join("file")).map(drop));
    say("write-volume", write(&volume.join("new")));
    say("attribute-of-volume", {
        let path = std::ffi::CString::new(volume.join("file").to_str().unwrap()).unwrap();
        // SAFETY: both strings end in a zero byte, and no value is requested.
        let size = unsafe { libc::lgetxattr(path.as_ptr(), c"user.none".as_ptr(), std::ptr::null_mut(), 0) };
        if size < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    });
    let node = |name: &str, mode: libc::mode_t, device| {
        let path = std::ffi::CString::new(volume.join(name).to_str().unwrap()).unwrap();
        // SAFETY: the path is a C string.
        let made = unsafe { libc::mknod(path.as_ptr(), mode, device) };
        if made < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    say("make-disk-node", node("disk", libc::S_IFBLK | 0o600, libc::makedev(7, 0)));
    say("open-disk-node", File::open(volume.join("disk")).map(drop));
    say("make-memory-node", node("mem", libc::S_IFCHR | 0o600, libc::makedev(1, 1)));
    say("open-memory-node", File::open(volume.join("mem")).map(drop));
    say("read-outside", fs::read(outside.join("file")).map(drop));
    say("write-outside", write(&outside.join("new")));
    say("list-outside", fs::read_dir(outside).map(drop));
    let link = volume.join("link");
    let linked =
        std::os::unix::fs::symlink(outside, &link).and_then(|()| fs::read(link.join("file")).map(drop));
    say("read-outside-by-link", linked);
    say("leave-volume", fs::read_dir(volume.join("../outside")).map(drop));
    for path in [
        "/etc/shadow",
        "/etc/passwd",
        "/root",
        "/home",
        "/run",
        "/var",
        "/usr",
        "/sys",
        "/dev/kmsg",
        "/dev/mem",
        "/bin/sh",
    ] {
        say(&format!("see{}", path.replace('/', "-")), fs::symlink_metadata(path).map(drop));
    }
    say("read-hosts", fs::read("/etc/hosts").map(drop));
    say("write-hosts", OpenOptions::new().append(true).open("/etc/hosts").map(drop));
    say("write-root", write(Path::new("/new")));
    say("read-dev-null", File::open("/dev/null").map(drop));
    say("read-dev-urandom", File::open("/dev/urandom").map(drop));
    let mut root: Vec<String> = fs::read_dir("/")
        .map(|all| all.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
        .unwrap_or_default();
    root.sort();
    println!("root-has {}", root.join(","));
}
