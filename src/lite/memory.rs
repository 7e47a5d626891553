// SPDX-License-Identifier: MIT OR Apache-2.0
//! Memory that goes from picture to picture: what is fresh would have to be mapped and zeroed first.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    engine::{Error, Frame},
    ops::Room,
};

/// What has been used and may be used again.
#[derive(Default)]
pub(super) struct Memory {
    rooms: Mutex<Vec<Room>>,
    /// Some of them are still in use elsewhere.
    frames: Mutex<Vec<Arc<Frame>>>,
}

impl Memory {
    /// Lends room to compute in.
    pub(super) fn with_room<R>(&self, work: impl FnOnce(&mut Room) -> R) -> R {
        let mut room = lock(&self.rooms).pop().unwrap_or_default();
        let result = work(&mut room);
        lock(&self.rooms).push(room);
        result
    }

    /// A frame of this size, whose pixels may be anything.
    pub(super) fn frame(&self, (width, height): (usize, usize)) -> Result<Frame, Error> {
        let mut frames = lock(&self.frames);
        let fits = |frame: &Frame| (frame.width(), frame.height()) == (width, height);
        let free = frames.iter().position(|frame| Arc::strong_count(frame) == 1 && fits(frame));
        match free.and_then(|at| Arc::into_inner(frames.swap_remove(at))) {
            Some(frame) => Ok(frame),
            None => Frame::new(width, height),
        }
    }

    /// Shares a frame whose memory is to be used again once nobody has it any more.
    pub(super) fn share(&self, frame: Frame) -> Arc<Frame> {
        let frame = Arc::new(frame);
        lock(&self.frames).push(frame.clone());
        frame
    }
}

/// Nothing panics with a lock held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
