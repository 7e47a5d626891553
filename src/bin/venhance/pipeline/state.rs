// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the streaming threads of [`Work`](super::Work) share with the thread that waits for it.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use gst::ClockTime;
use parking_lot::{Mutex, MutexGuard};

use crate::{
    failure::Failure,
    partial::{Content, Partial, ResumePoint},
};

/// Length of a piece. Each piece costs a key frame.
const PIECE: ClockTime = ClockTime::from_seconds(2);

/// A resume point and a muxer's cluster belong together if their times differ by no more than this: the
/// muxer rounds times.
const CLUSTER_ROUNDING: ClockTime = ClockTime::MSECOND;

pub struct State {
    /// The partial file. No other lock is taken while this one is held.
    partial: Mutex<Partial>,
    /// The encoder's caps, once they are known.
    caps: Mutex<Option<gst::Caps>>,
    /// Why writing to the partial file failed.
    failure: Mutex<Option<Failure>>,
    /// Resume points between the enhancer and the muxer, in the order of their times.
    resume_points: Mutex<VecDeque<ResumePoint>>,
    /// Set by Ctrl-C: nothing more goes to the encoder and the muxer.
    stopped: AtomicBool,
    /// Number of the piece that the last frame of the enhancer belongs to.
    piece: AtomicU64,
    /// Number of output frames before this run.
    frames_before: u64,
    /// Number of frames that have left the enhancer in this run.
    frames: AtomicU64,
    /// Running time of the last of them in nanoseconds.
    position: AtomicU64,
    /// Running time of its end in nanoseconds.
    end: AtomicU64,
    /// The running time in nanoseconds until which some stream has data.
    read_until: AtomicU64,
}

impl State {
    /// For a run that starts at `start`.
    pub fn new(partial: Partial, start: ResumePoint) -> Self {
        Self {
            partial: Mutex::new(partial),
            caps: Mutex::default(),
            failure: Mutex::default(),
            resume_points: Mutex::default(),
            stopped: AtomicBool::new(false),
            piece: AtomicU64::new(start.time.nseconds() / PIECE.nseconds()),
            frames_before: start.frames,
            frames: AtomicU64::new(0),
            position: AtomicU64::new(start.time.nseconds()),
            end: AtomicU64::new(start.time.nseconds()),
            read_until: AtomicU64::new(start.time.nseconds()),
        }
    }

    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Number of output frames of this run and of those before it.
    pub fn all_frames(&self) -> u64 {
        self.frames_before + self.frames()
    }

    pub fn position(&self) -> ClockTime {
        ClockTime::from_nseconds(self.position.load(Ordering::Relaxed))
    }

    pub fn failure(&self) -> Option<Failure> {
        self.failure.lock().clone()
    }

    pub fn partial(&self) -> MutexGuard<'_, Partial> {
        self.partial.lock()
    }

    pub fn set_caps(&self, caps: gst::Caps) {
        *self.caps.lock() = Some(caps);
    }

    /// Marks the partial file as complete, and returns what it contains.
    pub fn complete(&self) -> Result<Content, Failure> {
        let caps = self.caps.lock().clone().unwrap_or_else(gst::Caps::new_any);
        let end = ClockTime::from_nseconds(self.end.load(Ordering::Relaxed));
        let content = Content { frames: self.all_frames(), last: self.position(), end, caps };
        self.partial().complete(&content)?;
        Ok(content)
    }

    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    pub fn count_frame(&self, time: ClockTime, duration: ClockTime) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.position.store(time.nseconds(), Ordering::Relaxed);
        self.end.store((time + duration).nseconds(), Ordering::Relaxed);
        self.extend(time + duration);
    }

    /// Some stream has data until `end`.
    pub fn extend(&self, end: ClockTime) {
        self.read_until.fetch_max(end.nseconds(), Ordering::Relaxed);
    }

    pub fn read_until(&self) -> ClockTime {
        ClockTime::from_nseconds(self.read_until.load(Ordering::Relaxed))
    }

    /// Whether the frame at `time` is the first of a new piece.
    pub fn starts_piece(&self, time: ClockTime) -> bool {
        let piece = time.nseconds() / PIECE.nseconds();
        piece > self.piece.fetch_max(piece, Ordering::Relaxed)
    }

    pub fn add_resume_point(&self, point: ResumePoint) {
        self.resume_points.lock().push_back(point);
    }

    /// Writes to the partial file. A failure is kept and posted as an error of `element`.
    pub fn write(
        &self,
        element: &gst::Element,
        action: impl FnOnce(&mut Partial) -> Result<(), Failure>,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        if self.failure().is_some() {
            return Err(gst::FlowError::Error);
        }
        // The lock is released before the error is posted.
        let written = action(&mut self.partial.lock());
        written.map(|()| gst::FlowSuccess::Ok).map_err(|failure| {
            let text = failure.to_string();
            self.failure.lock().get_or_insert(failure);
            gst::element_error!(element, gst::ResourceError::Write, ("{text}"));
            gst::FlowError::Error
        })
    }

    /// Writes a buffer of the muxer. A cluster that starts at a resume point starts a new piece.
    pub fn write_muxed(
        &self,
        element: &gst::Element,
        buffer: &gst::BufferRef,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let starts_cluster =
            !buffer.flags().intersects(gst::BufferFlags::DELTA_UNIT | gst::BufferFlags::HEADER);
        let point = starts_cluster.then(|| self.resume_point_at(buffer.pts()?)).flatten();
        self.write(element, |partial| {
            if let Some(point) = point {
                partial.end_piece(point)?;
            }
            partial.write(buffer)
        })
    }

    /// Takes the resume point at `pts` out of the queue, with those before it.
    fn resume_point_at(&self, pts: ClockTime) -> Option<ResumePoint> {
        let points = &mut *self.resume_points.lock();
        let near = |point: &ResumePoint| point.time.absdiff(pts) <= CLUSTER_ROUNDING;
        let index = points.iter().position(near)?;
        points.drain(..=index).next_back()
    }
}
