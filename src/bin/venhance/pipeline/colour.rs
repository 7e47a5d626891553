// SPDX-License-Identifier: MIT OR Apache-2.0
//! The colorimetry of the decoded video.
//!
//! - Where an MP4 or QuickTime file describes the colours, GStreamer 1.22 assumes limited range, whatever the encoded
//!   video says.
//! - An encoded video can signal full range without a colour matrix. GStreamer then replaces both.

use gst::prelude::*;
use gst_video::{VideoColorMatrix, VideoColorRange, VideoColorimetry, VideoInfo};

/// Takes the range from the encoded video, with defaults for fields that are not signalled. `encoded` is the decoder's
/// sink pad, `decoded` the pad that takes its output.
pub fn keep_range(encoded: &gst::Pad, decoded: &gst::Pad) {
    replace_colorimetry(encoded, |caps, colorimetry| {
        // The decoder replaces an unknown range by that of the encoded video. Only these codecs have one.
        if ["video/x-h264", "video/x-h265"].contains(&caps.name().as_str()) {
            set(caps, VideoColorRange::Unknown, &colorimetry);
        }
    });
    replace_colorimetry(decoded, |caps, colorimetry| {
        caps.remove_field("colorimetry");
        let plain: gst::Caps = std::iter::once(caps.to_owned()).collect();
        let default = VideoInfo::from_caps(&plain).map(|info| info.colorimetry());
        let Ok(default) = default else { return };
        let range = match colorimetry.range() {
            VideoColorRange::Unknown => default.range(),
            range => range,
        };
        let known = colorimetry.matrix() != VideoColorMatrix::Unknown;
        set(caps, range, if known { &colorimetry } else { &default });
    });
}

/// Sets a colorimetry with another range.
fn set(caps: &mut gst::StructureRef, range: VideoColorRange, colorimetry: &VideoColorimetry) {
    let (matrix, transfer) = (colorimetry.matrix(), colorimetry.transfer());
    if matrix == VideoColorMatrix::Unknown {
        return caps.remove_field("colorimetry");
    }
    let colorimetry = VideoColorimetry::new(range, matrix, transfer, colorimetry.primaries());
    caps.set("colorimetry", colorimetry.to_string());
}

/// Changes caps that have a colorimetry.
fn replace_colorimetry(
    pad: &gst::Pad,
    change: impl Fn(&mut gst::StructureRef, VideoColorimetry) + Send + Sync + 'static,
) {
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if let Some(gst::PadProbeData::Event(event)) = &mut info.data
            && let gst::EventView::Caps(caps) = event.view()
        {
            let mut caps = caps.caps_owned();
            let colorimetry = caps
                .structure(0)
                .and_then(|caps| caps.get::<&str>("colorimetry").ok()?.parse().ok());
            if let (Some(colorimetry), Some(caps)) = (colorimetry, caps.make_mut().structure_mut(0))
            {
                change(caps, colorimetry);
            }
            *event = gst::event::Caps::builder(&caps).seqnum(event.seqnum()).build();
        }
        gst::PadProbeReturn::Ok
    });
}
