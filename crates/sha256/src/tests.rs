use proptest::prelude::*;

use super::pair::{self, Compress};
use super::{BLOCK, Sha256, update_both, update_both_by};
use larder_model::digest::Digest;

/// The functions that this processor can run. On one without the SHA extensions, both are the same.
fn paths() -> [(&'static str, Compress); 2] {
    [("fastest", pair::fastest()), ("in turns", pair::in_turns)]
}

/// Returns bytes without a short period.
fn bytes(seed: u32, length: usize) -> Vec<u8> {
    let mut word = seed | 1;
    let next = || {
        word = word.wrapping_mul(0x9e37_79b1).rotate_left(13) ^ seed;
        word.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn published_examples() {
    let long = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    for (message, hex) in [
        (&b"abc"[..], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (long, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"),
    ] {
        let (mut a, mut b) = (Sha256::new(), Sha256::new());
        update_both(&mut a, message, &mut b, message);
        assert_eq!([a.finish().hex(), b.finish().hex()], [hex; 2]);
    }
}

#[test]
fn every_length_and_pair_of_lengths() {
    let (one, two) = (bytes(1, 300), bytes(2, 300));
    let want = |bytes: &[u8]| (0..=300).map(|n| Digest::sha256(&bytes[..n])).collect::<Vec<_>>();
    let (want_one, want_two) = (want(&one), want(&two));
    for (path, compress) in paths() {
        for n in 0..=300 {
            for m in 0..=300 {
                let (mut a, mut b) = (Sha256::new(), Sha256::new());
                update_both_by(compress, &mut a, &one[..n], &mut b, &two[..m]);
                assert!(a.finish() == want_one[n] && b.finish() == want_two[m], "{path}: {n} and {m} bytes");
            }
        }
    }
}

#[test]
fn a_cut_at_every_byte() {
    let (one, two) = (bytes(3, 300), bytes(4, 300));
    let want = [Digest::sha256(&one), Digest::sha256(&two)];
    for (path, compress) in paths() {
        for n in 0..=one.len() {
            for m in 0..=two.len() {
                let (mut a, mut b) = (Sha256::new(), Sha256::new());
                update_both_by(compress, &mut a, &one[..n], &mut b, &two[..m]);
                update_both_by(compress, &mut a, &one[n..], &mut b, &two[m..]);
                assert!([a.finish(), b.finish()] == want, "{path}: cuts at {n} and {m}");
            }
        }
    }
}

#[test]
fn one_stream_alone() {
    let message = bytes(5, 300);
    for length in 0..=message.len() {
        for cut in 0..=length {
            let mut hash = Sha256::new();
            hash.update(&message[..cut]);
            hash.update(&message[cut..length]);
            assert_eq!(hash.finish(), Digest::sha256(&message[..length]), "{length} bytes, cut at {cut}");
        }
    }
}

#[test]
fn the_streams_are_independent() {
    let (mut a, mut b) = (Sha256::new(), Sha256::new());
    update_both(&mut a, &[7; 10 * BLOCK], &mut b, &[7; 10 * BLOCK]);
    let copy = a.clone();
    update_both(&mut a, &[1; BLOCK], &mut b, &[2; BLOCK]);
    assert_eq!(copy.finish(), Digest::sha256(&[7; 10 * BLOCK]));
    assert_eq!(a.finish(), Digest::sha256(&[&[7; 10 * BLOCK][..], &[1; BLOCK]].concat()));
    assert_eq!(b.finish(), Digest::sha256(&[&[7; 10 * BLOCK][..], &[2; BLOCK]].concat()));
}

proptest! {
    #[test]
    fn any_cuts(
        seed in any::<u32>(),
        cuts in prop::collection::vec((0usize..2000, 0usize..2000, 0u8..3), 0..12),
    ) {
        let total = |of: fn(&(usize, usize, u8)) -> usize| cuts.iter().map(of).sum::<usize>();
        let (one, two) = (bytes(seed, total(|cut| cut.0)), bytes(!seed, total(|cut| cut.1)));
        for (_, compress) in paths() {
            let (mut a, mut b) = (Sha256::new(), Sha256::new());
            let (mut rest_a, mut rest_b) = (&one[..], &two[..]);
            for &(n, m, way) in &cuts {
                let (now_a, now_b);
                (now_a, rest_a) = rest_a.split_at(n);
                (now_b, rest_b) = rest_b.split_at(m);
                match way {
                    0 => update_both_by(compress, &mut a, now_a, &mut b, now_b),
                    1 => update_both_by(compress, &mut b, now_b, &mut a, now_a),
                    _ => {
                        a.update(now_a);
                        b.update(now_b);
                    }
                }
            }
            prop_assert_eq!(a.finish(), Digest::sha256(&one));
            prop_assert_eq!(b.finish(), Digest::sha256(&two));
        }
    }
}
