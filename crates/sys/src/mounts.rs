//! Other users of a directory: mounts in every readable mount namespace (proc_pid_mountinfo(5)), and loop
//! devices attached to a file in it (sysfs).
//!
//! A process can read the namespaces of processes that have no more capabilities than itself (ptrace(2),
//! access mode checks). Mounts of the host propagate into the namespace of this process.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

use super::loop_device::{self, Backing};

/// A snapshot of the mounts and the backing files of loop devices.
#[derive(Clone, Debug, Default)]
pub struct Mounts {
    /// Mounts by namespace, starting with the one of this thread. They are in kernel order: a mount on top
    /// comes last.
    namespaces: Vec<Vec<Mount>>,
    backing: Vec<Backing>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    /// Device number `major:minor` of the file system.
    device: Vec<u8>,
    /// Mounted directory, as a path in the file system.
    root: PathBuf,
    /// Mount point, as a path in its namespace.
    point: PathBuf,
    /// Options of the file system.
    options: Vec<u8>,
}

impl Mount {
    /// Reports whether this is an overlay with a lower layer at `path` or below it.
    fn has_layer_in(&self, path: &Path) -> bool {
        lower(&self.options).any(|dir| Path::new(OsStr::from_bytes(dir)).starts_with(path))
    }

    /// Reports whether this is an overlay with the upper directory at `path` or below it.
    fn is_written_to(&self, path: &Path) -> bool {
        let options = self.options.split(|b| *b == b',');
        let mut upper = options.filter_map(|option| option.strip_prefix(b"upperdir="));
        upper.any(|dir| Path::new(OsStr::from_bytes(dir)).starts_with(path))
    }
}

/// One way in which a directory is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// A mount is on the directory, or on a directory in it.
    Covered(PathBuf),
    /// The directory, or part of it, is mounted elsewhere.
    Mounted(PathBuf),
    /// The directory, or part of it, is a layer of an overlay.
    Layered(PathBuf),
    /// A loop device is attached to a file in the directory.
    Attached(String),
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Use::Covered(at) => write!(f, "something is mounted on {}", at.display()),
            Use::Mounted(at) => write!(f, "it is mounted at {}", at.display()),
            Use::Layered(at) => write!(f, "it is a layer of the overlay at {}", at.display()),
            Use::Attached(device) => write!(f, "{device} is attached to a file in it"),
        }
    }
}

impl Mounts {
    /// Reads the mounts and loop devices of this machine.
    ///
    /// # Errors
    /// Those of reading /proc and /sys.
    pub fn read() -> io::Result<Self> {
        let mut namespaces = vec![parse(&fs::read("/proc/thread-self/mountinfo")?)];
        let mut seen: HashSet<OsString> = HashSet::new();
        seen.extend(fs::read_link("/proc/thread-self/ns/mnt").map(PathBuf::into_os_string));
        for entry in fs::read_dir("/proc")? {
            let process = entry?.path();
            // Skip processes that have ended in the meantime or cannot be inspected.
            let Ok(namespace) = fs::read_link(process.join("ns/mnt")) else { continue };
            if seen.insert(namespace.into_os_string())
                && let Ok(bytes) = fs::read(process.join("mountinfo"))
            {
                namespaces.push(parse(&bytes));
            }
        }
        Ok(Mounts { namespaces, backing: loop_device::backing()? })
    }

    /// Returns the first way in which the directory at `path` is used; `None` if no user is visible. `path`
    /// must be absolute and free of symbolic links.
    pub fn use_of(&self, path: &Path) -> Option<Use> {
        self.uses_of(path).next()
    }

    /// Returns all ways in which the directory at `path` is used, as [`Mounts::use_of`] does.
    pub fn uses_of(&self, path: &Path) -> impl Iterator<Item = Use> {
        let attached = self.backing.iter().filter(move |backing| backing.file.starts_with(path));
        let attached = attached.map(|backing| Use::Attached(backing.device.display().to_string()));
        let own = self.namespaces.iter().take(1).flatten();
        let holder = own.rev().find(|mount| path.starts_with(&mount.point));
        let held = holder.and_then(|holder| {
            Some((&holder.device, holder.root.join(path.strip_prefix(&holder.point).ok()?)))
        });
        let mounted = held.into_iter().flat_map(move |(device, inside)| {
            self.namespaces.iter().flatten().filter_map(move |mount| {
                let point = || mount.point.clone();
                if mount.point.starts_with(path) {
                    Some(Use::Covered(point()))
                } else if mount.device == *device && mount.root.starts_with(&inside) {
                    Some(Use::Mounted(point()))
                } else if mount.has_layer_in(path) {
                    Some(Use::Layered(point()))
                } else {
                    None
                }
            })
        });
        attached.chain(mounted)
    }

    /// Returns the mount point of an overlay with a layer at `path` or below it.
    pub fn overlay_on(&self, path: &Path) -> Option<&Path> {
        let found = self.namespaces.iter().flatten().find(|mount| mount.has_layer_in(path));
        found.map(|mount| mount.point.as_path())
    }

    /// Returns the mount point of an overlay with the upper directory at `path` or below it.
    pub fn overlay_over(&self, path: &Path) -> Option<&Path> {
        let found = self.namespaces.iter().flatten().find(|mount| mount.is_written_to(path));
        found.map(|mount| mount.point.as_path())
    }

    /// Returns the mount points of this thread's namespace below the directory `path`, without `path` itself.
    pub fn points_in(&self, path: &Path) -> Vec<&Path> {
        let own = self.namespaces.first().into_iter().flatten().map(|mount| mount.point.as_path());
        own.filter(|point| point.starts_with(path) && *point != path).collect()
    }
}

/// Returns the copies of the mount at the absolute `path` in the mount namespace of this thread: mounts below
/// `tasks` in the root file system of a container.
///
/// A container that mounts `tasks`, where its runtime prepared it, has copies of the mounts that existed
/// before. The runtime mounts one directory after the other, each with all mounts in it (Linux,
/// filesystems/sharedsubtree.rst, MS_REC).
///
/// # Errors
/// Those of reading `/proc/thread-self/mountinfo`.
pub fn copies_below(tasks: &Path, path: &Path) -> io::Result<Vec<PathBuf>> {
    let copy = Path::new("rootfs").join(path.strip_prefix("/").unwrap_or(path));
    let own = parse(&fs::read("/proc/thread-self/mountinfo")?);
    let points = own.into_iter().map(|mount| mount.point);
    Ok(points.filter(|point| point.starts_with(tasks) && point.ends_with(&copy)).collect())
}

/// Parses lines such as `36 35 98:0 /root /point rw,noatime shared:1 - ext3 /dev/root rw,errors=continue`.
/// Lines of another form are skipped.
fn parse(bytes: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|b| *b == b' ');
        let (device, root, point) = (fields.nth(2)?, fields.next()?, fields.next()?);
        let mut after = fields.skip_while(|field| *field != b"-");
        let options = after.nth(3)?;
        Some(Mount {
            device: device.to_vec(),
            root: path(&unescaped(root)),
            point: path(&unescaped(point)),
            options: unescaped(options),
        })
    };
    bytes.split(|b| *b == b'\n').filter_map(line).collect()
}

/// Returns the lower directories from the options of an overlay.
fn lower(options: &[u8]) -> impl Iterator<Item = &[u8]> {
    let values = options.split(|b| *b == b',').filter_map(|option| {
        option.strip_prefix(b"lowerdir=").or_else(|| option.strip_prefix(b"lowerdir+="))
    });
    values.flat_map(|value| value.split(|b| *b == b':'))
}

/// Decodes the three-digit octal escapes of space, tab, newline and backslash.
pub(super) fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if *first == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

fn path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 8:2 /@state /var/lib/larder rw - btrfs /dev/sda2 rw
23 21 0:40 / /proc rw shared:2 - proc proc rw
";

    fn mounts(more: &str) -> Mounts {
        Mounts {
            namespaces: vec![parse(HOST.as_bytes()), parse(more.as_bytes())],
            backing: vec![Backing {
                device: "/dev/loop3".into(),
                file: "/var/lib/larder/v/9.1/disk.img".into(),
            }],
        }
    }

    #[test]
    fn every_use_is_seen() {
        let at = |path: &str| PathBuf::from(path);
        for (line, used) in [
            ("", None),
            (
                "30 1 7:0 / /var/lib/larder/v/1.1 ro - ext4 /dev/loop0 ro",
                Some(Use::Covered(at("/var/lib/larder/v/1.1"))),
            ),
            ("30 1 8:2 /@state/v/1.1 /icv ro - btrfs /dev/sda2 rw", Some(Use::Mounted(at("/icv")))),
            (
                "30 1 8:2 /@state/v/1.1/overlay /a\\040b ro - btrfs /dev/sda2 rw",
                Some(Use::Mounted(at("/a b"))),
            ),
            ("30 1 8:2 /@state/v/1.10 /icv ro - btrfs /dev/sda2 rw", None),
            ("30 1 8:1 /@state/v/1.1 /icv ro - ext4 /dev/sda1 rw", None),
            (
                "30 1 0:50 / /merged rw - overlay overlay rw,lowerdir=/x:/var/lib/larder/v/1.1/overlay/a/diff,upperdir=/u",
                Some(Use::Layered(at("/merged"))),
            ),
            ("30 1 0:50 / /merged rw - overlay overlay rw,lowerdir=/x,upperdir=/var/lib/larder/v/1.10", None),
            ("torn", None),
        ] {
            assert_eq!(mounts(line).use_of(Path::new("/var/lib/larder/v/1.1")), used, "{line}");
        }
        let attached = mounts("").use_of(Path::new("/var/lib/larder/v/9.1"));
        assert_eq!(attached, Some(Use::Attached("/dev/loop3".into())));
    }

    #[test]
    fn overlay_upper_directories() {
        let container = "30 1 0:50 / /merged rw - overlay overlay rw,lowerdir=3:2,upperdir=/s/snapshots/4/fs,workdir=/s/w";
        let of = |path: &str| mounts(container).overlay_over(Path::new(path)).map(Path::to_owned);
        assert_eq!(of("/s"), Some("/merged".into()));
        assert_eq!((of("/s/l"), of("/s/snapshots/40")), (None, None));
    }

    #[test]
    fn octal_escapes() {
        assert_eq!(unescaped(br"a\040b\134\011\x\04"), b"a b\\\t\\x\\04");
    }

    #[test]
    fn this_machine_can_be_read() {
        let mounts = Mounts::read().unwrap();
        assert!(matches!(mounts.use_of(Path::new("/proc")), Some(Use::Covered(_))));
    }
}
