// SPDX-License-Identifier: MIT OR Apache-2.0
//! The streams of an input file.

use std::path::{Path, PathBuf};

use gst::{ClockTime, glib, prelude::*};
use gst_pbutils::prelude::*;

use crate::failure::{Failure, Kind};

/// A stream of the file.
#[derive(Debug, Clone)]
pub struct Stream {
    pub id: String,
    /// As its demuxer and parser produce them.
    pub caps: gst::Caps,
}

/// A file that contains video.
#[derive(Debug)]
pub struct Source {
    pub path: PathBuf,
    pub duration: Option<ClockTime>,
    pub video: Stream,
    /// Whether the frames have times: all frames that libav reads from a GIF have the time 0.
    pub timed: bool,
    pub interlaced: bool,
    /// Whether a tag of the stream asks players to rotate or mirror the video.
    pub rotated: bool,
    pub audio: Vec<Stream>,
    pub subtitles: Vec<Stream>,
    /// The tags of the file as a whole.
    pub tags: gst::TagList,
}

/// Longest time to find the streams. GStreamer 1.22 sometimes loses a demuxer's error, and then waits
/// forever.
const TIMEOUT: ClockTime = ClockTime::from_seconds(15);

impl Source {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        // The system's error for a missing or unreadable file is better than GStreamer's.
        let path = path.canonicalize().map_err(|error| Failure::input(path, error))?;
        std::fs::File::open(&path).map_err(|error| Failure::input(&path, error))?;
        let broken = |error: glib::Error| {
            Failure::input(&path, format!("cannot read a video from it: {error}"))
        };
        let uri = glib::filename_to_uri(&path, None).map_err(broken)?;
        let info = gst_pbutils::Discoverer::new(TIMEOUT)
            .and_then(|discoverer| discoverer.discover_uri(&uri))
            .map_err(broken)?;
        Self::new(path, &info)
    }

    fn new(path: PathBuf, info: &gst_pbutils::DiscovererInfo) -> Result<Self, Failure> {
        let videos = info.video_streams();
        let Some(video) = videos.iter().find(|video| !video.is_image()).or(videos.first()) else {
            let why = match info.result() {
                gst_pbutils::DiscovererResult::Timeout => {
                    format!("no video found within {} s; it may be truncated", TIMEOUT.seconds())
                }
                _ => "it contains no video".to_owned(),
            };
            return Err(Failure::input(&path, why));
        };
        if info.result() == gst_pbutils::DiscovererResult::MissingPlugins {
            let video_caps = video.caps().map(|caps| caps.to_string()).unwrap_or_default();
            let kind = video_caps.split(',').next().unwrap_or_default().to_owned();
            let details = info.missing_elements_installer_details();
            // "gstreamer|1.0|program|H.264 decoder|decoder-video/x-h264, …". Audio needs no decoder if it
            // is copied.
            if let Some(detail) = details.iter().find(|detail| detail.contains(&kind)) {
                let what = detail.split('|').nth(3).unwrap_or("decoder for this format");
                return Err(Failure::no_decoder(&path, what));
            }
        }
        let stream = |info: &gst_pbutils::DiscovererStreamInfo| {
            let id = info.stream_id()?.to_string();
            Some(Stream { id, caps: info.caps()? })
        };
        let no_id = || Failure::new(Kind::Input, "the video stream has no id".to_owned());
        let rotation = video
            .tags()
            .and_then(|tags| Some(tags.get::<gst::tags::ImageOrientation>()?.get().to_owned()));
        let container = info.stream_info().and_then(|info| info.tags());
        Ok(Self {
            duration: info.duration(),
            timed: video.caps().is_none_or(|caps| {
                caps.iter().all(|structure| structure.name() != "image/gst-libav-gif")
            }),
            video: stream(video.upcast_ref()).ok_or_else(no_id)?,
            interlaced: video.is_interlaced(),
            rotated: rotation.is_some_and(|rotation| rotation != "rotate-0"),
            audio: info
                .audio_streams()
                .iter()
                .filter_map(|info| stream(info.upcast_ref()))
                .collect(),
            subtitles: info
                .subtitle_streams()
                .iter()
                .filter_map(|info| stream(info.upcast_ref()))
                .collect(),
            tags: container.unwrap_or_default(),
            path,
        })
    }
}
