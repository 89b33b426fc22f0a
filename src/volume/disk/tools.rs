//! Wrappers for the programs of e2fsprogs, because no library formats, checks and resizes ext4.
//!
//! A program gets its disk as standard input and opens it as `/proc/self/fd/0`. The path is not resolved
//! again, and the program holds the lock on the disk as long as it runs, even if this process ends.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use uuid::Uuid;

use super::error::Error;
use super::{BLOCK, Name};
use larder_model::escape::escape;
use larder_model::io_error::Context as _;

const TARGET: &str = "/proc/self/fd/0";

/// Directories of the programs, searched before the caller's PATH.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Programs needed to create, check and shrink a disk.
pub(super) const PROGRAMS: [&str; 3] = ["mkfs.ext4", "e2fsck", "resize2fs"];

/// Features of a disk (ext4(5)), independent of the machine's mke2fs.conf. There is no journal: a disk that
/// was not unmounted cleanly is checked, and only synced data on it is trusted. Every kernel since Linux 3.18
/// supports these features.
const FEATURES: &str = "none,64bit,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,\
                        large_file,metadata_csum,sparse_super";

/// Bytes of disk per inode. Layers of many small files have some 10 KiB per file, and a file has at least one
/// block.
const BYTES_PER_INODE: &str = "8192";

/// Result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// No errors were found.
    Clean,
    /// Errors were found, and repaired if requested.
    Changed,
    /// Errors were found that cannot be repaired.
    Broken,
}

/// Reports whether [`run`] can find a program.
pub(super) fn is_installed(program: &str) -> bool {
    std::env::split_paths(&search_path()).any(|dir| dir.join(program).is_file())
}

fn search_path() -> OsString {
    let mut path = OsString::from(PATH);
    if let Some(more) = std::env::var_os("PATH") {
        path.push(":");
        path.push(more);
    }
    path
}

/// Creates an ext4 of `size` bytes.
pub(super) fn format(disk: &File, size: u64, name: &Name) -> Result<(), Error> {
    let seed = name.uuid.to_string();
    let extended = format!("lazy_itable_init=1,nodiscard,root_owner=0:0,hash_seed={seed}");
    let (block, blocks) = (BLOCK.to_string(), (size / BLOCK).to_string());
    let arguments =
        ["-q", "-F", "-t", "ext4", "-O", FEATURES, "-b", &block, "-I", "256", "-i", BYTES_PER_INODE];
    let more =
        ["-m", "0", "-e", "remount-ro", "-L", &name.label, "-U", &seed, "-E", &extended, TARGET, &blocks];
    let (code, messages) = run("mkfs.ext4", disk, &[&arguments[..], &more[..]].concat())?;
    if code == Some(0) { Ok(()) } else { Err(failed("mkfs.ext4", code, &messages)) }
}

/// Checks the whole ext4, and repairs what it can.
pub(super) fn repair(disk: &File) -> Result<Found, Error> {
    check(disk, "-fy")
}

/// Checks the whole ext4 without changing it.
pub(super) fn examine(disk: &File) -> Result<Found, Error> {
    check(disk, "-fn")
}

/// Checks the whole ext4 on the device at `path` without changing it, as the user and group `id`. Returns
/// e2fsck's last messages if it finds errors; `None` if it finds none.
pub(super) fn examine_as(id: u32, path: &Path) -> Result<Option<String>, Error> {
    const PROGRAM: &str = "e2fsck";
    let path = path.to_string_lossy();
    let mut command = command(PROGRAM, &["-fn", &path]);
    // Changing to an unprivileged user and group makes the kernel drop every capability.
    command.uid(id).gid(id).stdin(Stdio::null()).current_dir("/");
    match finish(PROGRAM, command)? {
        (Some(0), _) => Ok(None),
        (Some(1..=15), messages) => Ok(Some(escape(&last_lines(&messages)))),
        (code, messages) => Err(failed(PROGRAM, code, &messages)),
    }
}

/// Exit codes are sums (e2fsck(8)): 1 and 2 corrected, 4 uncorrected, 8 and more not checked.
fn check(disk: &File, how: &str) -> Result<Found, Error> {
    match run("e2fsck", disk, &[how, TARGET])? {
        (Some(0), _) => Ok(Found::Clean),
        (Some(1..=3), _) => Ok(Found::Changed),
        (Some(4..=15), _) => Ok(Found::Broken),
        (code, messages) => Err(failed("e2fsck", code, &messages)),
    }
}

/// Resizes the ext4 to `size` bytes.
pub(super) fn resize(disk: &File, size: u64) -> Result<(), Error> {
    let (code, messages) = run("resize2fs", disk, &[TARGET, &format!("{}K", size / 1024)])?;
    if code == Some(0) { Ok(()) } else { Err(failed("resize2fs", code, &messages)) }
}

/// Returns a size in bytes that is sufficient for the content of the ext4. resize2fs estimates the minimum;
/// if the estimate is too low, it fails halfway, so a margin is added.
pub(super) fn min_size(disk: &File) -> Result<u64, Error> {
    const GUESS: &str = "Estimated minimum size of the filesystem:";
    let (code, messages) = run("resize2fs", disk, &["-P", TARGET])?;
    let guess = messages.lines().find_map(|line| line.strip_prefix(GUESS)?.trim().parse::<u64>().ok());
    match guess {
        Some(blocks) if code == Some(0) => Ok(blocks.saturating_add(blocks / 32 + 512).saturating_mul(BLOCK)),
        _ => Err(failed("resize2fs", code, &messages)),
    }
}

/// Runs a program on a disk and returns its exit code and output.
fn run(program: &'static str, disk: &File, arguments: &[&str]) -> Result<(Option<i32>, String), Error> {
    let disk = disk.try_clone().context("passing the disk to", program)?;
    let mut command = command(program, arguments);
    command.stdin(Stdio::from(disk));
    finish(program, command)
}

fn command(program: &'static str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", search_path()).env("LC_ALL", "C");
    // Ignore the machine's own settings.
    command.env("MKE2FS_CONFIG", "/dev/null");
    command
}

fn finish(program: &'static str, mut command: Command) -> Result<(Option<i32>, String), Error> {
    let started = std::time::Instant::now();
    let output = match command.output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(Error::NoProgram { program }),
        other => other.context("running", program)?,
    };
    let messages = [output.stdout, output.stderr].concat();
    let messages = String::from_utf8_lossy(&messages).into_owned();
    tracing::debug!(program, code = output.status.code(), elapsed_ms = started.elapsed().as_millis(), "ran");
    Ok((output.status.code(), messages))
}

/// Returns the last lines of a program's output, which give the reason of a failure.
fn last_lines(messages: &str) -> String {
    const LINES: usize = 4;
    let lines: Vec<&str> = messages.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("; ")
}

fn failed(program: &'static str, code: Option<i32>, messages: &str) -> Error {
    let last = last_lines(messages);
    let how = match code {
        Some(code) => format!("failed with exit code {code}: {last}"),
        None => format!("was killed: {last}"),
    };
    Error::Program { program, how }
}

/// Returns the label and UUID of a disk. They are always the same for a volume name and the digest of its
/// job.
pub(super) fn name_of(name: &str, job: &larder_model::digest::Digest) -> Name {
    let digest = larder_model::digest::Digest::sha256(format!("disk {name} {job}").as_bytes());
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digest.hex().as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).unwrap_or_default();
        *byte = u8::from_str_radix(pair, 16).unwrap_or_default();
    }
    let uuid: Uuid = uuid::Builder::from_custom_bytes(bytes).into_uuid();
    // A label has at most 16 bytes.
    Name { label: format!("larder-{}", &digest.hex()[..9]), uuid }
}
