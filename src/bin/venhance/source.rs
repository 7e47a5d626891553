// SPDX-License-Identifier: MIT OR Apache-2.0
//! The streams of an input file.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use gst::{ClockTime, glib, prelude::*};
use gst_pbutils::prelude::*;

use crate::{
    chapters::Chapters,
    demuxers::hide_duration,
    failure::{Failure, make},
    local,
};

/// A stream of the file.
#[derive(Debug, Clone)]
pub struct Stream {
    pub id: String,
    /// As its demuxer and parser produce them.
    pub caps: gst::Caps,
}

impl Stream {
    pub fn is(&self, format: &str) -> bool {
        self.caps.structure(0).is_some_and(|structure| structure.name() == format)
    }
}

/// A file that contains video.
#[derive(Debug, Clone)]
pub struct Source {
    pub path: PathBuf,
    pub duration: Option<ClockTime>,
    pub video: Stream,
    /// Whether the video is in no container. Then its duration is an estimate.
    pub elementary: bool,
    /// Whether it is a picture.
    pub still: bool,
    /// How a tag of the stream asks players to rotate or mirror the video, as a value of `videoflip`.
    pub rotation: Option<&'static str>,
    /// Whether that makes its width its height.
    pub swaps_sides: bool,
    pub audio: Vec<Stream>,
    pub subtitles: Vec<Stream>,
    /// The tags of the file as a whole.
    pub tags: gst::TagList,
    pub chapters: Chapters,
}

/// The frame rate of a picture, which becomes a video of one frame, and of a video without timestamps.
pub const ASSUMED_RATE: gst::Fraction = gst::Fraction::new_raw(25, 1);

/// Subtitles of a format that the demuxer does not know. `parsebin` drops them.
pub const UNKNOWN_SUBTITLES: &str = "application/x-subtitle-unknown";

/// Longest time to find the streams. GStreamer 1.22 sometimes loses a demuxer's error, and then waits
/// forever.
const TIMEOUT: ClockTime = ClockTime::from_seconds(15);

/// Length of a file's beginning that tells text from video.
const BEGINNING: u64 = 1 << 16;

impl Source {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        check_file(path)?;
        let path = path.canonicalize().map_err(|error| Failure::input(path, error))?;
        let broken = |error: glib::Error| {
            Failure::input(&path, format!("cannot read a video from it: {error}"))
        };
        let uri = glib::filename_to_uri(&path, None).map_err(broken)?;
        // The discoverer needs this element; its own error does not say what to install.
        make("uridecodebin")?;
        let discoverer = gst_pbutils::Discoverer::new(TIMEOUT).map_err(broken)?;
        let mut info = discoverer.discover_uri(&uri).map_err(broken)?;
        let duration = info.duration();
        if info.video_streams().is_empty() {
            discoverer.connect_source_setup(|_, file| {
                if let Some(pad) = file.static_pad("src") {
                    hide_duration(&pad);
                }
            });
            info = discoverer.discover_uri(&uri).map_err(broken)?;
        }
        Self::new(path, &info, duration)
    }

    fn new(
        path: PathBuf,
        info: &gst_pbutils::DiscovererInfo,
        duration: Option<ClockTime>,
    ) -> Result<Self, Failure> {
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
        let no_id = || Failure::input(&path, "its video stream has no id");
        let rotation = video
            .tags()
            .and_then(|tags| Some(tags.get::<gst::tags::ImageOrientation>()?.get().to_owned()));
        let container = info.stream_info().and_then(|info| info.tags());
        let timed = video.caps().is_none_or(|caps| {
            caps.iter().all(|structure| structure.name() != "image/gst-libav-gif")
        });
        Ok(Self {
            duration,
            elementary: info.stream_info().is_none_or(|info| {
                info.downcast_ref::<gst_pbutils::DiscovererContainerInfo>().is_none()
            }),
            still: timed && video.is_image() && video.framerate().numer() == 0,
            video: stream(video.upcast_ref()).ok_or_else(no_id)?,
            rotation: rotation.as_deref().and_then(direction),
            swaps_sides: rotation
                .is_some_and(|rotation| rotation.ends_with("90") || rotation.ends_with("270")),
            audio: info
                .audio_streams()
                .iter()
                .filter_map(|info| stream(info.upcast_ref()))
                .collect(),
            subtitles: info
                .subtitle_streams()
                .iter()
                // Those of an unknown format have no id.
                .filter_map(|info| {
                    let id = info.stream_id().map(|id| id.to_string()).unwrap_or_default();
                    Some(Stream { id, caps: info.caps()? })
                })
                .collect(),
            tags: container.unwrap_or_default(),
            chapters: Chapters::read(&path, info.toc(), duration),
            path,
        })
    }
}

impl Source {
    /// Without sound, subtitles and chapters.
    pub fn video_only(self) -> Self {
        Self { audio: Vec::new(), subtitles: Vec::new(), chapters: Chapters::default(), ..self }
    }
}

/// Fails if the path is not that of a file that can contain video. Opening a pipe would wait for its writer.
pub fn check_file(path: &Path) -> Result<(), Failure> {
    // The system's error for a missing or unreadable file is better than GStreamer's.
    let kind = path.metadata().map_err(|error| match path.to_string_lossy().contains("://") {
        true => Failure::input(
            path,
            "only files are read, not addresses; download the video and use the path of the file",
        ),
        false => Failure::input(path, error),
    })?;
    let kind = kind.file_type();
    if !kind.is_file() {
        let what = match () {
            () if kind.is_dir() => "a folder",
            () if kind.is_fifo() => "a pipe",
            () if kind.is_socket() => "a socket",
            () => "a device",
        };
        let why = format!("it is {what}, not a file; write the video into a file first");
        return Err(Failure::input(path, why));
    }
    let mut beginning = Vec::new();
    File::open(path)
        .and_then(|file| file.take(BEGINNING).read_to_end(&mut beginning))
        .map_err(|error| Failure::input(path, error))?;
    match local::is_text(&beginning) {
        true => Err(Failure::input(
            path,
            "it is text, and what a playlist refers to is not opened; use the video file itself",
        )),
        false => Ok(()),
    }
}

/// Converts the tag image-orientation to a value of `video-direction`. `None` for an upright video.
fn direction(orientation: &str) -> Option<&'static str> {
    Some(match orientation {
        "rotate-90" => "90r",
        "rotate-180" => "180",
        "rotate-270" => "90l",
        "flip-rotate-0" => "horiz",
        "flip-rotate-90" => "ul-lr",
        "flip-rotate-180" => "vert",
        "flip-rotate-270" => "ur-ll",
        _ => return None,
    })
}
