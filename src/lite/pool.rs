// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reuses buffers from frame to frame: mapping and zeroing fresh memory costs time.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{
    engine::{Error, Frame},
    ops::Scratch,
};

/// A pool of output frames and of scratch buffers.
#[derive(Default)]
pub(super) struct FramePool {
    /// Buffers that no thread uses at the moment.
    scratch: Mutex<Vec<Scratch>>,
    /// Every frame that was handed out by [`share`](Self::share). A frame is free when the pool holds the only
    /// reference to it.
    frames: Mutex<Vec<Arc<Frame>>>,
}

impl FramePool {
    /// Calls `work` with a scratch buffer of the pool.
    pub(super) fn with_scratch<R>(&self, work: impl FnOnce(&mut Scratch) -> R) -> R {
        let mut scratch = self.scratch.lock().pop().unwrap_or_default();
        let result = work(&mut scratch);
        self.scratch.lock().push(scratch);
        result
    }

    /// A frame of this size (w, h) with undefined pixels: a free one, or a new one.
    pub(super) fn frame(&self, (width, height): (usize, usize)) -> Result<Frame, Error> {
        let mut frames = self.frames.lock();
        let fits = |frame: &Frame| (frame.width(), frame.height()) == (width, height);
        let free = frames.iter().position(|frame| Arc::strong_count(frame) == 1 && fits(frame));
        match free.and_then(|at| Arc::into_inner(frames.swap_remove(at))) {
            Some(frame) => Ok(frame),
            None => Frame::new(width, height),
        }
    }

    /// Shares a frame. The pool reuses its memory when all other references are gone.
    pub(super) fn share(&self, frame: Frame) -> Arc<Frame> {
        let frame = Arc::new(frame);
        self.frames.lock().push(frame.clone());
        frame
    }
}
