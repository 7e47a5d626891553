// SPDX-License-Identifier: MIT OR Apache-2.0
//! Boxes, of which MP4 and QuickTime files consist (ISO/IEC 14496-12, section 4.2).

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
};

/// Number of boxes that are searched at one level of a file: a damaged file can have one for every 8 bytes.
const MAX_BOXES: u32 = 1 << 16;

/// The position and the content of the moov box.
pub fn read_moov(mut file: &File) -> io::Result<(Range<u64>, Vec<u8>)> {
    let Some(moov) = find_in_file(file, &[b"moov"])? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it has no moov box"));
    };
    let length = usize::try_from(moov.end - moov.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.seek(SeekFrom::Start(moov.start))?;
    file.read_exact(&mut bytes)?;
    Ok((moov, bytes))
}

/// The position of the content of the first box at a path of names in a file.
pub fn find_in_file(file: &File, path: &[&[u8; 4]]) -> io::Result<Option<Range<u64>>> {
    let mut within = 0..file.metadata()?.len();
    for name in path {
        match child_in_file(file, &within, name)? {
            Some(child) => within = child,
            None => return Ok(None),
        }
    }
    Ok(Some(within))
}

/// The position of the content of the first box with a name in a range of a file.
fn child_in_file(
    mut file: &File,
    within: &Range<u64>,
    name: &[u8; 4],
) -> io::Result<Option<Range<u64>>> {
    let (mut at, end) = (within.start, within.end);
    for _ in 0..MAX_BOXES {
        if at + 8 > end {
            break;
        }
        file.seek(SeekFrom::Start(at))?;
        let mut header = [0; 16];
        file.read_exact(&mut header[..8])?;
        let short = u64::from(u32::from_be_bytes([header[0], header[1], header[2], header[3]]));
        let (size, content) = match short {
            0 => (end - at, 8),
            1 if at + 16 <= end => {
                file.read_exact(&mut header[8..])?;
                let mut long = [0; 8];
                long.copy_from_slice(&header[8..]);
                (u64::from_be_bytes(long), 16)
            }
            size => (size, 8),
        };
        if size < content || size > end - at {
            break;
        }
        if &header[4..8] == name {
            return Ok(Some(at + content..at + size));
        }
        at += size;
    }
    Ok(None)
}

/// The content of the first box at a path of names in a range of bytes.
pub fn find(bytes: &[u8], within: &Range<usize>, path: &[&[u8; 4]]) -> Option<Range<usize>> {
    path.iter().try_fold(within.clone(), |within, name| {
        children(bytes, within).into_iter().find(|(found, _)| found == *name).map(|(_, at)| at)
    })
}

/// The names and contents of the boxes in a range of bytes.
pub fn children(bytes: &[u8], within: Range<usize>) -> Vec<([u8; 4], Range<usize>)> {
    let (mut at, mut found) = (within.start, Vec::new());
    while at + 8 <= within.end {
        let Some(size) = number(bytes, at).map(|size| size as usize) else { break };
        if size < 8 || size > within.end - at {
            break;
        }
        let name = [bytes[at + 4], bytes[at + 5], bytes[at + 6], bytes[at + 7]];
        found.push((name, at + 8..at + size));
        at += size;
    }
    found
}

/// The big-endian number at a position.
pub fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}
