//! Location of this process's control groups: /proc/self/mountinfo (proc(5)) and /proc/self/cgroup
//! (cgroups(7)).

use std::path::{Path, PathBuf};

/// A directory in which groups can be created, and its controllers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Directory of the group of this process.
    pub(super) dir: PathBuf,
    /// `true` if this process sees nothing above it in the tree (the root of a cgroup namespace).
    pub(super) root: bool,
    /// Names of controllers; empty for version 2, where the file `cgroup.controllers` lists them.
    pub(super) controllers: Vec<String>,
}

/// Returns the group of this process in the version 2 tree.
pub(super) fn unified(mountinfo: &str, own: &str) -> Option<Place> {
    let mount = mounts(mountinfo).find(|mount| mount.kind == "cgroup2")?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(Place { dir: mount.locate(path), root: path == "/", controllers: Vec::new() })
}

/// Returns the groups of this process in the version 1 trees.
pub(super) fn separate(mountinfo: &str, own: &str) -> Vec<Place> {
    let place = |mount: Mount<'_>| {
        let has = |name: &&str| mount.options.split(',').any(|option| option == *name);
        let (controllers, path) = own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let first = controllers.split(',').next().filter(|first| !first.is_empty())?;
            has(&first).then_some((controllers, path))
        })?;
        let controllers = controllers.split(',').map(str::to_owned).collect();
        Some(Place { dir: mount.locate(path), root: path == "/", controllers })
    };
    mounts(mountinfo).filter(|mount| mount.kind == "cgroup").filter_map(place).collect()
}

struct Mount<'a> {
    root: String,
    point: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl Mount<'_> {
    /// Returns the directory of the group `path`. A container can have only its own part mounted, under a
    /// path of the host.
    fn locate(&self, path: &str) -> PathBuf {
        let below = Path::new(path).strip_prefix(&self.root).unwrap_or(Path::new(""));
        let dir = self.point.join(below);
        let plain = !below.components().any(|part| part == std::path::Component::ParentDir);
        if plain && dir.is_dir() { dir } else { self.point.clone() }
    }
}

fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (of_mount, of_super) = line.split_once(" - ")?;
        let mut fields = of_mount.split(' ').skip(3);
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        let mut fields = of_super.split(' ');
        let (kind, options) = (fields.next()?, fields.nth(1)?);
        Some(Mount { root, point: point.into(), kind, options })
    })
}

/// Decodes space, tab, newline and backslash, which are written as three octal digits (proc(5)).
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_both_versions() {
        let mountinfo = "\
            30 23 0:26 / /none/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            31 23 0:27 / /none/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n\
            32 23 0:28 / /none/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            33 23 0:29 / /none/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let own = "12:cpu,cpuacct:/a\n4:memory:/a/b\n1:name=systemd:/a\n0::/a\n";
        let found = separate(mountinfo, own);
        let controllers: Vec<&[String]> = found.iter().map(|place| &place.controllers[..]).collect();
        // A missing directory is replaced by the mount point.
        assert_eq!(found[1].dir, Path::new("/none/cgroup/memory"));
        assert_eq!(controllers[..2], [&["cpu".to_owned(), "cpuacct".to_owned()][..], &["memory".to_owned()]]);
        let place = unified(mountinfo, own).unwrap();
        assert_eq!((place.dir.as_path(), place.root), (Path::new("/none/cgroup/unified"), false));
        assert_eq!(unified("", own), None);
    }

    #[test]
    fn a_group_is_found_below_what_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("with space");
        std::fs::create_dir_all(point.join("larder.service")).unwrap();
        let shown = point.display().to_string().replace(' ', "\\040");
        let mountinfo = |root: &str| format!("1 1 0:1 {root} {shown} rw - cgroup2 none rw\n");
        let found = |root: &str, path: &str| unified(&mountinfo(root), &format!("0::{path}\n")).unwrap().dir;
        assert_eq!(found("/", "/larder.service"), point.join("larder.service"));
        assert_eq!(found("/docker/x", "/docker/x/larder.service"), point.join("larder.service"));
        assert_eq!(found("/docker/x", "/docker/x"), point.join(""));
        assert_eq!(found("/", "/../larder.service"), point);
        assert_eq!(found("/", "/gone"), point);
    }
}
