//! Configures containerd for the snapshotter: the text of Larder's drop-in file, and a check that containerd
//! loads it.
//!
//! containerd reads `config.toml` and the files that it imports, in order (its package server/config). It
//! imports only what `config.toml` lists, in every version. The output of `containerd config default` in 2.2
//! and newer imports `/etc/containerd/conf.d/*.toml`. How the files are merged depends on the version:
//!
//! | | 1.6, 1.7 | 2.x |
//! |---|---|---|
//! | section of a plugin | only that of the last file, as a whole | key by key |
//! | list in a section | | that of the last file |
//! | relative pattern with `*` | 1.6: from the working directory of containerd | from the importing file |
//!
//! Therefore the file for 1.x repeats the CRI section of the node, with the snapshotter changed. Otherwise
//! its sandbox image, registries and runtimes would be lost. The file must be written again when that section
//! changes. The repeated section can contain credentials, so the mode is [`MODE`], and [`DropIn::shown`] is
//! the text to display.
//!
//! This module only reads the files of the node and writes nothing.

mod erofs;
mod imports;
mod version;

pub use erofs::{makes_images_of_tars, settings};
pub use version::{UnknownVersion, Version};

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::node::file::MARK;
use larder_model::class::Class;
use larder_model::io_error::{FileRole, class};
use larder_model::platform::Platform;
use larder_model::runtime::Containerd;

/// The default path of containerd's own configuration.
pub const MAIN: &str = "/etc/containerd/config.toml";
/// Path of Larder's drop-in file. Version 2.2 and newer import this directory, and the name sorts last.
pub const PATH: &str = "/etc/containerd/conf.d/99-larder.toml";
/// File mode of the drop-in file, which can contain credentials.
pub const MODE: u32 = 0o600;
/// The import pattern that matches the drop-in file.
const PATTERN: &str = "/etc/containerd/conf.d/*.toml";

const CRI: &str = "io.containerd.grpc.v1.cri";
const CRI_IMAGES: &str = "io.containerd.cri.v1.images";
const TRANSFER: &str = "io.containerd.transfer.v1.local";
const EROFS: &str = "io.containerd.snapshotter.v1.erofs";
const CACHES: &str = "layer_content_caches";
/// The first version with optional entries in `unpack_config`.
const OPTIONAL: Version = Version { major: 2, minor: 3 };

/// The configuration cannot be read, or is not supported by this version of containerd.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A configuration file of containerd cannot be read.
    #[error("reading {path}: {source}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The error of the system call.
        r#source: std::io::Error,
    },
    /// The file is not valid TOML. The message does not quote it, because it can contain credentials.
    #[error("{path} is not valid TOML, line {line}: containerd would not start with it")]
    Malformed {
        /// Path of the file.
        path: PathBuf,
        /// Line number, starting at 1.
        line: usize,
    },
    /// The file has version 1, which cannot be merged with a file of version 2.
    #[error(
        "{path} has no \"version = 2\": containerd {version} cannot merge it with Larder's file: convert it with `containerd config dump`"
    )]
    Old {
        /// The file.
        path: PathBuf,
        /// The version of containerd.
        version: Version,
    },
    /// The version of containerd is too old.
    #[error("containerd {have} does not support {what}: upgrade to {need} or newer")]
    TooOld {
        /// The missing feature.
        what: &'static str,
        /// The installed version.
        have: Version,
        /// The first version with the feature.
        need: Version,
    },
    /// The configuration has too many files.
    #[error("{path} and its imports are more than {max} files")]
    TooMany {
        /// Path of containerd's own configuration.
        path: PathBuf,
        /// Maximum number of files.
        max: usize,
    },
}

impl ConfigError {
    /// Returns the error class, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            ConfigError::Read { source, .. } => class(source, FileRole::Own),
            _ => Class::Invalid,
        }
    }
}

/// A snapshotter that containerd must use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshotter {
    /// The name of the snapshotter in containerd.
    pub name: String,
    /// Path of the snapshotter's socket.
    pub socket: PathBuf,
    /// Data directory of the snapshotter. Kubelets check its file system to see how full the image disk is.
    pub root: PathBuf,
    /// `true` if the kernel can change file owners with mounts: overlayfs on ID-mapped mounts, Linux 5.19.
    pub remaps_ids: bool,
}

/// The required content of the drop-in file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The snapshotters other than containerd's own. The first one becomes CRI's snapshotter.
    pub snapshotters: Vec<Snapshotter>,
    /// The layer directory for containerd's own EROFS snapshotter, if it is used. [`settings`] describes the
    /// other settings of such a node.
    pub content_cache: Option<PathBuf>,
}

/// The text of the drop-in file.
#[derive(Clone, PartialEq, Eq)]
pub struct DropIn {
    text: String,
    shown: String,
}

impl std::fmt::Debug for DropIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DropIn").field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl DropIn {
    /// Returns the full text of the drop-in file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the text with possible credentials removed.
    pub fn shown(&self) -> &str {
        &self.shown
    }
}

/// Describes whether containerd loads the drop-in file and uses its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loading {
    /// containerd loads the file, and no other file overrides it.
    Counts,
    /// containerd does not import the file.
    NotImported {
        /// Instructions for the operator, with the line to add.
        remedy: String,
    },
    /// A file that is loaded later overrides it.
    Overridden {
        /// Path of the file that overrides it.
        by: PathBuf,
    },
}

/// The configuration of a node's containerd: the files that it loads, with or without Larder's.
#[derive(Debug)]
pub struct Node {
    version: Version,
    main: PathBuf,
    ours: PathBuf,
    /// The files in the order in which they are loaded, without Larder's.
    files: Vec<(PathBuf, Table)>,
    /// Number of files that are loaded before Larder's. `None` if Larder's is not loaded.
    before: Option<usize>,
}

impl Node {
    /// Reads the configuration at `main` ([`MAIN`]) and its imports. Larder's file is `ours` ([`PATH`]),
    /// which need not exist. Paths are those of the node, below `root` (`/`).
    ///
    /// # Errors
    /// A file cannot be read or parsed, or there are too many.
    pub fn read(root: &Path, main: &Path, ours: &Path, version: Version) -> Result<Self, ConfigError> {
        let (files, before) = imports::read(root, main, ours, version)?;
        if version.major < 2
            && let Some((path, _)) = files.iter().find(|(_, table)| is_of_version_1(table))
        {
            return Err(ConfigError::Old { path: path.clone(), version });
        }
        Ok(Node { version, main: main.to_owned(), ours: ours.to_owned(), files, before })
    }

    /// Returns the text of the drop-in file for `wanted`.
    ///
    /// # Errors
    /// [`ConfigError::TooOld`] before 1.6, and before 2.4 with a layer content cache.
    pub fn drop_in(&self, wanted: &Wanted) -> Result<DropIn, ConfigError> {
        let mut plugins = Table::new();
        let mut all = Table::new();
        all.insert("version".into(), Value::Integer(if self.version.major < 2 { 2 } else { 3 }));
        let note = match wanted.snapshotters.first() {
            Some(default) => {
                self.newer_than(Version { major: 1, minor: 6 }, "proxy snapshotters with layer labels")?;
                self.use_by_default(&mut plugins, default, &wanted.snapshotters)
            }
            None => String::new(),
        };
        if let Some(cache) = &wanted.content_cache {
            self.newer_than(Version { major: 2, minor: 4 }, "caches of EROFS layers")?;
            let mut erofs = Table::new();
            erofs.insert(CACHES.into(), Value::Array(self.content_caches(cache)));
            plugins.insert(EROFS.into(), erofs.into());
        }
        all.insert("plugins".into(), plugins.into());
        let proxies: Table =
            wanted.snapshotters.iter().map(|each| (each.name.clone(), self.proxy(each))).collect();
        if !proxies.is_empty() {
            all.insert("proxy_plugins".into(), proxies.into());
        }
        Ok(write(&note, all))
    }

    fn newer_than(&self, need: Version, what: &'static str) -> Result<(), ConfigError> {
        let have = self.version;
        if have < need { Err(ConfigError::TooOld { what, have, need }) } else { Ok(()) }
    }

    /// Returns the `proxy_plugins` entry of a snapshotter.
    fn proxy(&self, snapshotter: &Snapshotter) -> Value {
        let mut proxy = Table::new();
        proxy.insert("type".into(), "snapshot".into());
        proxy.insert("address".into(), text(&snapshotter.socket));
        if self.version.major >= 2 {
            let mut exports = Table::new();
            exports.insert("root".into(), text(&snapshotter.root));
            proxy.insert("exports".into(), exports.into());
            if snapshotter.remaps_ids {
                // Without this capability, containerd copies a whole image for each container in a user
                // namespace.
                proxy.insert("capabilities".into(), Value::Array(vec!["remap-ids".into()]));
            }
        }
        proxy.into()
    }

    /// Makes `default` the snapshotter of CRI, and on 2.x adds all of them to `ctr images pull`. Returns the
    /// comment for the file.
    fn use_by_default(&self, plugins: &mut Table, default: &Snapshotter, all: &[Snapshotter]) -> String {
        if self.version.major >= 2 {
            let mut cri = Table::new();
            cri.insert("snapshotter".into(), default.name.clone().into());
            plugins.insert(CRI_IMAGES.into(), cri.into());
            let mut transfer = Table::new();
            transfer.insert("unpack_config".into(), Value::Array(self.unpack_config(all)));
            plugins.insert(TRANSFER.into(), transfer.into());
            return String::new();
        }
        let (mut cri, from) = match self.last(&["plugins", CRI]) {
            Some((path, Value::Table(table))) => (table.clone(), Some(path)),
            _ => (Table::new(), None),
        };
        table(&mut cri, "containerd").insert("snapshotter".into(), default.name.clone().into());
        plugins.insert(CRI.into(), cri.into());
        let Some(path) = from else { return String::new() };
        format!(
            "#\n# containerd {} uses the section of a plugin only from the last file that has it. The CRI section is\n\
             # copied from {}: change it there, and attach again.\n",
            self.version,
            path.display()
        )
    }

    /// Returns the layer caches. Lists are not merged, so those of the operator are repeated.
    fn content_caches(&self, ours: &Path) -> Vec<Value> {
        let mut caches = match self.last(&["plugins", EROFS, CACHES]) {
            Some((_, Value::Array(theirs))) => theirs.clone(),
            _ => Vec::new(),
        };
        if !caches.contains(&text(ours)) {
            caches.push(text(ours));
        }
        caches
    }

    /// Checks that containerd loads the drop-in file, and that no other file overrides it.
    pub fn loading(&self) -> Loading {
        let Some(before) = self.before else {
            return Loading::NotImported { remedy: self.remedy() };
        };
        let takes_back = |table: &Table| {
            let has = |path: &[&str]| get(table, path).is_some();
            match self.version.major {
                0 | 1 => has(&["plugins", CRI]),
                // containerd also accepts sections of older versions.
                _ => {
                    has(&["plugins", CRI_IMAGES, "snapshotter"])
                        || has(&["plugins", CRI, "containerd", "snapshotter"])
                        || has(&["plugins", TRANSFER, "unpack_config"])
                        || has(&["plugins", EROFS, CACHES])
                }
            }
        };
        match self.files.iter().skip(before).find(|(_, table)| takes_back(table)) {
            Some((path, _)) => Loading::Overridden { by: path.clone() },
            None => Loading::Counts,
        }
    }

    fn remedy(&self) -> String {
        let main = self.main.display();
        let pattern =
            if self.ours == Path::new(PATH) { PATTERN.into() } else { self.ours.display().to_string() };
        match self.files.first() {
            None => {
                let version = if self.version.major < 2 { 2 } else { 3 };
                format!(
                    "{main} does not exist: create it, with the lines\nversion = {version}\nimports = [{pattern:?}]"
                )
            }
            Some((_, table)) if table.get("imports").and_then(Value::as_array).is_none_or(Vec::is_empty) => {
                format!("add this line to {main}, above its first section:\nimports = [{pattern:?}]")
            }
            Some(_) => format!("add {pattern:?} to the list \"imports\" in {main}"),
        }
    }

    /// Returns the unpack configuration. Lists are not merged, so existing entries are repeated, or else
    /// containerd's default.
    fn unpack_config(&self, snapshotters: &[Snapshotter]) -> Vec<Value> {
        let host = Platform::host().to_string();
        let mut entries = match self.last(&["plugins", TRANSFER, "unpack_config"]) {
            Some((_, Value::Array(theirs))) => theirs.clone(),
            _ => {
                let mut default = vec![self.unpack(&host, "overlayfs")];
                if self.version >= OPTIONAL {
                    // For images with EROFS layers.
                    let mut erofs =
                        self.unpack(&host.replacen("linux/", "linux(+erofs)/", 1), Containerd::EROFS);
                    erofs.insert("differ".into(), Containerd::EROFS.into());
                    default.push(erofs);
                }
                default.into_iter().map(Value::Table).collect()
            }
        };
        for Snapshotter { name, .. } in snapshotters {
            let is_it = |entry: &Value| entry.get("snapshotter").and_then(Value::as_str) == Some(name);
            if !entries.iter().any(is_it) {
                entries.push(self.unpack(&host, name).into());
            }
        }
        entries
    }

    /// Returns an entry of `unpack_config`. If its snapshotter is missing, CRI does not start, unless the
    /// entry is optional.
    fn unpack(&self, platform: &str, snapshotter: &str) -> Table {
        let mut entry = Table::new();
        entry.insert("platform".into(), platform.into());
        entry.insert("snapshotter".into(), snapshotter.into());
        if self.version >= OPTIONAL {
            entry.insert("optional".into(), true.into());
        }
        entry
    }

    /// Returns the last value at `path` in the files before Larder's. If Larder's file is not loaded,
    /// searches all of them.
    fn last(&self, path: &[&str]) -> Option<(&Path, &Value)> {
        let before = self.before.unwrap_or(self.files.len());
        let files = self.files.iter().take(before).rev();
        files.filter_map(|(file, table)| Some((file.as_path(), get(table, path)?))).next()
    }
}

fn is_of_version_1(table: &Table) -> bool {
    // A file without plugins can have any version.
    let names = |key: &str| table.get(key).and_then(Value::as_array).is_some_and(|names| !names.is_empty());
    let version = table.get("version").and_then(Value::as_integer).unwrap_or(1);
    version < 2 && (table.contains_key("plugins") || names("disabled_plugins") || names("required_plugins"))
}

fn get<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    let value = table.get(*first)?;
    if rest.is_empty() { Some(value) } else { get(value.as_table()?, rest) }
}

/// Returns the table `key` in `parent`, and creates it if it is missing.
fn table<'a>(parent: &'a mut Table, key: &str) -> &'a mut Table {
    let value = parent.entry(key).or_insert_with(|| Table::new().into());
    if !value.is_table() {
        *value = Table::new().into();
    }
    match value {
        Value::Table(table) => table,
        _ => unreachable!("the value was made a table above"),
    }
}

fn text(path: &Path) -> Value {
    path.display().to_string().into()
}

fn write(note: &str, mut all: Table) -> DropIn {
    let head = format!("{MARK}{note}");
    let text = format!("{head}{all}");
    hide(&mut all);
    DropIn { text, shown: format!("{head}{all}") }
}

/// Removes possible credentials from the CRI section: those of registries, and request headers.
fn hide(all: &mut Table) {
    let cri = all.get_mut("plugins").and_then(|plugins| plugins.get_mut(CRI));
    if let Some(registry) = cri.and_then(|cri| cri.get_mut("registry")).and_then(Value::as_table_mut) {
        for key in ["configs", "headers"] {
            registry.get_mut(key).into_iter().for_each(blank);
        }
    }
}

fn blank(value: &mut Value) {
    match value {
        Value::String(text) => "(not shown)".clone_into(text),
        Value::Array(values) => values.iter_mut().for_each(blank),
        Value::Table(table) => table.iter_mut().for_each(|(_, value)| blank(value)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
