use std::io::{self, Read};
use std::mem;
use std::sync::mpsc;

use bytes::Bytes;
use proptest::prelude::*;

use super::{ChunkSource, Decoded, Decoder, Error, Location, inflate_only};
use crate::cores::Cores;
use crate::limits::Ratio;
use larder_model::digest::{Algorithm, Digest, Hasher};
use larder_model::seal::Compression;
use larder_testing::layer::{gzip, zstd_frame};

/// A blob in chunks of a fixed size.
struct Chunks(Vec<u8>, usize);

impl ChunkSource for Chunks {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let rest = self.0.split_off(self.1.min(self.0.len()));
        let chunk = std::mem::replace(&mut self.0, rest);
        Ok((!chunk.is_empty()).then(|| chunk.into()))
    }
}

fn decode(blob: &[u8], chunk: usize) -> Result<(Vec<u8>, Decoded), Error> {
    decode_within(blob, chunk, Ratio::default())
}

/// Decodes with both inflaters, which must agree on the content and on errors.
fn decode_within(blob: &[u8], chunk: usize, ratio: Ratio) -> Result<(Vec<u8>, Decoded), Error> {
    let new = || Decoder::new(Chunks(blob.to_vec(), chunk), Algorithm::Sha512, ratio);
    let (fastest, portable) = (read(new()), read(new().portable()));
    match (&fastest, &portable) {
        (Ok(fastest), Ok(portable)) => assert!(fastest == portable, "{:?} {:?}", fastest.1, portable.1),
        (Err(fastest), Err(portable)) => {
            assert_eq!(mem::discriminant(fastest), mem::discriminant(portable), "{fastest} {portable}");
        }
        _ => panic!("{:?} {:?}", fastest.map(|(_, d)| d), portable.map(|(_, d)| d)),
    }
    fastest
}

fn read(mut decoder: Decoder<'static>) -> Result<(Vec<u8>, Decoded), Error> {
    let mut tar = Vec::new();
    if let Err(error) = decoder.read_to_end(&mut tar) {
        return Err(error.downcast::<Error>().unwrap());
    }
    Ok((tar, decoder.finish()?))
}

/// Returns content that compresses, but not to almost nothing.
fn content() -> Vec<u8> {
    (0..600_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect()
}

fn skippable(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap();
    [&0x184d_2a50u32.to_le_bytes()[..], &length.to_le_bytes(), bytes].concat()
}

#[test]
fn every_form_gives_the_same_tar() {
    let tar = content();
    let (head, tail) = tar.split_at(tar.len() / 3);
    for (blob, compression) in [
        (tar.clone(), Compression::None),
        (gzip(&tar), Compression::Gzip),
        ([gzip(head), gzip(b""), gzip(tail)].concat(), Compression::Gzip),
        ([gzip(&tar), vec![0; 700]].concat(), Compression::Gzip),
        (zstd_frame(&tar), Compression::Zstd),
        (
            [skippable(b"x"), zstd_frame(head), skippable(b""), zstd_frame(tail), skippable(&[7; 99])]
                .concat(),
            Compression::Zstd,
        ),
    ] {
        for chunk in [1 << 20, 16 << 10, 4093] {
            let (got, decoded) = decode(&blob, chunk).unwrap();
            assert!(got == tar, "{compression:?} in chunks of {chunk}");
            assert_eq!(decoded.compression, compression);
            assert_eq!(decoded.diff_id, Digest::sha256(&tar));
            assert_eq!(decoded.blob.algorithm(), Algorithm::Sha512);
            assert_eq!((decoded.blob_size, decoded.size), (blob.len() as u64, tar.len() as u64));
            let both = Decoder::new(Chunks(blob.clone(), chunk), Algorithm::Sha256, Ratio::default());
            let want = Decoded { blob: Digest::sha256(&blob), ..decoded };
            assert_eq!(both.finish().unwrap(), want);
        }
    }
}

#[test]
fn finish_reads_what_the_caller_has_not() {
    let tar = content();
    let blob = gzip(&tar);
    for (blob, algorithm) in [(&blob, Algorithm::Sha256), (&tar, Algorithm::Sha256)] {
        let mut decoder = Decoder::new(Chunks(blob.clone(), 9999), algorithm, Ratio::default());
        decoder.read_exact(&mut [0; 10]).unwrap();
        let decoded = decoder.finish().unwrap();
        assert_eq!((decoded.diff_id, decoded.blob), (Digest::sha256(&tar), Digest::sha256(blob)));
    }
}

#[test]
fn a_truncated_blob_is_not_the_end() {
    let tar = &content()[..3000];
    for blob in [gzip(tar), zstd_frame(tar)] {
        for cut in 4..blob.len() {
            match decode(&blob[..cut], 512) {
                Err(Error::Truncated { .. }) => {}
                other => panic!("cut at {cut} of {}: {other:?}", blob.len()),
            }
        }
    }
}

#[test]
fn damage_and_garbage_are_corrupt() {
    let tar = &content()[..3000];
    let mut bad_crc = gzip(tar);
    let at = bad_crc.len() - 6;
    bad_crc[at] ^= 1;
    let mut bad_checksum = zstd_frame(tar);
    let at = bad_checksum.len() - 1;
    bad_checksum[at] ^= 1;
    for blob in [
        bad_crc,
        bad_checksum,
        [gzip(tar), b"x".to_vec()].concat(),
        [gzip(tar), vec![0, 0, 1]].concat(),
        [zstd_frame(tar), b"trailing".to_vec()].concat(),
    ] {
        assert!(matches!(decode(&blob, 100), Err(Error::Corrupt { .. })));
    }
}

#[test]
fn the_digest_of_a_blob_covers_what_cannot_be_decoded() {
    let tar = content();
    let bad = [gzip(&tar), b"not a member".to_vec(), vec![3; 3 << 20]].concat();
    for chunk in [1 << 20, 16 << 10, 4093] {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let mut decoder = Decoder::new(Chunks(bad.clone(), chunk), algorithm, Ratio::default());
            assert!(io::copy(&mut decoder, &mut io::sink()).is_err());
            assert_eq!(decoder.blob().unwrap(), (Hasher::digest_of(algorithm, &bad), bad.len() as u64));
        }
    }
}

#[test]
fn a_bomb_is_stopped() {
    let ratio = Ratio { floor: 1 << 20, max: 100 };
    let blob = zstd_frame(&vec![0; 8 << 20]);
    assert!(matches!(decode_within(&blob, 4096, ratio), Err(Error::Bomb { .. })));
    assert!(decode(&blob, 4096).is_ok());
}

/// Returns enough tar bytes for other cores to be used.
fn large() -> Vec<u8> {
    (0..4_000_000u32).flat_map(|i| (i / 7).to_le_bytes()).collect()
}

#[test]
fn hashing_and_inflating_move_to_idle_cores() {
    let tar = large();
    for blob in [gzip(&tar), zstd_frame(&tar), tar.clone()] {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let decoder = |chunk| Decoder::new(Chunks(blob.clone(), chunk), algorithm, Ratio::default());
            let decoded = decoder(1 << 20).finish().unwrap();
            assert_eq!(decoded.blob, Hasher::digest_of(algorithm, &blob));
            assert_eq!(decoded.diff_id, Digest::sha256(&tar));
            for ahead in [false, true] {
                let cores = Cores::new(1);
                let with_cores = |chunk| {
                    let decoder = decoder(chunk).with_cores(cores.clone());
                    if ahead { decoder.ahead() } else { decoder }
                };
                let mut moved = with_cores(60_000);
                let mut got = Vec::new();
                moved.read_to_end(&mut got).unwrap();
                assert!(got == tar);
                let is_compressed = blob != tar;
                match &moved.location {
                    Location::CallerThread(inflater) => {
                        assert!(!ahead || !is_compressed);
                        assert!(inflater.hashing.is_on_own_thread());
                    }
                    Location::OwnThread(_) => assert!(ahead && is_compressed),
                    Location::Moving => panic!("it is on no thread"),
                }
                assert_eq!(moved.finish().unwrap(), decoded);

                // If every core has a layer, nothing moves.
                let _busy = cores.occupy();
                let mut stays = with_cores(60_000);
                io::copy(&mut stays, &mut io::sink()).unwrap();
                assert!(
                    matches!(&stays.location, Location::CallerThread(inflater) if !inflater.hashing.is_on_own_thread())
                );
                assert_eq!(stays.finish().unwrap(), decoded);
            }
        }
    }
}

#[test]
fn errors_are_reported_from_another_core() {
    let tar = large();
    let whole = gzip(&tar);
    let mut damaged = whole.clone();
    let at = whole.len() - 5;
    damaged[at] ^= 1;
    for blob in [&whole[..whole.len() - 1], &whole[..whole.len() / 2 * 2 - 2000], &damaged] {
        let decoder = || Decoder::new(Chunks(blob.to_vec(), 10_000), Algorithm::Sha256, Ratio::default());
        let here = read(decoder()).unwrap_err().to_string();
        let ahead = read(decoder().with_cores(Cores::new(1)).ahead()).unwrap_err().to_string();
        assert_eq!(here, ahead);
    }
}

#[test]
fn inflate_only_checks_the_blob() {
    let tar = content();
    let (blob, ratio) = (gzip(&tar), Ratio::default());
    assert_eq!(inflate_only(Chunks(blob.clone(), 1000), ratio).unwrap(), tar.len() as u64);
    let cut = blob[..blob.len() - 1].to_vec();
    assert!(matches!(inflate_only(Chunks(cut, 1000), ratio), Err(Error::Truncated { .. })));
}

/// A source that reports when it is dropped.
struct Watched {
    chunks: Chunks,
    _dropped: mpsc::Sender<()>,
}

impl ChunkSource for Watched {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        self.chunks.next()
    }
}

#[test]
fn dropping_the_decoder_ends_its_thread() {
    let (sender, dropped) = mpsc::channel();
    let source = Watched { chunks: Chunks(gzip(&large()), 1000), _dropped: sender };
    let mut decoder =
        Decoder::new(source, Algorithm::Sha256, Ratio::default()).with_cores(Cores::new(1)).ahead();
    decoder.read_exact(&mut vec![0; 9 << 20]).unwrap();
    assert!(matches!(decoder.location, Location::OwnThread(_)));
    assert_eq!(dropped.try_recv(), Err(mpsc::TryRecvError::Empty));
    drop(decoder);
    assert_eq!(dropped.recv(), Err(mpsc::RecvError));
}

#[test]
fn an_empty_blob_is_an_empty_tar() {
    let (tar, decoded) = decode(b"", 1).unwrap();
    assert_eq!((tar.len(), decoded.diff_id), (0, Digest::sha256(b"")));
}

proptest! {
    #[test]
    fn any_cuts_into_chunks_and_members(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6), chunk in 1usize..40) {
        let tar = parts.concat();
        let blob: Vec<u8> = parts.iter().flat_map(|part| gzip(part)).collect();
        prop_assert_eq!(&decode(&blob, chunk).unwrap().0, &tar);
        let blob: Vec<u8> = parts.iter().flat_map(|part| zstd_frame(part)).collect();
        prop_assert_eq!(&decode(&blob, chunk).unwrap().0, &tar);
    }
}
