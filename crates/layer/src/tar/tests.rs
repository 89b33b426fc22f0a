use std::io;

use proptest::prelude::*;

use super::{BLOCK, Error, Fault, Kind, Member, Reader, Region, Timestamp};
use crate::limits::Limits;
use larder_testing::layer::{LayerBuilder, SparseForm, fix_checksum, pax_record};

/// Reads all members with their content, holes as zeros.
fn read_within(tar: &[u8], limits: Limits) -> Result<Vec<(Member, Vec<u8>)>, Error> {
    let mut reader = Reader::new(io::BufReader::with_capacity(700, tar), (), limits);
    let mut all = Vec::new();
    while let Some(member) = reader.next()? {
        let mut content = vec![0; usize::try_from(member.size).unwrap()];
        while let Some(chunk) = reader.data()? {
            let at = usize::try_from(chunk.offset).unwrap();
            content[at..at + chunk.bytes.len()].copy_from_slice(chunk.bytes);
        }
        if member.kind == Kind::File {
            reader.end_file(&member.path)?;
        }
        all.push((member, content));
    }
    let (mut rest, ()) = reader.finish()?;
    assert_eq!(io::copy(&mut rest, &mut io::sink()).unwrap(), 0);
    Ok(all)
}

fn read(tar: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, Error> {
    read_within(tar, Limits::default())
}

fn one(layer: LayerBuilder) -> (Member, Vec<u8>) {
    let mut all = read(&layer.tar()).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn fault(tar: &[u8]) -> Fault {
    match read(tar) {
        Err(Error::Member { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_kind() {
    let tar = LayerBuilder::new()
        .owner(7, 8)
        .mtime(99)
        .mode(0o6755)
        .file("a", "hello")
        .dir("d/")
        .symlink("s", "a")
        .hardlink("h", "a")
        .char_device("c", 5, 1)
        .block_device("b", 8, 300)
        .fifo("p")
        .odd("7", b'7', b"data", |_| {})
        .odd("old/", 0, b"", |_| {})
        .odd("old", 0, b"x", |_| {})
        .tar();
    let all = read(&tar).unwrap();
    let kinds: Vec<_> = all.iter().map(|(member, _)| member.kind.clone()).collect();
    assert_eq!(
        kinds,
        [
            Kind::File,
            Kind::Directory,
            Kind::Symlink { target: b"a".into() },
            Kind::HardLink { target: b"a".into() },
            Kind::CharDevice { major: 5, minor: 1 },
            Kind::BlockDevice { major: 8, minor: 300 },
            Kind::Fifo,
            Kind::File,
            Kind::Directory,
            Kind::File,
        ]
    );
    let (first, content) = &all[0];
    assert_eq!((first.mode, first.uid, first.gid), (0o6755, 7, 8));
    assert_eq!(first.mtime, Timestamp { sec: 99, nsec: 0 });
    assert_eq!(content, b"hello");
    assert_eq!(all[9].0.index, 9);
}

#[test]
fn names_from_every_field() {
    let long = "n".repeat(3000);
    let target = "t".repeat(2000);
    let path = |layer: LayerBuilder| one(layer).0.path;
    assert_eq!(path(LayerBuilder::new().file(&long, "")), long.as_bytes());
    assert_eq!(path(LayerBuilder::new().gnu_long(b'L', &long).file("x", "")), long.as_bytes());
    assert_eq!(path(LayerBuilder::new().pax("path", "a\nb=c").file("x", "")), b"a\nb=c");
    assert_eq!(path(LayerBuilder::new().pax("path", "1").pax("path", "2").file("x", "")), b"2");
    assert_eq!(path(LayerBuilder::new().file(b"\xff\xfe", "")), b"\xff\xfe");
    let prefix = |header: &mut [u8; BLOCK]| header[345..348].copy_from_slice(b"pre");
    assert_eq!(path(LayerBuilder::new().odd("x", b'0', b"", prefix)), b"pre/x");
    let gnu = |header: &mut [u8; BLOCK]| header[257..265].copy_from_slice(b"ustar  \0");
    let buggy = |header: &mut [u8; BLOCK]| {
        prefix(header);
        gnu(header);
    };
    assert_eq!(path(LayerBuilder::new().odd("x", b'0', b"", buggy)), b"pre/x");
    let times = |header: &mut [u8; BLOCK]| {
        header[345..356].copy_from_slice(b"00000000001");
        gnu(header);
    };
    assert_eq!(path(LayerBuilder::new().odd("x", b'0', b"", times)), b"x");
    for layer in [
        LayerBuilder::new().symlink("s", &target),
        LayerBuilder::new().gnu_long(b'K', &target).symlink("s", "x"),
    ] {
        assert_eq!(one(layer).0.kind, Kind::Symlink { target: target.clone().into() });
    }
}

#[test]
fn numbers_from_every_field() {
    let layer = LayerBuilder::new()
        .pax("uid", "4000000000")
        .pax("gid", "70000")
        .pax("mtime", "-1.25")
        .pax("hdrcharset", "BINARY")
        .file("x", "");
    let member = one(layer).0;
    assert_eq!((member.uid, member.gid), (4_000_000_000, 70000));
    assert_eq!(member.mtime, Timestamp { sec: -2, nsec: 750_000_000 });
    let member = one(LayerBuilder::new().owner(1 << 31, 3 << 30).file("x", "")).0;
    assert_eq!((member.uid, member.gid), (1 << 31, 3 << 30));
    let negative = |header: &mut [u8; BLOCK]| header[136..148].fill(0xff);
    assert_eq!(one(LayerBuilder::new().odd("x", b'0', b"", negative)).0.mtime.sec, -1);
}

#[test]
fn the_pax_size_is_the_size_of_the_file_alone() {
    let zero = |header: &mut [u8; BLOCK]| header[124..135].fill(b'0');
    let layer = LayerBuilder::new().pax("size", "5").odd("x", b'0', b"hello", zero);
    assert_eq!(one(layer).1, b"hello");
    // A link has no data, regardless of either size.
    let layer = LayerBuilder::new().pax("size", "5").hardlink("h", "x").dir("d");
    assert_eq!(read(&layer.tar()).unwrap().len(), 2);
    let sized = |header: &mut [u8; BLOCK]| header[124..135].copy_from_slice(b"00000001000");
    let layer = LayerBuilder::new().odd("d", b'5', b"", sized).file("f", "1");
    assert_eq!(read(&layer.tar()).unwrap().len(), 2);
}

#[test]
fn xattrs_of_both_dialects() {
    let layer = LayerBuilder::new()
        .xattr("user.b", "raw\nx=\0")
        .xattr("user.empty", "")
        .pax("LIBARCHIVE.xattr.user.%62", "AAAA")
        .pax("LIBARCHIVE.xattr.user.%C3%A9", "aGk")
        .pax("SCHILY.acl.access", "user::rwx")
        .dir("d");
    let want: Vec<(Vec<u8>, Vec<u8>)> = vec![
        (b"user.b".into(), b"raw\nx=\0".into()),
        (b"user.empty".into(), b"".into()),
        ("user.é".into(), b"hi".into()),
    ];
    assert_eq!(one(layer).0.xattrs, want);
}

#[test]
fn sparse_files_of_every_form() {
    let small: &[(u64, &[u8])] = &[(0, b"start"), (1000, b"middle"), (5000, b"")];
    let many: Vec<(u64, &[u8])> = (0..60).map(|i| (i * 100, &b"data"[..])).collect();
    for form in SparseForm::ALL {
        for content in [small, &many, &[]] {
            // Versions 0.0 and 0.1 cannot express a file that is one hole.
            if content.is_empty() && matches!(form, SparseForm::Pax00 | SparseForm::Pax01) {
                continue;
            }
            let layer = LayerBuilder::new().sparse(form, "dir/sparse", 7000, content).file("next", "n");
            let all = read(&layer.tar()).unwrap_or_else(|error| panic!("{form:?}: {error}"));
            let (member, got) = &all[0];
            let mut want = vec![0; 7000];
            for (offset, bytes) in content {
                let at = usize::try_from(*offset).unwrap();
                want[at..at + bytes.len()].copy_from_slice(bytes);
            }
            assert!(*got == want, "{form:?}");
            assert_eq!((member.size, &member.path[..]), (7000, &b"dir/sparse"[..]), "{form:?}");
            let Kind::Sparse { map } = &member.kind else { panic!("{form:?}") };
            let offsets: Vec<u64> = map.iter().map(|region: &Region| region.offset).collect();
            assert_eq!(offsets, content.iter().map(|(offset, _)| *offset).collect::<Vec<_>>());
            assert_eq!(all[1].1, b"n");
        }
    }
}

#[test]
fn ends_that_go_accepts() {
    let tar = LayerBuilder::new().file("a", "1").file("b", "2").unfinished();
    let zeros = |n: usize| [&tar[..], &vec![0; n]].concat();
    for end in [zeros(0), zeros(512), zeros(1024), zeros(10240), tar[..tar.len() - 100].to_vec()] {
        assert_eq!(read(&end).unwrap().len(), 2);
    }
    assert_eq!(read(&[zeros(1024), b"rubbish".to_vec()].concat()).unwrap().len(), 2);
    assert_eq!(read(b"").unwrap().len(), 0);
}

#[test]
fn ends_that_no_reader_accepts() {
    let tar = LayerBuilder::new().file("a", vec![1; 600]).unfinished();
    assert_eq!(fault(&tar[..600]), Fault::Truncated("the data of a member"));
    assert_eq!(fault(&tar[..511]), Fault::Truncated("a header"));
    let lone = [&[0; 512][..], &tar].concat();
    assert_eq!(fault(&lone), Fault::LoneZeroBlock);
    let orphan = LayerBuilder::new().gnu_long(b'L', "x").tar();
    assert!(matches!(fault(&orphan), Fault::Orphan(_)));
}

#[test]
fn hostile_headers() {
    let odd = |change: fn(&mut [u8; BLOCK])| LayerBuilder::new().odd("x", b'0', b"", change).tar();
    let pax = |key: &str, value: &str| LayerBuilder::new().pax(key, value).file("x", "").tar();
    let body = |body: &[u8]| LayerBuilder::new().odd("p", b'x', body, |_| {}).file("x", "").tar();
    let field = |tar: Vec<u8>| matches!(fault(&tar), Fault::Field(_));
    let range = |tar: Vec<u8>| matches!(fault(&tar), Fault::Range { .. });
    let malformed = |tar: Vec<u8>| matches!(fault(&tar), Fault::Pax(_));
    let nul = |tar: Vec<u8>| matches!(fault(&tar), Fault::Nul(_));
    let sparse = |tar: Vec<u8>| matches!(fault(&tar), Fault::Sparse(_));
    let limit = |tar: Vec<u8>| matches!(fault(&tar), Fault::Limit { .. });

    assert!(field(odd(|h| h[100..107].copy_from_slice(b"00+0644"))), "octal with a sign");
    assert!(field(odd(|h| h[108..115].copy_from_slice(b"0000009"))), "not octal");
    assert!(field(odd(|h| h[329..332].copy_from_slice(b"abc"))), "garbage in devmajor");
    assert!(
        field(odd(|h| h[124..136].copy_from_slice(b"\x80\0\0\x01\0\0\0\0\0\0\0\x04"))),
        "size of 2^64 + 4"
    );
    assert!(range(odd(|h| h[124..136].fill(0xff))), "size of -1");
    assert!(range(odd(|h| h[108..116].fill(0xff))), "uid -1");
    assert!(range(odd(|h| h[116..124].copy_from_slice(b"\x80\0\0\x01\0\0\0\0"))), "gid 2^32");
    assert!(range(odd(|h| h[116..124].copy_from_slice(b"\x80\0\0\0\xff\xff\xff\xff"))), "gid 2^32 - 1");
    assert!(range(pax("uid", "4294967296")), "uid 2^32");
    assert!(range(pax("uid", "-1")), "uid -1 by pax");
    assert!(range(pax("size", "-1")), "size -1 by pax");

    assert!(malformed(pax("uid", "+1")));
    assert!(malformed(pax("size", "12x")));
    assert!(malformed(pax("mtime", "1e5")));
    assert!(malformed(pax("", "x")), "empty key");
    assert!(malformed(pax("LIBARCHIVE.xattr.a%", "")));
    assert!(malformed(pax("LIBARCHIVE.xattr.a", "?")));
    assert!(malformed(pax("SCHILY.xattr.", "x")));
    for bad in [
        &b"5 k=v\n"[..],
        b"7 k=v\n",
        b"x k=v\n",
        b"6 k=vx",
        b"6 kkv\n",
        b"99999999999999999999 k=v\n",
        b"-6 k=v\n",
        b"0 k=v\n",
        b"6k=v\n",
        b"6 k=v\n\0",
    ] {
        assert!(malformed(body(bad)), "{}", bad.escape_ascii());
    }
    assert!(nul(pax("path", "a\0b")));
    assert!(nul(pax("linkpath", "a\0b")));
    assert!(nul(pax("LIBARCHIVE.xattr.a%00", "")));

    for flag in *b"MVDNAZ\xff" {
        let tar = LayerBuilder::new().odd("x", flag, b"", |_| {}).tar();
        assert!(matches!(fault(&tar), Fault::Type(_)), "{flag}");
    }
    let between = LayerBuilder::new()
        .gnu_long(b'L', "name")
        .odd("g", b'g', &pax_record(b"comment", b"x"), |_| {})
        .file("x", "");
    assert!(matches!(fault(&between.tar()), Fault::Orphan(_)), "a global header in between");

    assert!(sparse(LayerBuilder::new().odd("x", b'S', b"", |_| {}).tar()), "'S' in a ustar header");
    assert!(sparse(pax("GNU.sparse.major", "2")), "unknown version");
    assert!(sparse(LayerBuilder::new().pax("GNU.sparse.map", "0,1").dir("d").tar()), "sparse directory");
    assert!(sparse(pax("GNU.sparse.offset", "0")), "offset without length");
    assert!(
        sparse(LayerBuilder::new().sparse(SparseForm::Pax01, "x", 4, &[(0, b"12345")]).tar()),
        "beyond the end"
    );
    assert!(
        sparse(LayerBuilder::new().sparse(SparseForm::OldGnu, "x", 99, &[(9, b"1"), (0, b"1")]).tar()),
        "order"
    );
    let miscounted =
        LayerBuilder::new().pax("GNU.sparse.numblocks", "2").pax("GNU.sparse.map", "0,1").file("x", "1");
    assert!(sparse(miscounted.tar()));

    assert!(
        limit(odd(|h| {
            h[156] = b'x';
            h[124..135].copy_from_slice(b"00010000000");
        })),
        "an extended header of 2 MiB"
    );
    assert!(limit(odd(|h| h[124..136].copy_from_slice(b"\x80\0\0\0\x7f\0\0\0\0\0\0\0"))), "a huge file");
    assert!(limit(LayerBuilder::new().file("x".repeat(70_000), "").tar()), "a path of 70,000 bytes");
    let chain = (0..20).fold(LayerBuilder::new(), |layer, _| layer.gnu_long(b'L', "n"));
    assert!(limit(chain.file("x", "").tar()), "an endless chain");
    assert!(limit(LayerBuilder::new().sparse(SparseForm::Pax10, "x", 1 << 50, &[]).tar()), "a huge hole");
}

#[test]
fn either_checksum_is_accepted_and_no_other() {
    let tar = LayerBuilder::new().file(b"\xff\xff", "").tar();
    let mut header = [0; BLOCK];
    header.copy_from_slice(&tar[..BLOCK]);
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    let field: u32 = header[148..156].iter().map(|b| u32::from(*b)).sum();
    let signed = sum - field + 8 * 32 - 2 * 256;
    let mut other = tar.clone();
    other[148..155].copy_from_slice(format!("{signed:07o}").as_bytes());
    assert_eq!(read(&other).unwrap().len(), 1);
    other[148..155].copy_from_slice(format!("{:07o}", signed + 1).as_bytes());
    assert_eq!(fault(&other), Fault::Checksum);
}

#[test]
fn limits_on_counts() {
    let limits = Limits { max_entries: 2, max_logical_bytes: 10, ..Limits::default() };
    let files = |sizes: &[usize]| {
        let layer = sizes.iter().fold(LayerBuilder::new(), |layer, size| layer.file("x", vec![1; *size]));
        read_within(&layer.tar(), limits).is_ok()
    };
    assert!(files(&[5, 5]));
    assert!(!files(&[5, 6]));
    assert!(!files(&[0, 0, 0]));
}

#[test]
fn data_cannot_get_lost() {
    let tar = LayerBuilder::new().file("a", "hello").file("b", "").tar();
    let reader = || {
        let mut reader = Reader::new(&tar[..], (), Limits::default());
        reader.next().unwrap();
        reader
    };
    let mut read_but_open = reader();
    read_but_open.data().unwrap();
    assert!(read_but_open.next().is_err());
    let mut half_read = reader();
    assert!(half_read.end_file(b"a").is_err());
    let mut inline_late = reader();
    inline_late.data().unwrap();
    assert!(inline_late.data_inline().is_err());
    let mut skipped = reader();
    assert_eq!(skipped.next().unwrap().unwrap().path, b"b");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Mutated tars with corrected checksums: no panic, and memory stays within the limits.
    #[test]
    fn nothing_panics(form in 0usize..4, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12), cut in any::<prop::sample::Index>()) {
        let mut tar = LayerBuilder::new()
            .pax("mtime", "1.5").xattr("user.a", "b").file("file", "content")
            .gnu_long(b'L', "name").symlink("s", "t")
            .sparse(SparseForm::ALL[form], "sparse", 9000, &[(0, b"a"), (10, b"b"), (20, b"c"), (30, b"d"), (40, b"e"), (8000, b"f")])
            .dir("d/").char_device("c", 1, 3)
            .tar();
        for (at, to) in changes {
            let at = at.index(tar.len());
            tar[at] = to;
        }
        for block in tar.chunks_exact_mut(BLOCK) {
            let block: &mut [u8; BLOCK] = block.try_into().unwrap();
            if block[148..156].iter().any(|b| *b != 0) {
                fix_checksum(block);
            }
        }
        let limits = Limits { max_logical_bytes: 1 << 20, ..Limits::default() };
        let _ = read_within(&tar, limits);
        let _ = read_within(&tar[..cut.index(tar.len())], limits);
    }
    /// Any body of an extended header, and one record with any key and value.
    #[test]
    fn any_pax_body_is_read_or_refused(body in any::<Vec<u8>>(), key in "(path|size|uid|mtime|GNU\\.sparse\\.(map|major|minor|name|numblocks)|SCHILY\\.xattr\\..{0,4}|[^=\n]{1,9})", value in "[0-9.,-]{0,24}|.{0,24}") {
        for body in [body, pax_record(key.as_bytes(), value.as_bytes())] {
            let tar = LayerBuilder::new().odd("x", b'x', &body, |_| {}).file("file", "content").tar();
            let _ = read_within(&tar, Limits { max_logical_bytes: 1 << 20, ..Limits::default() });
        }
    }
}
