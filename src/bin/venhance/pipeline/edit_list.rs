// SPDX-License-Identifier: MIT OR Apache-2.0
//! Edit lists of MP4 and QuickTime files, which say what part of a track is played.
//!
//! An AAC encoder begins with a packet of silence, its delay. GStreamer's muxer lets it be played, so that
//! the sound comes late by one packet: 128 ms at 8 kHz.
//!
//! Format: ISO/IEC 14496-12, sections 4.2 (boxes) and 8.6.6 (edit list).

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Range,
};

/// Skips the first packet of audio tracks; `tracks` has their numbers among the audio tracks.
pub fn skip_first_packet(mut file: &File, tracks: &[usize]) -> io::Result<()> {
    let (moov, mut bytes) = read_moov(file)?;
    let audio = audio_tracks(&bytes);
    let length = bytes.len();
    for track in tracks {
        let edited = audio.get(*track).and_then(|trak| skip_packet(&mut bytes, trak, length));
        if edited.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has no edit list"));
        }
    }
    file.seek(SeekFrom::Start(moov.start))?;
    file.write_all(&bytes)
}

/// The position and the content of the moov box.
fn read_moov(mut file: &File) -> io::Result<(Range<u64>, Vec<u8>)> {
    let Some(moov) = find_moov(file)? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it has no moov box"));
    };
    let length = usize::try_from(moov.end - moov.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.seek(SeekFrom::Start(moov.start))?;
    file.read_exact(&mut bytes)?;
    Ok((moov, bytes))
}

/// The audio tracks.
fn audio_tracks(moov: &[u8]) -> Vec<Range<usize>> {
    let traks = children(moov, 0..moov.len()).into_iter().filter(|(name, _)| name == b"trak");
    let is_audio = |trak: &Range<usize>| {
        let handler = find(moov, trak, &[b"mdia", b"hdlr"]);
        handler.is_some_and(|at| moov.get(at.start + 8..at.start + 12) == Some(b"soun"))
    };
    traks.map(|(_, trak)| trak).filter(is_audio).collect()
}

/// Moves the start of the last edit behind the first packet.
fn skip_packet(moov: &mut [u8], trak: &Range<usize>, length: usize) -> Option<()> {
    let header = find(moov, &(0..length), &[b"mvhd"])?;
    let media = find(moov, trak, &[b"mdia", b"mdhd"])?;
    let times = find(moov, trak, &[b"mdia", b"minf", b"stbl", b"stts"])?;
    let edits = find(moov, trak, &[b"edts", b"elst"])?;
    // With 32-bit times, as GStreamer writes them; then the time scale comes after two of them.
    if [&header, &media, &edits].into_iter().any(|at| moov.get(at.start) != Some(&0)) {
        return None;
    }
    let (movie_scale, media_scale) =
        (number(moov, header.start + 12)?, number(moov, media.start + 12)?);
    let packet = number(moov, times.start + 12)?;
    let count = number(moov, edits.start + 4)? as usize;
    let last = edits.start + 8 + count.checked_sub(1)? * 12;
    let (duration, start) = (number(moov, last)?, number(moov, last + 4)?);
    let skipped = u64::from(packet) * u64::from(movie_scale) / u64::from(media_scale.max(1));
    let duration = duration.checked_sub(skipped.try_into().ok()?)?;
    moov[last..last + 4].copy_from_slice(&duration.to_be_bytes());
    moov[last + 4..last + 8].copy_from_slice(&start.checked_add(packet)?.to_be_bytes());
    Some(())
}

/// The position of the content of the moov box in the file.
fn find_moov(mut file: &File) -> io::Result<Option<Range<u64>>> {
    let (mut at, end) = (0, file.metadata()?.len());
    while at + 8 <= end {
        file.seek(SeekFrom::Start(at))?;
        let mut header = [0; 16];
        file.read_exact(&mut header[..8])?;
        let short = u64::from(u32::from_be_bytes([header[0], header[1], header[2], header[3]]));
        let (size, content) = match short {
            0 => (end - at, 8),
            1 => {
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
        if &header[4..8] == b"moov" {
            return Ok(Some(at + content..at + size));
        }
        at += size;
    }
    Ok(None)
}

/// The content of the first box at a path of names in a range of bytes.
fn find(bytes: &[u8], within: &Range<usize>, path: &[&[u8; 4]]) -> Option<Range<usize>> {
    path.iter().try_fold(within.clone(), |within, name| {
        children(bytes, within).into_iter().find(|(found, _)| found == *name).map(|(_, at)| at)
    })
}

/// The names and contents of the boxes in a range of bytes.
fn children(bytes: &[u8], within: Range<usize>) -> Vec<([u8; 4], Range<usize>)> {
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
fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}
