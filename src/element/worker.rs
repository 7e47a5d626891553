// SPDX-License-Identifier: MIT OR Apache-2.0
//! The compute thread's loop: gives the model one clip after another.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use gst::{ClockTime, prelude::*};

use super::{
    queue::{BufferInfo, ClipFormat, ClipId, Next, Queue},
    schedule::NextClip,
    timeline::{ClipEnd, FrameTime},
};
use crate::engine::{Cancel, ClipContext, Enhancer, Error, Frame, Progress, Sink};

/// Receives the reports of the compute thread and of the threads of the model.
pub(super) trait Report: Send + Sync + 'static {
    /// Called at each new format. `frame`: input frame duration; `lookahead`: input frames held back.
    fn format(&self, frame: Option<ClockTime>, lookahead: usize);
    /// A unit of work is done; the output has come to `position`.
    fn progress(&self, progress: Progress, position: Option<ClockTime>);
    /// An input frame took this long, without the time that the model waited for the push task.
    fn computed(&self, took: Duration);
    /// A problem that does not stop the work.
    fn warned(&self, text: String);
    /// The computation has failed.
    fn failed(&self, error: Error);
    /// A decision, for the debug log.
    fn log(&self, text: fmt::Arguments);
}

/// What the compute thread works with, from start to stop.
pub(super) struct Worker<'a> {
    queue: &'a Arc<Queue>,
    enhancer: &'a mut dyn Enhancer,
    report: Arc<dyn Report>,
    /// Epoch being processed; 0 before the first.
    epoch: u64,
    /// Cancels the current epoch.
    cancel: Cancel,
    /// `None` before the first format of the epoch.
    format: Option<ClipFormat>,
    /// `None` between two clips.
    clip: Option<ClipId>,
    /// The first frame of the clip, and how many are skipped, if it has begun with those.
    skipped: Option<(FrameTime, u64)>,
    /// The frame that output at an exact rate is counted from: the first one of the clip, or of the clip that it
    /// continues after missing frames.
    origin: Option<FrameTime>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        queue: &'a Arc<Queue>,
        enhancer: &'a mut dyn Enhancer,
        report: Arc<dyn Report>,
    ) -> Self {
        let cancel = Cancel::default();
        Self {
            queue,
            enhancer,
            report,
            epoch: 0,
            cancel,
            format: None,
            clip: None,
            skipped: None,
            origin: None,
        }
    }

    /// Works until the queue is [closed](Queue::close).
    pub(super) fn run(mut self) {
        loop {
            let done = match self.queue.next(self.epoch) {
                Next::Stop => return,
                Next::Restart(epoch, cancel) => {
                    self.restart(epoch, cancel);
                    Ok(())
                }
                Next::Format(format) => {
                    self.start_format(format);
                    Ok(())
                }
                Next::Frame(frame, time, info) => self.push_frame(frame, time, info),
                Next::Skipped(frame, time) => {
                    let (origin, count) = self.skipped.unwrap_or((time, 0));
                    self.skipped = Some((origin, count + 1));
                    frame.iter().for_each(|frame| self.enhancer.skip(frame));
                    Ok(())
                }
                Next::EndOfClip(reason, next) => self.end_clip(reason, next),
            };
            if let Err(error) = done {
                self.fail(error);
            }
        }
    }

    fn restart(&mut self, epoch: u64, cancel: Cancel) {
        self.drop_clip();
        (self.skipped, self.origin) = (None, None);
        (self.epoch, self.cancel, self.format) = (epoch, cancel, None);
        self.report.log(format_args!("Epoch {epoch} begins"));
    }

    fn start_format(&mut self, clip_format: ClipFormat) {
        let ClipFormat { format, cadence, source, rate } = clip_format;
        self.format = Some(clip_format);
        let lookahead = self.enhancer.lookahead(&format);
        let frame = cadence.map(|cadence| cadence.frame());
        self.report.log(format_args!(
            "Format: {:?} to {:?}, an input frame each {} ({source:?}), output {rate:?}, {} \
             interpolated frames of the model between two, lookahead {lookahead}",
            format.input,
            format.output,
            frame.display(),
            format.interpolated,
        ));
        // The model's next frames come meanwhile.
        let held = lookahead.max(rate.frames_held(cadence));
        self.report.format(frame, source.frames_held() + held);
    }

    fn push_frame(&mut self, frame: Frame, time: FrameTime, info: BufferInfo) -> Result<(), Error> {
        let clip = match self.clip {
            Some(clip) => clip,
            None => self.start_clip(time)?,
        };
        let (time, outputs) = self.queue.pend(clip, time, info)?;
        let start = Instant::now();
        self.enhancer.push(frame, time, &outputs)?;
        self.report.computed(start.elapsed().saturating_sub(self.queue.take_wait(clip)));
        Ok(())
    }

    fn start_clip(&mut self, time: FrameTime) -> Result<ClipId, Error> {
        let clip_format = self
            .format
            .ok_or_else(|| Error::Internal { what: "a frame came before its format".into() })?;
        let format = clip_format.format;
        let (start, first) = self.skipped.take().unwrap_or((time, 0));
        let origin = *self.origin.get_or_insert(start);
        let clip = self.queue.begin_clip(self.epoch, &clip_format, origin, first)?;
        self.clip = Some(clip);
        self.report.log(format_args!("Start of {clip} at {} with input frame {first}", time.pts));
        let sink =
            Arc::new(ClipOutput { queue: self.queue.clone(), report: self.report.clone(), clip });
        let output = ClipContext { sink, cancel: self.cancel.clone() };
        self.enhancer.start_at(first as usize, format, output)?;
        Ok(clip)
    }

    fn end_clip(&mut self, reason: ClipEnd, next: Option<FrameTime>) -> Result<(), Error> {
        let next = NextClip::new(reason, next);
        if let Some((start, _)) = self.skipped.take() {
            self.origin.get_or_insert(start);
            self.enhancer.reset();
        }
        self.origin = self.origin.filter(|_| matches!(next, NextClip::Continues(_)));
        let Some(clip) = self.clip else { return Ok(()) };
        let outputs = self.queue.finish_clip(clip, next)?;
        self.enhancer.finish(&outputs)?;
        let (inputs, outputs) = self.queue.end_clip(clip)?;
        self.clip = None;
        self.report.log(format_args!(
            "End of {clip} after {inputs} input and {outputs} output frames: {reason}"
        ));
        Ok(())
    }

    fn fail(&mut self, error: Error) {
        self.drop_clip();
        let cancelled = self.cancel.check().is_err();
        let error = match error {
            Error::Cancelled if cancelled => return,
            Error::Cancelled => Error::Internal {
                what: "the model returned Cancelled although its clip was not cancelled".into(),
            },
            error => error,
        };
        report_failure(self.queue, self.epoch, &*self.report, error);
    }

    fn drop_clip(&mut self) {
        self.enhancer.reset();
        if let Some(clip) = self.clip.take() {
            self.report.log(format_args!("End of {clip}: dropped by a flush, stop or error"));
        }
    }
}

/// Ends the epoch with an error, unless it is over.
fn report_failure(queue: &Queue, epoch: u64, report: &dyn Report, error: Error) {
    if !queue.is_live(epoch) {
        return report.log(format_args!("Ignoring an error of a flushed computation: {error}"));
    }
    // First, so that the application gets it before the flow error that upstream posts.
    report.failed(error);
    if let Some(dropped) = queue.fail(epoch) {
        report.log(format_args!("Computation failed; dropped: {dropped}"));
    }
}

/// Where the model delivers the output of one clip.
struct ClipOutput {
    queue: Arc<Queue>,
    report: Arc<dyn Report>,
    clip: ClipId,
}

impl Sink for ClipOutput {
    fn frame(&self, frame: Arc<Frame>) -> Result<(), Error> {
        self.queue.deliver(self.clip, frame).inspect_err(|error| {
            // Reported here, because the model may not pass it on.
            if matches!(error, Error::Internal { .. }) {
                report_failure(&self.queue, self.clip.epoch(), &*self.report, error.clone());
            }
        })
    }

    fn shot(&self, first: usize) {
        self.report.log(format_args!("Shot from input frame {first} of {}", self.clip));
        self.queue.begin_shot(self.clip, first as u64);
    }

    fn progress(&self, progress: Progress) {
        self.report.progress(progress, self.queue.position(self.clip));
    }

    fn warning(&self, text: String) {
        self.report.warned(text);
    }
}
