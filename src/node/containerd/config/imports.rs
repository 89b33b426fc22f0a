//! Finds the files that containerd loads, in order.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use regex::Regex;
use toml::{Table, Value};

use super::{ConfigError, Version};

/// Maximum number of files that are read.
const MAX_FILES: usize = 1000;
/// Maximum size of one file, bytes.
const MAX_BYTES: u64 = 4 << 20;

type Files = Vec<(PathBuf, Table)>;

/// Reads the files in order, without Larder's. Also returns the number of files that are loaded before
/// Larder's.
pub(super) fn read(
    root: &Path,
    main: &Path,
    ours: &Path,
    version: Version,
) -> Result<(Files, Option<usize>), ConfigError> {
    let mut files = Files::new();
    let mut before = None;
    let mut seen = BTreeSet::new();
    let mut pending = VecDeque::from([main.to_owned()]);
    while let Some(path) = pending.pop_front() {
        if !seen.insert(path.clone()) {
            continue;
        }
        if seen.len() > MAX_FILES {
            return Err(ConfigError::TooMany { path: main.to_owned(), max: MAX_FILES });
        }
        if path == ours {
            before = Some(files.len());
            continue;
        }
        let Some(table) = parse(root, &path, path == main)? else { continue };
        let imports = table.get("imports").and_then(Value::as_array).into_iter().flatten();
        for import in imports.filter_map(Value::as_str) {
            pending.extend(resolve(root, &path, import, ours, version));
        }
        files.push((path, table));
    }
    Ok((files, before))
}

/// Returns the path below `root` for a path of the node.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Parses a file. Returns `None` if `may_lack` and the file does not exist.
fn parse(root: &Path, path: &Path, may_lack: bool) -> Result<Option<Table>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    match File::open(below(root, path)) {
        Err(e) if may_lack && e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => {
            let read = opened.and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
            if read.map_err(failed)? as u64 > MAX_BYTES {
                return Err(failed(io::ErrorKind::FileTooLarge.into()));
            }
        }
    }
    text.parse().map(Some).map_err(|e: toml::de::Error| {
        let at = e.span().map_or(0, |span| span.start);
        let line = 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        ConfigError::Malformed { path: path.to_owned(), line }
    })
}

/// Returns the files that match an entry of `imports` in the file `parent`. Larder's file matches even if it
/// does not exist.
fn resolve(root: &Path, parent: &Path, import: &str, ours: &Path, version: Version) -> Vec<PathBuf> {
    let has_pattern = import.contains('*');
    let base = match parent.parent() {
        // 1.6 searches its working directory, which is the root under service managers.
        _ if has_pattern && version < (Version { major: 1, minor: 7 }) => Path::new("/"),
        Some(dir) => dir,
        None => Path::new("/"),
    };
    let path = clean(&base.join(import));
    if !has_pattern {
        return vec![path];
    }
    let mut found = BTreeSet::from_iter(glob(root, &path));
    if matches(&path, ours) {
        found.insert(ours.to_owned());
    }
    found.into_iter().collect()
}

/// Removes `.` and `..`, as Go's filepath.Clean does.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => drop(out.pop()),
            _ => {}
        }
    }
    out
}

/// Returns the paths that match a pattern, name by name (Go's filepath.Glob).
fn glob(root: &Path, pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for component in pattern.components() {
        let Component::Normal(name) = component else { continue };
        let name = name.to_string_lossy();
        let mut next = Vec::new();
        for dir in found {
            if !name.contains(['*', '?', '[']) {
                next.push(dir.join(name.as_ref()));
                continue;
            }
            let Some(wanted) = expression(&name) else { continue };
            let entries = fs::read_dir(below(root, &dir)).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            next.extend(names.filter(|name| wanted.is_match(name)).map(|name| dir.join(name)));
        }
        found = next;
    }
    found.retain(|path| below(root, path).exists());
    found
}

fn matches(pattern: &Path, path: &Path) -> bool {
    let (pattern, path): (Vec<_>, Vec<_>) = (pattern.components().collect(), path.components().collect());
    pattern.len() == path.len()
        && pattern.iter().zip(&path).all(|(pattern, name)| {
            let (pattern, name) = (pattern.as_os_str().to_string_lossy(), name.as_os_str().to_string_lossy());
            expression(&pattern).is_some_and(|wanted| wanted.is_match(&name))
        })
}

/// Converts a pattern for one name, with `*`, `?` and classes, to an expression.
fn expression(pattern: &str) -> Option<Regex> {
    let mut out = String::from("^");
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        match c {
            '*' => out.push_str(".*"),
            '?' => out.push('.'),
            '[' => {
                out.push('[');
                for c in rest.by_ref() {
                    if matches!(c, '[' | '&' | '~') {
                        out.push('\\');
                    }
                    out.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            '\\' => out.push_str(&regex::escape(&rest.next()?.to_string())),
            c => out.push_str(&regex::escape(&c.to_string())),
        }
    }
    out.push('$');
    Regex::new(&out).ok()
}
