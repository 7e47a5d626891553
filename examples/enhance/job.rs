// SPDX-License-Identifier: MIT OR Apache-2.0
//! One file from beginning to end.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use gst::{ClockTime, prelude::*};

use crate::{
    args::{Args, Prompts},
    failure::{Failure, Kind, make, missing_plugin},
    graph::{self, Work},
    partial::{Joint, Partial, Paths, Progress, Settings},
    report::{Report, clock},
    source::Source,
    target::{Container, Encoder, Treatment},
};

/// How often the bus is left to look at the interrupt and to show progress.
const TICK: ClockTime = ClockTime::from_mseconds(100);

/// How long an encoder may take to write what it holds.
const ENDING: Duration = Duration::from_secs(30);

/// What all files of a run have in common.
pub struct Session {
    pub args: Args,
    /// One for all files: it keeps its model loaded from one to the next.
    enhancer: gst::Element,
    /// How often the user has pressed Ctrl-C.
    interrupts: &'static AtomicUsize,
}

/// What has become of a file.
#[derive(Debug)]
pub enum Done {
    Enhanced(String),
    /// With --resume: it is there already.
    Before,
}

enum End {
    Eos,
    Interrupted,
}

impl Session {
    pub fn new(args: Args, interrupts: &'static AtomicUsize) -> Result<Self, Failure> {
        let enhancer = make("venhance")?;
        for (name, _, value) in &args.properties {
            enhancer.set_property_from_value(name, value);
        }
        Ok(Self { args, enhancer, interrupts })
    }

    pub fn interrupted(&self) -> bool {
        self.interrupts.load(Ordering::Relaxed) > 0
    }

    /// What would be done with a file, for people.
    pub fn plan(&self, input: &Path) -> Result<String, Failure> {
        let source = Source::open(input)?;
        let enhancer = self.enhancer.downcast_ref::<gstvenhance::VEnhance>();
        let info = gst_video::VideoInfo::from_caps(&source.video.caps);
        let (Some(enhancer), Ok(info)) = (enhancer, info) else {
            return Err(Failure::input(input, "its size is not known"));
        };
        let fps = (info.fps().numer().max(0) as u32, info.fps().denom().max(1) as u32);
        let seconds = source.duration.unwrap_or(ClockTime::ZERO).seconds_f64();
        let keys = (seconds * f64::from(fps.0) / f64::from(fps.1)).round() as usize;
        let size = (info.width() as usize, info.height() as usize);
        let plan = enhancer.plan(size, fps, keys);
        plan.map_err(|error| Failure::new(Kind::Model, error.to_string()))
    }

    /// Sets the prompt of a video, and gives it if it is its own. `index` counts the videos.
    fn prompt(&self, input: &Path, index: usize) -> Result<Option<String>, Failure> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|error| Failure::input(path, error))
        };
        let beside = input.with_extension("txt");
        let prompt = match &self.args.prompts {
            Prompts::Given => return Ok(None),
            Prompts::Beside if !beside.is_file() => {
                let default = self.enhancer.find_property("prompt");
                if let Some(pspec) = default {
                    self.enhancer.set_property_from_value("prompt", pspec.default_value());
                }
                return Ok(None);
            }
            Prompts::Beside => read(&beside)?.trim().to_owned(),
            Prompts::FileName => {
                input.file_stem().unwrap_or_default().to_string_lossy().into_owned()
            }
            Prompts::Lines(path) => {
                let text = read(path)?;
                let line = text.lines().nth(index).map(|line| line.trim().to_owned());
                line.ok_or_else(|| {
                    let lines = text.lines().count();
                    Failure::input(
                        path,
                        format!("it has {lines} lines, fewer than there are videos"),
                    )
                })?
            }
        };
        self.enhancer.set_property("prompt", &prompt);
        Ok(Some(prompt))
    }

    /// Enhances one file, the `index`th of its folder.
    pub fn enhance(&self, input: &Path, output: &Path, index: usize) -> Result<Done, Failure> {
        let container = Container::of(output)?;
        let encoder = Encoder::new(container, self.args.encoder.as_deref(), self.args.quality)?;
        let paths = Paths::new(output);
        if output.exists() && !self.args.overwrite {
            return match self.args.resume {
                true => Ok(Done::Before),
                false => Err(Failure::usage(format!(
                    "{} exists: --overwrite replaces it",
                    output.display()
                ))),
            };
        }
        let source = Source::open(input)?;
        self.check_paths(&source.path, &paths)?;
        for note in self.notes(&source, container)? {
            eprintln!("{}: {note}", input.display());
        }

        let started = Instant::now();
        let mut frames = None;
        let mut settings = self.settings(&source, &encoder);
        if let Some(prompt) = self.prompt(input, index)? {
            settings.push(("its prompt".into(), prompt));
        }
        let (partial, progress) = self.partial(&paths, &settings)?;
        if progress == Progress::Complete {
            drop(partial);
        } else {
            frames = Some(self.work(&source, &encoder, &paths, partial, progress)?);
        }
        self.finish(&source, container, &encoder, &paths)?;
        if let Some(picture) = &self.args.compare {
            crate::compare::write(&source, output, picture)?;
        }
        let took = started.elapsed();
        let frames = frames.map_or(String::new(), |(frames, picture)| {
            let rate = frames as f64 / took.as_secs_f64();
            format!("{frames} frames of {picture} in {}, {rate:.1} a second", clock(took.as_secs()))
        });
        Ok(Done::Enhanced(frames))
    }

    /// Nothing that is written may be the input, or what the user has not given up.
    fn check_paths(&self, input: &Path, paths: &Paths) -> Result<(), Failure> {
        let same = |a: &Path, b: &Path| {
            a.canonicalize().ok().is_some_and(|a| b.canonicalize().is_ok_and(|b| a == b))
        };
        let written = [&paths.output, &paths.video, &paths.index, &paths.finished];
        if let Some(path) = written.into_iter().find(|path| same(path, input)) {
            let path = path.display();
            return Err(Failure::usage(format!("IN is the same file as {path}, which is written")));
        }
        match &self.args.compare {
            Some(picture) if picture.exists() && !self.args.overwrite => Err(Failure::usage(
                format!("{} exists: --overwrite replaces it", picture.display()),
            )),
            Some(picture)
                if same(picture, input)
                    || written.iter().any(|path| *path == picture || same(path, picture)) =>
            {
                Err(Failure::usage(format!("{} cannot be the picture", picture.display())))
            }
            _ => Ok(()),
        }
    }

    /// What does not go over into the output as it is.
    fn notes(&self, source: &Source, container: &Container) -> Result<Vec<String>, Failure> {
        let mut notes = Vec::new();
        let name = |caps: &gst::Caps| gst_pbutils::pb_utils_get_codec_description(caps);
        for stream in &source.audio {
            if let Treatment::Encode(encoder) = container.audio(stream)? {
                let encoder = encoder.split(' ').next().unwrap_or_default();
                notes.push(format!(
                    "{} does not take {}: the sound is encoded again by {encoder}",
                    container.muxer,
                    name(&stream.caps)
                ));
            }
        }
        for stream in &source.subtitles {
            if container.subtitles(stream)? == Treatment::Drop {
                notes.push(format!(
                    "{} does not take {}: these subtitles are left out",
                    container.muxer,
                    name(&stream.caps)
                ));
            }
        }
        Ok(notes)
    }

    /// What the frames depend on.
    fn settings(&self, source: &Source, encoder: &Encoder) -> Settings {
        let metadata = source.path.metadata().ok();
        let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        let mut settings = vec![
            ("version".into(), env!("CARGO_PKG_VERSION").into()),
            ("input".into(), source.path.display().to_string()),
            ("input size".into(), metadata.map_or(0, |metadata| metadata.len()).to_string()),
            ("input time".into(), format!("{modified:?}")),
            ("encoder".into(), encoder.description.clone()),
        ];
        let given = self.args.properties.iter();
        settings.extend(given.map(|(name, text, _)| (format!("--{name}"), text.clone())));
        settings
    }

    /// Opens the partial file, at the point where the work begins.
    fn partial(&self, paths: &Paths, settings: &Settings) -> Result<(Partial, Progress), Failure> {
        let beginning = Progress::UpTo(Joint::BEGINNING);
        if !self.args.resume {
            if paths.video.exists() && !self.args.overwrite {
                return Err(Failure::usage(format!(
                    "{} is left from an interrupted run: --resume goes on with it, --overwrite \
                     begins anew",
                    paths.video.display()
                )));
            }
            return Ok((Partial::begin(paths, settings)?, beginning));
        }
        let (partial, progress) = Partial::resume(paths, settings)?;
        match progress {
            None => eprintln!("{}: begins at the beginning", paths.output.display()),
            Some(Progress::Complete) => eprintln!("{}: was made", paths.output.display()),
            Some(Progress::UpTo(Joint { time, .. })) => {
                eprintln!("{}: goes on at {}", paths.output.display(), clock(time.seconds()));
            }
        }
        Ok((partial, progress.unwrap_or(beginning)))
    }

    /// Makes the frames, and gives their number and what they are like.
    fn work(
        &self,
        source: &Source,
        encoder: &Encoder,
        paths: &Paths,
        partial: Partial,
        progress: Progress,
    ) -> Result<(u64, String), Failure> {
        let joint = match progress {
            Progress::UpTo(joint) => joint,
            Progress::Complete => Joint::BEGINNING,
        };
        let from = joint.time;
        let name = source.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let work = Work::new(source, encoder, &self.enhancer, partial, joint)?;
        let mut report = Report::new(name, source.duration, from);
        let end = self.run(&work.pipeline, source, paths, Some((&work, &mut report)));
        drop(report);
        let end = end.map_err(|failure| work.state.failure().unwrap_or(failure));
        let picture = work.output_info().map_or(String::new(), |info| {
            let fps = info.fps().numer() as f64 / info.fps().denom() as f64;
            format!("{}x{} at {:.4} fps", info.width(), info.height(), fps)
                .replace(".0000 fps", " fps")
        });
        let (frames, position) = (work.state.frames(), work.state.position());
        let empty = work.state.partial().is_empty();
        match end {
            Ok(End::Eos) if frames == 0 && from.is_zero() => {
                Err(Failure::input(&source.path, "there are no frames in it"))
            }
            // A piece ends where a frame comes after it.
            Ok(End::Eos) if frames == 0 => Err(Failure::input(
                &source.path,
                format!(
                    "no frames were found after {}; begin anew with --overwrite",
                    clock(from.seconds())
                ),
            )),
            Ok(End::Eos) => {
                work.state.partial().complete()?;
                Ok((frames, picture))
            }
            Ok(End::Interrupted) if empty => Err(cancelled("before the first frame")),
            Ok(End::Interrupted) => Err(cancelled(&left_behind(paths, position))),
            Err(failure) if empty => Err(failure),
            Err(Failure { kind, message }) => {
                Err(Failure::new(kind, format!("{message}\n{}", left_behind(paths, position))))
            }
        }
    }

    /// Puts the finished file together and gives it its name.
    fn finish(
        &self,
        source: &Source,
        container: &Container,
        encoder: &Encoder,
        paths: &Paths,
    ) -> Result<(), Failure> {
        let pipeline = graph::finish(source, container, encoder, &paths.video, &paths.finished)?;
        let end = self.run(&pipeline, source, paths, None);
        let _ = pipeline.set_state(gst::State::Null);
        let finished = match end {
            Ok(End::Eos) => File::open(&paths.finished)
                .and_then(|file| file.sync_all())
                .and_then(|()| std::fs::rename(&paths.finished, &paths.output))
                .map_err(|error| Failure::output(&paths.output, &error)),
            Ok(End::Interrupted) => {
                Err(cancelled("all frames are made; --resume finishes the file"))
            }
            Err(failure) => Err(failure),
        };
        finished.inspect_err(|_| {
            let _ = std::fs::remove_file(&paths.finished);
        })?;
        paths.clear()
    }

    /// Runs a pipeline to its end, or until the user has had enough: then the work is ended where it is.
    fn run(
        &self,
        pipeline: &gst::Pipeline,
        source: &Source,
        paths: &Paths,
        mut work: Option<(&Work, &mut Report)>,
    ) -> Result<End, Failure> {
        let bus = pipeline.bus().ok_or_else(|| Failure::new(Kind::Output, "no bus"))?;
        // What goes wrong is on the bus as well.
        let started = pipeline.set_state(gst::State::Playing);
        let mut missing = None;
        let mut stopping: Option<Instant> = None;
        let mut shown = Instant::now();
        loop {
            let message = bus.timed_pop(TICK);
            if started.is_err() && message.is_none() {
                return Err(Failure::new(Kind::Output, "the pipeline does not start"));
            }
            if let Some(message) = &message {
                missing = missing.or(missing_plugin(message));
                match message.view() {
                    gst::MessageView::Eos(_) => {
                        return Ok(if stopping.is_some() { End::Interrupted } else { End::Eos });
                    }
                    gst::MessageView::Error(error) => {
                        let failure = Failure::from_bus(error, &source.path, &paths.output);
                        return Err(match (failure.kind, missing) {
                            (Kind::Input, Some(what)) => Failure::no_decoder(&source.path, &what),
                            _ => failure,
                        });
                    }
                    gst::MessageView::Warning(warning) => {
                        let text = warning.error();
                        eprintln!("{}: {}", source.path.display(), text.message());
                    }
                    gst::MessageView::Progress(progress) => {
                        let (kind, code, text) = progress.get();
                        if kind == gst::ProgressType::Complete && code == "load-model" {
                            eprintln!("{text}");
                        }
                    }
                    gst::MessageView::Element(element) => {
                        let named = |name: &str| element.structure().filter(|s| s.has_name(name));
                        for (name, doing) in
                            [("venhance-download", "downloading"), ("venhance-copy", "copying to")]
                        {
                            if let (Some(progress), Some((_, report))) = (named(name), &mut work) {
                                report.transfer(doing, progress);
                            }
                        }
                        let unit = element
                            .structure()
                            .filter(|structure| structure.has_name("venhance-progress"))
                            .and_then(|structure| structure.get::<&str>("unit").ok());
                        if let (Some(unit), Some((_, report))) = (unit, &mut work) {
                            report.unit(unit);
                        }
                    }
                    _ => {}
                }
            }
            if let Some((work, report)) = &mut work
                && shown.elapsed() >= TICK.into()
            {
                shown = Instant::now();
                report.tick(work.state.position(), work.state.frames());
            }
            match (&work, stopping) {
                (Some((work, _)), None) if self.interrupted() => {
                    stopping = Some(Instant::now());
                    work.stop();
                }
                (None, None) if self.interrupted() => return Ok(End::Interrupted),
                (_, Some(since)) if since.elapsed() > ENDING => return Ok(End::Interrupted),
                _ => {}
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.enhancer.set_state(gst::State::Null);
    }
}

fn cancelled(how: &str) -> Failure {
    Failure::new(Kind::Cancelled, format!("cancelled: {how}"))
}

/// What is there after an interruption, and how to go on.
fn left_behind(paths: &Paths, position: ClockTime) -> String {
    format!(
        "{} plays, up to {}; go on with --resume",
        paths.video.display(),
        clock(position.seconds())
    )
}

/// The videos of a folder, in the order of their names, with the outputs for them.
pub fn folder(input: &Path, output: &Path) -> Result<Vec<(PathBuf, PathBuf)>, Failure> {
    const VIDEOS: [&str; 24] = [
        "3gp", "asf", "avi", "flv", "gif", "m2ts", "m2v", "m4v", "mkv", "mov", "mp4", "mpeg",
        "mpg", "mts", "mxf", "ogm", "ogv", "qt", "ts", "vob", "webm", "wmv", "y4m", "yuv",
    ];
    let entries = std::fs::read_dir(input).map_err(|error| Failure::input(input, error))?;
    let mut jobs = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| Failure::input(input, error))?.path();
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let partial = path.to_string_lossy().ends_with(".partial.mkv");
        if VIDEOS.contains(&extension.as_str()) && path.is_file() && !partial {
            let name = PathBuf::from(path.file_name().unwrap_or_default());
            let name = if Container::of(&name).is_ok() { name } else { name.with_extension("mp4") };
            jobs.push((path, output.join(name)));
        }
    }
    jobs.sort();
    // Names of the output's own folder: links are followed.
    let real = |path: &Path| {
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        folder.unwrap_or_default().join(path.file_name().unwrap_or_default())
    };
    let inputs: HashMap<_, _> = jobs.iter().map(|(input, _)| (real(input), input)).collect();
    let mut outputs = HashMap::new();
    if jobs.is_empty() {
        return Err(Failure::input(input, "there is no video in this folder"));
    }
    for (input, output) in &jobs {
        let taken = match inputs.get(&real(output)) {
            Some(other) => Some(format!("{} would replace {}", input.display(), other.display())),
            None => outputs.insert(output, input).map(|other: &PathBuf| {
                let (other, output) = (other.display(), output.display());
                format!("{other} and {} would both become {output}", input.display())
            }),
        };
        if let Some(taken) = taken {
            return Err(Failure::usage(format!("{taken}: rename one, or choose another folder")));
        }
    }
    Ok(jobs)
}
