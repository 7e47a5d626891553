// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measures the shot detector: the part of the hard cuts that it finds, and its false cuts in 10,000 frames.
//!
//!     cargo run --release --example shots -- --minutes 30 --cuts cuts.txt clip.mp4 …
//!
//! On synthetic scenes, whose cuts are known, and on video files. A line of the file `cuts.txt` has the name of a
//! video file without its extension, and the numbers of the frames that begin a shot; a number with a `?` before it
//! counts neither as a cut nor as a false cut. Files need `ffmpeg`.

// The modules are those of the training.
#[allow(dead_code, reason = "train_lite uses the rest")]
#[path = "train_lite/image.rs"]
mod image;
#[allow(dead_code, reason = "train_lite uses the rest")]
#[path = "train_lite/random.rs"]
mod random;
#[allow(dead_code, reason = "train_lite uses the rest")]
#[path = "train_lite/scene.rs"]
mod scene;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    error::Error,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use gstvenhance::engine::{Frame, shots::ShotDetector};
use image::Plane;
use random::Random;
use scene::{Canvas, Scene};

/// Width and height of the frames. The detector averages them to a smaller picture.
const SIZE: (usize, usize) = (128, 72);
const FPS: usize = 25;
/// A canvas takes a second to draw, so scenes share them.
const CANVASES: usize = 16;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Parser)]
struct Args {
    /// Minutes of synthetic video at 25 frames per second.
    #[arg(long, default_value_t = 5)]
    minutes: usize,
    /// Seed of the synthetic video.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File with the cuts of the video files.
    #[arg(long)]
    cuts: Option<PathBuf>,
    /// Video files.
    files: Vec<PathBuf>,
}

/// What is counted for a kind of material.
#[derive(Default)]
struct Score {
    frames: usize,
    cuts: usize,
    found: usize,
    false_cuts: usize,
}

/// The detector's decisions on one video.
#[derive(Default)]
struct Run {
    detector: ShotDetector,
    frames: usize,
    cuts: HashSet<usize>,
    took: Duration,
}

impl Run {
    fn push(&mut self, frame: &Frame) {
        let start = Instant::now();
        let decision = self.detector.push(frame);
        self.took += start.elapsed();
        if decision == Some(true) {
            self.cuts.insert(self.frames - 1);
        }
        self.frames += 1;
    }

    fn finish(&mut self) {
        if self.detector.finish() == Some(true) {
            self.cuts.insert(self.frames - 1);
        }
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut scores: BTreeMap<String, Score> = BTreeMap::new();
    made(args.minutes * 60 * FPS, args.seed, &mut scores);
    let known = args.cuts.as_deref().map_or_else(|| Ok(HashMap::new()), read_cuts)?;
    for file in &args.files {
        film(file, &known, &mut scores)?;
    }
    let mut all = Score::default();
    println!("{:24} {:>8} {:>6} {:>6} {:>6}", "material", "frames", "cuts", "found", "false");
    for (name, score) in &scores {
        println!(
            "{name:24} {:8} {:6} {:6} {:6}",
            score.frames, score.cuts, score.found, score.false_cuts
        );
        all.frames += score.frames;
        all.cuts += score.cuts;
        all.found += score.found;
        all.false_cuts += score.false_cuts;
    }
    println!(
        "recall {:.2} %, {:.2} false cuts in 10,000 frames",
        100.0 * all.found as f64 / all.cuts.max(1) as f64,
        1e4 * all.false_cuts as f64 / all.frames.max(1) as f64
    );
    Ok(())
}

/// How a synthetic shot begins.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Transition {
    Cut,
    /// A cut to black, then a cut from black.
    Black,
    Dissolve,
    /// To black and from black.
    Fade,
}

/// A synthetic shot.
struct Shot {
    kind: &'static str,
    scene: Scene,
    length: usize,
    /// Standard deviation of the grain.
    grain: f32,
    /// Flashes: the first frame, the gain, and what is left of it in each next frame.
    flash: Option<(usize, f32, f32)>,
    /// The luma is multiplied by 1 + this per frame: changes of exposure.
    exposure: f32,
    /// Amplitude of the camera shake in pixels.
    shake: f32,
}

impl Shot {
    fn new(canvases: &[Arc<Canvas>], random: &mut Random) -> Self {
        let (kind, speed) = match random.below(10) {
            0 => ("static", 0.0),
            1..5 => ("slow", random.log_uniform(0.1, 2.0)),
            5..8 => ("pan", random.log_uniform(2.0, 8.0)),
            _ => ("fast pan", random.log_uniform(8.0, 20.0)),
        };
        let length = match random.below(20) {
            0 => 1,
            1 => 2 + random.below(2),
            2..5 => 4 + random.below(12),
            _ => 16 + random.below(100),
        };
        let flash = random.chance(0.25).then(|| {
            let decay = if random.chance(0.5) { 0.0 } else { random.uniform(0.3, 0.7) };
            (3 + random.below(length), random.uniform(0.5, 4.0), decay)
        });
        let shake = if random.chance(0.15) { random.uniform(0.5, 4.0) } else { 0.0 };
        let kind = match (flash, shake > 0.0) {
            (Some(_), _) => "flash",
            (None, true) => "shake",
            _ => kind,
        };
        Self {
            kind,
            scene: Scene::new(canvases, SIZE, speed, random),
            length,
            grain: if random.chance(0.5) { 0.0 } else { random.log_uniform(0.005, 0.06) },
            flash,
            exposure: if random.chance(0.9) { 0.0 } else { random.uniform(-0.02, 0.02) },
            shake,
        }
    }

    fn frame(&self, n: usize, random: &mut Random) -> Plane {
        let mut plane = self.scene.frame(SIZE, n as f32);
        if self.shake > 0.0 {
            let (dx, dy) = (random.normal() * self.shake, random.normal() * self.shake);
            let still = plane.clone();
            for (at, value) in plane.values.iter_mut().enumerate() {
                let (x, y) = ((at % SIZE.0) as f32, (at / SIZE.0) as f32);
                *value = still.sample(x + dx, y + dy);
            }
        }
        let mut gain = (1.0 + self.exposure).powi(n as i32).clamp(0.3, 3.0);
        if let Some((first, flash, decay)) = self.flash
            && n >= first
        {
            gain += flash * if n == first { 1.0 } else { decay.powi((n - first) as i32) };
        }
        for value in &mut plane.values {
            *value = (*value * gain + self.grain * random.normal()).clamp(0.0, 1.0);
        }
        plane
    }
}

/// Runs the detector on synthetic video.
fn made(frames: usize, seed: u64, scores: &mut BTreeMap<String, Score>) {
    let mut random = Random::new(seed);
    if frames == 0 {
        return;
    }
    let canvases: Vec<_> = (0..CANVASES).map(|_| Arc::new(Canvas::new(random.seed()))).collect();
    let mut run = Run::default();
    // The kind of each frame, and whether it begins a shot.
    let mut truth: Vec<(String, bool)> = Vec::new();
    let mut before: Option<(Shot, usize)> = None;
    let black = Plane::new(SIZE.0, SIZE.1);
    while run.frames < frames {
        let shot = Shot::new(&canvases, &mut random);
        let transition = match random.below(20) {
            0..15 => Transition::Cut,
            15 => Transition::Black,
            16..18 => Transition::Dissolve,
            _ => Transition::Fade,
        };
        let mut start = 0;
        let mut show = |plane: &Plane, kind: &str, is_cut: bool| {
            truth.push((format!("made, {kind}"), is_cut));
            run.push(&to_frame(plane));
        };
        let steps = 6 + random.below(25);
        match (&before, transition) {
            (None, _) | (_, Transition::Cut) => {}
            (_, Transition::Black) => {
                (0..1 + random.below(10)).for_each(|n| show(&black, "black", n == 0));
            }
            (Some((old, at)), Transition::Dissolve) => {
                for n in 0..steps {
                    let weight = (n + 1) as f32 / (steps + 1) as f32;
                    let mut plane = old.frame(at + n, &mut random);
                    let new = shot.frame(n, &mut random);
                    let pairs = plane.values.iter_mut().zip(&new.values);
                    pairs.for_each(|(old, new)| *old += weight * (new - *old));
                    show(&plane, "dissolve", false);
                }
                start = steps;
            }
            (Some((old, at)), Transition::Fade) => {
                let mut faded = |shot: &Shot, n: usize, gain: f32| {
                    let mut plane = shot.frame(n, &mut random);
                    plane.values.iter_mut().for_each(|value| *value *= gain);
                    show(&plane, "fade", false);
                };
                let gain = |n: usize| (n + 1) as f32 / (steps + 1) as f32;
                (0..steps).for_each(|n| faded(old, at + n, 1.0 - gain(n)));
                (0..steps).for_each(|n| faded(&shot, n, gain(n)));
                start = steps;
            }
        }
        let cuts = before.is_some() && matches!(transition, Transition::Cut | Transition::Black);
        for n in start..start + shot.length {
            let plane = shot.frame(n, &mut random);
            let kind = if shot.length < 4 { "short shot" } else { shot.kind };
            show(&plane, kind, cuts && n == start);
        }
        let end = start + shot.length;
        before = Some((shot, end));
    }
    run.finish();
    for (n, (kind, is_cut)) in truth.iter().enumerate() {
        let score = scores.entry(kind.clone()).or_default();
        let is_found = run.cuts.contains(&n);
        score.frames += 1;
        score.cuts += usize::from(*is_cut);
        score.found += usize::from(*is_cut && is_found);
        score.false_cuts += usize::from(!is_cut && is_found);
    }
    let per_frame = run.took.as_secs_f64() * 1e3 / run.frames as f64;
    println!("made: {per_frame:.3} ms per frame");
}

fn to_frame(plane: &Plane) -> Frame {
    let mut frame = Frame::new(plane.width, plane.height).expect("a small frame fits into memory");
    let pixels = frame.pixels_mut().as_chunks_mut::<{ Frame::COMPONENTS }>().0;
    for (pixel, value) in pixels.iter_mut().zip(&plane.values) {
        // With the rounding of 8-bit video.
        let value = (value * 255.0).round() as u16 * 257;
        *pixel = [value, value, value, u16::MAX];
    }
    frame
}

/// The cuts of video files, and the frames that are neither cuts nor false cuts.
type Cuts = HashMap<String, (HashSet<usize>, HashSet<usize>)>;

fn read_cuts(path: &Path) -> Result<Cuts> {
    let mut cuts = Cuts::new();
    for line in fs::read_to_string(path)?.lines() {
        let mut words = line.split_whitespace();
        let Some(name) = words.next() else { continue };
        let (certain, unclear) = cuts.entry(name.to_owned()).or_default();
        for word in words {
            match word.strip_prefix('?') {
                Some(word) => unclear.insert(word.parse()?),
                None => certain.insert(word.parse()?),
            };
        }
    }
    Ok(cuts)
}

/// Runs the detector on a video file.
fn film(path: &Path, cuts: &Cuts, scores: &mut BTreeMap<String, Score>) -> Result<()> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let filter = format!("scale={}:{}:flags=area,format=rgba64le", SIZE.0, SIZE.1);
    let mut child = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(path)
        .args(["-vf", &filter, "-vsync", "passthrough", "-f", "rawvideo", "-"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = child.stdout.take().ok_or("ffmpeg has no output")?;
    let mut run = Run::default();
    let mut frame = Frame::new(SIZE.0, SIZE.1)?;
    while output.read_exact(frame.as_mut()).is_ok() {
        run.push(&frame);
    }
    run.finish();
    if !child.wait()?.success() {
        return Err(format!("ffmpeg cannot read {}", path.display()).into());
    }
    let (certain, unclear) = cuts.get(&name).cloned().unwrap_or_default();
    let counted = || certain.difference(&unclear);
    let missed: Vec<_> = counted().filter(|n| !run.cuts.contains(n)).collect();
    let is_false = |n: &&usize| !certain.contains(n) && !unclear.contains(n);
    let false_cuts: Vec<_> = run.cuts.iter().filter(is_false).collect();
    if !missed.is_empty() || !false_cuts.is_empty() {
        println!("{name}: missed {missed:?}, false {false_cuts:?}");
    }
    let score = scores.entry(name).or_default();
    score.frames += run.frames;
    score.cuts += counted().count();
    score.found += counted().count() - missed.len();
    score.false_cuts += false_cuts.len();
    Ok(())
}
