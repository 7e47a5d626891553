// SPDX-License-Identifier: MIT OR Apache-2.0
//! The enhancer inside the plugin: small networks, for any CPU.
//!
//! A frame is resized with a Lanczos kernel, and a network adds the detail that this loses ([`network`]).
//! Frames between two neighbours are made of both, each fetched from where the motion leads ([`flow`]);
//! where a scene is cut, the neighbours are repeated. `examples/train_lite` has trained the networks.

pub mod flow;
mod memory;
pub mod network;
pub mod plane;
mod resize;
mod synthesis;
mod upscale;
mod weights;

use std::{sync::Arc, time::Instant};

use crate::engine::{Clip, Enhancer, Error, Format, Frame, Progress};
use flow::Pyramid;
use memory::Memory;
use plane::Plane;
use weights::Networks;

/// A frame of the input, and what it became.
struct Key {
    pyramid: Pyramid,
    large: Arc<Frame>,
}

/// Works on all cores of the CPU.
pub struct Lite {
    networks: &'static Networks,
    memory: Memory,
    clip: Option<(Format, Clip)>,
    /// Where frames are made: the last key frame.
    previous: Option<Key>,
}

impl Lite {
    /// Reads the weights, once for all.
    ///
    /// # Errors
    /// [`Error::Weights`] if the plugin's file is damaged.
    pub fn new() -> Result<Self, Error> {
        Ok(Self {
            networks: Networks::get()?,
            memory: Memory::default(),
            clip: None,
            previous: None,
        })
    }

    /// When the frames are that are made between two.
    fn times(made: usize) -> impl Iterator<Item = f32> {
        (1..=made).map(move |step| step as f32 / (made + 1) as f32)
    }

    fn clip(&self) -> Result<&(Format, Clip), Error> {
        self.clip.as_ref().ok_or(Error::Cancelled)
    }
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
        let (format, clip) = self.clip()?.clone();
        let start = Instant::now();
        clip.cancel.check()?;
        let Format { made, alpha, .. } = format;
        let done = |took| clip.sink.progress(Progress { unit: "frame".into(), took });
        if made == 0 && format.input == format.output {
            clip.sink.frame(Arc::new(frame))?;
            done(start.elapsed());
            return Ok(());
        }
        let pyramid = Pyramid::new(Plane::of(&frame));
        let upscale = || match format.input == format.output {
            true => Ok(frame),
            false => {
                let luma = pyramid.base();
                upscale::upscale(self.networks, &self.memory, frame, luma, &format, &clip.cancel)
            }
        };
        let motions = || match &self.previous {
            Some(previous) => Self::times(made)
                .map(|time| {
                    let pyramids = [&previous.pyramid, &pyramid];
                    flow::estimate(self.networks, &self.memory, pyramids, time, &clip.cancel)
                })
                .collect(),
            None => Ok(Vec::new()),
        };
        let (large, motions): (_, Result<Vec<_>, Error>) = rayon::join(upscale, motions);
        let (large, motions) = (self.memory.share(large?), motions?);
        let mut took = start.elapsed();

        if let Some(previous) = &self.previous {
            let frames = [&*previous.large, &*large];
            for (motion, time) in motions.iter().zip(Self::times(made)) {
                let start = Instant::now();
                let nearer = if time <= 0.5 { &previous.large } else { &large };
                let made = match motion.cut {
                    true => nearer.clone(),
                    false => {
                        let mut made = self.memory.frame(format.output)?;
                        synthesis::between(frames, motion, (time, alpha), &mut made, &clip.cancel)?;
                        self.memory.share(made)
                    }
                };
                took += start.elapsed();
                clip.sink.frame(made)?;
            }
        }
        if made > 0 {
            self.previous = Some(Key { pyramid, large: large.clone() });
        }
        clip.sink.frame(large)?;
        done(took);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Error> {
        self.reset();
        Ok(())
    }

    fn reset(&mut self) {
        self.clip = None;
        self.previous = None;
        self.memory = Memory::default();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::engine::{Cancel, Sink};

    #[derive(Default)]
    struct Collect(Mutex<Vec<Arc<Frame>>>);

    impl Sink for Collect {
        fn frame(&self, frame: Arc<Frame>) -> Result<(), Error> {
            self.0.lock().unwrap().push(frame);
            Ok(())
        }
        fn progress(&self, _: Progress) {}
    }

    /// A frame whose pixel (x, y) has the brightness `value`, 0 to 1.
    fn picture((width, height): (usize, usize), value: impl Fn(f32, f32) -> f32) -> Frame {
        let mut frame = Frame::new(width, height).unwrap();
        for (n, pixel) in frame.pixels_mut().chunks_exact_mut(4).enumerate() {
            let value = value((n % width) as f32, (n / width) as f32).clamp(0.0, 1.0);
            pixel[..3].fill((value * 65535.0) as u16);
            pixel[3] = u16::MAX;
        }
        frame
    }

    fn enhance(frames: Vec<Frame>, format: Format) -> Vec<Arc<Frame>> {
        let sink = Arc::new(Collect::default());
        let mut lite = Lite::new().unwrap();
        lite.start(format, Clip { sink: sink.clone(), cancel: Cancel::default() }).unwrap();
        for frame in frames {
            lite.push(frame).unwrap();
        }
        lite.finish().unwrap();
        sink.0.lock().unwrap().clone()
    }

    /// Between two frames of 1, in parts of 1.
    fn difference(a: &Frame, b: &Frame) -> f64 {
        let off = a.pixels().iter().zip(b.pixels()).map(|(a, b)| f64::from(a.abs_diff(*b)));
        off.sum::<f64>() / a.pixels().len() as f64 / 65535.0
    }

    /// Hills of random height, 9 pixels apart: there is something to follow everywhere, and it does not
    /// repeat.
    fn texture(x: f32, y: f32) -> f32 {
        let height = |x: f32, y: f32| {
            let seed = (x as i32).wrapping_mul(0x1F12_3BB5) ^ (y as i32).wrapping_mul(0x0527_4A7B);
            (seed.wrapping_mul(0x2C1B_3C6D) >> 8 & 0xFFFF) as f32 / 65535.0
        };
        let smooth = |x: f32| x * x * (3.0 - 2.0 * x);
        let (x, y) = (x / 9.0, y / 9.0);
        let (left, top) = (x.floor(), y.floor());
        let (fx, fy) = (smooth(x - left), smooth(y - top));
        let row = |y: f32| height(left, y) * (1.0 - fx) + height(left + 1.0, y) * fx;
        0.2 + 0.6 * (row(top) * (1.0 - fy) + row(top + 1.0) * fy)
    }

    #[test]
    fn a_clip_of_any_length_gives_n_plus_k_times_n_minus_1_frames_and_light_fades_steadily() {
        for made in [0, 1, 3, 8] {
            let format = Format { input: (14, 11), output: (28, 22), made, alpha: false };
            for length in 0..4usize {
                let light = |n: usize| 0.2 + 0.1 * n as f32;
                let frames = (0..length).map(|n| picture((14, 11), |_, _| light(n))).collect();
                let output = enhance(frames, format);
                assert_eq!(output.len(), length + made * length.saturating_sub(1));
                for (n, frame) in output.iter().enumerate() {
                    let ideal = 0.2 + 0.1 * n as f32 / (made + 1) as f32;
                    assert_eq!((frame.width(), frame.height()), format.output);
                    let off = difference(frame, &picture(format.output, |_, _| ideal));
                    assert!(off < 0.02, "frame {n} of k = {made} is off by {off}");
                }
            }
        }
    }

    #[test]
    fn every_scale_and_every_side_gives_the_size_asked_for_and_the_same_picture() {
        for (input, output) in [
            ((32, 24), (64, 48)),
            ((31, 23), (62, 46)),
            ((31, 23), (92, 68)),
            ((30, 20), (120, 80)),
            ((33, 21), (82, 52)),
            ((16, 18), (128, 144)),
            ((1, 1), (8, 8)),
            ((3, 50), (12, 200)),
        ] {
            let format = Format { input, output, made: 1, alpha: false };
            let scale = output.0 as f32 / input.0 as f32;
            let place = |x: f32| (x + 0.5) / scale - 0.5;
            let smooth = |x: f32, y: f32| 0.5 + 0.3 * ((x + 2.0 * y) * 0.1).sin();
            let frames = vec![picture(input, smooth), picture(input, smooth)];
            for frame in enhance(frames, format) {
                let ideal = picture(output, |x, y| smooth(place(x), place(y)));
                let off = difference(&frame, &ideal);
                assert!(off < 0.02, "{input:?} to {output:?}: {off}");
            }
        }
    }

    #[test]
    fn what_moves_is_between_and_not_twice() {
        let size = (128, 96);
        let at = |shift: f32| picture(size, |x, y| texture(x - shift, y - shift / 2.0));
        for made in [1, 2, 4] {
            let format = Format { input: size, output: size, made, alpha: false };
            let output = enhance(vec![at(0.0), at(8.0)], format);
            for (n, frame) in output.iter().enumerate() {
                let time = n as f32 / (made + 1) as f32;
                let off = difference(frame, &at(8.0 * time));
                let fade = picture(size, |x, y| {
                    let ghost = |shift: f32| texture(x - shift, y - shift / 2.0);
                    ghost(0.0) * (1.0 - time) + ghost(8.0) * time
                });
                let faded = difference(&fade, &at(8.0 * time));
                assert!(off < 0.002 + faded / 3.0, "frame {n} of k = {made}: {off}, fades {faded}");
            }
        }
    }

    #[test]
    fn what_stands_still_stays_as_it_is_to_the_last_bit() {
        let size = (64, 48);
        let format = Format { input: size, output: size, made: 2, alpha: false };
        // A ball flies past a wall.
        let at = |left: f32| {
            picture(size, |x, y| {
                let inside = (x - left).hypot(y - 12.0) < 6.0;
                if inside { 0.95 } else { texture(x, y) }
            })
        };
        let output = enhance(vec![at(12.0), at(20.0)], format);
        let rows = 28 * 64 * 4..;
        for frame in &output {
            assert_eq!(frame.pixels()[rows.clone()], output[0].pixels()[rows.clone()]);
        }
    }

    #[test]
    fn scenes_that_are_cut_are_repeated_and_not_mixed() {
        let size = (96, 64);
        let format = Format { input: size, output: size, made: 3, alpha: false };
        let other = |x: f32, y: f32| {
            if (x / 9.0).floor() as i32 % 2 == (y / 13.0).floor() as i32 % 2 { 0.15 } else { 0.8 }
        };
        let output = enhance(vec![picture(size, texture), picture(size, other)], format);
        assert_eq!(output[1], output[0]);
        assert_eq!(output[2], output[0]);
        assert_eq!(output[3], output[4]);
    }

    #[test]
    fn black_and_white_stay_black_and_white() {
        let size = (24, 16);
        for value in [0.0, 1.0] {
            let format = Format { input: size, output: (48, 32), made: 2, alpha: true };
            let frames = (0..2).map(|_| picture(size, |_, _| value)).collect();
            for frame in enhance(frames, format) {
                assert!(difference(&frame, &picture((48, 32), |_, _| value)) < 0.004);
            }
        }
    }

    #[test]
    fn what_fades_in_from_nothing_keeps_its_colour() {
        let format = Format { input: (1, 1), output: (1, 1), made: 1, alpha: true };
        let mut red = Frame::new(1, 1).unwrap();
        red.pixels_mut().copy_from_slice(&[60000, 0, 0, u16::MAX]);
        let output = enhance(vec![Frame::new(1, 1).unwrap(), red], format);
        let [red, green, blue, alpha] = output[1].pixels()[..] else { panic!("one pixel") };
        assert_eq!([red, green, blue], [60000, 0, 0]);
        assert!((8192..57344).contains(&alpha), "{alpha}");
    }

    /// Three frames of a moving coloured texture, then two frames of another scene.
    fn moving_clip_with_cut((width, height): (usize, usize)) -> Vec<Frame> {
        let frame = |scene: f32, shift: f32| {
            let mut frame = Frame::new(width, height).unwrap();
            for (n, pixel) in frame.pixels_mut().chunks_exact_mut(4).enumerate() {
                let (x, y) = ((n % width) as f32 - shift, (n / width) as f32 + shift / 2.0);
                for (c, value) in pixel.iter_mut().enumerate() {
                    let offset = 100.0 * scene + 7.0 * c as f32;
                    *value = (texture(x + offset, y + offset) * 65535.0) as u16;
                }
            }
            frame
        };
        vec![frame(0.0, 0.0), frame(0.0, 3.0), frame(0.0, 6.0), frame(1.0, 0.0), frame(1.0, -4.0)]
    }

    /// Holds the output to the last bit: a change of speed or structure must not change any pixel. The
    /// hashes are those of the output before the first such change.
    ///
    /// CPUs with AVX2 and FMA round differently from the portable code, hence two hashes; a machine checks
    /// the one of its own code path. Neither depends on the number of threads.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_output_is_bit_equal_to_the_recorded_hash() {
        let mut hash = Sha256::new();
        for (input, output, made, alpha) in [
            ((48, 36), (96, 72), 1, false),
            ((33, 21), (98, 62), 3, false),
            ((32, 24), (128, 96), 1, true),
            ((30, 20), (74, 50), 2, false),
            ((64, 48), (64, 48), 3, false),
            ((16, 12), (128, 96), 0, false),
        ] {
            let format = Format { input, output, made, alpha };
            let frames = enhance(moving_clip_with_cut(input), format);
            assert_eq!(frames.len(), 5 + 4 * made);
            if made > 0 {
                let (before, after) = (2 * (made + 1), 3 * (made + 1));
                assert_eq!(frames[before], frames[before + 1], "the cut is found");
                assert_ne!(frames[after], frames[after + 1], "motion is not a cut");
            }
            for frame in frames {
                frame.pixels().iter().for_each(|value| hash.update(value.to_le_bytes()));
            }
        }
        let expected = match is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            true => "59194317916ea57d32559370c77fc1a62488c5b6608e5f7bf5958c5d87fee914",
            false => "feca6b222c0e3ab13c9a4c714cabd47459a7cb2635765c493b086454eef80c92",
        };
        assert_eq!(format!("{:x}", hash.finalize()), expected);
    }

    #[test]
    fn a_cancelled_clip_stops_and_the_next_one_works() {
        let format = Format { input: (6, 4), output: (12, 8), made: 1, alpha: false };
        let mut lite = Lite::new().unwrap();
        let clip = Clip { sink: Arc::new(Collect::default()), cancel: Cancel::default() };
        lite.start(format, clip.clone()).unwrap();
        clip.cancel.cancel();
        assert_eq!(lite.push(Frame::new(6, 4).unwrap()), Err(Error::Cancelled));
        lite.reset();
        let frames = (0..2).map(|_| Frame::new(6, 4).unwrap()).collect();
        assert_eq!(enhance(frames, format).len(), 3);
    }
}
