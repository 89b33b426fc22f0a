//! System calls that a confined process can make (seccomp(2)): one allow-list per role. All other calls fail
//! with `EPERM`.

use std::collections::BTreeMap;

use libc::{c_long, c_ulong};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::Role;

/// Memory, threads, time, signals to this process itself, and open files.
const COMMON: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    // Another filter refuses it: see `without_clone3`.
    libc::SYS_clone3,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
    // Sockets that were opened before: the supervisor and the other half of the build.
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_getpeername,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Reading of files.
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_getdents64,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_statfs,
    libc::SYS_statx,
];

/// Calls of [`COMMON`] that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const COMMON_OLD: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
];
#[cfg(not(target_arch = "x86_64"))]
const COMMON_OLD: &[c_long] = &[];

/// Writing of files: contents, names, owners, modes, times, attributes.
const WRITE: &[c_long] = &[
    libc::SYS_copy_file_range,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_linkat,
    libc::SYS_lremovexattr,
    libc::SYS_lsetxattr,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_sendfile,
    libc::SYS_symlinkat,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

/// Calls of [`WRITE`] that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const WRITE_OLD: &[c_long] = &[
    libc::SYS_chmod,
    libc::SYS_mkdir,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_symlink,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const WRITE_OLD: &[c_long] = &[];

/// Reading of extended attributes.
const ATTRIBUTES: &[c_long] =
    &[libc::SYS_fgetxattr, libc::SYS_flistxattr, libc::SYS_lgetxattr, libc::SYS_llistxattr];

/// Temporary files of a reader.
const TEMPORARY: &[c_long] = &[libc::SYS_fallocate, libc::SYS_ftruncate, libc::SYS_unlinkat];

/// Connections to other hosts. `socket` is limited to IPv4 and IPv6, and listening is not possible.
const NETWORK: &[c_long] = &[libc::SYS_connect, libc::SYS_sendmmsg, libc::SYS_recvmmsg];

/// Allowed commands of ioctl(2): sharing blocks between files, location of a file, detection of a terminal,
/// and number of bytes available. All other commands are refused, on every device.
const IOCTLS: [c_ulong; 7] = [
    // FICLONE and FICLONERANGE (linux/fs.h).
    0x4004_9409,
    0x4020_940d,
    // FS_IOC_FIEMAP (linux/fs.h).
    0xc020_660b,
    // FS_IOC_GETFLAGS (linux/fs.h).
    0x8008_6601,
    libc::TCGETS,
    libc::FIONBIO,
    libc::FIONREAD,
];

/// Allowed commands of fcntl(2): descriptors, locks and the size of pipes. `F_SETOWN` and `F_SETSIG` would
/// send signals to other processes.
const FCNTLS: [libc::c_int; 14] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETLK,
    libc::F_SETLK,
    libc::F_SETLKW,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    libc::F_OFD_SETLKW,
    libc::F_GETPIPE_SZ,
    libc::F_SETPIPE_SZ,
];

/// Flags of clone(2) that create a namespace (linux/sched.h).
const NEW_NAMESPACES: c_long = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as c_long;

/// Options of prctl(2) that name a thread or a memory area (the allocator of the C library).
const PRCTLS: [c_long; 3] = [libc::PR_SET_NAME as c_long, libc::PR_GET_NAME as c_long, 0x5356_4d41];

/// Low bits of the second argument of socket(2), without `SOCK_CLOEXEC` and `SOCK_NONBLOCK`.
const SOCKET_TYPE: u64 = 0xf;

/// Returns the filters of a role, in the order of installation.
///
/// # Errors
/// An architecture that the filter compiler does not support, and its other errors.
pub(super) fn filters(role: Role) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    Ok([without_clone3()?, allowed(role)?])
}

/// Refuses clone3(2), whose flags are in memory where a filter cannot read them. `ENOSYS` makes the C library
/// call clone(2) instead.
fn without_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, missing, architecture()?)?.try_into()
}

fn allowed(role: Role) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    let lists: &[&[c_long]] = match role {
        Role::Fetcher => &[COMMON, COMMON_OLD, NETWORK],
        Role::Reader => &[COMMON, COMMON_OLD, ATTRIBUTES, TEMPORARY],
        Role::Extractor | Role::Writer => &[COMMON, COMMON_OLD, ATTRIBUTES, WRITE, WRITE_OLD],
    };
    for call in lists.iter().copied().flatten() {
        rules.insert(*call, Vec::new());
    }
    let is = |argument: u8, value: u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value)
    };
    let low = |argument: u8, value: u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
    };
    let has = |argument: u8, mask: u64, value: u64| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value)
    };
    // Threads are allowed, but no new processes. Threads of the C library share their memory.
    let thread = libc::CLONE_THREAD as u64;
    let no_namespace = has(0, NEW_NAMESPACES as u64 | thread, thread)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![no_namespace])?]);
    // Memory can never be made executable.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![SeccompRule::new(vec![has(2, libc::PROT_EXEC as u64, 0)?])?]);
    }
    let of = |conditions: Vec<SeccompCondition>| SeccompRule::new(conditions);
    let mut options = Vec::new();
    for option in PRCTLS {
        options.push(of(vec![low(0, option as u64)?])?);
    }
    rules.insert(libc::SYS_prctl, options);
    // Limits and signals of this process only; abort(3) calls tgkill(2).
    rules.insert(libc::SYS_prlimit64, vec![of(vec![low(0, 0)?])?]);
    rules.insert(libc::SYS_tgkill, vec![of(vec![low(0, u64::from(std::process::id()))?])?]);
    let mut controls = Vec::new();
    for control in FCNTLS {
        controls.push(of(vec![low(1, control as u64)?])?);
    }
    rules.insert(libc::SYS_fcntl, controls);
    let mut commands = Vec::new();
    for command in IOCTLS {
        commands.push(of(vec![low(1, command)?])?);
    }
    rules.insert(libc::SYS_ioctl, commands);
    // Only connected pairs, which the runtime uses for signals. A datagram socket could be connected to any
    // path.
    let pair = vec![is(0, libc::AF_UNIX as u64)?, has(1, SOCKET_TYPE, libc::SOCK_STREAM as u64)?];
    rules.insert(libc::SYS_socketpair, vec![of(pair)?]);
    if role == Role::Fetcher {
        let mut sockets = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
                // IPPROTO_IP selects TCP or UDP. MPTCP, SCTP and ICMP are other protocols.
                let own = if kind == libc::SOCK_STREAM { libc::IPPROTO_TCP } else { libc::IPPROTO_UDP };
                for protocol in [libc::IPPROTO_IP, own] {
                    let socket = has(1, SOCKET_TYPE, kind as u64)?;
                    sockets.push(of(vec![is(0, family as u64)?, socket, low(2, protocol as u64)?])?);
                }
            }
        }
        rules.insert(libc::SYS_socket, sockets);
    }
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, refused, SeccompAction::Allow, architecture()?)?.try_into()
}

fn architecture() -> Result<TargetArch, seccompiler::BackendError> {
    std::env::consts::ARCH.try_into()
}
