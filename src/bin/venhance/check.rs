// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks by reading files: which streams of the input are empty, and whether the finished file is complete.

use std::path::Path;

use gst::ClockTime;

use crate::{
    failure::{Failure, Kind},
    pipeline::{Contents, Finish, Packets},
    run::End,
    session::{Session, cancelled},
    source::{Source, UNKNOWN_SUBTITLES},
};

/// Times in files are rounded, twice.
const ROUNDING: ClockTime = ClockTime::from_mseconds(5);

impl Session {
    /// Leaves out the streams without packets, which would make an output that cannot be read, and says so. Finds out
    /// where chapters count from.
    pub fn read_beginnings(&self, source: &mut Source) -> Result<(), Failure> {
        let others = source.audio.iter().chain(&source.subtitles);
        let known = others.filter(|stream| !stream.is(UNKNOWN_SUBTITLES));
        let video = source.chapters.count_as_packets().then_some(&source.video);
        let ids: Vec<_> = known.chain(video).map(|stream| stream.id.clone()).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let packets = Packets::new(&source.path, Some(ids))?;
        match self.run(&packets.pipeline, source, &source.path, None) {
            Ok(End::Interrupted) => return Err(cancelled("before the first frame")),
            // Of a damaged file, what comes before the damage counts.
            Ok(End::Eos(_)) | Err(_) => {}
        }
        let streams = packets.streams();
        if streams.is_empty() {
            // The enhancement reports the reason.
            return Ok(());
        }
        let begin = streams.get(&source.video.id).and_then(|video| video.begin);
        if let Some(begin) = begin.filter(|_| source.chapters.count_as_packets()) {
            source.chapters.count_from(begin);
        }
        for (name, others) in [("sound", &mut source.audio), ("subtitle", &mut source.subtitles)] {
            others.retain(|stream| {
                let unknown = stream.is(UNKNOWN_SUBTITLES);
                let empty = !unknown && !streams.contains_key(&stream.id);
                if empty {
                    eprintln!("{}: leaving out an empty {name} track", source.path.display());
                }
                !empty
            });
        }
        Ok(())
    }

    /// Fails unless a finished file can be opened and contains all streams and frames. `span` is the time from the
    /// first to the last frame.
    pub fn check_finished(
        &self,
        finish: &Finish<'_>,
        finished: &Path,
        span: ClockTime,
    ) -> Result<(), Failure> {
        let fails = |why: String| {
            let muxer = finish.container.muxer;
            Failure::new(
                Kind::Output,
                format!(
                    "the file that {muxer} has written is unusable: {why}; use another --encoder or format"
                ),
            )
        };
        let opened = match Source::open(finished) {
            // Files can be written without a decoder for them.
            Err(Failure { kind: Kind::Plugin, .. }) => None,
            opened => Some(opened.map_err(|failure| fails(failure.message))?),
        };
        let duration = opened.as_ref().and_then(|opened| opened.duration);
        if let Some(opened) = opened {
            let expected = finish.streams()?;
            let found = (opened.audio.len(), opened.subtitles.len());
            if found != expected {
                let ((audio, subtitles), (all_audio, all_subtitles)) = (found, expected);
                return Err(fails(format!(
                    "it has {audio} of {all_audio} sound tracks and {subtitles} of {all_subtitles} subtitle \
                     tracks"
                )));
            }
        }
        let video = self.video_of(finish.source, finished);
        let video = video.map_err(|failure| match failure.kind {
            Kind::Cancelled => failure,
            _ => fails(failure.message),
        })?;
        let frames = finish.content.frames;
        if video.shown != frames {
            return Err(fails(format!("it has {} of {frames} frames", video.shown)));
        }
        let found = video.span();
        if found.absdiff(span) > ROUNDING {
            return Err(fails(format!(
                "its last frame comes {found} after the first one instead of {span}"
            )));
        }
        match duration.is_some_and(|duration| duration <= span) {
            true => Err(fails("it is too short".into())),
            false => Ok(()),
        }
    }

    /// Reads the packets of the video in a file that was made from `source`.
    pub fn video_of(&self, source: &Source, path: &Path) -> Result<Contents, Failure> {
        let packets = Packets::new(path, None)?;
        if let End::Interrupted = self.run(&packets.pipeline, source, path, None)? {
            return Err(cancelled("all frames are finished, and the file was being read back"));
        }
        let streams = packets.streams();
        Ok(streams.values().find(|stream| stream.video).cloned().unwrap_or_default())
    }
}
