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
    time::{Duration, Instant},
};

use gst::ClockTime;

use super::timeline::{Cadence, Moment};
use crate::engine::{Cancel, Clip, Enhancer, Error, Format, Frame, Progress, Sink};

/// Input frames that wait for the compute thread: decoding goes on meanwhile.
const MAX_ARRIVED: usize = 4;
/// Output frames that wait for the push task: computing goes on meanwhile.
const MAX_READY: usize = 2;

/// What goes into the queue.
pub(super) enum Item {
    /// The format of the clips that follow; comes between two clips.
    Format(Format, Option<Cadence>),
    Frame(Frame, Stamp),
    EndOfClip,
    Event(gst::Event),
    Barrier,
}

impl Item {
    fn into_event(self) -> Option<gst::Event> {
        match self {
            Self::Event(event) => Some(event),
            _ => None,
        }
    }
}

/// What an input buffer says beside its picture.
pub(super) struct Stamp {
    pub(super) moment: Moment,
    pub(super) duration: Option<ClockTime>,
    pub(super) flags: gst::BufferFlags,
    /// A buffer without memory that holds the metas.
    pub(super) metas: Option<gst::Buffer>,
}

/// What comes out of the queue.
pub(super) enum Ready {
    Frame(Output),
    Event(gst::Event),
    Barrier,
}

impl Ready {
    fn into_event(self) -> Option<gst::Event> {
        match self {
            Self::Event(event) => Some(event),
            _ => None,
        }
    }
}

/// An output frame and what its buffer has to say.
pub(super) struct Output {
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
    arrived: VecDeque<Item>,
    /// What the push task has not taken yet, in order of output.
    ready: VecDeque<Ready>,
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
        let ready = std::mem::take(&mut state.ready).into_iter().filter_map(Ready::into_event);
        let arrived = std::mem::take(&mut state.arrived).into_iter().filter_map(Item::into_event);
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
    pub(super) fn enter(&self, item: Item) -> Result<gst::FlowSuccess, gst::FlowError> {
        let is_frame = |item: &Item| matches!(item, Item::Frame(..));
        let mut state = self.lock();
        if is_frame(&item) {
            state = self.wait_while(state, |state| {
                state.flow.is_ok()
                    && state.arrived.iter().filter(|item| is_frame(item)).count() >= MAX_ARRIVED
            });
        }
        state.flow?;
        state.barriers.0 += u64::from(matches!(item, Item::Barrier));
        state.arrived.push_back(item);
        self.changed.notify_all();
        state.flow
    }

    /// Ends the clip and waits until all that has entered has been pushed.
    pub(super) fn drain(&self) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.enter(Item::EndOfClip)?;
        self.enter(Item::Barrier)?;
        let state = self.wait_while(self.lock(), |state| {
            state.flow.is_ok() && state.barriers.1 < state.barriers.0
        });
        state.flow
    }

    /// The next thing to push; `None` once nothing flows.
    pub(super) fn take(&self) -> Option<Ready> {
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
    fn next(&self, epoch: u64) -> Step {
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
    fn deliver(&self, epoch: u64, ready: Ready) -> Result<(), Error> {
        let is_frame = |ready: &Ready| matches!(ready, Ready::Frame(_));
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

enum Step {
    Item(Item),
    /// Everything known of the stream is void: a new epoch has begun.
    Restart(u64, Cancel),
    Stop,
}

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
    let mut desk = Desk {
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
        match queue.next(desk.epoch) {
            Step::Stop => return,
            Step::Restart(epoch, cancel) => {
                desk.drop_clip();
                if desk.epoch > 0 {
                    desk.first = 0;
                }
                (desk.epoch, desk.cancel) = (epoch, cancel);
            }
            Step::Item(item) => match desk.work(item) {
                Ok(()) => {}
                // The queue has said why, or will with its next step.
                Err(Error::Cancelled) => desk.drop_clip(),
                Err(error) => {
                    desk.drop_clip();
                    desk.report.failed(error);
                    desk.report.dropped(queue.fail(gst::FlowError::Error));
                }
            },
        }
    }
}

/// What the compute thread works with.
struct Desk<'a> {
    queue: &'a Arc<Queue>,
    enhancer: &'a mut dyn Enhancer,
    report: Arc<dyn Report>,
    epoch: u64,
    cancel: Cancel,
    format: Option<(Format, Option<Cadence>)>,
    clip: Option<Arc<Delivery>>,
    /// The number, in its clip, of the next frame that begins one: not 0 only for the first of a run.
    first: u32,
}

impl Desk<'_> {
    fn work(&mut self, item: Item) -> Result<(), Error> {
        match (item, self.clip.clone()) {
            (Item::Format(format, cadence), _) => {
                self.format = Some((format, cadence));
                let frame = cadence.map(|cadence| cadence.frame());
                self.report.format(frame, self.enhancer.lookahead(&format));
                Ok(())
            }
            (Item::Frame(frame, stamp), clip) => {
                let clip = match clip {
                    Some(clip) => clip,
                    None => self.start_clip()?,
                };
                clip.line().pending.push_back(Pending::Key(stamp));
                let start = Instant::now();
                self.enhancer.push(frame)?;
                let waited = std::mem::take(&mut clip.line().waited);
                self.report.computed(start.elapsed().saturating_sub(waited));
                Ok(())
            }
            (Item::EndOfClip, Some(clip)) => {
                self.enhancer.finish()?;
                self.clip = None;
                clip.release_events(&clip.leaving())
            }
            (Item::EndOfClip, None) => Ok(()),
            (Item::Event(event), Some(clip)) => {
                clip.line().pending.push_back(Pending::Event(event));
                clip.release_events(&clip.leaving())
            }
            (Item::Event(event), None) => self.queue.deliver(self.epoch, Ready::Event(event)),
            // Only ever after the end of a clip.
            (Item::Barrier, _) => self.queue.deliver(self.epoch, Ready::Barrier),
        }
    }

    fn start_clip(&mut self) -> Result<Arc<Delivery>, Error> {
        // The element never lets a frame in before a format.
        let (format, cadence) = self.format.ok_or(Error::Cancelled)?;
        let (first, parts) = (std::mem::take(&mut self.first), format.made as u64 + 1);
        let clip = Arc::new(Delivery {
            queue: self.queue.clone(),
            report: self.report.clone(),
            epoch: self.epoch,
            cadence,
            parts,
            line: Mutex::new(Line { number: u64::from(first) * parts, ..Line::default() }),
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
struct Delivery {
    queue: Arc<Queue>,
    report: Arc<dyn Report>,
    epoch: u64,
    cadence: Option<Cadence>,
    /// Output frames from one key frame to the next.
    parts: u64,
    line: Mutex<Line>,
    /// Held from the moment that something leaves the line until it is in the queue, so that nothing
    /// overtakes it; not while anything else is done.
    leaving: Mutex<()>,
}

#[derive(Default)]
struct Line {
    /// Key frames that the model has not put out yet, and the events between and after them.
    pending: VecDeque<Pending>,
    /// The last key frame put out.
    key: Option<Moment>,
    /// The place in the clip of the frame that comes next.
    number: u64,
    /// Time spent waiting for the push task.
    waited: Duration,
}

enum Pending {
    Key(Stamp),
    Event(gst::Event),
}

impl Pending {
    fn into_event(self) -> Option<gst::Event> {
        match self {
            Self::Key(_) => None,
            Self::Event(event) => Some(event),
        }
    }
}

impl Delivery {
    fn line(&self) -> MutexGuard<'_, Line> {
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
            self.queue.deliver(self.epoch, Ready::Event(event))?;
        }
        Ok(())
    }
}

impl Line {
    /// The next key frame's output.
    fn key_frame(
        &mut self,
        frame: Arc<Frame>,
        cadence: Option<Cadence>,
        parts: u64,
    ) -> Option<Output> {
        let Some(Pending::Key(stamp)) = self.pending.pop_front() else {
            return None;
        };
        let Stamp { moment, duration, flags, metas } = stamp;
        self.key = Some(moment);
        // The frame before a gap lasts through it, as the input says.
        let duration = match cadence {
            Some(cadence) if parts > 1 => Some(cadence.key_duration(moment, duration)),
            _ => duration,
        };
        Some(Output { frame, number: self.number, pts: moment.pts, duration, flags, metas })
    }

    /// The output of a frame made between the last key frame and the next one, at `part` of the way.
    fn made_frame(&self, frame: Arc<Frame>, cadence: Option<Cadence>, part: u64) -> Option<Output> {
        let (Some(Pending::Key(next)), Some(key), Some(cadence)) =
            (self.pending.front(), self.key, cadence)
        else {
            return None;
        };
        let pts = cadence.between(key, next.moment, part);
        let end = cadence.between(key, next.moment, part + 1);
        Some(Output {
            frame,
            number: self.number,
            pts,
            duration: Some(end.saturating_sub(pts)),
            flags: gst::BufferFlags::empty(),
            metas: None,
        })
    }
}

impl Sink for Delivery {
    fn frame(&self, frame: Arc<Frame>) -> Result<(), Error> {
        let leaving = self.leaving();
        let output = {
            let line = &mut *self.line();
            let output = match line.number % self.parts {
                0 => line.key_frame(frame, self.cadence, self.parts),
                part => line.made_frame(frame, self.cadence, part),
            };
            line.number += 1;
            // None: more frames than N + k·(N−1), which no model makes.
            output.ok_or(Error::Cancelled)?
        };
        let start = Instant::now();
        self.queue.deliver(self.epoch, Ready::Frame(output))?;
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
