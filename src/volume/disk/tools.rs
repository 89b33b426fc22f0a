//! The programs of e2fsprogs: no library formats, checks and resizes ext4.
//!
//! A program is given its disk as its standard input and finds it at `/proc/self/fd/0`: no path is resolved again, and the
//! lock on the disk is held for as long as the program runs, whatever becomes of this process.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use uuid::Uuid;

use super::error::{Context, Error};
use super::{BLOCK, Name};
use larder_model::escape::escape;

const TARGET: &str = "/proc/self/fd/0";

/// Where they are, whatever the PATH of the caller.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Those that making, checking and shrinking a disk takes.
pub(super) const PROGRAMS: [&str; 3] = ["mkfs.ext4", "e2fsck", "resize2fs"];

/// Features of a disk (ext4(5)), whatever the machine's mke2fs.conf says. No journal: a disk that was not unmounted in
/// order is checked, and nothing on it is believed that was not synced. All of them are in every kernel since Linux 3.18.
const FEATURES: &str = "none,64bit,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,\
                        large_file,metadata_csum,sparse_super";

/// Bytes of disk for each inode. Layers of many small files have some 10 KiB a file, and a file has at least one block.
const BYTES_PER_INODE: &str = "8192";

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing.
    Clean,
    /// Faults, which are repaired where that was asked for.
    Changed,
    /// Faults that cannot be repaired.
    Broken,
}

/// Whether a program is where [`run`] looks for it.
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

/// Makes an ext4 of `size` bytes.
pub(super) fn format(disk: &File, size: u64, name: &Name) -> Result<(), Error> {
    let seed = name.uuid.to_string();
    let extended = format!("lazy_itable_init=1,nodiscard,root_owner=0:0,hash_seed={seed}");
    let (block, blocks) = (BLOCK.to_string(), (size / BLOCK).to_string());
    let arguments =
        ["-q", "-F", "-t", "ext4", "-O", FEATURES, "-b", &block, "-I", "256", "-i", BYTES_PER_INODE];
    let more =
        ["-m", "0", "-e", "remount-ro", "-L", &name.label, "-U", &seed, "-E", &extended, TARGET, &blocks];
    let (code, said) = run("mkfs.ext4", disk, &[&arguments[..], &more[..]].concat())?;
    if code == Some(0) { Ok(()) } else { Err(failed("mkfs.ext4", code, &said)) }
}

/// Checks an ext4 whole, and repairs what can be.
pub(super) fn repair(disk: &File) -> Result<Found, Error> {
    check(disk, "-fy")
}

/// Checks an ext4 whole and changes nothing.
pub(super) fn examine(disk: &File) -> Result<Found, Error> {
    check(disk, "-fn")
}

/// Checks the ext4 on the device at `path` whole, as the user and group `id`, and changes nothing. Returns what e2fsck says of the
/// first faults, or `None` if it finds none.
pub(super) fn examine_as(id: u32, path: &Path) -> Result<Option<String>, Error> {
    const PROGRAM: &str = "e2fsck";
    let path = path.to_string_lossy();
    let mut command = command(PROGRAM, &["-fn", &path]);
    // The first two make the kernel drop every capability.
    command.uid(id).gid(id).stdin(Stdio::null()).current_dir("/");
    match finish(PROGRAM, command)? {
        (Some(0), _) => Ok(None),
        (Some(1..=15), said) => Ok(Some(escape(&last_lines(&said)))),
        (code, said) => Err(failed(PROGRAM, code, &said)),
    }
}

/// Exit codes are a sum (e2fsck(8)): 1 and 2 corrected, 4 left, 8 and more not even begun.
fn check(disk: &File, how: &str) -> Result<Found, Error> {
    match run("e2fsck", disk, &[how, TARGET])? {
        (Some(0), _) => Ok(Found::Clean),
        (Some(1..=3), _) => Ok(Found::Changed),
        (Some(4..=15), _) => Ok(Found::Broken),
        (code, said) => Err(failed("e2fsck", code, &said)),
    }
}

/// Makes the ext4 as large as `size` bytes.
pub(super) fn resize(disk: &File, size: u64) -> Result<(), Error> {
    let (code, said) = run("resize2fs", disk, &[TARGET, &format!("{}K", size / 1024)])?;
    if code == Some(0) { Ok(()) } else { Err(failed("resize2fs", code, &said)) }
}

/// A size that holds what is on the ext4, bytes. resize2fs guesses the least one, and where its guess is too low it gives
/// up in the midst of its work, so there is something on top.
pub(super) fn least(disk: &File) -> Result<u64, Error> {
    const GUESS: &str = "Estimated minimum size of the filesystem:";
    let (code, said) = run("resize2fs", disk, &["-P", TARGET])?;
    let guess = said.lines().find_map(|line| line.strip_prefix(GUESS)?.trim().parse::<u64>().ok());
    match guess {
        Some(blocks) if code == Some(0) => Ok(blocks.saturating_add(blocks / 32 + 512).saturating_mul(BLOCK)),
        _ => Err(failed("resize2fs", code, &said)),
    }
}

/// Runs a program on a disk and returns its exit code and what it said.
fn run(program: &'static str, disk: &File, arguments: &[&str]) -> Result<(Option<i32>, String), Error> {
    let disk = disk.try_clone().context("handing the disk to", program)?;
    let mut command = command(program, arguments);
    command.stdin(Stdio::from(disk));
    finish(program, command)
}

fn command(program: &'static str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", search_path()).env("LC_ALL", "C");
    // The machine's own settings are not ours.
    command.env("MKE2FS_CONFIG", "/dev/null");
    command
}

fn finish(program: &'static str, mut command: Command) -> Result<(Option<i32>, String), Error> {
    let started = std::time::Instant::now();
    let output = match command.output() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(Error::NoProgram { program }),
        other => other.context("running", program)?,
    };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    tracing::debug!(program, code = output.status.code(), elapsed_ms = started.elapsed().as_millis(), "ran");
    Ok((output.status.code(), said))
}

/// The last lines of what a program said tell why.
fn last_lines(said: &str) -> String {
    const LINES: usize = 4;
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("; ")
}

fn failed(program: &'static str, code: Option<i32>, said: &str) -> Error {
    let last = last_lines(said);
    let how = match code {
        Some(code) => format!("ended with exit code {code}: {last}"),
        None => format!("was killed: {last}"),
    };
    Error::Program { program, how }
}

/// Label and UUID of a disk: those of the volume `name` of the job with this digest, again and again the same.
pub(super) fn name_of(name: &str, job: &larder_model::digest::Digest) -> Name {
    let digest = larder_model::digest::Digest::sha256(format!("disk {name} {job}").as_bytes());
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digest.hex().as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).unwrap_or_default();
        *byte = u8::from_str_radix(pair, 16).unwrap_or_default();
    }
    let uuid: Uuid = uuid::Builder::from_custom_bytes(bytes).into_uuid();
    // A label has up to 16 bytes.
    Name { label: format!("larder-{}", &digest.hex()[..9]), uuid }
}
