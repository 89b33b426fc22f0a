//! The files that a container start reads before its program runs. These are the program in the image's
//! config, its interpreters and libraries, and the files that runtimes and C libraries read first.

use std::io;

use super::list::Entry;
use super::listing::Listing;
use super::view::Found;
use super::{elf, loader};
use larder_layer::path;
use larder_layer::stored::StoredDir;
use larder_model::manifest::Process;

/// Maximum number of words of a command that are examined.
const MAX_WORDS: usize = 64;

/// Maximum depth of nested interpreters; the kernel stops at five (`fs/exec.c`).
const MAX_SCRIPTS: u32 = 5;

/// Bytes of a script that the kernel reads (`BINPRM_BUF_SIZE`).
const SCRIPT_LINE: u64 = 256;

/// Files in which runtimes look up the user.
const RUNTIME_FILES: [&[u8]; 2] = [b"/etc/passwd", b"/etc/group"];

/// Files that C libraries read when a program looks up a user, a host or the time.
const LIBRARY_FILES: [&[u8]; 2] = [b"/etc/nsswitch.conf", b"/etc/localtime"];

/// Returns the files that a start of `process` reads, in that order. `layers` are the named trees of the
/// image's layers, topmost first.
///
/// # Errors
/// Returns the error of a file system that fails in a way that an image cannot cause.
pub fn files(layers: Vec<(String, StoredDir)>, process: &Process) -> io::Result<Vec<Entry>> {
    let mut listing = Listing::new(layers, process);
    each(&mut listing, &RUNTIME_FILES)?;
    command(&mut listing)?;
    each(&mut listing, &LIBRARY_FILES)?;
    Ok(listing.into_files())
}

/// Lists the files that exist.
fn each(listing: &mut Listing<'_>, paths: &[&[u8]]) -> io::Result<()> {
    for path in paths {
        if let Some(found) = listing.find(path)? {
            listing.add(&found);
        }
    }
    Ok(())
}

/// Lists the program, and the programs and files that its arguments name: `docker-entrypoint.sh
/// postgres`, `tini -- app`, `python3 app.py`, `/bin/sh -c "exec app"`.
fn command(listing: &mut Listing<'_>) -> io::Result<()> {
    let process = listing.process();
    let mut words = process.args.iter().take(MAX_WORDS).map(String::as_bytes);
    let Some(name) = words.next() else { return Ok(()) };
    if let Some(found) = executable(listing, name)? {
        program(listing, &found, 0)?;
    }
    let is_shell = path::split(name).1.ends_with(b"sh");
    let mut before: &[u8] = b"";
    for word in words {
        let is_option = word.starts_with(b"-");
        let is_script = is_shell && before.starts_with(b"-") && before.ends_with(b"c");
        before = word;
        if is_option || listing.is_full() {
            continue;
        }
        let word = if is_script { first_command(word) } else { Some(word) };
        if let Some(word) = word {
            argument(listing, word)?;
        }
    }
    Ok(())
}

/// Lists a word of the command if it is a program or a file.
fn argument(listing: &mut Listing<'_>, word: &[u8]) -> io::Result<()> {
    if let Some(found) = executable(listing, word)? {
        return program(listing, &found, 0);
    }
    if let Some(found) = listing.find(word)? {
        listing.add(&found);
    }
    Ok(())
}

/// Finds the file that execvp(3) would run.
fn executable(listing: &mut Listing<'_>, name: &[u8]) -> io::Result<Option<Found>> {
    if name.contains(&b'/') {
        return Ok(listing.find(name)?.filter(Found::is_executable));
    }
    let process = listing.process();
    for dir in process.path() {
        let at = path::join(dir.as_bytes(), name);
        if let Some(found) = listing.find(&at)?.filter(Found::is_executable) {
            return Ok(Some(found));
        }
        if listing.is_full() {
            break;
        }
    }
    Ok(None)
}

/// Lists a program, its interpreters and its libraries.
fn program(listing: &mut Listing<'_>, found: &Found, depth: u32) -> io::Result<()> {
    listing.add(found);
    if depth > MAX_SCRIPTS || listing.is_full() {
        return Ok(());
    }
    let head = found.head(SCRIPT_LINE)?;
    if head.starts_with(elf::MAGIC) {
        let object = found.open()?.and_then(elf::read);
        return object.map_or(Ok(()), |object| loader::load(listing, found, object));
    }
    let Some(line) = head.strip_prefix(b"#!") else { return Ok(()) };
    let line = line.split(|b| matches!(b, b'\n' | b'\0')).next().unwrap_or_default();
    let mut words = line.split(|b| matches!(b, b' ' | b'\t')).filter(|word| !word.is_empty());
    let Some(interpreter) = words.next() else { return Ok(()) };
    if let Some(interpreter) = listing.find(interpreter)? {
        program(listing, &interpreter, depth + 1)?;
    }
    if path::split(interpreter).1 == b"env"
        && let Some(name) = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'='))
        && let Some(found) = executable(listing, name)?
    {
        program(listing, &found, depth + 1)?;
    }
    Ok(())
}
/// Returns the program that a line of shell starts with, if it can be determined without running a shell.
fn first_command(script: &[u8]) -> Option<&[u8]> {
    let mut words = script.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let word = words.find(|word| *word != b"exec" && !word.contains(&b'='))?;
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._+-".contains(b);
    word.iter().all(is_plain).then_some(word)
}

#[cfg(test)]
mod tests;
