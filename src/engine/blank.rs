// SPDX-License-Identifier: MIT OR Apache-2.0
//! A model that computes nothing, for a dry run.

use std::sync::Arc;

use super::{ClipContext, Enhancer, Error, Format, Frame, check_times};

/// Delivers a black frame for each output time as soon as it is asked for.
#[derive(Default)]
pub struct Blank {
    /// The clip in progress: its context, the frame to deliver, and the time of the last input frame.
    clip: Option<(ClipContext, Arc<Frame>, Option<u64>)>,
}

impl Blank {
    fn deliver(&mut self, time: Option<u64>, outputs: &[u64]) -> Result<(), Error> {
        let (context, frame, previous) = self.clip.as_mut().ok_or_else(Error::without_start)?;
        context.cancel.check()?;
        if let Some(time) = time {
            check_times(*previous, time, outputs)?;
            *previous = Some(time);
        }
        outputs.iter().try_for_each(|_| context.sink.frame(frame.clone()))
    }
}

impl Enhancer for Blank {
    fn lookahead(&self, _: &Format) -> usize {
        0
    }

    fn start(&mut self, format: Format, clip: ClipContext) -> Result<(), Error> {
        let (width, height) = format.output;
        self.clip = Some((clip, Arc::new(Frame::new(width, height)?), None));
        Ok(())
    }

    fn push(&mut self, _: Frame, time: u64, outputs: &[u64]) -> Result<(), Error> {
        self.deliver(Some(time), outputs)
    }

    fn finish(&mut self, outputs: &[u64]) -> Result<(), Error> {
        self.deliver(None, outputs)?;
        self.clip = None;
        Ok(())
    }

    fn reset(&mut self) {
        self.clip = None;
    }
}
