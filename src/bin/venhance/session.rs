// SPDX-License-Identifier: MIT OR Apache-2.0
//! Enhances one file from beginning to end.

use std::{path::Path, time::Instant};

use gst::{ClockTime, prelude::*};
use gstvenhance::{Model, VEnhance, engine::count};

use crate::{
    args::Args,
    compare, compare_page,
    failure::{Failure, Kind, make_enhancer},
    folder,
    partial::{Content, Partial, Paths, Progress, ResumePoint, Settings, same_file},
    pipeline::{Finish, Work},
    properties,
    report::{Report, clock},
    run::{End, Shown},
    signals::Signals,
    source::{self, Source, UNKNOWN_SUBTITLES},
    target::{Container, Encoder, Treatment},
};

/// Containers round the duration, and some count from an earlier clock reference than the first frame.
const DURATION_ROUNDING: ClockTime = ClockTime::from_mseconds(500);

/// What all files of a run share.
pub struct Session {
    pub args: Args,
    /// One element for all files: it keeps its model loaded.
    pub enhancer: VEnhance,
    /// The model that runs.
    pub model: Model,
    /// Why it was chosen.
    pub why: String,
    pub signals: Signals,
}

/// The result for one file.
#[derive(Debug)]
pub enum Outcome {
    /// With a summary of the output, and why it is shorter than the input should be.
    Enhanced(String, Option<Failure>),
    /// With `--resume`: the output already exists.
    Skipped,
}

/// What a run needs to know of its input and its output.
pub struct Prepared {
    pub source: Source,
    pub container: &'static Container,
    pub encoder: Encoder,
    /// Size (w, h) of the output, if the input says its size before it is decoded.
    pub size: Option<(usize, usize)>,
}

/// The video in the partial file.
pub struct Made {
    pub content: Content,
    /// Number of frames of this run.
    pub frames: u64,
    format: String,
    /// Why it is shorter than the input should be.
    early: Option<Failure>,
}

impl Session {
    pub fn new(args: Args, signals: Signals) -> Result<Self, Failure> {
        let enhancer = make_enhancer()?;
        let (model, why) = configure(&enhancer, &args)?;
        Ok(Self { args, enhancer, model, why, signals })
    }

    /// Continues with other arguments. The loaded model stays if it is the same.
    pub fn set_args(&mut self, args: Args) -> Result<(), Failure> {
        (self.model, self.why) = configure(&self.enhancer, &args)?;
        self.args = args;
        Ok(())
    }

    /// Prepares a run from `source` to `output`.
    pub fn prepare(&self, mut source: Source, output: &Path) -> Result<Prepared, Failure> {
        let container = Container::of(output)?;
        let mut encoder = Encoder::new(container, self.args.encoder.as_deref(), self.args.quality)?;
        self.read_beginnings(&mut source)?;
        // Some videos do not say their size before they are decoded.
        let size = self.output(&source).ok().map(|output| output.size);
        if let Some(size) = size {
            encoder.set_size(container, size)?;
        }
        Ok(Prepared { source, container, encoder, size })
    }

    /// Enhances one file. `index` is its position in the folder.
    pub fn enhance(&self, input: &Path, output: &Path, index: usize) -> Result<Outcome, Failure> {
        source::check_file(input)?;
        Container::of(output)?;
        let paths = Paths::new(output);
        if self.is_finished(input, &paths)? {
            return Ok(Outcome::Skipped);
        }
        let source = Source::open(input)?;
        if let Some(folder) = self.args.folder() {
            std::fs::create_dir_all(folder).map_err(|error| Failure::output(folder, &error))?;
        }
        if let Some(picture) = &self.args.compare {
            compare::check(picture)?;
        }
        let Prepared { source, container, encoder, size } = self.prepare(source, output)?;
        for note in conversions(&source, container)? {
            eprintln!("{}: {note}", input.display());
        }
        let started = Instant::now();
        self.set_prompt(input, index)?;
        let settings = self.settings(&source, &encoder)?;
        let (partial, progress) = self.open_partial(&paths, &settings)?;
        // No other process may write the files before the output has its name.
        let _lock = partial.lock()?;
        if let Some(size) = size.filter(|_| encoder.asked)
            && progress == Progress::UpTo(ResumePoint::START)
        {
            self.try_encoder(&source, container, &encoder, size, output)?;
        }
        let (content, made) = match progress {
            Progress::Complete(content) => {
                drop(partial);
                (content, None)
            }
            Progress::UpTo(start) => {
                if let Ok(description) = self.describe(&source) {
                    eprintln!("{description}");
                }
                let made = self.work(&source, &encoder, &paths, partial, start, None)?;
                (made.content.clone(), Some(made))
            }
        };
        let finish = Finish { source: &source, container, encoder: &encoder, content: &content };
        self.finish(&finish, &paths, || Ok(()))?;
        if let Some(picture) = &self.args.compare {
            match is_page(picture) {
                true => {
                    let bytes = compare_page::write(self, &source, output, picture)?;
                    let mib = bytes as f64 / f64::from(1 << 20);
                    println!("{}: {mib:.1} MiB", picture.display());
                }
                false => compare::write(&source, output, picture)?,
            }
        }
        let took = started.elapsed();
        let Some(Made { frames, format, early, .. }) = made else {
            let summary = "finished; all frames were already done".to_owned();
            return Ok(Outcome::Enhanced(summary, None));
        };
        let rate = frames as f64 / took.as_secs_f64();
        // Others were made before an interruption.
        let here = match frames == content.frames {
            true => String::new(),
            false => format!(", {frames} of them in this run,"),
        };
        let (all, took) = (count(content.frames, "frame"), clock(took.as_secs()));
        let summary = format!("{all} of {format}{here} in {took}, {rate:.1} a second");
        Ok(Outcome::Enhanced(summary, early))
    }

    /// Fails where [`enhance`](Self::enhance) would fail before the work; opens the input. Without an output, it would
    /// have the name of the input.
    pub fn check(&self, input: &Path, output: Option<&Path>) -> Result<Source, Failure> {
        source::check_file(input)?;
        let named = output.map_or_else(|| folder::output(input, Path::new("")), Path::to_owned);
        Container::of(&named)?;
        if let Some(output) = output {
            self.is_finished(input, &Paths::new(output))?;
            // Otherwise the run creates it.
            let folder = output.parent().filter(|_| self.args.folder().is_none());
            if let Some(folder) = folder.filter(|folder| !folder.as_os_str().is_empty()) {
                folder.metadata().map_err(|error| Failure::output(output, &error))?;
            }
        }
        let prepared = self.prepare(Source::open(input)?, &named)?;
        let Prepared { source, container, encoder, .. } = prepared;
        for note in conversions(&source, container)? {
            eprintln!("{}: {note}", input.display());
        }
        let size = self.output(&source)?.size;
        if encoder.asked {
            self.try_encoder(&source, container, &encoder, size, &named)?;
        }
        Ok(source)
    }

    /// Whether `--resume` finds a finished output. Fails if it, or what a run leaves beside it, is in the way.
    fn is_finished(&self, input: &Path, paths: &Paths) -> Result<bool, Failure> {
        paths.check_output()?;
        paths.check_input(input)?;
        let (resume, overwrite) = (self.args.resume, self.args.overwrite);
        if paths.output.exists() && !overwrite {
            return match resume {
                true => Ok(true),
                false => Err(Failure::usage(format!(
                    "{} exists: keep it with --resume, or replace it with --overwrite",
                    paths.output.display()
                ))),
            };
        }
        // A run that was aborted before its first frame leaves an empty one.
        let has_video = paths.video.metadata().is_ok_and(|video| video.len() > 0);
        if has_video && !resume && !overwrite {
            return Err(Failure::usage(format!(
                "{} exists from an interrupted run: continue it with --resume, or start over with \
                 --overwrite",
                paths.video.display()
            )));
        }
        self.check_picture(input, &paths.output)?;
        Ok(false)
    }

    /// Fails if `--compare` names something else than a new picture or page.
    fn check_picture(&self, input: &Path, output: &Path) -> Result<(), Failure> {
        let Some(picture) = &self.args.compare else { return Ok(()) };
        if !has_extension(picture, "png") && !is_page(picture) {
            let picture = picture.display();
            return Err(Failure::usage(format!(
                "--compare {picture}: it writes a PNG or a page; use a name that ends in .png or .html"
            )));
        }
        if same_file(picture, input) || same_file(picture, output) {
            let picture = picture.display();
            return Err(Failure::usage(format!(
                "--compare {picture} would overwrite IN or OUT; use another name"
            )));
        }
        if picture.exists() && !self.args.overwrite {
            let picture = picture.display();
            return Err(Failure::usage(format!("{picture} exists: replace it with --overwrite")));
        }
        Ok(())
    }

    /// Opens the partial file, and returns how much of the video it contains.
    fn open_partial(
        &self,
        paths: &Paths,
        settings: &Settings,
    ) -> Result<(Partial, Progress), Failure> {
        let nothing = Progress::UpTo(ResumePoint::START);
        if !self.args.resume {
            return Ok((Partial::create(paths, settings)?, nothing));
        }
        let output = paths.output.display();
        let (partial, progress) = Partial::resume(paths, settings)?;
        match &progress {
            None => eprintln!("{output}: nothing to resume, starts at the beginning"),
            Some(Progress::Complete(_)) => eprintln!("{output}: all frames are finished"),
            Some(Progress::UpTo(point)) => {
                eprintln!("{output}: resumes at {}", clock(point.time.seconds()));
            }
        }
        Ok((partial, progress.unwrap_or(nothing)))
    }

    /// Enhances the video into the partial file: from `start` to its end, or to another point.
    pub fn work(
        &self,
        source: &Source,
        encoder: &Encoder,
        paths: &Paths,
        partial: Partial,
        start: ResumePoint,
        until: Option<ResumePoint>,
    ) -> Result<Made, Failure> {
        let name = source.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let frames = until.map(|until| until.frames);
        let work = Work::new(source, encoder, self.enhancer.upcast_ref(), partial, start, frames)?;
        let total = until.map(|until| until.time).or(source.duration);
        let mut report = Report::new(name, total, start.time, self.args.json_progress);
        let end = self.run(&work.pipeline, source, &paths.output, Some((&work, &mut report)));
        let (frames, position) = (work.state.frames(), work.state.position());
        report.finish(position, frames, work.progress().2);
        drop(report);
        let end = end.map_err(|failure| work.state.failure().unwrap_or(failure));
        let empty = work.state.partial().is_empty();
        match end {
            Ok(End::Eos(Some(failure))) if frames == 0 => Err(failure),
            Ok(End::Eos(None)) if frames == 0 && start.time.is_zero() => {
                work.state.partial().discard();
                Err(Failure::input(&source.path, "it contains no video frames"))
            }
            // A piece ends before a frame, so at least that frame should have come.
            Ok(End::Eos(None)) if frames == 0 => Err(Failure::input(
                &source.path,
                format!(
                    "it has no frames after {}; start over with --overwrite",
                    clock(start.time.seconds())
                ),
            )),
            Ok(End::Eos(failure)) => {
                // Some demuxers know how long each stream is.
                let expected = [source.duration, work.duration()].into_iter().flatten().min();
                let offset = work.offset().saturating_sub(start.time);
                let expected = expected
                    .filter(|_| !source.elementary && until.is_none())
                    .map(|expected| expected.saturating_sub(offset));
                let content = work.state.complete()?;
                let read_until = work.state.read_until();
                let early = ended_early(source, read_until, expected, content.end, failure);
                let format = work.output_info().as_ref().map_or(String::new(), format_of);
                Ok(Made { content, frames, format, early })
            }
            Ok(End::Interrupted) if empty => Err(cancelled("before the first frame")),
            Ok(End::Interrupted) => Err(cancelled(&how_to_resume(paths, position))),
            Err(failure) if empty => Err(failure),
            Err(Failure { kind, message }) => {
                Err(Failure::new(kind, format!("{message}\n{}", how_to_resume(paths, position))))
            }
        }
    }

    /// Writes the finished file, checks it, and removes the temporary ones. `record` runs before it gets its name.
    pub fn finish(
        &self,
        finish: &Finish<'_>,
        paths: &Paths,
        record: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let file = paths.create_finished()?;
        let pipeline = finish.pipeline(&paths.video, &file)?;
        let end = self.run(&pipeline, finish.source, &paths.output, None);
        let _ = pipeline.set_state(gst::State::Null);
        // A first signal comes too late from here on: the finished file replaces the partial one.
        let _signals = self.signals.watch();
        let finished = match end {
            Ok(End::Eos(_)) => finish
                .edit_boxes(&file, &paths.finished)
                // Demuxers count from the first frame of a file, or from 0: compare what they find in both files.
                .and_then(|()| self.video_of(finish.source, &paths.video))
                .and_then(|video| self.check_finished(finish, &paths.finished, video.span()))
                .and_then(|()| record())
                .and_then(|()| paths.publish(&file)),
            Ok(End::Interrupted) => {
                Err(cancelled(&format!("all frames are finished; {}", paths.how_to_continue)))
            }
            Err(failure) => Err(failure),
        };
        finished.map_err(|Failure { kind, message }| {
            let _ = std::fs::remove_file(&paths.finished);
            match kind {
                Kind::Cancelled => Failure { kind, message },
                _ => {
                    let video = paths.video.display();
                    Failure::new(kind, format!("{message}\n{video} contains all frames"))
                }
            }
        })?;
        paths.remove_temporary()
    }
}

/// Sets the properties that are given. Returns the model that runs, and why.
fn configure(enhancer: &VEnhance, args: &Args) -> Result<(Model, String), Failure> {
    for property in &args.properties {
        enhancer.set_property_from_value(&property.name, &property.value);
    }
    let (model, why) = enhancer.choice().map_err(|error| Failure::model(&error))?;
    Ok((model, properties::with_flags(&why)))
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.enhancer.set_state(gst::State::Null);
    }
}

/// The streams that the output does not contain as they are in the input.
pub fn conversions(source: &Source, container: &Container) -> Result<Vec<String>, Failure> {
    let mut notes = Vec::new();
    let muxer = container.muxer;
    let codec = |caps: &gst::Caps| gst_pbutils::pb_utils_get_codec_description(caps);
    for stream in &source.audio {
        if let Treatment::Encode(encoder) = container.audio(stream)? {
            let encoder = encoder.split(' ').next().unwrap_or_default();
            let codec = codec(&stream.caps);
            notes.push(format!(
                "{muxer} does not support {codec}: encoding the audio with {encoder}"
            ));
        }
    }
    for stream in &source.subtitles {
        if container.subtitles(stream)? == Treatment::Drop {
            notes.push(match stream.is(UNKNOWN_SUBTITLES) {
                true => {
                    "GStreamer does not know the format of these subtitles: dropping them".into()
                }
                false => {
                    let codec = codec(&stream.caps);
                    format!("{muxer} does not support {codec}: dropping these subtitles")
                }
            });
        }
    }
    if let (all, kept) = source.chapters.counts()
        && container.has_boxes()
        && kept < all
    {
        notes.push(format!(
            "{} keeps 255 chapters, without those within others: dropping {} of {all}",
            container.muxer.replace("mux", ""),
            all - kept
        ));
    }
    Ok(notes)
}

/// Why the input is read to `read_until` only, although it should be as long as `expected`. The video of the output ends at
/// `end`.
fn ended_early(
    source: &Source,
    read_until: ClockTime,
    expected: Option<ClockTime>,
    end: ClockTime,
    failure: Option<Failure>,
) -> Option<Failure> {
    let short = expected.filter(|expected| read_until + DURATION_ROUNDING < *expected);
    let why = match (short, failure) {
        (Some(expected), _) => {
            format!(" of {:.1} s; the file is damaged or truncated", expected.seconds_f64())
        }
        (None, Some(failure)) => format!(": {failure}"),
        (None, None) => return None,
    };
    let end = end.seconds_f64();
    Some(Failure::input(&source.path, format!("it ended early: the output has {end:.1} s{why}")))
}

/// Size and frame rate: "1280x720 at 24 fps".
fn format_of(info: &gst_video::VideoInfo) -> String {
    let fps = f64::from(info.fps().numer()) / f64::from(info.fps().denom());
    let format = format!("{}x{} at {fps:.4} fps", info.width(), info.height());
    format.replace(".0000 fps", " fps")
}

fn is_page(comparison: &Path) -> bool {
    has_extension(comparison, "html")
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(wanted))
}

pub fn cancelled(how: &str) -> Failure {
    Failure::new(Kind::Cancelled, format!("cancelled: {how}"))
}

fn how_to_resume(paths: &Paths, position: ClockTime) -> String {
    format!(
        "{} contains the video up to {}; {}",
        paths.video.display(),
        clock(position.seconds()),
        paths.how_to_continue
    )
}
