// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads a file without decoding it, to find out what it contains.

use std::{collections::HashMap, path::Path, sync::Arc};

use gst::{ClockTime, prelude::*};
use parking_lot::Mutex;

use super::{
    parts::{add, bin, static_pad},
    times::demuxed_time,
};
use crate::{
    demuxers::hide_duration,
    failure::{Failure, READER, make},
};

/// What a stream contains.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// Number of packets that a player shows.
    pub shown: u64,
    /// The earliest running time at which one begins.
    pub first: Option<ClockTime>,
    /// The latest running time at which one begins.
    pub last: Option<ClockTime>,
    /// Where a player begins, as packets count time.
    pub begin: Option<ClockTime>,
    /// Whether it is neither sound nor text.
    pub video: bool,
}

/// Counts the packets of each stream of a file.
pub struct Packets {
    pub pipeline: gst::Pipeline,
    streams: Arc<Mutex<HashMap<String, Contents>>>,
}

impl Packets {
    /// Builds the pipeline. It ends at the end of the file, or when every stream in `wanted` has a packet.
    pub fn new(path: &Path, wanted: Option<Vec<String>>) -> Result<Self, Failure> {
        let pipeline = gst::Pipeline::new();
        let reader = bin(&pipeline, READER);
        let (file, parser) = (make("filesrc")?, make("parsebin")?);
        file.set_property("location", path);
        hide_duration(&static_pad(&file, "src")?);
        let internal = |error| Failure::input(path, format!("cannot read it: {error}"));
        reader.add_many([&file, &parser]).and_then(|()| file.link(&parser)).map_err(internal)?;
        add(&pipeline, &[reader.upcast_ref()])?;
        let streams = Arc::new(Mutex::new(HashMap::<String, Contents>::new()));
        let (found, bus, weak) = (streams.clone(), pipeline.bus(), reader.downgrade());
        parser.connect_pad_added(move |_, pad| {
            let Some(reader) = weak.upgrade() else { return };
            let Some(id) = pad.stream_id().map(|id| id.to_string()) else { return };
            let Ok(sink) = make("fakesink") else { return };
            sink.set_property("sync", false);
            sink.set_property("async", false);
            let added = reader.add(&sink).is_ok() && sink.sync_state_with_parent().is_ok();
            let linked = sink.static_pad("sink").is_some_and(|sink| pad.link(&sink).is_ok());
            if !(added && linked) {
                return;
            }
            let (found, bus, wanted) = (found.clone(), bus.clone(), wanted.clone());
            pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
                let Some(buffer) = info.buffer() else { return gst::PadProbeReturn::Ok };
                let mut found = found.lock();
                found.entry(id.clone()).or_default().add(pad, buffer);
                let done = |wanted: &Vec<String>| wanted.iter().all(|id| found.contains_key(id));
                if wanted.as_ref().is_some_and(done)
                    && let Some(bus) = &bus
                {
                    // The rest is not needed.
                    let _ = bus.post(gst::message::Eos::new());
                }
                gst::PadProbeReturn::Ok
            });
        });
        Ok(Self { pipeline, streams })
    }

    /// The streams that have packets, by their ids.
    pub fn streams(&self) -> HashMap<String, Contents> {
        self.streams.lock().clone()
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

impl Contents {
    /// Time from the first to the last packet that is shown.
    pub fn span(&self) -> ClockTime {
        let times = self.first.zip(self.last);
        times.map_or(ClockTime::ZERO, |(first, last)| last.saturating_sub(first))
    }

    fn add(&mut self, pad: &gst::Pad, buffer: &gst::BufferRef) {
        let segment = pad.sticky_event::<gst::event::Segment>(0);
        let segment = segment.as_ref().and_then(|event| event.segment().downcast_ref());
        let time = demuxed_time(pad, buffer);
        let shown = segment.and_then(|segment: &gst::FormattedSegment<ClockTime>| {
            // A frame that begins where the segment ends is not shown.
            let before_end = segment.stop().is_none_or(|stop| time.is_some_and(|time| time < stop));
            before_end.then(|| segment.to_running_time(time)).flatten()
        });
        self.begin = segment.and_then(|segment| segment.start());
        self.shown += u64::from(shown.is_some());
        self.first = self.first.into_iter().chain(shown).min();
        self.last = self.last.max(shown);
        self.video = pad.current_caps().is_some_and(|caps| {
            caps.iter().any(|s| s.name().starts_with("video/") || s.name().starts_with("image/"))
        });
    }
}
