// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds the entries of a zip archive as PyTorch writes it: all are stored without compression.
//!
//! The crate `zip` allocates as many entries as an archive claims to have.

use std::{collections::BTreeMap, ops::Range};

use candle_core::Result;

use super::disk::MAX_HEADER;
use crate::engine::printable;

/// Signatures and lengths of the records, without their variable parts.
const END: (&[u8], usize) = (b"PK\x05\x06", 22);
const END64: (&[u8], usize) = (b"PK\x06\x06", 56);
const END64_LOCATOR: (&[u8], usize) = (b"PK\x06\x07", 20);
const CENTRAL: (&[u8], usize) = (b"PK\x01\x02", 46);
const LOCAL: (&[u8], usize) = (b"PK\x03\x04", 30);

/// Maximum length of the comment at the end of an archive.
const MAX_COMMENT: usize = u16::MAX as usize;

/// The entries of an archive by name.
pub(super) struct Archive<'a> {
    bytes: &'a [u8],
    entries: BTreeMap<&'a [u8], Entry>,
}

struct Entry {
    /// Whether the entry is neither compressed nor encrypted.
    stored: bool,
    compressed: u64,
    size: u64,
    /// Offset of the local header.
    header: u64,
}

impl<'a> Archive<'a> {
    /// Reads the central directory.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self> {
        let (mut rest, count) = central_directory(bytes)?;
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let (name, entry, length) = central_header(rest)?;
            rest = &rest[length..];
            if entries.insert(name, entry).is_some() {
                candle_core::bail!("the archive has two entries named {}", shown(name));
            }
        }
        Ok(Self { bytes, entries })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'a [u8]> {
        self.entries.keys().copied()
    }

    /// The contents of an entry as a range of the file.
    pub(super) fn entry(&self, name: &[u8]) -> Result<Range<usize>> {
        let Some(entry) = self.entries.get(name) else {
            candle_core::bail!("the archive has no entry {}", shown(name));
        };
        if !entry.stored {
            candle_core::bail!(
                "the entry {} is compressed or encrypted, which PyTorch never does",
                shown(name)
            );
        }
        let range = usize::try_from(entry.header).ok().and_then(|at| {
            let header = record(self.bytes.get(at..)?, LOCAL)?;
            let start =
                at + LOCAL.1 + usize::from(u16_at(header, 26)) + usize::from(u16_at(header, 28));
            let end = start.checked_add(usize::try_from(entry.size).ok()?)?;
            (entry.compressed == entry.size && end <= self.bytes.len()).then_some(start..end)
        });
        range.ok_or_else(|| {
            candle_core::Error::msg(format!(
                "the entry {} has {} bytes from offset {} on, but the file has {} bytes",
                shown(name),
                entry.size,
                entry.header,
                self.bytes.len()
            ))
        })
    }
}

/// The central directory, and the number of its entries.
fn central_directory(bytes: &[u8]) -> Result<(&[u8], u64)> {
    let truncated = || candle_core::Error::msg("the archive has no central directory");
    let last = bytes.len().checked_sub(END.1).ok_or_else(truncated)?;
    let end = (last.saturating_sub(MAX_COMMENT)..=last).rev().find(|&at| {
        record(&bytes[at..], END)
            .is_some_and(|end| usize::from(u16_at(end, 20)) == bytes.len() - at - END.1)
    });
    let end = end.ok_or_else(truncated)?;
    let record32 = &bytes[end..];
    let (mut count, mut size, mut start) =
        (u16_at(record32, 10).into(), u32_at(record32, 12).into(), u32_at(record32, 16).into());
    let locator = end.checked_sub(END64_LOCATOR.1);
    if let Some(locator) = locator.and_then(|at| record(&bytes[at..], END64_LOCATOR)) {
        let end64 = usize::try_from(u64_at(locator, 8)).ok();
        let end64 = end64.and_then(|at| record(bytes.get(at..)?, END64)).ok_or_else(truncated)?;
        (count, size, start) = (u64_at(end64, 32), u64_at(end64, 40), u64_at(end64, 48));
    }
    if size > MAX_HEADER {
        candle_core::bail!(
            "the central directory of the archive has {size} bytes; the limit is {MAX_HEADER}"
        );
    }
    let directory =
        usize::try_from(start).ok().and_then(|start| bytes.get(start..)?.get(..size as usize));
    Ok((directory.ok_or_else(truncated)?, count))
}

/// Reads the first header in `bytes`: the name of the entry, the entry, and the length of the header.
fn central_header(bytes: &[u8]) -> Result<(&[u8], Entry, usize)> {
    let truncated = || candle_core::Error::msg("the central directory of the archive is truncated");
    let header = record(bytes, CENTRAL).ok_or_else(truncated)?;
    let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(header, at)));
    let (name_end, extra_end) = (CENTRAL.1 + name, CENTRAL.1 + name + extra);
    let name = bytes.get(CENTRAL.1..name_end).ok_or_else(truncated)?;
    let mut large = large_fields(bytes.get(name_end..extra_end).ok_or_else(truncated)?);
    // A field that is too small for its value is in the extra fields, which have those fields in this order.
    let [size, compressed, header_offset] = [24, 20, 42].map(|at| match u32_at(header, at) {
        u32::MAX => large.next(),
        value => Some(value.into()),
    });
    let length = extra_end + comment;
    if length > bytes.len() {
        return Err(truncated());
    }
    let entry = Entry {
        stored: u16_at(header, 10) == 0 && u16_at(header, 8) & 1 == 0,
        compressed: compressed.ok_or_else(truncated)?,
        size: size.ok_or_else(truncated)?,
        header: header_offset.ok_or_else(truncated)?,
    };
    Ok((name, entry, length))
}

/// The 64-bit fields in the extra fields of a header.
fn large_fields(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut large = &[][..];
    while let Some((head, rest)) = extra.split_at_checked(4) {
        let Some((field, rest)) = rest.split_at_checked(u16_at(head, 2).into()) else { break };
        if u16_at(head, 0) == 1 {
            large = field;
        }
        extra = rest;
    }
    large.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
}

/// The fixed part of the record at the start of `bytes`, if it has that signature.
fn record<'a>(bytes: &'a [u8], (signature, length): (&[u8], usize)) -> Option<&'a [u8]> {
    bytes.get(..length).filter(|record| record.starts_with(signature))
}

fn u16_at(record: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([record[at], record[at + 1]])
}

fn u32_at(record: &[u8], at: usize) -> u32 {
    u32::from(u16_at(record, at)) | u32::from(u16_at(record, at + 2)) << 16
}

fn u64_at(record: &[u8], at: usize) -> u64 {
    u64::from(u32_at(record, at)) | u64::from(u32_at(record, at + 4)) << 32
}

fn shown(name: &[u8]) -> String {
    printable(&String::from_utf8_lossy(name))
}
