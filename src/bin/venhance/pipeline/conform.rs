// SPDX-License-Identifier: MIT OR Apache-2.0
//! Between the decoder and the enhancer: the frames of a whole file get one size and format, are progressive
//! and upright, and have a time.

use gst::{ClockTime, prelude::*};
use parking_lot::Mutex;

use super::parts::drop_if;
use crate::{
    failure::{Failure, make},
    source::{ASSUMED_RATE, Source},
};

/// A pixel is at most this many times as wide as high, or as high as wide.
const LARGEST_ASPECT: i32 = 16;

/// What the first caps decide for the rest of the file.
const FIXED_FIELDS: [&str; 5] =
    ["width", "height", "pixel-aspect-ratio", "colorimetry", "chroma-site"];

/// The elements, in their order, that decoded frames pass before the enhancer.
pub fn conform(source: &Source, enhancer: &gst::Element) -> Result<Vec<gst::Element>, Failure> {
    // All of them pass frames through that need no change.
    let (convert, deinterlace) = (make("videoconvert")?, make("deinterlace")?);
    // Otherwise interlaced frames of an unsupported format would pass unchanged.
    deinterlace.set_property_from_str("mode", "auto-strict");
    // Without a container, there are no timestamps.
    repair(&convert, source.elementary || source.still);
    let mut path = vec![convert, deinterlace];
    if let Some(direction) = source.rotation {
        let flip = make("videoflip")?;
        // Not "auto": the tag can come after the first caps.
        flip.set_property_from_str("video-direction", direction);
        path.extend([make("videoconvert")?, flip]);
    }
    let (scale, filter) = (make("videoconvertscale")?, make("capsfilter")?);
    keep_first_format(&scale, &filter, enhancer);
    path.extend([scale, filter]);
    Ok(path)
}

/// Shows a warning to the user.
pub(super) fn warn(element: &gst::Element, text: &str) {
    gst::element_warning!(element, gst::StreamError::Format, ("{text}"));
}

/// Corrects invalid caps and timestamps at the sink pad of `element`, and drops incomplete frames.
fn repair(element: &gst::Element, needs_rate: bool) {
    let Some(sink) = element.static_pad("sink") else { return };
    let (weak, frames) = (element.downgrade(), Mutex::new(Frames::default()));
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
    sink.add_probe(kinds, move |_, info| {
        let Some(element) = weak.upgrade() else { return gst::PadProbeReturn::Ok };
        let mut incomplete = false;
        let warning = match &mut info.data {
            Some(gst::PadProbeData::Buffer(buffer)) => {
                let mut frames = frames.lock();
                incomplete = frames.incomplete(buffer);
                match incomplete {
                    true => frames.drop_one(),
                    false => frames.place(buffer),
                }
            }
            Some(gst::PadProbeData::Event(event)) => match event.view() {
                gst::EventView::Caps(caps) => {
                    let repaired = repaired(&element, caps.caps(), needs_rate);
                    frames.lock().set_caps(&repaired);
                    *event = gst::event::Caps::builder(&repaired).seqnum(event.seqnum()).build();
                    None
                }
                gst::EventView::Segment(segment) => {
                    let segment = segment.segment().downcast_ref::<ClockTime>();
                    frames.lock().start(segment.and_then(|segment| segment.start()));
                    None
                }
                _ => None,
            },
            _ => None,
        };
        if let Some(warning) = warning {
            warn(&element, &warning);
        }
        drop_if(incomplete)
    });
}

/// The caps with a valid aspect ratio and, if it `needs_rate`, with a frame rate.
fn repaired(element: &gst::Element, caps: &gst::CapsRef, needs_rate: bool) -> gst::Caps {
    let mut caps = caps.to_owned();
    let Some(structure) = caps.make_mut().structure_mut(0) else { return caps };
    if let Ok(aspect) = structure.get::<gst::Fraction>("pixel-aspect-ratio") {
        let (x, y) = (i64::from(aspect.numer()), i64::from(aspect.denom()));
        let largest = i64::from(LARGEST_ASPECT);
        if x <= 0 || y <= 0 || x > y * largest || y > x * largest {
            warn(element, &format!("its pixel aspect ratio {x}/{y} is invalid: 1/1 assumed"));
            structure.set("pixel-aspect-ratio", gst::Fraction::new(1, 1));
        }
    }
    let rate = structure.get::<gst::Fraction>("framerate");
    if needs_rate && rate.is_ok_and(|rate| rate.numer() <= 0) {
        structure.set("framerate", ASSUMED_RATE);
    }
    let interlaced =
        structure.get::<&str>("interlace-mode").is_ok_and(|mode| mode != "progressive");
    let info = gst_video::VideoInfo::from_caps(&caps);
    if interlaced && info.is_ok_and(|info| info.comp_depth(0) > 8) {
        warn(
            element,
            "it is interlaced: GStreamer deinterlaces with 8 bits, so the other bits are lost",
        );
    }
    caps
}

/// The frames that have passed.
struct Frames {
    /// Bytes of a frame.
    size: usize,
    /// Whether an incomplete frame has been left out.
    dropped: bool,
    /// The time of the next frame if it has none.
    next: ClockTime,
    /// The time of the last frame of the segment.
    last: Option<ClockTime>,
    /// The duration of a frame.
    duration: ClockTime,
    /// Whether times are counted because frames come without usable ones.
    counted: bool,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            size: 0,
            dropped: false,
            next: ClockTime::ZERO,
            last: None,
            duration: ClockTime::SECOND / ASSUMED_RATE.numer() as u64,
            counted: false,
        }
    }
}

impl Frames {
    fn set_caps(&mut self, caps: &gst::Caps) {
        let Ok(info) = gst_video::VideoInfo::from_caps(caps) else { return };
        self.size = info.size();
        let (numer, denom) = (info.fps().numer(), info.fps().denom());
        if numer > 0 {
            let duration = ClockTime::SECOND.mul_div_round(denom as u64, numer as u64);
            self.duration = duration.unwrap_or(self.duration);
        }
    }

    /// A segment starts.
    fn start(&mut self, time: Option<ClockTime>) {
        (self.last, self.next) = (None, time.unwrap_or(ClockTime::ZERO));
    }

    fn incomplete(&self, buffer: &gst::BufferRef) -> bool {
        buffer.size() < self.size && buffer.meta::<gst_video::VideoMeta>().is_none()
    }

    /// Returns a warning the first time.
    fn drop_one(&mut self) -> Option<String> {
        let first = !std::mem::replace(&mut self.dropped, true);
        first.then(|| "incomplete frames are dropped".to_owned())
    }

    /// Gives a frame a time after that of the frame before. Returns a warning the first time that it does
    /// not have one.
    fn place(&mut self, buffer: &mut gst::Buffer) -> Option<String> {
        let usable = buffer.pts().filter(|pts| self.last.is_none_or(|last| *pts > last));
        let time = usable.unwrap_or(self.next);
        (self.last, self.next) = (Some(time), time + self.duration);
        if usable.is_some() {
            return None;
        }
        let buffer = buffer.make_mut();
        buffer.set_pts(time);
        buffer.set_duration(self.duration);
        let first = !std::mem::replace(&mut self.counted, true);
        first.then(|| {
            let rate = format!("{:.4} fps", 1.0 / self.duration.seconds_f64());
            let rate = rate.replace(".0000 fps", " fps");
            format!("its frames have no usable timestamps: {rate} assumed")
        })
    }
}

/// Converts and scales everything to the size and format of the first caps that reach `scale`, which comes
/// before `filter`: the encoder and the container cannot change them within a stream.
fn keep_first_format(scale: &gst::Element, filter: &gst::Element, enhancer: &gst::Element) {
    let Some(sink) = scale.static_pad("sink") else { return };
    let (scale, filter) = (scale.downgrade(), filter.downgrade());
    let accepted = enhancer.static_pad("sink").map(|pad| pad.pad_template_caps());
    let first = Mutex::new(None);
    sink.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        let (Some(scale), Some(filter)) = (scale.upgrade(), filter.upgrade()) else {
            return gst::PadProbeReturn::Ok;
        };
        let Some(gst::EventView::Caps(event)) = info.event().map(|event| event.view()) else {
            return gst::PadProbeReturn::Ok;
        };
        let Some(structure) = event.caps().structure(0) else { return gst::PadProbeReturn::Ok };
        let mut first = first.lock();
        match &*first {
            None => {
                let fixed = fixed(structure, accepted.as_ref());
                filter.set_property("caps", &fixed);
                *first = Some(fixed);
            }
            Some(fixed) => {
                let changed = |field| {
                    fixed.structure(0).is_some_and(|fixed| {
                        fixed.value(field).is_ok_and(|before| {
                            structure.value(field).is_ok_and(|now| {
                                before.compare(now) != Some(std::cmp::Ordering::Equal)
                            })
                        })
                    })
                };
                if ["width", "height", "pixel-aspect-ratio"].into_iter().any(changed) {
                    warn(&scale, &size_change(fixed, event.caps()));
                }
            }
        }
        gst::PadProbeReturn::Ok
    });
}

/// The fields of the first caps that stay, with the format if the enhancer reads it.
fn fixed(first: &gst::StructureRef, accepted: Option<&gst::Caps>) -> gst::Caps {
    let mut kept = gst::Structure::new_empty(first.name());
    kept.set("pixel-aspect-ratio", gst::Fraction::new(1, 1));
    for field in FIXED_FIELDS {
        if let Ok(value) = first.value(field) {
            kept.set_value(field, value.clone());
        }
    }
    let mut with_format = kept.clone();
    if let Ok(format) = first.value("format") {
        with_format.set_value("format", format.clone());
    }
    let with_format = gst::Caps::from(with_format);
    match accepted.is_some_and(|accepted| accepted.can_intersect(&with_format)) {
        true => with_format,
        false => gst::Caps::from(kept),
    }
}

fn size_change(before: &gst::CapsRef, now: &gst::CapsRef) -> String {
    let size = |caps: &gst::CapsRef| {
        let caps = caps.structure(0);
        let number = |field| caps.and_then(|caps| caps.get::<i32>(field).ok()).unwrap_or(0);
        let aspect = caps.and_then(|caps| caps.get::<gst::Fraction>("pixel-aspect-ratio").ok());
        let aspect = aspect.unwrap_or(gst::Fraction::new(1, 1));
        let size = format!("{}x{}", number("width"), number("height"));
        match aspect.numer() == aspect.denom() {
            true => size,
            false => format!("{size} with pixels of {}:{}", aspect.numer(), aspect.denom()),
        }
    };
    format!(
        "its size changes from {} to {}: this part is scaled into the first size",
        size(before),
        size(now)
    )
}

/// Drops caps of the same size and format as those before: they differ only in fields such as the nominal rate, and would
/// start a second stream in the encoder.
pub fn keep_first_caps(encoder: &gst::Pad) {
    let first = Mutex::new(None);
    encoder.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        let Some(gst::EventView::Caps(event)) = info.event().map(|event| event.view()) else {
            return gst::PadProbeReturn::Ok;
        };
        let Ok(info) = gst_video::VideoInfo::from_caps(event.caps()) else {
            return gst::PadProbeReturn::Ok;
        };
        let format = (info.format(), info.width(), info.height());
        drop_if(first.lock().replace(format) == Some(format))
    });
}
