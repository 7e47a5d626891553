// SPDX-License-Identifier: MIT OR Apache-2.0
//! Works around faults of demuxers, where they read the file.

use std::{
    ops::Range,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use gst::prelude::*;

/// Ends a stream whose demuxer does not notice the end of the file: libav's GIF demuxer in Debian 12 reads
/// there forever.
pub fn end_at_end_of_file(file: &gst::Pad, path: &Path, sink: &gst::Pad) {
    /// Other demuxers read at the end of a file a few times at most.
    const READS: u64 = 64;
    let Ok(length) = path.metadata().map(|metadata| metadata.len()) else { return };
    let (reads, sink) = (AtomicU64::new(0), sink.clone());
    file.add_probe(gst::PadProbeType::PULL | gst::PadProbeType::BLOCK, move |_, info| {
        if info.offset < length {
            reads.store(0, Ordering::Relaxed);
            return gst::PadProbeReturn::Pass;
        }
        let reads = reads.fetch_add(1, Ordering::Relaxed);
        if reads == READS {
            sink.send_event(gst::event::Eos::new());
        }
        if reads > READS {
            // The demuxer would keep a core busy until the pipeline stops.
            std::thread::sleep(Duration::from_millis(10));
        }
        gst::PadProbeReturn::Pass
    });
}

/// Sets the duration in the header of an MP4 file to zero, which means unknown: qtdemux of GStreamer 1.22
/// compares it with times before an edit list is applied, and loses the end of a stream whose edit list leaves
/// out its beginning. It also takes video of less than a fifth of that duration for a preview, and skips it.
/// Streams end without it.
pub fn hide_duration(file: &gst::Pad) {
    let pulled = gst::PadProbeType::PULL | gst::PadProbeType::BUFFER;
    file.add_probe(pulled, |_, info| {
        if let Some(gst::PadProbeData::Buffer(buffer)) = &mut info.data
            && let Some(duration) = buffer.map_readable().ok().and_then(|map| movie_duration(&map))
            && let Ok(mut map) = buffer.make_mut().map_writable()
        {
            map[duration].fill(0);
        }
        gst::PadProbeReturn::Ok
    });
}

/// Where the duration is in a box "moov", which begins with the box "mvhd".
fn movie_duration(moov: &[u8]) -> Option<Range<usize>> {
    let header = (moov.get(4..8)? == b"moov" && moov.get(12..16)? == b"mvhd").then_some(16)?;
    // After the version with flags, creation time, modification time and time scale.
    let duration = match moov.get(header)? {
        1 => header + 24..header + 32,
        _ => header + 16..header + 20,
    };
    (duration.end <= moov.len()).then_some(duration)
}
