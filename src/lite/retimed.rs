// SPDX-License-Identifier: MIT OR Apache-2.0
//! Output at any time from a model that makes a fixed number of frames.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;

use super::Lite;
use crate::engine::{
    ClipContext, Enhancer, Error, Format, Frame, Progress, Sink, check_times, multiple_times,
};

/// A model that makes `interpolated` frames at equal intervals between two input frames, as an [`Enhancer`] for
/// any output times. A frame of the model that lies on an output time passes; between two of them, [`Lite`]
/// interpolates at the output size; before the first and after the last one, it is repeated.
pub struct Retimed {
    model: Box<dyn Enhancer>,
    clip: Option<Clip>,
}

/// The clip in progress.
struct Clip {
    /// Frames of the model from one input frame to the next: k + 1. Times are multiplied by it, so that those of
    /// the model's frames are integers.
    steps: u64,
    interpolated: usize,
    /// The number of input frames so far.
    inputs: u64,
    /// The time of the last one.
    previous: Option<u64>,
    output: Arc<ModelOutput>,
}

/// Receives the frames of the model.
struct ModelOutput {
    sink: Arc<dyn Sink>,
    /// The time of each frame that the model will deliver, and the output times up to it.
    expected: Mutex<VecDeque<(u64, Vec<u64>)>>,
    /// Delivers the output. Only one thread at a time delivers frames, so none waits for the lock.
    lite: Mutex<Lite>,
}

impl Retimed {
    /// Wraps a model.
    pub fn new(model: Box<dyn Enhancer>) -> Self {
        Self { model, clip: None }
    }

    /// Returns the host memory in bytes that it needs for output of size (w, h), if at most one output frame lies
    /// between two of the model. Measured.
    pub fn host_bytes((width, height): (usize, usize)) -> usize {
        /// Of 16-bit frames, luma pyramids, the optical flow and the buffers of its network.
        const BYTES_PER_PIXEL: usize = 85;
        width * height * BYTES_PER_PIXEL
    }

    fn clip(&mut self) -> Result<&mut Clip, Error> {
        self.clip.as_mut().ok_or_else(Error::without_start)
    }
}

impl Clip {
    fn new(format: Format, clip: &ClipContext) -> Result<Self, Error> {
        let mut lite = Lite::new()?;
        let frames = Format { input: format.output, interpolated: 0, ..format };
        let sink = Arc::new(Frames(clip.sink.clone()));
        lite.start(frames, ClipContext { sink, cancel: clip.cancel.clone() })?;
        Ok(Self {
            steps: format.interpolated as u64 + 1,
            interpolated: format.interpolated,
            inputs: 0,
            previous: None,
            output: Arc::new(ModelOutput {
                sink: clip.sink.clone(),
                expected: Mutex::default(),
                lite: Mutex::new(lite),
            }),
        })
    }

    /// Multiplies a time by the steps.
    fn scale(&self, time: u64) -> Result<u64, Error> {
        let overflow = || Error::Internal { what: format!("time {time} is too large") };
        time.checked_mul(self.steps).ok_or_else(overflow)
    }

    /// Notes the output up to an input frame at `time`. Returns the times for the model.
    fn expect(&mut self, time: u64, outputs: &[u64]) -> Result<(u64, Vec<u64>), Error> {
        check_times(self.previous, time, outputs)?;
        let last = self.scale(time)?;
        let outputs: Vec<u64> =
            outputs.iter().map(|output| self.scale(*output)).collect::<Result<_, _>>()?;
        let mut rest = &outputs[..];
        let mut expected = self.output.expected.lock();
        let step = self.previous.map_or(0, |previous| time - previous);
        let count = if self.previous.is_some() { self.steps } else { 1 };
        for n in (0..count).rev() {
            let at = last - n * step;
            let (before, after) = rest.split_at(rest.partition_point(|output| *output <= at));
            expected.push_back((at, before.to_vec()));
            rest = after;
        }
        let begins = self.previous.replace(time).is_none();
        let times = multiple_times(self.inputs, begins, self.interpolated);
        self.inputs += 1;
        Ok(times)
    }
}

impl Enhancer for Retimed {
    /// A frame between two frames of the model comes with the second one.
    fn lookahead(&self, format: &Format) -> usize {
        self.model.lookahead(format) + usize::from(format.exact)
    }

    fn start(&mut self, format: Format, clip: ClipContext) -> Result<(), Error> {
        self.start_at(0, format, clip)
    }

    fn start_at(&mut self, first: usize, format: Format, clip: ClipContext) -> Result<(), Error> {
        let ClipContext { cancel, .. } = clip.clone();
        let clip = self.clip.insert(Clip::new(format, &clip)?);
        let context = ClipContext { sink: clip.output.clone(), cancel };
        self.model.start_at(first, Format { exact: false, ..format }, context)
    }

    fn push(&mut self, frame: Frame, time: u64, outputs: &[u64]) -> Result<(), Error> {
        let (time, outputs) = self.clip()?.expect(time, outputs)?;
        self.model.push(frame, time, &outputs)
    }

    fn finish(&mut self, outputs: &[u64]) -> Result<(), Error> {
        let clip = self.clip()?;
        let outputs: Vec<u64> =
            outputs.iter().map(|output| clip.scale(*output)).collect::<Result<_, _>>()?;
        let output = clip.output.clone();
        self.model.finish(&[])?;
        self.clip = None;
        output.lite.lock().finish(&outputs)
    }

    fn reset(&mut self) {
        self.model.reset();
        self.clip = None;
    }
}

impl Sink for ModelOutput {
    fn frame(&self, frame: Arc<Frame>) -> Result<(), Error> {
        let expected = self.expected.lock().pop_front();
        let (time, outputs) = expected.ok_or_else(|| Error::Internal {
            what: "the model delivered a frame too many".into(),
        })?;
        self.lite.lock().push(Arc::unwrap_or_clone(frame), time, &outputs)
    }

    fn progress(&self, progress: Progress) {
        self.sink.progress(progress);
    }

    fn warning(&self, text: String) {
        self.sink.warning(text);
    }
}

/// Passes frames only: progress is counted in the units of the model.
struct Frames(Arc<dyn Sink>);

impl Sink for Frames {
    fn frame(&self, frame: Arc<Frame>) -> Result<(), Error> {
        self.0.frame(frame)
    }

    fn progress(&self, _: Progress) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Cancel;

    /// A model that fades linearly between two input frames. It holds the last input frame until the next one.
    #[derive(Default)]
    struct Fade {
        context: Option<(Format, ClipContext)>,
        inputs: Vec<u16>,
    }

    fn grey(value: u16) -> Frame {
        let mut frame = Frame::new(8, 6).unwrap();
        frame.pixels_mut().fill(value);
        frame
    }

    impl Fade {
        fn deliver(&mut self, from: u16, to: u16) -> Result<(), Error> {
            let (format, clip) = self.context.as_ref().unwrap();
            let steps = format.interpolated as u16 + 1;
            (0..steps)
                .try_for_each(|n| clip.sink.frame(Arc::new(grey(from + (to - from) / steps * n))))
        }
    }

    impl Enhancer for Fade {
        fn lookahead(&self, _: &Format) -> usize {
            1
        }

        fn start(&mut self, format: Format, clip: ClipContext) -> Result<(), Error> {
            self.context = Some((format, clip));
            self.inputs.clear();
            Ok(())
        }

        fn push(&mut self, frame: Frame, _: u64, _: &[u64]) -> Result<(), Error> {
            let value = frame.pixels()[0];
            if let Some(last) = self.inputs.last().copied() {
                self.deliver(last, value)?;
            }
            self.inputs.push(value);
            Ok(())
        }

        fn finish(&mut self, _: &[u64]) -> Result<(), Error> {
            let last = self.inputs.last().copied();
            let (_, clip) = self.context.as_ref().unwrap();
            last.map_or(Ok(()), |last| clip.sink.frame(Arc::new(grey(last))))
        }

        fn reset(&mut self) {}
    }

    #[derive(Default)]
    struct Values(Mutex<Vec<u16>>);

    impl Sink for Values {
        fn frame(&self, frame: Arc<Frame>) -> Result<(), Error> {
            self.0.lock().push(frame.pixels()[0]);
            Ok(())
        }

        fn progress(&self, _: Progress) {}
    }

    /// The values of the output of a clip whose input frames have the values 8000, 16000, 24000 …
    fn values(exact: bool, inputs: &[(u64, &[u64])], last: &[u64]) -> Result<Vec<u16>, Error> {
        let format = Format { input: (8, 6), output: (8, 6), interpolated: 1, exact, alpha: false };
        let sink = Arc::new(Values::default());
        let mut model = Retimed::new(Box::new(Fade::default()));
        model.start(format, ClipContext { sink: sink.clone(), cancel: Cancel::default() })?;
        for ((time, outputs), value) in inputs.iter().zip((1..).map(|n| 8000 * n)) {
            model.push(grey(value), *time, outputs)?;
        }
        model.finish(last)?;
        let values = sink.0.lock().clone();
        Ok(values)
    }

    #[test]
    fn frames_of_the_model_pass_and_are_repeated_beyond_the_ends() {
        let inputs: [(u64, &[u64]); 3] = [(5, &[3, 5]), (7, &[6, 7]), (11, &[9, 11])];
        let expected = [8000, 8000, 12_000, 16_000, 20_000, 24_000, 24_000, 24_000];
        for exact in [false, true] {
            assert_eq!(values(exact, &inputs, &[12, 13]).unwrap(), expected);
        }
        assert_eq!(values(false, &[(0, &[])], &[1]).unwrap(), [8000]);
        assert!(values(false, &[], &[]).unwrap().is_empty());
    }

    #[test]
    fn between_two_frames_of_the_model_a_frame_is_interpolated() {
        let inputs: [(u64, &[u64]); 3] = [(0, &[0]), (100, &[30, 50, 75]), (200, &[])];
        let values = values(true, &inputs, &[201]).unwrap();
        let expected = [8000, 10_400, 12_000, 14_000, 24_000];
        assert_eq!(values.len(), expected.len());
        for (value, expected) in values.iter().zip(expected) {
            assert!(value.abs_diff(expected) < 100, "{values:?}");
        }
        // Those at times of the model's frames are the model's.
        assert_eq!((values[2], values[4]), (expected[2], expected[4]));
    }

    #[test]
    fn times_that_cannot_be_made_are_an_error() {
        for (inputs, last) in [
            (&[(0, &[0][..]), (100, &[30, 100][..])][..], &[][..]),
            (&[(0, &[0]), (0, &[])], &[]),
            (&[(u64::MAX, &[])], &[]),
            (&[(0, &[0])], &[0]),
            (&[], &[0]),
        ] {
            assert!(matches!(values(false, inputs, last), Err(Error::Internal { .. })));
        }
    }
}
