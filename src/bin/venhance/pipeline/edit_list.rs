// SPDX-License-Identifier: MIT OR Apache-2.0
//! Edit lists of MP4 and QuickTime files, which say what part of a track is played.
//!
//! An AAC encoder begins with a packet of silence, its delay. GStreamer's muxer lets it be played, so that
//! the sound comes late by one packet: 128 ms at 8 kHz.
//!
//! Format: ISO/IEC 14496-12, sections 4.2 (boxes) and 8.6.6 (edit list).

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    ops::Range,
};

use crate::boxes::{children, find, number, read_moov};

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
