//! Tests of both inflaters, with input and output pieces of all sizes.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use proptest::prelude::*;

use super::super::{Codec, Step};
use super::{Gzip, Inflate, codec, zlib};

/// Returns the inflaters of this build: one or two.
fn both() -> Vec<Box<dyn Codec>> {
    vec![codec(false), codec(true)]
}

/// Inflates `blob` in pieces of `chunk` bytes into buffers of `room` bytes. Also returns whether it can end
/// there.
fn run(codec: &mut dyn Codec, blob: &[u8], chunk: usize, room: usize) -> Result<(Vec<u8>, bool), String> {
    let (mut content, mut buffer) = (Vec::new(), vec![0; room]);
    // As in the decoder, unread input is passed again with more input appended.
    let (mut start, mut end) = (0, 0);
    loop {
        let Step { read, written } = codec.step(&blob[start..end], &mut buffer)?;
        content.extend_from_slice(&buffer[..written]);
        start += read;
        if read == 0 && written == 0 {
            assert_eq!(start, end, "no progress, but input is left");
            if end == blob.len() {
                return Ok((content, codec.may_end()));
            }
            end = blob.len().min(end + chunk);
        }
    }
}

fn deflate(content: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn trailer(content: &[u8]) -> Vec<u8> {
    let crc = crc_fast::crc32_iso_hdlc(content);
    [crc.to_le_bytes(), u32::try_from(content.len()).unwrap().to_le_bytes()].concat()
}

/// Returns a header with the optional fields in `flags`.
fn header(flags: u8) -> Vec<u8> {
    let mut header = vec![0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 255];
    for (flag, field) in [(4, &b"\x05\0extra"[..]), (8, b"a name\0"), (16, b"a comment\0")] {
        if flags & flag != 0 {
            header.extend_from_slice(field);
        }
    }
    if flags & 2 != 0 {
        let crc = crc_fast::crc32_iso_hdlc(&header).to_le_bytes();
        header.extend_from_slice(&crc[..2]);
    }
    header
}

fn member(flags: u8, content: &[u8], level: u32) -> Vec<u8> {
    [header(flags), deflate(content, level), trailer(content)].concat()
}

/// Returns repeated words at random distances, up to the whole window.
fn content(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as usize >> 8
    };
    let mut content = vec![0; 0];
    while content.len() < len {
        let back = random() % 32_768 + 1;
        if random() % 4 > 0 && back <= content.len() {
            let from = content.len() - back;
            let word: Vec<u8> = content[from..].iter().copied().take(random() % 258 + 3).collect();
            content.extend_from_slice(&word);
        } else {
            content.extend((0..random() % 24).map(|_| random().to_le_bytes()[0]));
        }
    }
    content.truncate(len);
    content
}

#[test]
fn every_block_in_every_piece() {
    let content = content(200_000);
    for level in [0, 1, 6, 9] {
        let blob = member(0, &content, level);
        for (chunk, room) in
            [(1, 1 << 18), (7, 100), (100, 7), (4093, 1), (65_536, 65_536), (1 << 20, 32_768)]
        {
            for mut codec in both() {
                let (got, whole) = run(&mut *codec, &blob, chunk, room).unwrap();
                assert!(got == content && whole, "level {level}, chunks of {chunk} into {room}");
            }
        }
    }
}

#[test]
fn every_header_cut_at_every_byte() {
    let content = b"a few bytes of content, a few bytes of content";
    for flags in 0..32u8 {
        let blob =
            [member(flags, content, 6), member(31 - flags, b"", 6), member(flags, content, 0)].concat();
        let first = member(flags, content, 6).len();
        let second = first + member(31 - flags, b"", 6).len();
        for cut in 0..=blob.len() {
            for mut codec in both() {
                let (got, whole) = run(&mut *codec, &blob[..cut], 1, 16).unwrap();
                assert_eq!(whole, [first, second, blob.len()].contains(&cut), "{flags:#x} cut at {cut}");
                assert!([content, &content[..]].concat().starts_with(&got));
                // Resume at the cut.
                for mut codec in both() {
                    let (head, _) = run(&mut *codec, &blob[..cut], cut.max(1), 64).unwrap();
                    let (tail, whole) = run(&mut *codec, &blob[cut..], blob.len(), 64).unwrap();
                    assert!(whole, "{flags:#x} resumed at {cut}");
                    assert_eq!([head, tail].concat(), [content, &content[..]].concat());
                }
            }
        }
    }
}

#[test]
fn both_report_the_same_errors() {
    let content = b"content";
    let with = |at: usize, byte: u8| {
        let mut blob = member(2, content, 6);
        let at = if at < 100 { at } else { blob.len() + 100 - at };
        blob[at] ^= byte;
        blob
    };
    // The table gives the offset of the changed byte; from 100 on, the distance from the end plus 100.
    for (blob, reason) in [
        (with(2, 1), "compression method 9"),
        (with(3, 0x20), "reserved flags"),
        (with(4, 1), "CRC of a member's header"),
        (with(11, 1), "CRC of a member's header"),
        (with(108, 1), "CRC of a member's content"),
        (with(105, 0x80), "CRC of a member's content"),
        (with(104, 1), "its length as 6 bytes"),
        (with(101, 1), "its length as 16777223 bytes"),
        ([member(0, content, 6), b"\x1f\x8c".to_vec()].concat(), "magic"),
        ([member(0, content, 6), b"garbage".to_vec()].concat(), "something other than a member"),
        ([member(0, content, 6), b"\0\0\0garbage".to_vec()].concat(), "something other than zeros"),
        // A block of the reserved type; a stored block whose lengths disagree; a distance before the first
        // byte.
        ([header(0), vec![0x07]].concat(), ""),
        ([header(0), vec![0x01, 1, 0, 0, 0, 9]].concat(), ""),
        ([header(0), vec![0x63, 0x80, 0x01, 0x00], trailer(b"")].concat(), ""),
    ] {
        for chunk in [1, 3, 100] {
            for mut codec in both() {
                let error = run(&mut *codec, &blob, chunk, 64).unwrap_err();
                assert!(error.contains(reason), "{error}: {reason}");
            }
        }
    }
}

#[test]
fn padding_and_empty_members() {
    let mut blob = b"".repeat(0);
    for _ in 0..300 {
        blob.extend(member(0, b"", 6));
    }
    blob.extend(member(31, b"x", 6));
    for padding in [0, 1, 511, 512] {
        let blob = [blob.clone(), vec![0; padding]].concat();
        for chunk in [1, 19, 65_536] {
            for mut codec in both() {
                assert_eq!(run(&mut *codec, &blob, chunk, 64).unwrap(), (b"x".to_vec(), true));
            }
        }
    }
}

/// An empty stream whose trailer length has wrapped around 4 GiB.
#[test]
fn lengths_count_modulo_4_gib() {
    fn check(inflate: impl Inflate) {
        let mut gzip = Gzip::new(inflate);
        gzip.length = u32::MAX - 2;
        let blob =
            [header(0), deflate(b"12345", 6), trailer(b"12345")[..4].to_vec(), vec![2, 0, 0, 0]].concat();
        assert_eq!(run(&mut gzip, &blob, 4, 3).unwrap(), (b"12345".to_vec(), true));
    }
    check(zlib::Zlib::new());
    #[cfg(all(feature = "isal", target_arch = "x86_64"))]
    check(larder_isal::Isal::new());
}

proptest! {
    #[test]
    fn damage_is_reported_or_harmless(at in any::<prop::sample::Index>(), bits in 1u8.., level in 0u32..10, flags in 0u8..32, chunk in 1usize..5000, room in 1usize..5000) {
        let content = content(20_000);
        let mut blob = member(flags, &content, level);
        let at = at.index(blob.len());
        blob[at] ^= bits;
        for mut codec in both() {
            if let Ok((got, true)) = run(&mut *codec, &blob, chunk, room) {
                prop_assert!(got == content);
            }
        }
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..2000), chunk in 1usize..500, room in 1usize..40_000) {
        let blob = [header(0), bytes].concat();
        let mut ends = both().into_iter().map(|mut codec| run(&mut *codec, &blob, chunk, room));
        if let (Some(Ok(one)), Some(Ok(other))) = (ends.next(), ends.next()) {
            prop_assert_eq!(one, other);
        }
    }
}
