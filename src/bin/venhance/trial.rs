// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tries an encoder before the work begins.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use gst::{ClockTime, prelude::*};

use crate::{
    failure::{Failure, Kind, WRITER, make},
    partial::Content,
    pipeline::{Finish, add, add_encoder, chain, link, link_to_muxer, static_pad},
    run::End,
    session::{Session, cancelled},
    source::Source,
    target::{Container, Encoder, MATROSKA},
};

impl Session {
    /// Encodes three frames of a size (w, h) with the encoder that `--encoder` names, and puts them into the
    /// container, so that what cannot work fails before the work begins.
    pub fn try_encoder(
        &self,
        source: &Source,
        container: &Container,
        encoder: &Encoder,
        (width, height): (usize, usize),
        output: &Path,
    ) -> Result<(), Failure> {
        let source =
            Source { audio: Vec::new(), subtitles: Vec::new(), duration: None, ..source.clone() };
        let tried = self.encode_and_store(&source, container, encoder, (width, height), output);
        tried.map_err(|failure| match failure.kind {
            Kind::Cancelled | Kind::Plugin => failure,
            _ => Failure::usage(format!(
                "--encoder {} cannot make video of {width}x{height} pixels in this format: {failure}",
                encoder.description
            )),
        })
    }

    fn encode_and_store(
        &self,
        source: &Source,
        container: &Container,
        encoder: &Encoder,
        (width, height): (usize, usize),
        output: &Path,
    ) -> Result<(), Failure> {
        let folder = TemporaryFolder::new()?;
        let (partial, finished) = (folder.0.join("partial.mkv"), folder.0.join("finished"));
        let pipeline = gst::Pipeline::new();
        let frames = chain(
            &pipeline,
            &format!(
                "videotestsrc num-buffers=3 ! video/x-raw,width={width},height={height},framerate=25/1 \
                 ! videoconvert"
            ),
        )?;
        let encoding = add_encoder(&pipeline, encoder)?;
        let (muxer, file) = (make(MATROSKA.muxer)?, make("filesink")?);
        file.set_property("name", WRITER);
        file.set_property("location", &partial);
        add(&pipeline, &[&muxer, &file])?;
        link(&static_pad(&frames, "src")?, &static_pad(&encoding, "sink")?)?;
        let pad = link_to_muxer(&static_pad(&encoding, "src")?, &muxer, "video_%u")?;
        let end = self.run(&pipeline, source, output, None);
        let caps = pad.current_caps().unwrap_or_else(gst::Caps::new_any);
        let _ = pipeline.set_state(gst::State::Null);
        complete(end?)?;

        let frame = ClockTime::SECOND / 25;
        let content = Content { frames: 3, last: frame * 2, end: frame * 3, caps };
        let finish = Finish { source, container, encoder, content: &content };
        let file =
            File::create_new(&finished).map_err(|error| Failure::output(&finished, &error))?;
        let pipeline = finish.pipeline(&partial, &file)?;
        let end = self.run(&pipeline, source, output, None);
        let _ = pipeline.set_state(gst::State::Null);
        complete(end?)?;
        self.check_finished(&finish, &finished, finish.content.last)
    }
}

/// Fails if a pipeline has not come to its end.
fn complete(end: End) -> Result<(), Failure> {
    match end {
        End::Eos(_) => Ok(()),
        End::Interrupted => Err(cancelled("before the first frame")),
    }
}

/// A new folder, removed with all that is in it.
pub struct TemporaryFolder(pub PathBuf);

impl TemporaryFolder {
    pub fn new() -> Result<Self, Failure> {
        let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let path = std::env::temp_dir().join(format!("venhance-{}-{now}", std::process::id()));
        fs::create_dir(&path).map_err(|error| Failure::output(&path, &error))?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
