use std::collections::HashMap;
use std::io::{self, Read};

use proptest::prelude::*;

use super::{Assembler, Error, Record, TarSplit, TarSplitReader, rewrite};
use crate::limits::Limits;
use crate::tar::{Kind, Reader};
use larder_testing::layer::{LayerBuilder, SparseForm, gzip};

type Files = HashMap<Vec<u8>, Vec<u8>>;

/// Splits a tar and returns the tar-split with the content of plain files by name.
fn split(tar: &[u8]) -> (Vec<u8>, Files) {
    let mut files = Files::new();
    let mut reader =
        Reader::new(io::BufReader::with_capacity(1000, tar), TarSplit::new(Vec::new()), Limits::default());
    while let Some(member) = reader.next().unwrap() {
        if member.kind != Kind::File {
            continue;
        }
        if member.path.starts_with(b"inline") {
            reader.data_inline().unwrap();
            continue;
        }
        let mut content = Vec::new();
        while let Some(chunk) = reader.data().unwrap() {
            content.extend_from_slice(chunk.bytes);
        }
        reader.end_file(&member.path).unwrap();
        files.insert(member.path, content);
    }
    let (_, record) = reader.finish().unwrap();
    (record.finish().unwrap(), files)
}

fn assemble(split: &[u8], files: &Files) -> io::Result<Vec<u8>> {
    let open = |name: &[u8]| files.get(name).map(|f| &f[..]).ok_or(io::ErrorKind::NotFound.into());
    let mut tar = Vec::new();
    Assembler::new(TarSplitReader::new(split), open).read_to_end(&mut tar)?;
    Ok(tar)
}

fn records(split: &[u8]) -> Result<Vec<Record>, Error> {
    TarSplitReader::new(split).collect()
}

fn sample() -> Vec<u8> {
    SparseForm::ALL
        .iter()
        .fold(LayerBuilder::new(), |layer, form| {
            layer.sparse(*form, format!("sparse/{form:?}"), 1 << 30, &[(5, b"data"), (1 << 20, &[7; 90_000])])
        })
        .dir("d/")
        .file("d/a \"\\\n\u{1}é", "hello")
        .file(b"d/\xff", vec![3; 200_000])
        .file("empty", "")
        .file("inline", vec![4; 100_000])
        .hardlink("h", "empty")
        .tar()
}

#[test]
fn a_tar_is_built_again_bit_for_bit() {
    for tail in [&b""[..], &[0; 9000], b"rubbish after the end"] {
        let tar = [&sample()[..], tail].concat();
        let (split, files) = split(&tar);
        assert!(assemble(&split, &files).unwrap() == tar);
    }
}

#[test]
fn the_format_is_that_of_tar_split() {
    let tar = LayerBuilder::new().file("a", "123456789").tar();
    let (split, _) = split(&tar);
    let mut text = String::new();
    flate2::read::GzDecoder::new(&split[..]).read_to_string(&mut text).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].starts_with("{\"type\":2,\"payload\":\"YQAAAAAA"));
    assert!(lines[0].ends_with("\",\"position\":0}"));
    // CRC-64/GO-ISO of the check string is b90956c775a41001.
    assert_eq!(lines[1], r#"{"type":1,"name":"a","size":9,"payload":"uQlWx3WkEAE=","position":1}"#);
}

#[test]
fn a_segment_ends_with_the_header_of_a_member() {
    let (split, _) = split(&LayerBuilder::new().dir("a").dir("b").file("c", "1").tar());
    let lengths: Vec<usize> = records(&split)
        .unwrap()
        .iter()
        .filter_map(|record| match record {
            Record::Segment(bytes) => Some(bytes.len()),
            Record::File { .. } => None,
        })
        .collect();
    assert_eq!(lengths, [512, 512, 512, 511 + 1024]);
}

#[test]
fn a_file_that_changed_is_found() {
    let (split, files) = split(&sample());
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut files = files.clone();
        change(files.get_mut(&b"d/\xff"[..]).unwrap());
        assemble(&split, &files)
    };
    assert!(with(&|_| {}).is_ok());
    for change in [
        &(|f: &mut Vec<u8>| f[100_000] ^= 1) as &dyn Fn(&mut Vec<u8>),
        &|f| f.push(3),
        &|f| f.truncate(199_999),
        &|f| f.clear(),
    ] {
        assert_eq!(with(change).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

#[test]
fn replaced_files_move_into_the_record() {
    let tar = LayerBuilder::new().file("a", "first").file("b", "b").file("a", "second").tar();
    let (split, mut files) = split(&tar);
    let mut first = Some(&b"first"[..]);
    let take = |name: &[u8]| Ok(if name == b"a" { first.take() } else { None });
    let rewritten = rewrite(TarSplitReader::new(&split[..]), Vec::new(), take).unwrap();
    assert!(assemble(&rewritten, &files).unwrap() == tar);
    let names = records(&rewritten).unwrap();
    assert_eq!(names.iter().filter(|r| matches!(r, Record::File { .. })).count(), 2);
    let wrong = |_: &[u8]| Ok(Some(&b"other"[..]));
    assert!(matches!(rewrite(TarSplitReader::new(&split[..]), Vec::new(), wrong), Err(Error::File { .. })));
    files.clear();
    assert!(assemble(&split, &files).is_err());
}

#[test]
fn hostile_records() {
    let bad = |text: &str| records(&gzip(text.as_bytes())).is_err();
    assert!(!bad("{\"type\":2,\"payload\":\"AAAA\",\"position\":0}\n"));
    assert!(!bad("{\"type\":1,\"name\":\"dir\",\"payload\":null,\"position\":0}\n"), "as Go writes it");
    for text in [
        "{\"type\":2,\"payload\":\"AAAA\",\"position\":1}\n",
        "{\"type\":2,\"payload\":\"AAAA\",\"position\":0}",
        "{\"type\":2,\"payload\":\"A\",\"position\":0}\n",
        "{\"type\":3,\"payload\":\"AAAA\",\"position\":0}\n",
        "{\"type\":1,\"name\":\"a\",\"size\":1,\"payload\":\"AAAA\",\"position\":0}\n",
        "{\"type\":1,\"size\":1,\"payload\":\"uQlWx3WkEAE=\",\"position\":0}\n",
        "{\"type\":1,\"name\":\"a\",\"size\":-1,\"payload\":\"uQlWx3WkEAE=\",\"position\":0}\n",
        "rubbish\n",
        "\n",
    ] {
        assert!(bad(text), "{text}");
    }
    assert!(bad(&format!("{{\"type\":2,\"payload\":\"{}\",\"position\":0}}\n", "A".repeat(super::MAX_LINE))));
    assert!(records(b"not gzip").is_err());
    let cut = gzip(b"{\"type\":2,\"payload\":\"AAAA\",\"position\":0}\n");
    assert!(records(&cut[..cut.len() - 1]).is_err());
}

proptest! {
    #[test]
    fn round_trip(members in prop::collection::vec((prop::collection::vec(1u8.., 1..200), prop::collection::vec(any::<u8>(), 0..2000)), 0..12), tail in prop::collection::vec(any::<u8>(), 0..600)) {
        let layer = members.iter().enumerate().fold(LayerBuilder::new(), |layer, (i, (name, content))| {
            layer.file([format!("{i}").as_bytes(), name].concat(), content)
        });
        let tar = layer.raw([0; 1024]).raw(tail).unfinished();
        let (split, files) = split(&tar);
        prop_assert!(assemble(&split, &files).unwrap() == tar);
    }
    /// Modified lines, and arbitrary bytes: errors or records but no panic, and no more output than allowed.
    #[test]
    fn nothing_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), rubbish in any::<Vec<u8>>()) {
        let mut lines = b"{\"type\":2,\"payload\":\"AAAA\",\"position\":0}\n\
            {\"type\":1,\"name\":\"a\",\"size\":5,\"payload\":\"uQlWx3WkEAE=\",\"position\":1}\n\
            {\"type\":1,\"name_raw\":\"/w==\",\"size\":9,\"payload\":\"uQlWx3WkEAE=\",\"position\":2}\n".to_vec();
        for (at, to) in changes {
            let at = at.index(lines.len());
            lines[at] = to;
        }
        for split in [gzip(&lines), gzip(&rubbish), rubbish] {
            let _ = records(&split);
            let assembler = Assembler::new(TarSplitReader::new(&split[..]), |_: &[u8]| Ok(io::repeat(7)));
            let mut out = Vec::new();
            let _ = assembler.take(1 << 16).read_to_end(&mut out);
            prop_assert!(out.len() <= 1 << 16);
        }
    }
}
