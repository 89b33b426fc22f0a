//! The files that a container start reads before its program runs. These are the program in the image's
//! config, its interpreters and libraries, and the files that runtimes and C libraries read first.

use std::collections::HashSet;
use std::io;

use super::list::Entry;
use super::view::{Found, View};
use super::{elf, loader};
use larder_layer::path;
use larder_model::manifest::Process;

/// Maximum number of files for one image.
const MAX_FILES: usize = 1024;

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

/// The start of one image's container.
pub(super) struct Start<'a> {
    view: View,
    process: &'a Process,
    /// Paths of the trees, topmost first.
    trees: &'a [String],
    seen: HashSet<(usize, Vec<u8>)>,
    files: Vec<Entry>,
}

/// Returns the files of a start in the order in which they are read. `view` merges `trees`, topmost first.
pub(super) fn files(view: View, trees: &[String], process: &Process) -> io::Result<Vec<Entry>> {
    let mut start = Start { view, process, trees, seen: HashSet::new(), files: Vec::new() };
    start.each(&RUNTIME_FILES)?;
    start.command()?;
    start.each(&LIBRARY_FILES)?;
    Ok(start.files)
}

impl Start<'_> {
    /// Finds the regular file that `path` refers to in the container.
    pub(super) fn find(&mut self, path: &[u8]) -> io::Result<Option<Found>> {
        self.view.file(path, self.process.working_dir.as_bytes())
    }

    /// Adds a file to the list, once.
    pub(super) fn list(&mut self, found: &Found) {
        if self.files.len() < MAX_FILES && self.seen.insert((found.layer(), found.path.clone())) {
            let tree = self.trees[found.layer()].clone();
            self.files.push(Entry { tree, path: found.path.clone(), size: found.stat.size });
        }
    }

    /// Reports whether a limit was reached, so that no further file can be listed.
    pub(super) fn is_full(&self) -> bool {
        self.files.len() >= MAX_FILES || self.view.is_exhausted()
    }

    /// Returns an environment variable of the image, or an empty string.
    pub(super) fn variable(&self, name: &str) -> &str {
        self.process.variable(name).unwrap_or_default()
    }

    fn each(&mut self, paths: &[&[u8]]) -> io::Result<()> {
        for path in paths {
            if let Some(found) = self.find(path)? {
                self.list(&found);
            }
        }
        Ok(())
    }

    /// Lists the program, and the programs and files that its arguments name: `docker-entrypoint.sh
    /// postgres`, `tini -- app`, `python3 app.py`, `/bin/sh -c "exec app"`.
    fn command(&mut self) -> io::Result<()> {
        let process = self.process;
        let mut words = process.args.iter().take(MAX_WORDS).map(String::as_bytes);
        let Some(program) = words.next() else { return Ok(()) };
        if let Some(found) = self.executable(program)? {
            self.program(&found, 0)?;
        }
        let is_shell = path::split(program).1.ends_with(b"sh");
        let mut before: &[u8] = b"";
        for word in words {
            let is_option = word.starts_with(b"-");
            let is_script = is_shell && before.starts_with(b"-") && before.ends_with(b"c");
            before = word;
            if is_option || self.is_full() {
                continue;
            }
            let word = if is_script { first_command(word) } else { Some(word) };
            if let Some(word) = word {
                self.argument(word)?;
            }
        }
        Ok(())
    }

    /// Lists a word of the command if it is a program or a file.
    fn argument(&mut self, word: &[u8]) -> io::Result<()> {
        if let Some(found) = self.executable(word)? {
            return self.program(&found, 0);
        }
        if let Some(found) = self.find(word)? {
            self.list(&found);
        }
        Ok(())
    }

    /// Finds the file that execvp(3) would run.
    fn executable(&mut self, name: &[u8]) -> io::Result<Option<Found>> {
        if name.contains(&b'/') {
            return Ok(self.find(name)?.filter(Found::is_executable));
        }
        let process = self.process;
        for dir in process.path() {
            let at = path::join(dir.as_bytes(), name);
            if let Some(found) = self.find(&at)?.filter(Found::is_executable) {
                return Ok(Some(found));
            }
            if self.is_full() {
                break;
            }
        }
        Ok(None)
    }

    /// Lists a program, its interpreters and its libraries.
    fn program(&mut self, found: &Found, depth: u32) -> io::Result<()> {
        self.list(found);
        if depth > MAX_SCRIPTS || self.is_full() {
            return Ok(());
        }
        let head = found.head(SCRIPT_LINE)?;
        if head.starts_with(elf::MAGIC) {
            let object = found.open()?.and_then(elf::read);
            return object.map_or(Ok(()), |object| loader::load(self, found, object));
        }
        let Some(line) = head.strip_prefix(b"#!") else { return Ok(()) };
        let line = line.split(|b| matches!(b, b'\n' | b'\0')).next().unwrap_or_default();
        let mut words = line.split(|b| matches!(b, b' ' | b'\t')).filter(|word| !word.is_empty());
        let Some(interpreter) = words.next() else { return Ok(()) };
        if let Some(interpreter) = self.find(interpreter)? {
            self.program(&interpreter, depth + 1)?;
        }
        if path::split(interpreter).1 == b"env"
            && let Some(name) = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'='))
            && let Some(found) = self.executable(name)?
        {
            self.program(&found, depth + 1)?;
        }
        Ok(())
    }
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
