// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way of a frame through the element: queue, compute thread, push task.
//!
//! ```text
//! streaming thread ─ enter ─► arrived ─ next ─► compute thread ─ deliver ─► ready ─ take ─► push task
//! ```
//!
//! Frames and serialized events travel in one order. An event leaves right after the last frame that
//! came before it, however long the model holds that frame. Both queues are bounded in frames.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use gst::ClockTime;

use super::timeline::{Cadence, FrameTime};
use crate::engine::{Cancel, Error, Format, Frame};

/// Input frames that wait for the compute thread: decoding goes on meanwhile.
const MAX_ARRIVED: usize = 4;
/// Output frames that wait for the push task: computing goes on meanwhile.
const MAX_READY: usize = 2;

/// What goes into the queue.
pub(super) enum QueueItem {
    /// The format of the clips that follow; comes between two clips.
    Format(Format, Option<Cadence>),
    Frame(Frame, BufferInfo),
    EndOfClip,
    Event(gst::Event),
    Barrier,
}

impl QueueItem {
    fn into_event(self) -> Option<gst::Event> {
        match self {
            Self::Event(event) => Some(event),
            _ => None,
        }
    }
}

/// What an input buffer says beside its picture.
pub(super) struct BufferInfo {
    pub(super) time: FrameTime,
    pub(super) duration: Option<ClockTime>,
    pub(super) flags: gst::BufferFlags,
    /// A buffer without memory that holds the metas.
    pub(super) metas: Option<gst::Buffer>,
}

/// What comes out of the queue.
pub(super) enum OutputItem {
    Frame(OutputFrame),
    Event(gst::Event),
    Barrier,
}

impl OutputItem {
    fn into_event(self) -> Option<gst::Event> {
        match self {
            Self::Event(event) => Some(event),
            _ => None,
        }
    }
}

/// An output frame and what its buffer has to say.
pub(super) struct OutputFrame {
    pub(super) frame: Arc<Frame>,
    /// Its place in its clip.
    pub(super) number: u64,
    pub(super) pts: ClockTime,
    pub(super) duration: Option<ClockTime>,
    pub(super) flags: gst::BufferFlags,
    pub(super) metas: Option<gst::Buffer>,
}

/// The queue, with all that its threads share.
pub(super) struct Queue {
    state: Mutex<State>,
    /// Signalled with every change of the state.
    changed: Condvar,
}

struct State {
    /// Goes up when the stream starts anew; what belongs to an older epoch is dropped wherever it
    /// turns up.
    epoch: u64,
    /// Stops the computation of this epoch.
    cancel: Cancel,
    /// An error once nothing more can go through in this epoch: then both queues are empty.
    flow: Result<gst::FlowSuccess, gst::FlowError>,
    /// What the compute thread has not taken yet, in order of arrival.
    arrived: VecDeque<QueueItem>,
    /// What the push task has not taken yet, in order of output.
    ready: VecDeque<OutputItem>,
    /// Barriers that have entered, and that have passed the push task, in this epoch.
    barriers: (u64, u64),
    /// Whether nothing may begin anew before the next start; the compute thread ends.
    closed: bool,
}

impl Queue {
    /// A queue that lets nothing through before [`open`](Self::open).
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                epoch: 0,
                cancel: Cancel::default(),
                flow: Err(gst::FlowError::Flushing),
                arrived: VecDeque::new(),
                ready: VecDeque::new(),
                barriers: (0, 0),
                closed: true,
            }),
            changed: Condvar::new(),
        }
    }

    /// Begins the first epoch of a run.
    pub(super) fn open(&self) {
        self.lock().closed = false;
        self.restart();
    }

    /// Begins an epoch: everything flows again, and this is true, unless the queue is closed.
    pub(super) fn restart(&self) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        state.epoch += 1;
        state.cancel = Cancel::default();
        state.flow = Ok(gst::FlowSuccess::Ok);
        state.barriers = (0, 0);
        self.changed.notify_all();
        true
    }

    /// Drops everything and stops the computation; all that enters from now on gets `error`, unless
    /// there was an error before. Gives the events that were waiting.
    pub(super) fn fail(&self, error: gst::FlowError) -> Vec<gst::Event> {
        let mut state = self.lock();
        if state.flow.is_ok() || error == gst::FlowError::Flushing {
            state.flow = Err(error);
        }
        state.cancel.cancel();
        let ready = std::mem::take(&mut state.ready).into_iter().filter_map(OutputItem::into_event);
        let arrived =
            std::mem::take(&mut state.arrived).into_iter().filter_map(QueueItem::into_event);
        self.changed.notify_all();
        drop(state);
        ready.chain(arrived).collect()
    }

    /// Fails for the rest of the run, and ends the compute thread.
    pub(super) fn close(&self, error: gst::FlowError) {
        self.lock().closed = true;
        self.fail(error);
    }

    pub(super) fn flow(&self) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.lock().flow
    }

    /// Puts an item in; a frame waits for room.
    pub(super) fn enter(&self, item: QueueItem) -> Result<gst::FlowSuccess, gst::FlowError> {
        let is_frame = |item: &QueueItem| matches!(item, QueueItem::Frame(..));
        let mut state = self.lock();
        if is_frame(&item) {
            state = self.wait_while(state, |state| {
                state.flow.is_ok()
                    && state.arrived.iter().filter(|item| is_frame(item)).count() >= MAX_ARRIVED
            });
        }
        state.flow?;
        state.barriers.0 += u64::from(matches!(item, QueueItem::Barrier));
        state.arrived.push_back(item);
        self.changed.notify_all();
        state.flow
    }

    /// Ends the clip and waits until all that has entered has been pushed.
    pub(super) fn drain(&self) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.enter(QueueItem::EndOfClip)?;
        self.enter(QueueItem::Barrier)?;
        let state = self.wait_while(self.lock(), |state| {
            state.flow.is_ok() && state.barriers.1 < state.barriers.0
        });
        state.flow
    }

    /// The next thing to push; `None` once nothing flows.
    pub(super) fn take(&self) -> Option<OutputItem> {
        let mut state =
            self.wait_while(self.lock(), |state| state.flow.is_ok() && state.ready.is_empty());
        self.changed.notify_all();
        match state.flow {
            Ok(_) => state.ready.pop_front(),
            Err(_) => None,
        }
    }

    /// Notes that the push task has done all before a barrier.
    pub(super) fn pass_barrier(&self) {
        self.lock().barriers.1 += 1;
        self.changed.notify_all();
    }

    /// What the compute thread, which works on `epoch`, is to do next.
    pub(super) fn next(&self, epoch: u64) -> Step {
        let mut state = self.wait_while(self.lock(), |state| {
            let nothing = state.flow.is_err() || state.arrived.is_empty();
            !state.closed && state.epoch == epoch && nothing
        });
        if state.closed {
            return Step::Stop;
        }
        if state.epoch != epoch {
            return Step::Restart(state.epoch, state.cancel.clone());
        }
        self.changed.notify_all();
        state.arrived.pop_front().map_or(Step::Stop, Step::Item)
    }

    /// Hands an output of `epoch` to the push task; a frame waits for room.
    pub(super) fn deliver(&self, epoch: u64, ready: OutputItem) -> Result<(), Error> {
        let is_frame = |ready: &OutputItem| matches!(ready, OutputItem::Frame(_));
        let live = |state: &State| state.flow.is_ok() && state.epoch == epoch;
        let mut state = self.lock();
        if is_frame(&ready) {
            state = self.wait_while(state, |state| {
                live(state)
                    && state.ready.iter().filter(|ready| is_frame(ready)).count() >= MAX_READY
            });
        }
        if !live(&state) {
            return Err(Error::Cancelled);
        }
        state.ready.push_back(ready);
        self.changed.notify_all();
        Ok(())
    }

    /// Nothing panics with the lock held, so the state is whole even in a poisoned one.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        condition: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        self.changed
            .wait_while(state, |state| condition(state))
            .unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) enum Step {
    Item(QueueItem),
    /// Everything known of the stream is void: a new epoch has begun.
    Restart(u64, Cancel),
    Stop,
}
