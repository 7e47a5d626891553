// SPDX-License-Identifier: MIT OR Apache-2.0
//! The enhancer inside the plugin, version 0: classical.
//!
//! It resizes with a Lanczos kernel and makes frames by cross-fading their neighbours. That is what
//! any scaler does: nothing is invented, and what moves between two frames appears twice in the
//! frames made between them. Trained networks will take its place.

mod resize;

use std::{sync::Arc, time::Instant};

use rayon::prelude::*;

use crate::engine::{Cancel, Clip, Enhancer, Error, Format, Frame, Progress};
use resize::resize;

/// Components blended between two looks at the cancel token: about a millisecond's work.
const BLEND_BLOCK: usize = 1 << 20;

/// Resizes and cross-fades on all cores of the CPU.
#[derive(Default)]
pub struct Lite {
    clip: Option<(Format, Clip)>,
    /// The last key frame at output size.
    previous: Option<Arc<Frame>>,
}

impl Enhancer for Lite {
    fn lookahead(&self, format: &Format) -> usize {
        usize::from(format.made > 0)
    }

    fn start(&mut self, format: Format, clip: Clip) -> Result<(), Error> {
        self.previous = None;
        self.clip = Some((format, clip));
        Ok(())
    }

    fn push(&mut self, frame: Frame) -> Result<(), Error> {
        let (format, Clip { sink, cancel }) = self.clip.as_ref().ok_or(Error::Cancelled)?;
        let start = Instant::now();
        cancel.check()?;
        let key = match format.input == format.output {
            true => Arc::new(frame),
            false => Arc::new(resize(frame, format.output, format.alpha, cancel)?),
        };
        let mut took = start.elapsed();

        if let Some(previous) = self.previous.replace(key.clone()) {
            for step in 1..=format.made {
                let start = Instant::now();
                let made = blend(&previous, &key, step, format, cancel)?;
                took += start.elapsed();
                sink.frame(Arc::new(made))?;
            }
        }
        sink.frame(key)?;
        sink.progress(Progress { unit: "frame".into(), took });
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Error> {
        self.reset();
        Ok(())
    }

    fn reset(&mut self) {
        self.clip = None;
        self.previous = None;
    }
}

/// (1−w)·a + w·b with w = step/(made + 1), to the nearest. With alpha, colours count by it.
fn blend(
    a: &Frame,
    b: &Frame,
    step: usize,
    format: &Format,
    cancel: &Cancel,
) -> Result<Frame, Error> {
    let mut out = Frame::new(a.width(), a.height())?;
    let steps = format.made + 1;
    // Weights of 16 bits: a weighted sum of two 16-bit components fits 32 bits.
    let weight = (((step << 16) + steps / 2) / steps) as u32;
    let weights = [(1 << 16) - weight, weight];
    out.pixels_mut()
        .par_chunks_mut(BLEND_BLOCK)
        .zip(a.pixels().par_chunks(BLEND_BLOCK))
        .zip(b.pixels().par_chunks(BLEND_BLOCK))
        .try_for_each(|((out, a), b)| {
            cancel.check()?;
            match format.alpha {
                true => blend_with_alpha(out, a, b, weights),
                false => blend_components(out, a, b, weights),
            }
            Ok(())
        })?;
    Ok(out)
}

fn blend_components(out: &mut [u16], a: &[u16], b: &[u16], [wa, wb]: [u32; 2]) {
    for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *out = ((u32::from(a) * wa + u32::from(b) * wb + (1 << 15)) >> 16) as u16;
    }
}

fn blend_with_alpha(out: &mut [u16], a: &[u16], b: &[u16], [wa, wb]: [u32; 2]) {
    let pixels = a.as_chunks::<{ Frame::COMPONENTS }>().0.iter();
    let pixels = pixels.zip(b.as_chunks().0).zip(out.as_chunks_mut().0);
    for ((&[ar, ag, ab, aa], &[br, bg, bb, ba]), out) in pixels {
        let (wa, wb) = (u64::from(aa) * u64::from(wa), u64::from(ba) * u64::from(wb));
        let alpha = wa + wb;
        let mix = |a: u16, b: u16| {
            let sum = u64::from(a) * wa + u64::from(b) * wb + alpha / 2;
            sum.checked_div(alpha).unwrap_or(0) as u16
        };
        *out = [mix(ar, br), mix(ag, bg), mix(ab, bb), ((alpha + (1 << 15)) >> 16) as u16];
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::engine::Sink;

    #[derive(Default)]
    struct Collect(Mutex<Vec<Arc<Frame>>>);

    impl Sink for Collect {
        fn frame(&self, frame: Arc<Frame>) -> Result<(), Error> {
            self.0.lock().unwrap().push(frame);
            Ok(())
        }
        fn progress(&self, _: Progress) {}
    }

    fn flat(value: u16, (width, height): (usize, usize)) -> Frame {
        let mut frame = Frame::new(width, height).unwrap();
        frame.pixels_mut().fill(value);
        frame
    }

    fn enhance(values: &[u16], format: Format) -> Vec<Arc<Frame>> {
        let sink = Arc::new(Collect::default());
        let mut lite = Lite::default();
        lite.start(format, Clip { sink: sink.clone(), cancel: Cancel::default() }).unwrap();
        for &value in values {
            lite.push(flat(value, format.input)).unwrap();
        }
        lite.finish().unwrap();
        sink.0.lock().unwrap().clone()
    }

    #[test]
    fn a_clip_of_any_length_gives_n_plus_k_times_n_minus_1_frames_that_fade_evenly() {
        for made in 0..=8 {
            let format = Format { input: (6, 4), output: (12, 8), made, alpha: false };
            for length in 0..5u16 {
                let values: Vec<u16> = (0..length).map(|i| i * 9000).collect();
                let output = enhance(&values, format);
                let expected = values.len() + made * values.len().saturating_sub(1);
                assert_eq!(output.len(), expected);
                for (i, frame) in output.iter().enumerate() {
                    let ideal = i as f64 * 9000.0 / (made + 1) as f64;
                    assert_eq!((frame.width(), frame.height()), format.output);
                    for &value in frame.pixels() {
                        assert!((f64::from(value) - ideal).abs() <= 1.0, "{value} is not {ideal}");
                    }
                }
            }
        }
    }

    #[test]
    fn extremes_blend_without_overflow() {
        let (black, white) = (flat(0, (2, 2)), flat(u16::MAX, (2, 2)));
        let cancel = Cancel::default();
        for alpha in [false, true] {
            let format = Format { input: (2, 2), output: (2, 2), made: 8, alpha };
            for step in 1..=8 {
                let ideal = 65535.0 * step as f64 / 9.0;
                let got = blend(&black, &white, step, &format, &cancel).unwrap().pixels()[3];
                assert!((f64::from(got) - ideal).abs() <= 1.0);
                assert_eq!(blend(&white, &white, step, &format, &cancel).unwrap(), white);
            }
        }
    }

    #[test]
    fn what_fades_in_from_nothing_keeps_its_colour() {
        let format = Format { input: (1, 1), output: (1, 1), made: 1, alpha: true };
        let (nothing, mut red) = (flat(0, (1, 1)), flat(0, (1, 1)));
        red.pixels_mut().copy_from_slice(&[60000, 0, 0, u16::MAX]);
        let half = blend(&nothing, &red, 1, &format, &Cancel::default()).unwrap();
        assert_eq!(half.pixels(), [60000, 0, 0, 32768]);
    }

    #[test]
    fn a_cancelled_clip_stops_and_the_next_one_works() {
        let format = Format { input: (6, 4), output: (12, 8), made: 1, alpha: false };
        let mut lite = Lite::default();
        let clip = Clip { sink: Arc::new(Collect::default()), cancel: Cancel::default() };
        lite.start(format, clip.clone()).unwrap();
        clip.cancel.cancel();
        assert_eq!(lite.push(flat(1, (6, 4))), Err(Error::Cancelled));
        lite.reset();
        assert_eq!(enhance(&[1, 2], format).len(), 3);
    }
}
