// SPDX-License-Identifier: MIT OR Apache-2.0
//! Audio and subtitle streams on their way from the input to a muxer.

use gst::{ClockTime, prelude::*};
use parking_lot::Mutex;

use super::parts::{Form, chain, decoder, drop_if, link_to_muxer, read, static_pad};
use crate::{
    failure::Failure,
    source::{Source, Stream},
    target::{Container, Treatment},
};

/// Adds the audio and subtitle streams of the source to a muxer, and returns the muxer's pads for them.
pub fn copy_other_streams(
    pipeline: &gst::Pipeline,
    source: &Source,
    container: &Container,
    muxer: &gst::Element,
) -> Result<Vec<gst::Pad>, Failure> {
    let mut pads = Vec::new();
    let audio = source.audio.iter().map(|stream| (stream, container.audio(stream), "audio_%u"));
    let subtitles =
        source.subtitles.iter().map(|stream| (stream, container.subtitles(stream), "subtitle_%u"));
    for (stream, treatment, template) in audio.chain(subtitles) {
        let treatment = treatment?;
        let (description, decode) = match treatment {
            Treatment::Drop => continue,
            Treatment::Copy => (parser(stream).to_owned(), false),
            Treatment::RemoveMarkup => {
                ("capssetter replace=true caps=text/x-raw,format=utf8".to_owned(), false)
            }
            Treatment::Encode(encoder) => {
                (format!("audioconvert ! audioresample ! {encoder}"), true)
            }
        };
        let chain = chain(pipeline, &format!("{description} ! queue"))?;
        let pad = link_to_muxer(&static_pad(&chain, "src")?, muxer, template)?;
        // The muxer has the chapters, counted from where the video begins.
        pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, |_, info| {
            drop_if(info.event().is_some_and(|event| event.type_() == gst::EventType::Toc))
        });
        drop_untimed_headers(&pad);
        if template == "subtitle_%u" && container.has_boxes() {
            end_with_empty_subtitle(&pad);
        }
        pads.push(pad);
        let sink = static_pad(&chain, "sink")?;
        if treatment == Treatment::RemoveMarkup {
            sink.add_probe(gst::PadProbeType::BUFFER, |_, info| {
                if let Some(buffer) = info.buffer_mut() {
                    remove_markup(buffer);
                }
                gst::PadProbeReturn::Ok
            });
        }
        let sink = if decode { decoder(pipeline, &sink)? } else { sink };
        let form = match template {
            "subtitle_%u" if treatment == Treatment::Copy => Form::Unparsed,
            _ => Form::Parsed,
        };
        read(pipeline, &source.path, &stream.id, form, &sink)?;
    }
    Ok(pads)
}

/// Adds an empty subtitle after the last one. Where subtitles begin later than the video, ffmpeg's libraries show the last
/// sample for too short a time or not at all, because they leave out the empty edit before the first one.
fn end_with_empty_subtitle(muxer: &gst::Pad) {
    let end = Mutex::new(None);
    let kinds = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
    muxer.add_probe(kinds, move |pad, info| {
        match &info.data {
            Some(gst::PadProbeData::Buffer(buffer)) => {
                *end.lock() =
                    buffer.pts().zip(buffer.duration()).map(|(pts, duration)| pts + duration);
            }
            Some(gst::PadProbeData::Event(event)) if event.type_() == gst::EventType::Eos => {
                let end = end.lock().take();
                if let Some(end) = end {
                    let mut empty = gst::Buffer::new();
                    if let Some(empty) = empty.get_mut() {
                        empty.set_pts(end);
                        empty.set_duration(ClockTime::MSECOND);
                    }
                    // After an error, the muxer has reported it.
                    let _ = pad.chain(empty);
                }
            }
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
}

/// Drops the headers of FLAC and Vorbis, which the caps have as well. Because their buffers have no time, matroskamux stops
/// waiting for subtitles, and writes the header of the file before it knows their language.
fn drop_untimed_headers(muxer: &gst::Pad) {
    muxer.add_probe(gst::PadProbeType::BUFFER, |_, info| {
        drop_if(info.buffer().is_some_and(|buffer| {
            buffer.flags().contains(gst::BufferFlags::HEADER) && buffer.dts_or_pts().is_none()
        }))
    });
}

/// The element that brings a copied stream into the form that muxers accept.
fn parser(stream: &Stream) -> &'static str {
    let structure = stream.caps.structure(0);
    let version = structure.and_then(|structure| structure.get::<i32>("mpegversion").ok());
    match (structure.map(|structure| structure.name().as_str()), version) {
        (Some("audio/mpeg"), Some(2 | 4)) => "aacparse",
        _ => "identity",
    }
}

/// Converts Pango markup to plain text: removes tags and resolves entities.
fn remove_markup(buffer: &mut gst::Buffer) {
    let Ok(map) = buffer.map_readable() else { return };
    let text = String::from_utf8_lossy(&map).into_owned();
    drop(map);
    let mut parts = text.split('<');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    plain.extend(parts.filter_map(|part| part.split_once('>')).map(|(_tag, after)| after));
    // "&amp;" last: the "&" it leaves must not start another entity.
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&apos;", "'"),
        ("&amp;", "&"),
    ];
    let plain = entities.iter().fold(plain, |text, (entity, letter)| text.replace(entity, letter));
    let flags = gst::BufferCopyFlags::FLAGS | gst::BufferCopyFlags::TIMESTAMPS;
    let mut stripped = gst::Buffer::from_slice(plain.into_bytes());
    if let Some(target) = stripped.get_mut() {
        let _ = buffer.copy_into(target, flags, ..);
    }
    *buffer = stripped;
}
