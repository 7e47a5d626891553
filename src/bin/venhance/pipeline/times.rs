// SPDX-License-Identifier: MIT OR Apache-2.0
//! Restores timestamps that elements of GStreamer 1.22 lose.

use std::{collections::VecDeque, sync::Arc};

use gst::{ClockTime, prelude::*};
use parking_lot::Mutex;

use super::parts::{running_time, static_pad};
use crate::failure::Failure;

/// Gives the packets of `avenc_mpeg4`, which all have the same invalid timestamp, those of their frames. With B-frames, it
/// does not say which frame a packet belongs to.
pub fn restore_encoded_times(encoder: &gst::Bin) -> Result<(), Failure> {
    let elements = encoder.iterate_all_by_element_factory_name("avenc_mpeg4");
    for element in elements.into_iter().flatten() {
        if element.property::<i32>("max-bframes") > 0 {
            continue;
        }
        // The running times of the frames in the encoder.
        let frames = Arc::new(Mutex::new(VecDeque::<Option<ClockTime>>::new()));
        let encoded = frames.clone();
        static_pad(&element, "sink")?.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            if let Some(buffer) = info.buffer() {
                frames.lock().push_back(running_time(pad, buffer));
            }
            gst::PadProbeReturn::Ok
        });
        static_pad(&element, "src")?.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
            let Some(buffer) = info.buffer_mut() else { return gst::PadProbeReturn::Ok };
            let time = encoded.lock().pop_front().flatten();
            let segment = pad.sticky_event::<gst::event::Segment>(0);
            let segment = segment.as_ref().and_then(|event| event.segment().downcast_ref());
            let time = segment.and_then(|segment: &gst::FormattedSegment<ClockTime>| {
                segment.position_from_running_time(time)
            });
            let buffer = buffer.make_mut();
            buffer.set_pts(time);
            buffer.set_dts(time);
            gst::PadProbeReturn::Ok
        });
    }
    Ok(())
}

/// The timestamp of a packet on a demuxer's pad. `matroskademux` gives the packets of some codecs only one for decoding, and
/// those of ProRes none; its position is then that of the packet. Headers of Theora have none either, and need none.
pub fn demuxed_time(pad: &gst::Pad, buffer: &gst::BufferRef) -> Option<ClockTime> {
    let prores = || {
        let caps = pad.current_caps()?;
        caps.structure(0)?.has_name("video/x-prores").then(|| pad.query_position())?
    };
    buffer.pts().or(buffer.dts()).or_else(prores)
}
