// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is in the queue.

use std::sync::Arc;

use gst::ClockTime;

use super::super::{
    rate::RateSource,
    schedule::OutputRate,
    timecode,
    timeline::{Cadence, ClipEnd, FrameTime},
};
use crate::engine::{Format, Frame};

/// What the streaming thread puts in.
pub(in crate::element) enum QueueItem {
    /// The format of the clips that follow. Comes between two clips.
    Format(ClipFormat),
    /// The next frame of the clip, or the first one of a new clip.
    Frame(Frame, FrameTime, BufferInfo),
    /// As `Frame`, which the model does not get; with the frame if shots are looked for in it.
    Skipped(Option<Frame>, FrameTime),
    /// The clip ends, if one has begun. The next frame, if it has come.
    EndOfClip(ClipEnd, Option<FrameTime>),
    /// A serialized event.
    Event(gst::Event),
    /// Marks a point that [`Queue::drain`](super::Queue::drain) waits for.
    Barrier,
}

impl QueueItem {
    pub(super) fn is_frame(&self) -> bool {
        self.frame().is_some()
    }

    /// The frame in it.
    pub(super) fn frame(&self) -> Option<&Frame> {
        match self {
            Self::Frame(frame, ..) | Self::Skipped(Some(frame), _) => Some(frame),
            _ => None,
        }
    }

    pub(super) fn into_event(self) -> Option<gst::Event> {
        match self {
            Self::Event(event) => Some(event),
            _ => None,
        }
    }
}

/// The format of a clip, and the rates of input and output.
#[derive(Debug, Clone, Copy)]
pub(in crate::element) struct ClipFormat {
    pub(in crate::element) format: Format,
    /// `None` while the frame rate is unknown: then each frame is a clip.
    pub(in crate::element) cadence: Option<Cadence>,
    pub(in crate::element) source: RateSource,
    pub(in crate::element) rate: OutputRate,
}

/// The picture of an input buffer.
pub(in crate::element) enum Picture {
    /// For the model.
    Frame(Frame),
    /// The model does not get it; the frame is there if shots are looked for in it.
    Skipped(Option<Frame>),
}

/// The metadata of an input buffer.
pub(in crate::element) struct BufferInfo {
    pub(in crate::element) pts: Option<ClockTime>,
    pub(in crate::element) duration: Option<ClockTime>,
    /// The flags of the output buffer.
    pub(in crate::element) flags: gst::BufferFlags,
    /// A buffer without memory that holds the metas, except the timecodes.
    pub(in crate::element) metas: Option<gst::Buffer>,
    pub(in crate::element) timecodes: Vec<gst_video::ValidVideoTimeCode>,
    /// Its index in the stream.
    pub(in crate::element) number: u64,
}

impl BufferInfo {
    /// The metadata of a buffer, with these flags instead of its own.
    pub(in crate::element) fn new(
        buffer: &gst::BufferRef,
        flags: gst::BufferFlags,
        number: u64,
    ) -> Self {
        Self {
            pts: buffer.pts(),
            duration: buffer.duration(),
            flags,
            metas: metas(buffer),
            timecodes: timecode::of_buffer(buffer),
            number,
        }
    }
}

/// The metas that the output may have, in a buffer without memory. Those of the input's memory and
/// colours have no meaning there, and would keep the input alive.
fn metas(buffer: &gst::BufferRef) -> Option<gst::Buffer> {
    let mut carrier = gst::Buffer::new();
    let target = carrier.get_mut()?;
    let mut any = false;
    for meta in buffer.iter_meta::<gst::Meta>() {
        let left = meta.has_tag::<gst::meta::tags::Memory>()
            || meta.has_tag::<gst::meta::tags::MemoryReference>()
            || meta.has_tag::<gst_video::video_meta::tags::Colorspace>()
            || meta.downcast_ref::<gst_video::VideoTimeCodeMeta>().is_some();
        if !left {
            any |= meta.transform(target, &gst::meta::MetaTransformCopy::new(..)).is_ok();
        }
    }
    any.then_some(carrier)
}

/// What the push task takes out.
pub(in crate::element) enum OutputItem {
    Frame(OutputFrame),
    Event(gst::Event),
    Barrier,
}

impl OutputItem {
    pub(super) fn is_frame(&self) -> bool {
        matches!(self, Self::Frame(_))
    }

    pub(super) fn into_event(self) -> Option<gst::Event> {
        match self {
            Self::Event(event) => Some(event),
            _ => None,
        }
    }
}

/// The input frame at the time of an output frame, or the last one before it.
#[derive(Debug, Clone, Copy)]
pub(in crate::element) struct InputFrame {
    /// Its index in its clip.
    pub(in crate::element) number: u64,
    /// The index in its clip of the first frame of its shot.
    pub(in crate::element) shot: u64,
    /// The index of the first frame of that clip in the stream.
    pub(in crate::element) clip: u64,
    /// The frames that the model makes between two.
    pub(in crate::element) interpolated: usize,
}

/// An output frame and the fields of its buffer.
pub(in crate::element) struct OutputFrame {
    pub(in crate::element) frame: Arc<Frame>,
    /// Its index in its clip.
    pub(in crate::element) number: u64,
    /// Whether it shows another shot than the frame before it.
    pub(in crate::element) begins_shot: bool,
    pub(in crate::element) pts: ClockTime,
    pub(in crate::element) duration: Option<ClockTime>,
    pub(in crate::element) flags: gst::BufferFlags,
    /// Buffers without memory that hold the metas of the input frames that it stands for.
    pub(in crate::element) metas: Vec<gst::Buffer>,
    pub(in crate::element) timecodes: Vec<gst_video::ValidVideoTimeCode>,
    pub(in crate::element) input: InputFrame,
}
