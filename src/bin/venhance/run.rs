// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs a pipeline until its end, an error or Ctrl-C.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use gst::{ClockTime, prelude::*};
use gstvenhance::Model;

use crate::{
    failure::{Failure, Kind, missing_plugin},
    pipeline::fed_by,
    properties,
    report::Report,
    session::Session,
    source::Source,
};

/// Time without a message after which a run over a damaged file ends. No frame of `lite` takes as long.
const STALLED: Duration = Duration::from_secs(60);
/// Longest wait for a bus message before Ctrl-C is checked and the progress is shown.
const TICK: ClockTime = ClockTime::from_mseconds(100);
/// Time for the encoder to write its frames after Ctrl-C.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// A pipeline whose progress is shown.
pub trait Shown {
    /// Position in the output, number of frames, and frames a second of the output.
    fn progress(&self) -> (ClockTime, u64, Option<f64>);

    /// Ends the streams so that what is done is kept. False if there is nothing to keep.
    fn stop(&self) -> bool;
}

pub enum End {
    /// With the failure of a stream of the input that ended there.
    Eos(Option<Failure>),
    Interrupted,
}

/// What the messages so far tell of the input.
struct InputState {
    /// The plugin that is not installed.
    missing: Option<String>,
    /// The failure of a stream that ended there.
    broken: Option<Failure>,
    /// Whether a demuxer has warned of an error: some only warn.
    damaged: bool,
    /// When the last message came.
    last_message: Instant,
}

impl Session {
    /// Runs a pipeline until its end, an error or Ctrl-C. Ctrl-C lets `shown` end its streams first. Errors of
    /// the writer are about `output`.
    pub fn run(
        &self,
        pipeline: &gst::Pipeline,
        source: &Source,
        output: &Path,
        mut shown: Option<(&dyn Shown, &mut Report)>,
    ) -> Result<End, Failure> {
        let bus = pipeline
            .bus()
            .ok_or_else(|| Failure::new(Kind::Output, "the pipeline has no message bus"))?;
        let _signals = self.signals.watch();
        // The bus also has the error.
        let started = pipeline.set_state(gst::State::Playing);
        let mut input = InputState::new();
        let mut stopping: Option<Instant> = None;
        let mut updated = Instant::now();
        loop {
            let message = bus.timed_pop(TICK);
            if started.is_err() && message.is_none() {
                return Err(Failure::new(
                    Kind::Output,
                    "cannot start the pipeline; run with GST_DEBUG=2 to see why",
                ));
            }
            if let Some(message) = &message {
                if let gst::MessageView::Eos(_) = message.view() {
                    return Ok(match stopping {
                        Some(_) => End::Interrupted,
                        None => End::Eos(input.broken),
                    });
                }
                input.update(message, &source.path, output)?;
                if let Some((_, report)) = &mut shown {
                    show(message, &source.path, report);
                }
            }
            // The other models can work as long without a message.
            if input.is_stalled() && self.model == Model::Lite {
                if !shown.as_ref().is_some_and(|(shown, _)| shown.stop()) {
                    return Ok(End::Eos(input.broken));
                }
                input.last_message = Instant::now();
            }
            if let Some((shown, report)) = &mut shown
                && updated.elapsed() >= TICK.into()
            {
                updated = Instant::now();
                let (position, frames, rate) = shown.progress();
                report.update(position, frames, rate);
            }
            match (&shown, stopping) {
                (shown, None) if self.signals.interrupted() => {
                    if !shown.as_ref().is_some_and(|(shown, _)| shown.stop()) {
                        return Ok(End::Interrupted);
                    }
                    stopping = Some(Instant::now());
                }
                (Some((shown, _)), Some(_)) if shown.progress().1 == 0 => {
                    return Ok(End::Interrupted);
                }
                (_, Some(since)) if since.elapsed() > STOP_TIMEOUT => return Ok(End::Interrupted),
                _ => {}
            }
        }
    }
}

impl InputState {
    fn new() -> Self {
        Self { missing: None, broken: None, damaged: false, last_message: Instant::now() }
    }

    /// Takes a message.
    ///
    /// # Errors
    /// The failure of an error message, unless it ends only one stream of the input.
    fn update(
        &mut self,
        message: &gst::MessageRef,
        source: &Path,
        output: &Path,
    ) -> Result<(), Failure> {
        self.last_message = Instant::now();
        self.missing = self.missing.take().or(missing_plugin(message));
        match message.view() {
            gst::MessageView::Warning(warning) => {
                self.damaged |= warning.error().matches(gst::StreamError::Demux);
                Ok(())
            }
            gst::MessageView::Error(error) => {
                let failure = Failure::from_bus(error, source, output);
                if failure.kind == Kind::Input && end_stream(error) {
                    self.broken.get_or_insert(failure);
                    return Ok(());
                }
                Err(match (failure.kind, &self.missing) {
                    (Kind::Input, Some(what)) => Failure::no_decoder(source, what),
                    _ => failure,
                })
            }
            _ => Ok(()),
        }
    }

    /// Whether the elements have stopped after a failure: some wait for ever for a stream that has failed.
    fn is_stalled(&self) -> bool {
        (self.damaged || self.broken.is_some()) && self.last_message.elapsed() > STALLED
    }
}

/// Shows a message that the user should see.
fn show(message: &gst::MessageRef, input: &Path, report: &mut Report) {
    match message.view() {
        gst::MessageView::Warning(warning) => {
            let text = properties::with_flags(warning.error().message());
            eprintln!("{}: {text}", input.display());
        }
        gst::MessageView::Progress(progress) => {
            let (kind, code, text) = progress.get();
            if kind == gst::ProgressType::Complete && code == "load-model" {
                eprintln!("{text}");
            }
        }
        gst::MessageView::Element(element) => {
            if let Some(structure) = element.structure() {
                report.message(structure);
            }
        }
        _ => {}
    }
}

/// Ends the stream of the input that has failed, so that its data up to there is kept. False if it had no data.
fn end_stream(error: &gst::message::Error) -> bool {
    let fed = error.src().and_then(fed_by).filter(|pad| pad.has_current_caps());
    fed.is_some_and(|pad| {
        // This waits for the buffer in the pad.
        std::thread::spawn(move || pad.send_event(gst::event::Eos::new()));
        true
    })
}
