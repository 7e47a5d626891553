// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random changes of valid files.

use proptest::{collection::vec, prelude::*, sample::Index};

/// A change of bytes. Positions are fractions of the length.
#[derive(Debug, Clone)]
pub enum Mutation {
    Set(Index, u8),
    Flip(Index, u8),
    /// Writes a little-endian number of so many bytes.
    Number(Index, u64, usize),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// Copies a range to another place.
    Copy(Index, usize, Index),
    Truncate(Index),
}

/// Numbers at which arithmetic goes wrong.
pub fn number() -> impl Strategy<Value = u64> {
    let edges = [0, 1, 8, 127, 128, 255, 256, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 32];
    let edges = edges.into_iter().chain([i64::MAX as u64, 1 << 63, u64::MAX - 1, u64::MAX]);
    prop_oneof![proptest::sample::select(edges.collect::<Vec<_>>()), any::<u64>()]
}

/// Up to eight changes.
pub fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let mutation = prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        2 => (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        4 => (any::<Index>(), number(), 1..9_usize).prop_map(|(at, n, size)| Mutation::Number(at, n, size)),
        2 => (any::<Index>(), vec(any::<u8>(), 1..16)).prop_map(|(at, new)| Mutation::Insert(at, new)),
        2 => (any::<Index>(), 1..64_usize).prop_map(|(at, count)| Mutation::Remove(at, count)),
        2 => (any::<Index>(), 1..256_usize, any::<Index>())
            .prop_map(|(from, count, to)| Mutation::Copy(from, count, to)),
        1 => any::<Index>().prop_map(Mutation::Truncate),
    ];
    vec(mutation, 1..8)
}

/// Applies changes to bytes.
pub fn apply(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        if bytes.is_empty() {
            break;
        }
        let length = bytes.len();
        let end = |at: usize, count: usize| (at + count).min(length);
        match mutation {
            Mutation::Set(at, byte) => bytes[at.index(length)] = *byte,
            Mutation::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Mutation::Number(at, number, size) => {
                let at = at.index(length);
                let end = end(at, *size);
                bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
            Mutation::Insert(at, new) => {
                let at = at.index(length);
                bytes.splice(at..at, new.iter().copied());
            }
            Mutation::Remove(at, count) => {
                let at = at.index(length);
                bytes.drain(at..end(at, *count));
            }
            Mutation::Copy(from, count, to) => {
                let from = from.index(length);
                let part = bytes[from..end(from, *count)].to_vec();
                let to = to.index(length);
                bytes.splice(to..to, part);
            }
            Mutation::Truncate(at) => bytes.truncate(at.index(length)),
        }
    }
    bytes
}
