//! What is read of an image before its program runs: the program that the image's config names, what interprets and loads
//! it, and the files in which a runtime and a C library look first.

use std::collections::HashSet;
use std::io;

use super::elf;
use super::list::Entry;
use super::loader;
use super::view::{Found, View};
use larder_layer::path;
use larder_model::manifest::Process;

/// Most files of one image.
const MAX_FILES: usize = 1024;

/// Most words of a command that are looked at.
const MAX_WORDS: usize = 64;

/// Most interpreters behind one another; the kernel stops at five (`fs/exec.c`).
const MAX_SCRIPTS: u32 = 5;

/// Bytes of a script that the kernel looks at (`BINPRM_BUF_SIZE`).
const SCRIPT_LINE: u64 = 256;

/// Runtimes find out in them who the user is.
const BEFORE: [&[u8]; 2] = [b"/etc/passwd", b"/etc/group"];

/// C libraries read them when a program asks for a user, a host or the time.
const AFTER: [&[u8]; 2] = [b"/etc/nsswitch.conf", b"/etc/localtime"];

/// The start of one image's container.
pub(super) struct Start<'a> {
    view: View,
    process: &'a Process,
    /// Paths of the trees, topmost first.
    trees: &'a [String],
    seen: HashSet<(usize, Vec<u8>)>,
    files: Vec<Entry>,
}

/// The files of a start in the order in which they are read. `view` is of `trees`, topmost first.
pub(super) fn files(view: View, trees: &[String], process: &Process) -> io::Result<Vec<Entry>> {
    let mut start = Start { view, process, trees, seen: HashSet::new(), files: Vec::new() };
    start.each(&BEFORE)?;
    start.command()?;
    start.each(&AFTER)?;
    Ok(start.files)
}

impl Start<'_> {
    /// The regular file that `path` means in the container.
    pub(super) fn find(&mut self, path: &[u8]) -> io::Result<Option<Found>> {
        self.view.file(path, self.process.working_dir.as_bytes())
    }

    /// Puts a file on the list, once.
    pub(super) fn list(&mut self, found: &Found) {
        if self.files.len() < MAX_FILES && self.seen.insert((found.layer(), found.path.clone())) {
            let tree = self.trees[found.layer()].clone();
            self.files.push(Entry { tree, path: found.path.clone(), size: found.stat.size });
        }
    }

    /// Whether looking on adds nothing.
    pub(super) fn is_full(&self) -> bool {
        self.files.len() >= MAX_FILES || self.view.is_exhausted()
    }

    /// A variable of the image; empty where it has none of that name.
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

    /// The program, then what its arguments name: `docker-entrypoint.sh postgres`, `tini -- app`, `python3 app.py`,
    /// `/bin/sh -c "exec app"`.
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

    /// A word of the command that may be a program or a file.
    fn argument(&mut self, word: &[u8]) -> io::Result<()> {
        if let Some(found) = self.executable(word)? {
            return self.program(&found, 0);
        }
        if let Some(found) = self.find(word)? {
            self.list(&found);
        }
        Ok(())
    }

    /// The file that execvp(3) would take.
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

    /// A program and all that runs it.
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

/// The program that a line of shell begins with, where it can be seen without running a shell.
fn first_command(script: &[u8]) -> Option<&[u8]> {
    let mut words = script.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let word = words.find(|word| *word != b"exec" && !word.contains(&b'='))?;
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._+-".contains(b);
    word.iter().all(is_plain).then_some(word)
}

#[cfg(test)]
mod tests;
