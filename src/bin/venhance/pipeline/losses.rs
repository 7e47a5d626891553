// SPDX-License-Identifier: MIT OR Apache-2.0
//! Warns of what the encoder cannot keep of the decoded video.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use gst::prelude::*;
use gst_video::{VideoFormatInfo, VideoInfo, VideoPackFlags, VideoTransferFunction, prelude::*};

use super::conform::warn;

/// Warns if the decoder gives a frame with transparency at `decoded` and the encoder takes no alpha channel.
pub fn warn_of_lost_alpha(encoder: &gst::Pad, decoded: &gst::Pad) {
    let transparent = Arc::new(AtomicBool::new(false));
    let found = transparent.clone();
    decoded.add_probe(gst::PadProbeType::BUFFER, move |decoded, probe| {
        let info = video_info(decoded).filter(|info| info.has_alpha());
        let (Some(info), Some(buffer)) = (info, probe.buffer()) else {
            return gst::PadProbeReturn::Ok;
        };
        match is_transparent(buffer, &info) {
            true => {
                found.store(true, Ordering::Relaxed);
                gst::PadProbeReturn::Remove
            }
            false => gst::PadProbeReturn::Ok,
        }
    });
    let decoded = decoded.downgrade();
    encoder.add_probe(gst::PadProbeType::BUFFER, move |encoder, _| {
        if !transparent.load(Ordering::Relaxed) {
            return gst::PadProbeReturn::Ok;
        }
        if video_info(encoder).is_some_and(|info| !info.has_alpha())
            && let Some(element) = decoded.upgrade().and_then(|pad| pad.parent_element())
        {
            warn(
                &element,
                "its transparency is lost because the encoder takes no alpha channel; --encoder \
                 avenc_huffyuv does, for .mkv",
            );
        }
        gst::PadProbeReturn::Remove
    });
}

/// Warns if the decoder gives more than the 8 bits of the default encoder at `decoded`; `other` takes more.
pub fn warn_of_lost_depth(decoded: &gst::Pad, other: &'static str) {
    decoded.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |decoded, probe| {
        let Some(gst::EventView::Caps(caps)) = probe.event().map(|event| event.view()) else {
            return gst::PadProbeReturn::Ok;
        };
        let info = VideoInfo::from_caps(caps.caps()).ok();
        let Some(info) = info.filter(|info| info.comp_depth(0) > 8) else {
            return gst::PadProbeReturn::Ok;
        };
        let transfer = info.colorimetry().transfer();
        let hdr = match transfer {
            VideoTransferFunction::Smpte2084 | VideoTransferFunction::AribStdB67 => " (HDR)",
            _ => "",
        };
        if let Some(element) = decoded.parent_element() {
            let bits = info.comp_depth(0);
            let text = format!(
                "its {bits} bits{hdr} become 8 with the default encoder; --encoder {other} keeps more"
            );
            warn(&element, &text);
        }
        gst::PadProbeReturn::Remove
    });
}

fn video_info(pad: &gst::Pad) -> Option<VideoInfo> {
    pad.current_caps().and_then(|caps| VideoInfo::from_caps(&caps).ok())
}

/// Whether a palette's colour, which has alpha in its highest byte, is opaque.
fn is_opaque(colour: &[u8]) -> bool {
    colour.first_chunk().is_some_and(|colour| u32::from_ne_bytes(*colour) >> 24 == 255)
}

/// Whether a pixel of a frame with an alpha channel is not opaque.
fn is_transparent(buffer: &gst::BufferRef, info: &VideoInfo) -> bool {
    let Ok(frame) = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, info) else {
        return false;
    };
    let format = info.format_info();
    let planes: Option<Vec<_>> =
        (0..frame.n_planes()).map(|plane| frame.plane_data(plane).ok()).collect();
    let Some(planes) = planes else { return false };
    let (width, strides) = (info.width() as usize, frame.plane_stride());
    if format.has_palette() {
        let opaque = |index: u8| planes[1].get(usize::from(index) * 4..).is_some_and(is_opaque);
        let mut rows = planes[0].chunks(strides[0] as usize).take(info.height() as usize);
        return rows.any(|row| row.iter().take(width).any(|index| !opaque(*index)));
    }
    // AYUV or ARGB with 8 or 16 bits: alpha comes first.
    let unpacked = VideoFormatInfo::from_format(format.unpack_format());
    let (pixel, alpha) = (unpacked.pixel_stride()[0] as usize, unpacked.depth()[0] as usize / 8);
    let mut row = vec![0; width * pixel];
    (0..info.height() as usize).any(|y| {
        // As a picture of one row, whose colours do not matter: chroma has fewer rows than alpha.
        let mut planes = planes.clone();
        let plane = format.plane()[3] as usize;
        planes[plane] = &planes[plane][y * strides[plane] as usize..];
        format.unpack(VideoPackFlags::empty(), &mut row, &planes, strides, 0, 0, width as i32);
        row.chunks_exact(pixel).any(|pixel| pixel[..alpha].iter().any(|byte| *byte != 255))
    })
}
