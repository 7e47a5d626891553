// SPDX-License-Identifier: MIT OR Apache-2.0
//! The queue between the element's threads: frames and events, in one order.
//!
//! ```text
//! streaming thread ─ push ─► inputs ─ next ─► compute thread
//!                                                  │ pend
//! push task ◄─ pop ─ outputs ◄─ deliver ─ model ◄─ pending
//! ```
//!
//! A serialized event leaves right after the last input frame that came before it, however long the
//! model holds that frame. `inputs` and `outputs` are bounded in frames; `pending` is bounded by the
//! model's lookahead.

mod items;
mod pending;

use std::{
    collections::VecDeque,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use gst::ClockTime;
use parking_lot::{Condvar, Mutex};

use super::{
    schedule::NextClip,
    timeline::{ClipEnd, FrameTime},
};
use crate::engine::{Cancel, Error, Frame};
pub(super) use items::{
    BufferInfo, ClipFormat, InputFrame, OutputFrame, OutputItem, Picture, QueueItem,
};
use pending::PendingQueue;

/// Input frames that wait for the compute thread, so that decoding continues while it works.
const MAX_INPUTS: usize = 4;
/// Output frames that wait for the push task, so that computing continues while it pushes.
const MAX_OUTPUTS: usize = 2;
/// Bytes of the frames that wait in one of these places, if that is more than one frame: an 8K frame has 253 MiB.
const MAX_BYTES: usize = 512 << 20;

/// Identifies a clip and the epoch it began in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ClipId {
    epoch: u64,
    number: u64,
}

impl ClipId {
    pub(super) fn epoch(self) -> u64 {
        self.epoch
    }
}

impl fmt::Display for ClipId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "clip {}", self.number)
    }
}

/// Frames in each part of the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Levels {
    inputs: usize,
    pending: usize,
    outputs: usize,
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inputs, pending, outputs } = self;
        write!(
            f,
            "{inputs}/{MAX_INPUTS} input frames waiting, {pending} in the model, \
             {outputs}/{MAX_OUTPUTS} output frames waiting"
        )
    }
}

/// How many frames of this many bytes may wait, `most` or fewer.
fn most_frames(bytes: usize, most: usize) -> usize {
    (MAX_BYTES / bytes.max(1)).clamp(1, most)
}

/// The queue, and the one place where the threads of the element wait for each other.
pub(super) struct Queue {
    /// Protects the queue and the flow. Held for the time of moving an item, never while a frame is
    /// converted, computed or pushed, and never together with another lock. A flush takes it, so
    /// nothing that takes long may hold it.
    state: Mutex<State>,
    /// Notified after each change of the state.
    changed: Condvar,
}

struct State {
    /// Counts the starts and flushes. An item or a result of an older epoch is dropped.
    epoch: u64,
    /// Stops the computation of this epoch. Set whenever `flow` becomes an error.
    cancel: Cancel,
    /// What the streaming thread returns to upstream. While it is an error, the queue is empty.
    flow: Result<gst::FlowSuccess, gst::FlowError>,
    /// While `flow` is an error: the sticky events that were in the queue or came since, in stream
    /// order. Upstream does not send them again.
    kept: Vec<gst::Event>,
    /// What the compute thread has not taken yet, in order of arrival.
    inputs: VecDeque<QueueItem>,
    /// The clip that the model works on: what waits for its output. Also one that has ended, until the next one begins,
    /// if that continues its grid.
    clip: Option<(ClipId, PendingQueue)>,
    /// What the push task has not taken yet, in order of output.
    outputs: VecDeque<OutputItem>,
    /// In this epoch.
    barriers: Barriers,
    /// The clips begun since the element was created.
    clips: u64,
    /// Between stop and start, and after a failure of the compute thread. It ends while this is true,
    /// and no epoch begins.
    closed: bool,
}

/// Counts the barriers of an epoch.
#[derive(Default)]
struct Barriers {
    pushed: u64,
    /// Those that the push task has reached.
    passed: u64,
}

impl State {
    fn is_live(&self, epoch: u64) -> bool {
        self.flow.is_ok() && self.epoch == epoch
    }

    fn levels(&self) -> Levels {
        Levels {
            inputs: self.inputs.iter().filter(|item| item.is_frame()).count(),
            pending: self.clip.as_ref().map_or(0, |(_, pending)| pending.frames()),
            outputs: self.outputs.iter().filter(|item| item.is_frame()).count(),
        }
    }

    /// Empties the queue and cancels the computation. An error stays until the next epoch; a flush
    /// replaces it.
    fn abort(&mut self, error: gst::FlowError) -> Levels {
        let dropped = self.levels();
        if self.flow.is_ok() || error == gst::FlowError::Flushing {
            self.flow = Err(error);
        }
        self.cancel.cancel();
        let outputs = std::mem::take(&mut self.outputs);
        let pending = self.clip.take().map(|(_, pending)| pending);
        let inputs = std::mem::take(&mut self.inputs);
        let outputs = outputs.into_iter().filter_map(OutputItem::into_event);
        let inputs = inputs.into_iter().filter_map(QueueItem::into_event);
        let pending = pending.into_iter().flat_map(PendingQueue::into_events);
        self.kept.extend(outputs.chain(pending).chain(inputs).filter(is_kept));
        dropped
    }

    /// Puts an event after all frames that the compute thread has taken.
    fn pass_event(&mut self, event: gst::Event) {
        match &mut self.clip {
            Some((_, pending)) => pending.push_event(event),
            None => self.outputs.push_back(OutputItem::Event(event)),
        }
        self.release();
    }

    /// Moves what is ready to leave: an output frame, and the events that no frame is before.
    fn release(&mut self) {
        if let Some((_, pending)) = &mut self.clip {
            self.outputs.extend(pending.pop_frame().map(OutputItem::Frame));
            self.outputs.extend(std::iter::from_fn(|| pending.pop_event()).map(OutputItem::Event));
        }
    }
}

/// Whether an event must reach downstream although it was dropped. Upstream sends EOS again.
fn is_kept(event: &gst::Event) -> bool {
    event.is_sticky() && event.type_() != gst::EventType::Eos
}

/// All threads.
impl Queue {
    /// A queue that is closed until [`open`](Self::open).
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                epoch: 0,
                cancel: Cancel::default(),
                flow: Err(gst::FlowError::Flushing),
                kept: Vec::new(),
                inputs: VecDeque::new(),
                clip: None,
                outputs: VecDeque::new(),
                barriers: Barriers::default(),
                clips: 0,
                closed: true,
            }),
            changed: Condvar::new(),
        }
    }

    /// Begins the first epoch after a start of the element.
    pub(super) fn open(&self) {
        {
            let state = &mut *self.state.lock();
            state.closed = false;
            state.kept.clear();
        }
        self.restart(None);
    }

    /// Begins an epoch with this item. Returns the sticky events that were kept since the last one, for
    /// the source pad; `None` if the queue is closed. After a flush upstream sends SEGMENT again.
    pub(super) fn restart(&self, first: Option<QueueItem>) -> Option<Vec<gst::Event>> {
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        let mut kept = std::mem::take(&mut state.kept);
        if state.flow == Err(gst::FlowError::Flushing) {
            kept.retain(|event| event.type_() != gst::EventType::Segment);
        }
        state.epoch += 1;
        state.cancel = Cancel::default();
        state.flow = Ok(gst::FlowSuccess::Ok);
        state.inputs.extend(first);
        state.barriers = Barriers::default();
        self.changed.notify_all();
        Some(kept)
    }

    /// Empties the queue, cancels the computation, and returns `error` to all who wait or come until
    /// the next epoch. Returns without waiting for the computation to end.
    pub(super) fn abort(&self, error: gst::FlowError) -> Levels {
        let dropped = self.state.lock().abort(error);
        self.changed.notify_all();
        dropped
    }

    /// Aborts until the next [`open`](Self::open); the compute thread ends.
    pub(super) fn close(&self, error: gst::FlowError) -> Levels {
        self.state.lock().closed = true;
        self.abort(error)
    }

    pub(super) fn flow(&self) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.state.lock().flow
    }

    /// Is set when the current epoch ends.
    pub(super) fn cancel(&self) -> Cancel {
        self.state.lock().cancel.clone()
    }

    /// Whether this epoch is the current one and has not been aborted.
    pub(super) fn is_live(&self, epoch: u64) -> bool {
        self.state.lock().is_live(epoch)
    }

    pub(super) fn levels(&self) -> Levels {
        self.state.lock().levels()
    }
}

/// The streaming thread.
impl Queue {
    /// Puts an item in. A frame waits while there are [`MAX_INPUTS`].
    ///
    /// While the flow is an error, sticky events are kept until the next epoch, and EOS, frames and other
    /// events get the error.
    pub(super) fn push(&self, item: QueueItem) -> Result<gst::FlowSuccess, gst::FlowError> {
        let mut state = self.state.lock();
        if let Some(frame) = item.frame() {
            let most = most_frames(size_of_val(frame.pixels()), MAX_INPUTS);
            self.changed.wait_while(&mut state, |state| {
                state.flow.is_ok() && state.levels().inputs >= most
            });
        }
        if let (Err(error), item) = (state.flow, &item) {
            return match item {
                QueueItem::Event(event) if is_kept(event) => {
                    state.kept.push(event.clone());
                    Ok(gst::FlowSuccess::Ok)
                }
                _ => Err(error),
            };
        }
        state.barriers.pushed += u64::from(matches!(item, QueueItem::Barrier));
        state.inputs.push_back(item);
        self.changed.notify_all();
        state.flow
    }

    /// Waits until everything that was put in has been pushed downstream. The clip must have been
    /// ended, or the model keeps the last frames.
    pub(super) fn drain(&self) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.push(QueueItem::Barrier)?;
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, |state| {
            state.flow.is_ok() && state.barriers.passed < state.barriers.pushed
        });
        state.flow
    }

    /// Forgets the CAPS events that are kept, because newer caps go to the source pad now, and returns STREAM_START if
    /// that is kept: it must be there before.
    pub(super) fn replace_caps(&self) -> Option<gst::Event> {
        let kept = &mut self.state.lock().kept;
        kept.retain(|event| event.type_() != gst::EventType::Caps);
        kept.iter().rfind(|event| event.type_() == gst::EventType::StreamStart).cloned()
    }
}

/// The push task.
impl Queue {
    /// Waits for the next item to push; `None` while the flow is an error.
    pub(super) fn pop(&self) -> Option<OutputItem> {
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, |state| state.flow.is_ok() && state.outputs.is_empty());
        self.changed.notify_all();
        state.outputs.pop_front()
    }

    /// Everything before the next barrier has been pushed.
    pub(super) fn pass_barrier(&self) {
        self.state.lock().barriers.passed += 1;
        self.changed.notify_all();
    }
}

/// What the compute thread does next.
pub(super) enum Next {
    Format(ClipFormat),
    Frame(Frame, FrameTime, BufferInfo),
    Skipped(Option<Frame>, FrameTime),
    EndOfClip(ClipEnd, Option<FrameTime>),
    /// A new epoch has begun: forget the stream.
    Restart(u64, Cancel),
    Stop,
}

/// The compute thread, and the threads of the model.
impl Queue {
    /// Waits for the next thing to do for the compute thread, which works on `epoch`. Events and
    /// barriers need no work: they pass here, under the lock, so that a flush finds them.
    pub(super) fn next(&self, epoch: u64) -> Next {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return Next::Stop;
            }
            if state.epoch != epoch {
                return Next::Restart(state.epoch, state.cancel.clone());
            }
            let Some(item) = state.inputs.pop_front() else {
                self.changed.wait(&mut state);
                continue;
            };
            self.changed.notify_all();
            match item {
                QueueItem::Format(format) => return Next::Format(format),
                QueueItem::Frame(frame, time, info) => return Next::Frame(frame, time, info),
                QueueItem::Skipped(frame, time) => return Next::Skipped(frame, time),
                QueueItem::EndOfClip(reason, next) => return Next::EndOfClip(reason, next),
                QueueItem::Event(event) => state.pass_event(event),
                // Comes only after the end of a clip.
                QueueItem::Barrier => state.outputs.push_back(OutputItem::Barrier),
            }
        }
    }

    /// Begins a clip with the input frame `origin`. `first`: clip index of the first input frame that is not skipped.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the epoch is over, as in all functions that take one.
    pub(super) fn begin_clip(
        &self,
        epoch: u64,
        format: &ClipFormat,
        origin: FrameTime,
        first: u64,
    ) -> Result<ClipId, Error> {
        let mut state = self.state.lock();
        if !state.is_live(epoch) {
            return Err(Error::Cancelled);
        }
        state.clips += 1;
        let id = ClipId { epoch, number: state.clips };
        let mut pending = PendingQueue::new(format, origin, first);
        if let Some((_, before)) = state.clip.take() {
            pending = pending.continue_after(before);
        }
        state.clip = Some((id, pending));
        Ok(id)
    }

    /// Notes an input frame of the clip, before the model gets it. Returns its time in the clip and the times of
    /// the output frames up to it.
    pub(super) fn pend(
        &self,
        clip: ClipId,
        time: FrameTime,
        info: BufferInfo,
    ) -> Result<(u64, Vec<u64>), Error> {
        let mut state = self.state.lock();
        let times = self.clip(&mut state, clip)?.push_frame(time, info);
        state.release();
        self.changed.notify_all();
        Ok(times)
    }

    /// Notes that no more input frames come, and what follows. Returns the times of the output frames after the last
    /// one.
    pub(super) fn finish_clip(&self, clip: ClipId, next: NextClip) -> Result<Vec<u64>, Error> {
        let mut state = self.state.lock();
        let times = self.clip(&mut state, clip)?.finish(next);
        state.release();
        self.changed.notify_all();
        Ok(times)
    }

    /// Takes the model's next output frame. Waits while there are [`MAX_OUTPUTS`], and adds that time
    /// to the clip's waiting time.
    ///
    /// # Errors
    /// [`Error::Internal`] if the clip has no such frame.
    pub(super) fn deliver(&self, clip: ClipId, frame: Arc<Frame>) -> Result<(), Error> {
        let start = Instant::now();
        let most = most_frames(size_of_val(frame.pixels()), MAX_OUTPUTS);
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, |state| {
            state.is_live(clip.epoch) && state.levels().outputs >= most
        });
        let pending = self.clip(&mut state, clip)?;
        pending.add_wait(start.elapsed());
        let events = pending.deliver(frame)?;
        state.outputs.extend(events.into_iter().map(OutputItem::Event));
        state.release();
        self.changed.notify_all();
        Ok(())
    }

    /// Notes that the model's next output frame is of the shot that begins with input frame `first` of the clip.
    /// Ignored if the epoch is over.
    pub(super) fn begin_shot(&self, clip: ClipId, first: u64) {
        if let Ok(pending) = self.clip(&mut self.state.lock(), clip) {
            pending.begin_shot(first);
        }
    }

    /// Ends the clip, all of whose frames the model has delivered. Returns the number of input and of
    /// output frames.
    ///
    /// # Errors
    /// [`Error::Internal`] if frames are missing.
    pub(super) fn end_clip(&self, clip: ClipId) -> Result<(u64, u64), Error> {
        let mut state = self.state.lock();
        let pending = self.clip(&mut state, clip)?;
        let counts = pending.check_end()?;
        let is_continued = pending.is_continued();
        state.release();
        if !is_continued {
            state.clip = None;
        }
        self.changed.notify_all();
        Ok(counts)
    }

    /// The time of the last input frame that the model has delivered.
    pub(super) fn position(&self, clip: ClipId) -> Option<ClockTime> {
        self.clip(&mut self.state.lock(), clip).ok()?.position()
    }

    /// How long the model has waited in [`deliver`](Self::deliver) since the last call.
    pub(super) fn take_wait(&self, clip: ClipId) -> Duration {
        self.clip(&mut self.state.lock(), clip).map_or(Duration::ZERO, PendingQueue::take_wait)
    }

    /// Aborts because of an error of the computation; `None` if the epoch is over already.
    pub(super) fn fail(&self, epoch: u64) -> Option<Levels> {
        let mut state = self.state.lock();
        let dropped = state.is_live(epoch).then(|| state.abort(gst::FlowError::Error));
        self.changed.notify_all();
        dropped
    }

    fn clip<'a>(&self, state: &'a mut State, clip: ClipId) -> Result<&'a mut PendingQueue, Error> {
        if !state.is_live(clip.epoch) {
            return Err(Error::Cancelled);
        }
        match &mut state.clip {
            Some((id, pending)) if *id == clip => Ok(pending),
            _ => Err(Error::Internal { what: format!("{clip} is used after its end") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_large_frames_wait_but_always_one() {
        let frame = |width: usize, height: usize| width * height * 8;
        assert_eq!(most_frames(frame(3840, 2160), MAX_INPUTS), MAX_INPUTS);
        assert_eq!(most_frames(frame(7680, 4320), MAX_INPUTS), 2);
        assert_eq!(most_frames(frame(15360, 8640), MAX_OUTPUTS), 1);
    }
}
