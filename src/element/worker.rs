// SPDX-License-Identifier: MIT OR Apache-2.0
//! The compute thread's work: feeds the model, and gives its output times and order.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gst::ClockTime;

use super::{
    queue::{BufferInfo, OutputFrame, OutputItem, Queue, QueueItem, Step},
    timeline::{Cadence, FrameTime},
};
use crate::engine::{Cancel, Clip, Enhancer, Error, Format, Frame, Progress, Sink};

/// What the compute thread tells the element.
pub(super) trait Report: Send + Sync + 'static {
    /// The format that begins now: the duration of an input frame, and how many the model holds back.
    fn format(&self, frame: Option<ClockTime>, lookahead: usize);
    /// A unit of work is done; the output has come to `position`.
    fn progress(&self, progress: Progress, position: Option<ClockTime>);
    /// An input frame took this long, waiting not counted.
    fn computed(&self, took: Duration);
    /// The work goes on, but not as it was asked for.
    fn warned(&self, text: String);
    /// The model has failed on these frames.
    fn failed(&self, error: Error);
    /// Events that were behind frames which have been dropped.
    fn dropped(&self, events: Vec<gst::Event>);
}

/// Feeds the enhancer until the queue is [closed](Queue::close). The first frame is number `first` of its
/// clip.
pub(super) fn compute(
    queue: &Arc<Queue>,
    enhancer: &mut dyn Enhancer,
    report: Arc<dyn Report>,
    first: u32,
) {
    let mut worker = Worker {
        queue,
        enhancer,
        report,
        epoch: 0,
        cancel: Cancel::default(),
        format: None,
        clip: None,
        first,
    };
    loop {
        match queue.next(worker.epoch) {
            Step::Stop => return,
            Step::Restart(epoch, cancel) => {
                worker.drop_clip();
                if worker.epoch > 0 {
                    worker.first = 0;
                }
                (worker.epoch, worker.cancel) = (epoch, cancel);
            }
            Step::Item(item) => match worker.work(item) {
                Ok(()) => {}
                // The queue has said why, or will with its next step.
                Err(Error::Cancelled) => worker.drop_clip(),
                Err(error) => {
                    worker.drop_clip();
                    worker.report.failed(error);
                    worker.report.dropped(queue.fail(gst::FlowError::Error));
                }
            },
        }
    }
}

/// What the compute thread works with.
struct Worker<'a> {
    queue: &'a Arc<Queue>,
    enhancer: &'a mut dyn Enhancer,
    report: Arc<dyn Report>,
    epoch: u64,
    cancel: Cancel,
    format: Option<(Format, Option<Cadence>)>,
    clip: Option<Arc<ClipOutput>>,
    /// The number, in its clip, of the next frame that begins one: not 0 only for the first of a run.
    first: u32,
}

impl Worker<'_> {
    fn work(&mut self, item: QueueItem) -> Result<(), Error> {
        match (item, self.clip.clone()) {
            (QueueItem::Format(format, cadence), _) => {
                self.format = Some((format, cadence));
                let frame = cadence.map(|cadence| cadence.frame());
                self.report.format(frame, self.enhancer.lookahead(&format));
                Ok(())
            }
            (QueueItem::Frame(frame, stamp), clip) => {
                let clip = match clip {
                    Some(clip) => clip,
                    None => self.start_clip()?,
                };
                clip.line().pending.push_back(Pending::Input(stamp));
                let start = Instant::now();
                self.enhancer.push(frame)?;
                let waited = std::mem::take(&mut clip.line().waited);
                self.report.computed(start.elapsed().saturating_sub(waited));
                Ok(())
            }
            (QueueItem::EndOfClip, Some(clip)) => {
                self.enhancer.finish()?;
                self.clip = None;
                clip.release_events(&clip.leaving())
            }
            (QueueItem::EndOfClip, None) => Ok(()),
            (QueueItem::Event(event), Some(clip)) => {
                clip.line().pending.push_back(Pending::Event(event));
                clip.release_events(&clip.leaving())
            }
            (QueueItem::Event(event), None) => {
                self.queue.deliver(self.epoch, OutputItem::Event(event))
            }
            // Only ever after the end of a clip.
            (QueueItem::Barrier, _) => self.queue.deliver(self.epoch, OutputItem::Barrier),
        }
    }

    fn start_clip(&mut self) -> Result<Arc<ClipOutput>, Error> {
        // The element never lets a frame in before a format.
        let (format, cadence) = self.format.ok_or(Error::Cancelled)?;
        let (first, parts) = (std::mem::take(&mut self.first), format.made as u64 + 1);
        let clip = Arc::new(ClipOutput {
            queue: self.queue.clone(),
            report: self.report.clone(),
            epoch: self.epoch,
            cadence,
            parts,
            line: Mutex::new(PendingQueue {
                number: u64::from(first) * parts,
                ..PendingQueue::default()
            }),
            leaving: Mutex::default(),
        });
        let output = Clip { sink: clip.clone(), cancel: self.cancel.clone() };
        self.enhancer.start_at(first as usize, format, output)?;
        self.clip = Some(clip.clone());
        Ok(clip)
    }

    fn drop_clip(&mut self) {
        self.enhancer.reset();
        if let Some(clip) = self.clip.take() {
            let pending = std::mem::take(&mut clip.line().pending);
            self.report.dropped(pending.into_iter().filter_map(Pending::into_event).collect());
        }
    }
}

/// Gives the output frames of one clip their times, and puts the events back between them.
struct ClipOutput {
    queue: Arc<Queue>,
    report: Arc<dyn Report>,
    epoch: u64,
    cadence: Option<Cadence>,
    /// OutputFrame frames from one key frame to the next.
    parts: u64,
    line: Mutex<PendingQueue>,
    /// Held from the time that something leaves the line until it is in the queue, so that nothing
    /// overtakes it; not while anything else is done.
    leaving: Mutex<()>,
}

#[derive(Default)]
struct PendingQueue {
    /// Key frames that the model has not put out yet, and the events between and after them.
    pending: VecDeque<Pending>,
    /// The last key frame put out.
    key: Option<FrameTime>,
    /// The place in the clip of the frame that comes next.
    number: u64,
    /// Time spent waiting for the push task.
    waited: Duration,
}

enum Pending {
    Input(BufferInfo),
    Event(gst::Event),
}

impl Pending {
    fn into_event(self) -> Option<gst::Event> {
        match self {
            Self::Input(_) => None,
            Self::Event(event) => Some(event),
        }
    }
}

impl ClipOutput {
    fn line(&self) -> MutexGuard<'_, PendingQueue> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leaving(&self) -> MutexGuard<'_, ()> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the events go that no key frame is before.
    fn release_events(&self, _leaving: &MutexGuard<'_, ()>) -> Result<(), Error> {
        let event = || {
            let pending = &mut self.line().pending;
            match pending.front() {
                Some(Pending::Event(_)) => pending.pop_front(),
                _ => None,
            }
        };
        while let Some(Pending::Event(event)) = event() {
            self.queue.deliver(self.epoch, OutputItem::Event(event))?;
        }
        Ok(())
    }
}

impl PendingQueue {
    /// The next key frame's output.
    fn input_frame(
        &mut self,
        frame: Arc<Frame>,
        cadence: Option<Cadence>,
        parts: u64,
    ) -> Option<OutputFrame> {
        let Some(Pending::Input(stamp)) = self.pending.pop_front() else {
            return None;
        };
        let BufferInfo { time, duration, flags, metas } = stamp;
        self.key = Some(time);
        // The frame before a gap lasts through it, as the input says.
        let duration = match cadence {
            Some(cadence) if parts > 1 => Some(cadence.key_duration(time, duration)),
            _ => duration,
        };
        Some(OutputFrame { frame, number: self.number, pts: time.pts, duration, flags, metas })
    }

    /// The output of a frame made between the last key frame and the next one, at `part` of the way.
    fn interpolated_frame(
        &self,
        frame: Arc<Frame>,
        cadence: Option<Cadence>,
        part: u64,
    ) -> Option<OutputFrame> {
        let (Some(Pending::Input(next)), Some(key), Some(cadence)) =
            (self.pending.front(), self.key, cadence)
        else {
            return None;
        };
        let pts = cadence.between(key, next.time, part);
        let end = cadence.between(key, next.time, part + 1);
        Some(OutputFrame {
            frame,
            number: self.number,
            pts,
            duration: Some(end.saturating_sub(pts)),
            flags: gst::BufferFlags::empty(),
            metas: None,
        })
    }
}

impl Sink for ClipOutput {
    fn frame(&self, frame: Arc<Frame>) -> Result<(), Error> {
        let leaving = self.leaving();
        let output = {
            let line = &mut *self.line();
            let output = match line.number % self.parts {
                0 => line.input_frame(frame, self.cadence, self.parts),
                part => line.interpolated_frame(frame, self.cadence, part),
            };
            line.number += 1;
            // None: more frames than N + k·(N−1), which no model makes.
            output.ok_or(Error::Cancelled)?
        };
        let start = Instant::now();
        self.queue.deliver(self.epoch, OutputItem::Frame(output))?;
        self.line().waited += start.elapsed();
        self.release_events(&leaving)
    }

    fn progress(&self, progress: Progress) {
        let position = self.line().key.map(|key| key.pts);
        self.report.progress(progress, position);
    }

    fn warning(&self, text: String) {
        self.report.warned(text);
    }
}
