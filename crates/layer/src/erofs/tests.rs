//! Tests that need no kernel: stability of the bytes, space accounting, limits.

use std::fs::{self, File};
use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

use super::super::metadata::Metadata;
use super::super::space::{NoAccounting, Space};
use super::super::tar::Region;
use super::{Error, InodeId, Label, Options, Special, Summary, Writer};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::shortage::Shortage;
use larder_sys::{Dir, Timestamp};

fn start<'a>(dir: &TempDir, space: &'a dyn Space, options: Options) -> Writer<'a> {
    let image = File::create(dir.path().join("image")).unwrap();
    Writer::new(image, &Dir::open(dir.path()).unwrap(), space, options).unwrap()
}

fn writer(dir: &TempDir) -> Writer<'static> {
    start(dir, &NoAccounting, Options::default())
}

fn plain() -> Metadata {
    Metadata { mode: 0o644, ..Metadata::implied() }
}

fn with_xattrs(xattrs: &[(&str, &[u8])]) -> Metadata {
    let xattrs = xattrs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect();
    Metadata { xattrs, ..plain() }
}

fn file(
    writer: &mut Writer<'_>,
    parent: InodeId,
    name: &str,
    metadata: &Metadata,
    content: &[u8],
) -> InodeId {
    let mut body = writer.file(parent, name.as_bytes(), metadata).unwrap();
    body.write(content).unwrap();
    body.end().unwrap()
}

/// Writes at least one instance of each feature of the format.
fn everything(writer: &mut Writer<'_>) {
    let root = InodeId::ROOT;
    let late = Metadata { uid: 70_000, mtime: Timestamp { sec: 1_700_000_000, nsec: 5 }, ..plain() };
    writer.describe(root, &Metadata { mode: 0o1777, ..with_xattrs(&[("user.root", b"yes")]) }).unwrap();
    let wide = writer.directory(root, b"wide", &with_xattrs(&[("trusted.overlay.opaque", b"y")])).unwrap();
    let deep = writer.directory(root, b"-deep", &with_xattrs(&[("trusted.overlay.opaque", b"y")])).unwrap();
    for n in 0..600 {
        file(writer, wide, &format!("{n:0width$}", width = n % 40 + 3), &late, &vec![b'x'; n * 11]);
    }
    let bin =
        file(writer, deep, "bin", &with_xattrs(&[("security.capability", b"rather short")]), &[7; 9000]);
    writer.link(root, b"!bin", bin).unwrap();
    file(writer, deep, "attributes", &with_xattrs(&[("user.a", &[1; 3000]), ("user.b", b"")]), b"content");
    file(writer, deep, "empty", &plain(), b"");
    file(writer, deep, "gone", &plain(), &[9; 5000]);
    writer.remove(deep, b"gone").unwrap();
    writer.symlink(deep, b"link", &late, b"../wide").unwrap();
    writer.symlink(deep, b"long", &late, &[b'l'; 4000]).unwrap();
    writer.special(deep, b"null", &plain(), Special::CharDevice(1, 3)).unwrap();
    writer.special(deep, b"whiteout", &plain(), Special::CharDevice(0, 0)).unwrap();
    writer.special(deep, b"disk", &plain(), Special::BlockDevice(4095, 1_048_575)).unwrap();
    writer.special(deep, b"fifo", &plain(), Special::Fifo).unwrap();
    writer.special(deep, b"socket", &plain(), Special::Socket).unwrap();
    let map = [Region { offset: 5000, length: 10 }, Region { offset: 1 << 30, length: 5000 }];
    let mut holes = writer.sparse(deep, b"holes", &late, 1 << 33, &map).unwrap();
    holes.write_at(5000, &[1; 10]).unwrap();
    holes.write_at(1 << 30, &[2; 5000]).unwrap();
    holes.end().unwrap();
}

#[test]
fn bytes_never_change() {
    let images = [(); 2].map(|()| {
        let dir = tempfile::tempdir().unwrap();
        let options =
            Options { uuid: [0x5a; 16], label: Label::new("golden").unwrap(), ..Options::default() };
        let mut writer = start(&dir, &NoAccounting, options);
        everything(&mut writer);
        let summary = writer.finish().unwrap();
        let image = fs::read(dir.path().join("image")).unwrap();
        assert_eq!(image.len() as u64, summary.size);
        (summary, Digest::sha256(&image).to_string())
    });
    assert_eq!(images[0], images[1]);
    let (summary, digest) = &images[0];
    // Volumes are named and verified by these bytes. A change here changes every existing image.
    assert_eq!(*summary, Summary { size: 2_924_544, verity: None, inodes: 614, metadata: 1_306_624 });
    assert_eq!(digest, "sha256:a378501774641e4449e043301114d9cbc1b2ed9a41a7766d2e742c6840a0393c");
}

/// A space account with a cap.
#[derive(Debug)]
struct Account {
    cap: u64,
    used: AtomicU64,
    peak: AtomicU64,
}

impl Account {
    fn new(cap: u64) -> Self {
        Account { cap, used: AtomicU64::new(0), peak: AtomicU64::new(0) }
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

impl Space for Account {
    fn reserve(&self, bytes: u64) -> Result<(), Shortage> {
        let (need, have) = (bytes, self.cap - self.used());
        if need > have {
            return Err(Shortage::bytes(need, have, self.cap));
        }
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(used, Ordering::Relaxed);
        Ok(())
    }

    fn release(&self, bytes: u64) {
        assert!(self.used.fetch_sub(bytes, Ordering::Relaxed) >= bytes);
    }
}

#[test]
fn the_account_matches_the_image_size() {
    let dir = tempfile::tempdir().unwrap();
    let account = Account::new(u64::MAX);
    let mut writer = start(&dir, &account, Options::default());
    everything(&mut writer);
    let summary = writer.finish().unwrap();
    assert_eq!(account.used(), summary.size);
}

#[test]
fn tail_space_is_released_while_reading() {
    let dir = tempfile::tempdir().unwrap();
    let account = Account::new(u64::MAX);
    let mut writer = start(&dir, &account, Options::default());
    let directory = writer.directory(InodeId::ROOT, b"d", &plain()).unwrap();
    for n in 0..40_000 {
        file(&mut writer, directory, &n.to_string(), &plain(), &[b't'; 2900]);
    }
    let tails = account.used();
    assert!(tails > 110 << 20);
    let summary = writer.finish().unwrap();
    assert_eq!(account.used(), summary.size);
    let peak = account.peak.load(Ordering::Relaxed);
    assert!(peak < summary.size + (10 << 20), "{peak} for an image of {}", summary.size);
}

#[test]
fn the_cap_is_never_passed() {
    let dir = tempfile::tempdir().unwrap();
    for cap in [0, 4096, 1 << 20, 2 << 20, 3 << 20, 4 << 20] {
        let account = Account::new(cap);
        let run = || -> Result<Summary, Error> {
            let image = File::create(dir.path().join("image")).unwrap();
            let mut writer =
                Writer::new(image, &Dir::open(dir.path()).unwrap(), &account, Options::default())?;
            for n in 0..2000 {
                let mut body = writer.file(InodeId::ROOT, n.to_string().as_bytes(), &plain())?;
                body.write(&[b't'; 2900])?;
                body.end()?;
            }
            writer.finish()
        };
        let error = run().unwrap_err();
        assert_eq!(error.class(), Class::NoSpace, "{error}");
        assert!(error.to_string().contains("it needs"), "{error}");
    }
}

#[test]
fn invalid_entries_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(&dir);
    let root = InodeId::ROOT;
    let known = file(&mut writer, root, "known", &plain(), b"");
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'n'; 256]] {
        assert!(matches!(writer.directory(root, name, &plain()), Err(Error::Name)), "{name:?}");
    }
    assert!(matches!(writer.directory(root, b"known", &plain()), Err(Error::Exists)));
    assert!(matches!(writer.link(root, b"known", known), Err(Error::Exists)));
    assert!(matches!(writer.link(root, b"root", root), Err(Error::LinkToDirectory)));
    assert!(matches!(writer.file(known, b"below", &plain()).map(|_| ()), Err(Error::Parent)));
    for target in [&b""[..], b"a\0b", &[b't'; 4096]] {
        assert!(matches!(writer.symlink(root, b"link", &plain(), target), Err(Error::LinkText)));
    }
    for special in [Special::CharDevice(4096, 0), Special::BlockDevice(0, 1 << 20)] {
        assert!(matches!(writer.special(root, b"device", &plain(), special), Err(Error::Device { .. })));
    }
    // A directory that was removed accepts no entries.
    let gone = writer.directory(root, b"gone", &plain()).unwrap();
    let below = writer.directory(gone, b"below", &plain()).unwrap();
    writer.remove(root, b"gone").unwrap();
    for directory in [gone, below] {
        assert!(matches!(writer.directory(directory, b"more", &plain()), Err(Error::Parent)));
    }
}

#[test]
fn invalid_attributes_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(&dir);
    let mut error =
        |xattrs: &[(&str, &[u8])]| writer.directory(InodeId::ROOT, b"d", &with_xattrs(xattrs)).unwrap_err();
    for name in ["user.", "trusted.", "com.apple.quarantine", "system.nfs4_acl", "user.a\0b", ""] {
        assert!(matches!(error(&[(name, b"")]), Error::XattrName { .. }), "{name}");
    }
    let long = format!("user.{}", "n".repeat(251));
    assert!(matches!(error(&[(&long, b"")]), Error::XattrTooLong { .. }));
    assert!(matches!(error(&[("user.a", &[0; 65536])]), Error::XattrTooLong { .. }));
    assert!(matches!(error(&[("user.a", b""), ("user.a", b"1")]), Error::XattrTwice { .. }));
    let names: Vec<String> = (0..256).map(|n| format!("user.{n}")).collect();
    let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    assert!(matches!(error(&many), Error::TooManyXattrs { count: 256 }));
}

#[test]
fn content_outside_the_map_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = writer(&dir);
    let map = [Region { offset: 1 << 20, length: 4096 }];
    // Between the regions of the map, where nothing is stored.
    for (offset, length) in [(0, 1), ((1 << 20) - 1, 1), (3 << 19, 1), (1 << 20, 1 << 19), (1 << 30, 1)] {
        let mut body = writer.sparse(InodeId::ROOT, b"holes", &plain(), 1 << 30, &map).unwrap();
        let bytes = vec![1; length];
        assert!(matches!(body.write_at(offset, &bytes), Err(Error::Content)), "{offset} {length}");
    }
    // A file that was started but not ended does not exist.
    assert_eq!(writer.lookup(InodeId::ROOT, b"holes"), None);
    let mut body = writer.file(InodeId::ROOT, b"back", &plain()).unwrap();
    body.write_at(10, b"1").unwrap();
    assert!(matches!(body.write_at(10, b"1"), Err(Error::Content)));
}

#[test]
fn memory_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = start(&dir, &NoAccounting, Options { max_memory: 100_000, ..Options::default() });
    let made = (0..).map_while(|n: u32| {
        // Names that are removed are no longer counted, but inodes are.
        let name = n.to_string().into_bytes();
        let made = writer.special(InodeId::ROOT, &name, &plain(), Special::Fifo);
        match made {
            Ok(_) => Some(n),
            Err(error) => {
                assert!(matches!(error, Error::Memory { limit: 100_000 }), "{error}");
                None
            }
        }
    });
    let made = made.count();
    assert!((500..700).contains(&made), "{made}");
    let values = (0..10_000u32).map(|n| with_xattrs(&[("user.a", &n.to_le_bytes())]));
    let dir = tempfile::tempdir().unwrap();
    let mut writer = start(&dir, &NoAccounting, Options { max_memory: 100_000, ..Options::default() });
    let described = values.map(|metadata| writer.describe(InodeId::ROOT, &metadata)).find_map(Result::err);
    assert!(matches!(described, Some(Error::Memory { .. })));
}

#[test]
fn labels() {
    assert!(Label::new("fifteen bytes..").is_ok());
    assert!(matches!(Label::new("sixteen bytes..."), Err(Error::Label)));
    assert!(matches!(Label::new("a\0"), Err(Error::Label)));
}
