//! The SHA extensions of x86-64 (Intel SDM, volume 2, SHA256RNDS2), for two streams in turns.

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x,
    _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32,
};

use super::in_turns;
use crate::{Block, State};

/// Number of streams.
const STREAMS: usize = 2;

/// Selects the high half of a vector for [`_mm_shuffle_epi32`].
const HIGH: i32 = 0b00_00_11_10;

/// Round constants (FIPS 180-4, 4.2.2), four to a row.
const K: [[u32; 4]; 16] = [
    [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
    [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
    [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
    [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
    [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
    [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
    [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
    [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
    [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
    [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
    [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
    [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
    [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
    [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
    [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
    [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
];

/// Reports whether this processor has the instructions of [`interleave`].
pub(super) fn is_supported() -> bool {
    is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1")
}

/// Advances two states together. Falls back to one after the other on a processor without the instructions.
pub(super) fn compress(a: &mut State, blocks_a: &[Block], b: &mut State, blocks_b: &[Block]) {
    if !is_supported() {
        return in_turns(a, blocks_a, b, blocks_b);
    }
    #[expect(unsafe_code, reason = "a function with target features")]
    // SAFETY: the only requirement is that the processor has the three features, which was just checked.
    unsafe {
        interleave([a, b], [blocks_a, blocks_b]);
    }
}

/// The state of one stream in the order that the instructions use.
#[derive(Clone, Copy)]
struct Words {
    abef: __m128i,
    cdgh: __m128i,
}

/// The last sixteen words of a message's schedule.
type Schedule = [__m128i; 4];

#[target_feature(enable = "sha,ssse3,sse4.1")]
fn interleave(states: [&mut State; STREAMS], blocks: [&[Block]; STREAMS]) {
    let [state_a, state_b] = states;
    let (mut a, mut b) = (load(state_a), load(state_b));
    for (block_a, block_b) in blocks[0].iter().zip(blocks[1]) {
        let (before_a, before_b) = (a, b);
        let (mut schedule_a, mut schedule_b) = (message(block_a), message(block_b));
        rounds(0, &mut a, schedule_a[0], &mut b, schedule_b[0]);
        rounds(1, &mut a, schedule_a[1], &mut b, schedule_b[1]);
        rounds(2, &mut a, schedule_a[2], &mut b, schedule_b[2]);
        rounds(3, &mut a, schedule_a[3], &mut b, schedule_b[3]);
        sixteen_rounds(4, &mut a, &mut schedule_a, &mut b, &mut schedule_b);
        sixteen_rounds(8, &mut a, &mut schedule_a, &mut b, &mut schedule_b);
        sixteen_rounds(12, &mut a, &mut schedule_a, &mut b, &mut schedule_b);
        a = add(a, before_a);
        b = add(b, before_b);
    }
    *state_a = store(a);
    *state_b = store(b);
}

/// Extends both schedules by sixteen words and takes as many rounds of each stream, from row `row` of [`K`].
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn sixteen_rounds(row: usize, a: &mut Words, last_a: &mut Schedule, b: &mut Words, last_b: &mut Schedule) {
    for four in 0..4 {
        last_a[four] = extend(last_a, four);
        last_b[four] = extend(last_b, four);
        rounds(row + four, a, last_a[four], b, last_b[four]);
    }
}

/// Takes four rounds of each stream, with row `row` of [`K`] and the words of the schedule that belong to it.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn rounds(row: usize, a: &mut Words, words_a: __m128i, b: &mut Words, words_b: __m128i) {
    let [k0, k1, k2, k3] = K[row];
    let constants = _mm_set_epi32(k3.cast_signed(), k2.cast_signed(), k1.cast_signed(), k0.cast_signed());
    let (low_a, low_b) = (_mm_add_epi32(words_a, constants), _mm_add_epi32(words_b, constants));
    a.cdgh = _mm_sha256rnds2_epu32(a.cdgh, a.abef, low_a);
    b.cdgh = _mm_sha256rnds2_epu32(b.cdgh, b.abef, low_b);
    let (high_a, high_b) = (_mm_shuffle_epi32(low_a, HIGH), _mm_shuffle_epi32(low_b, HIGH));
    a.abef = _mm_sha256rnds2_epu32(a.abef, a.cdgh, high_a);
    b.abef = _mm_sha256rnds2_epu32(b.abef, b.cdgh, high_b);
}

/// Returns the next four words of the schedule. The oldest of the last sixteen are at `oldest`.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn extend(last: &Schedule, oldest: usize) -> __m128i {
    let (w0, w1) = (last[oldest], last[(oldest + 1) % 4]);
    let (w2, w3) = (last[(oldest + 2) % 4], last[(oldest + 3) % 4]);
    let sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));
    _mm_sha256msg2_epu32(sum, w3)
}

/// Returns the sixteen big-endian words of a block.
#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn message(block: &Block) -> Schedule {
    let (rows, _) = block.as_chunks::<16>();
    [row(rows[0]), row(rows[1]), row(rows[2]), row(rows[3])]
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn row(bytes: [u8; 16]) -> __m128i {
    let (halves, _) = bytes.as_chunks::<8>();
    let words = _mm_set_epi64x(i64::from_le_bytes(halves[1]), i64::from_le_bytes(halves[0]));
    _mm_shuffle_epi8(words, _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203))
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn add(one: Words, two: Words) -> Words {
    Words { abef: _mm_add_epi32(one.abef, two.abef), cdgh: _mm_add_epi32(one.cdgh, two.cdgh) }
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn load(state: &State) -> Words {
    let [a, b, c, d, e, f, g, h] = state.map(u32::cast_signed);
    Words { abef: _mm_set_epi32(a, b, e, f), cdgh: _mm_set_epi32(c, d, g, h) }
}

#[inline]
#[target_feature(enable = "sha,ssse3,sse4.1")]
fn store(words: Words) -> State {
    let Words { abef, cdgh } = words;
    [
        _mm_extract_epi32(abef, 3),
        _mm_extract_epi32(abef, 2),
        _mm_extract_epi32(cdgh, 3),
        _mm_extract_epi32(cdgh, 2),
        _mm_extract_epi32(abef, 1),
        _mm_extract_epi32(abef, 0),
        _mm_extract_epi32(cdgh, 1),
        _mm_extract_epi32(cdgh, 0),
    ]
    .map(i32::cast_unsigned)
}
