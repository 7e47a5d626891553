// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes `examples/sample.mp4`: 2.5 seconds of 320×180 at 8 fps with sound, encoded at a low bit rate. A lake
//! with a moving camera and a sailing boat; then, after a cut, a painted sign on a brick wall. With the grain
//! of a camera.
//!
//! ```text
//! cargo run --release --example make_sample -- examples/sample.mp4
//! ```

use std::{error::Error, f32::consts::TAU, fs, path::PathBuf};

use gst::prelude::*;

const WIDTH: usize = 320;
const HEIGHT: usize = 180;
const FPS: usize = 8;
const FRAMES: usize = 20;
/// The first frame after the cut.
const CUT: usize = 13;
const SAMPLE_RATE: usize = 44_100;

/// Linear R, G, B in 0..1.
type Color = [f32; 3];

fn main() -> Result<(), Box<dyn Error>> {
    let output = PathBuf::from(std::env::args().nth(1).ok_or("usage: make_sample OUTPUT.mp4")?);
    gst::init()?;
    let folder = tempfile::tempdir()?;
    let (video, audio) = (folder.path().join("video"), folder.path().join("audio"));
    fs::write(&video, (0..FRAMES).flat_map(frame).collect::<Vec<u8>>())?;
    fs::write(&audio, sound())?;
    let pipeline = gst::parse::launch(&format!(
        "filesrc location={} ! rawvideoparse format=rgb width={WIDTH} height={HEIGHT} framerate={FPS}/1 \
         ! videoconvert ! video/x-raw,format=I420 ! x264enc pass=qual quantizer=29 speed-preset=slow \
         ! queue ! mp4mux name=mux ! filesink location={} \
         filesrc location={} ! rawaudioparse format=pcm pcm-format=s16le sample-rate={SAMPLE_RATE} num-channels=1 \
         ! audioconvert ! avenc_aac bitrate=64000 ! queue ! mux.",
        video.display(),
        output.display(),
        audio.display(),
    ))?;
    let bus = pipeline.bus().ok_or("no bus")?;
    pipeline.set_state(gst::State::Playing)?;
    let end = bus.timed_pop_filtered(None, &[gst::MessageType::Eos, gst::MessageType::Error]);
    pipeline.set_state(gst::State::Null)?;
    match end.as_ref().map(|message| message.view()) {
        Some(gst::MessageView::Error(error)) => Err(error.error().into()),
        _ => Ok(()),
    }
}

/// A frame as 8-bit R'G'B' with grain.
fn frame(number: usize) -> Vec<u8> {
    const SIDE: usize = 4;
    let time = number as f32 / FPS as f32;
    let mut pixels = Vec::with_capacity(WIDTH * HEIGHT * 3);
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            let mut sum = [0.0; 3];
            for sub in 0..SIDE * SIDE {
                let at = |n: usize, part: usize| n as f32 + (part as f32 + 0.5) / SIDE as f32;
                let (x, y) = (at(x, sub % SIDE), at(y, sub / SIDE));
                let color = if number < CUT { lake(x, y, time) } else { sign(x, y, time) };
                sum = add(sum, color);
            }
            for (channel, sum) in sum.into_iter().enumerate() {
                let grain = hash(x as i32, y as i32, (number * 3 + channel) as u32) - 0.5;
                let value = (sum / (SIDE * SIDE) as f32).clamp(0.0, 1.0).powf(1.0 / 2.2);
                pixels.push(((value + 0.035 * grain) * 255.0).round().clamp(0.0, 255.0) as u8);
            }
        }
    }
    pixels
}

/// Height of the water's edge.
const SHORE: f32 = 112.0;

fn lake(x: f32, y: f32, time: f32) -> Color {
    let camera = 16.0 * time;
    if let Some(color) = birch(x + 3.4 * camera, y) {
        return color;
    }
    if y < SHORE {
        return above_water(x, y, time);
    }
    // Mirrored, with ripples that grow towards the viewer.
    let depth = (y - SHORE) / (HEIGHT as f32 - SHORE);
    let ripple =
        noise((x + camera) / 9.0 + time * 1.3, y * (1.1 - 0.8 * depth) - time * 5.0, 11) - 0.5;
    let mirrored =
        above_water(x + 3.0 * ripple, 2.0 * SHORE - y + (4.0 + 22.0 * depth) * ripple, time);
    let water = mix(mirrored, [0.02, 0.10, 0.13], 0.35 + 0.3 * depth);
    let glint = smoothstep(0.36, 0.46, ripple) * 0.35 * depth;
    mix(water, [0.95, 0.95, 0.9], glint)
}

/// Sky, mountains, forest and boat.
fn above_water(x: f32, y: f32, time: f32) -> Color {
    let camera = 16.0 * time;
    if let Some(color) = boat(x - 88.0 - 14.0 * time, y) {
        return color;
    }
    let near = x + 0.8 * camera;
    let trees = 92.0 - 10.0 * fbm(near / 60.0, 3.0, 5) - 9.0 * tree_tops(near);
    if y > trees {
        let leaves = fbm(near / 4.0, y / 4.0, 6);
        let shade = smoothstep(trees, SHORE, y);
        return mix([0.05, 0.10, 0.03], [0.012, 0.035, 0.02], shade)
            .map(|c| c * (0.3 + 1.7 * leaves));
    }
    let far = x + 0.25 * camera;
    let ridge = 84.0 - 62.0 * (fbm(far / 90.0 + 7.1, 0.0, 7) - 0.12).max(0.0);
    if y > ridge {
        return mountain(far, y, ridge);
    }
    let clouds = smoothstep(0.48, 0.75, fbm((x + 0.1 * camera) / 70.0, y / 26.0 + 2.0, 8));
    let sky = mix([0.10, 0.26, 0.62], [0.62, 0.74, 0.86], (y / 90.0).clamp(0.0, 1.0));
    mix(sky, [0.92, 0.91, 0.90], clouds)
}

fn mountain(x: f32, y: f32, ridge: f32) -> Color {
    let height = |x: f32| fbm(x / 16.0, y / 11.0, 9);
    let light = ((height(x) - height(x - 1.5)) * 5.0 + 0.5).clamp(0.0, 1.0);
    let snow = smoothstep(0.42, 0.55, fbm(x / 10.0, y / 7.0, 10) + (58.0 - y) / 60.0);
    let rock = mix([0.09, 0.09, 0.12], [0.34, 0.29, 0.26], light);
    let lit = mix(rock, mix([0.45, 0.52, 0.66], [0.95, 0.94, 0.92], light), snow);
    // Haze towards the foot.
    mix(lit, [0.45, 0.55, 0.68], 0.25 + 0.5 * smoothstep(ridge, 95.0, y))
}

/// Relative height of a row of firs.
fn tree_tops(x: f32) -> f32 {
    let tree = |width: f32, seed| {
        let (cell, at) = ((x / width).floor(), (x / width).fract());
        let tip = 0.3 + 0.7 * hash(cell as i32, 0, seed);
        let layers = 0.12 * (noise(x * 1.2, 0.0, seed) - 0.5);
        tip * (1.0 - (2.0 * at - 1.0).abs()) + layers
    };
    tree(9.0, 21).max(tree(13.0, 22)).max(tree(7.0, 23))
}

/// A sailing boat whose mast stands at x = 0.
fn boat(x: f32, y: f32) -> Option<Color> {
    let (up, hull) = (SHORE - y, 17.0 - 0.35 * (SHORE - y - 7.0).powi(2) / 7.0);
    if (0.0..7.0).contains(&up) && x.abs() < hull {
        let stripe = (4.2..5.4).contains(&up);
        return Some(if stripe { [0.9, 0.88, 0.8] } else { [0.42, 0.05, 0.04] });
    }
    if x.abs() < 0.6 && (7.0..62.0).contains(&up) {
        return Some([0.16, 0.09, 0.04]);
    }
    let main = x > 1.0 && up > 10.0 && x < 21.0 * (60.0 - up) / 50.0;
    let jib = x < -1.0 && up > 12.0 && -x < 15.0 * (54.0 - up) / 42.0;
    if !main && !jib {
        return None;
    }
    if main && written("27", (x - 1.8) / 0.85, (33.0 - up) / 1.0) {
        return Some([0.05, 0.08, 0.3]);
    }
    let seam = (up / 8.0).fract() < 0.06;
    let fold = 0.82 + 0.12 * (x * 0.35).sin() - if seam { 0.2 } else { 0.0 };
    Some([fold, fold * 0.97, fold * 0.9])
}

/// A birch in front of everything: trunk and hanging leaves.
fn birch(x: f32, y: f32) -> Option<Color> {
    let middle = 318.0 + 3.0 * (y / 40.0).sin();
    let across = (x - middle) / 9.0;
    if across.abs() < 1.0 {
        let bark = fbm(x / 3.0, y / 1.6, 12);
        let mark = smoothstep(0.60, 0.66, fbm(x / 11.0, y / 2.3, 13));
        let round = 1.0 - 0.65 * across * across;
        return Some(
            mix([0.75, 0.73, 0.68], [0.05, 0.045, 0.04], mark)
                .map(|c| c * round * (0.7 + 0.5 * bark)),
        );
    }
    // Leaves in cells of a grid, denser towards the top.
    for (dx, dy) in (0..9).map(|n| (n % 3 - 1, n / 3 - 1)) {
        let (column, row) = ((x / 7.0).floor() as i32 + dx, (y / 7.0).floor() as i32 + dy);
        let chance = hash(column, row, 14);
        let reach = 1.0 - (row as f32 * 7.0) / 70.0 - ((x - middle).abs() / 110.0);
        if chance > reach {
            continue;
        }
        let turn = TAU * hash(column, row, 15);
        let (u, v) = (
            x - (column as f32 + 0.2 + 0.6 * hash(column, row, 16)) * 7.0,
            y - (row as f32 + 0.2 + 0.6 * hash(column, row, 17)) * 7.0,
        );
        let (along, aside) = (u * turn.cos() + v * turn.sin(), v * turn.cos() - u * turn.sin());
        if (along / 4.6).powi(2) + (aside / 2.4).powi(2) < 1.0 {
            let light = 0.35 + 0.9 * hash(column, row, 18);
            let vein = if aside.abs() < 0.3 { 1.25 } else { 1.0 };
            return Some([0.20, 0.34, 0.05].map(|c: f32| c * light * vein));
        }
    }
    None
}

/// A sign on a brick wall, which comes nearer; a ladybird walks over it.
fn sign(x: f32, y: f32, time: f32) -> Color {
    let time = time - CUT as f32 / FPS as f32;
    let zoom = 1.0 + 0.06 * time;
    let (x, y) = ((x - 160.0) / zoom + 160.0, (y - 90.0) / zoom + 90.0);
    // Shadows of leaves move over all of it.
    let shadow = smoothstep(0.45, 0.6, fbm(x / 34.0 + 0.5 * time, y / 30.0 - 0.2 * time, 31));
    let color = ladybird(x - 96.0 - 32.0 * time, y - 128.0 + 9.0 * time)
        .or_else(|| board(x, y))
        .unwrap_or_else(|| bricks(x, y));
    color.map(|c| c * (1.0 - 0.55 * shadow))
}

fn ladybird(x: f32, y: f32) -> Option<Color> {
    let round = |dx: f32, dy: f32, radius: f32| (x - dx).hypot((y - dy) * 1.2) < radius;
    if round(9.0, 0.0, 4.0) {
        return Some([0.02, 0.02, 0.02]);
    }
    if !round(0.0, 0.0, 9.0) {
        return None;
    }
    let dots = [(-4.0, 3.5), (-4.0, -3.5), (2.5, 4.0), (2.5, -4.0)];
    if y.abs() < 0.5 || dots.iter().any(|&(dx, dy)| round(dx, dy, 1.7)) {
        return Some([0.02, 0.02, 0.02]);
    }
    let gloss = if round(-1.0, -3.6, 1.6) { 0.5 } else { 0.0 };
    Some([0.62 + gloss * 0.3, 0.05 + gloss, 0.03 + gloss])
}

fn board(x: f32, y: f32) -> Option<Color> {
    let (left, right, top, bottom) = (44.0, 276.0, 38.0, 146.0);
    if !(left..right).contains(&x) || !(top..bottom).contains(&y) {
        // Its shadow.
        let shade =
            (left + 5.0..right + 5.0).contains(&x) && (top + 5.0..bottom + 5.0).contains(&y);
        return shade.then(|| bricks(x, y).map(|c| c * 0.35));
    }
    let nail = |cx: f32, cy: f32| (x - cx).hypot(y - cy) < 2.2;
    if nail(52.0, 46.0) || nail(268.0, 46.0) || nail(52.0, 138.0) || nail(268.0, 138.0) {
        return Some([0.25, 0.25, 0.27]);
    }
    let plank = ((y - top) / 27.0).floor();
    let gap = ((y - top) / 27.0).fract() < 0.035;
    let grain = fbm(x / 46.0 + plank * 9.0, y / 1.7, 32)
        + 0.35 * (y * 0.9 + 5.0 * fbm(x / 60.0, plank, 33)).sin();
    let wood = mix([0.16, 0.075, 0.03], [0.46, 0.26, 0.12], grain.clamp(0.0, 1.0));
    let wood = if gap { [0.03, 0.015, 0.01] } else { wood };
    let lines = [("BOATS", 4.6, 56.0), ("FOR HIRE", 3.4, 100.0)];
    let paint = lines.iter().any(|&(text, size, line)| {
        let width = (text.len() * 6 - 1) as f32 * size;
        written(text, (x - 160.0 + width / 2.0) / size, (y - line) / size)
    });
    let worn = smoothstep(0.25, 0.4, fbm(x / 5.0, y / 2.0, 34));
    Some(if paint { mix(wood, [0.86, 0.84, 0.74], 0.35 + 0.6 * worn) } else { wood })
}

fn bricks(x: f32, y: f32) -> Color {
    let row = (y / 13.0).floor();
    let shifted = x + if row as i32 % 2 == 0 { 0.0 } else { 15.0 };
    let (u, v) = ((shifted / 30.0).fract() * 30.0, (y / 13.0).fract() * 13.0);
    let edge = 1.2 + 0.9 * noise(x / 3.0, y / 3.0, 35);
    let rough = fbm(x / 3.0, y / 3.0, 36);
    if u < edge || v < edge {
        return [0.36, 0.33, 0.29].map(|c| c * (0.6 + 0.6 * rough));
    }
    let own = hash((shifted / 30.0).floor() as i32, row as i32, 37);
    mix([0.22, 0.06, 0.035], [0.45, 0.17, 0.09], own).map(|c| c * (0.45 + rough))
}

/// Capitals and digits of 5×7 cells, row by row.
const GLYPHS: [(char, [&str; 7]); 12] = [
    ('A', [" ### ", "#   #", "#   #", "#####", "#   #", "#   #", "#   #"]),
    ('B', ["#### ", "#   #", "#   #", "#### ", "#   #", "#   #", "#### "]),
    ('E', ["#####", "#    ", "#    ", "#### ", "#    ", "#    ", "#####"]),
    ('F', ["#####", "#    ", "#    ", "#### ", "#    ", "#    ", "#    "]),
    ('H', ["#   #", "#   #", "#   #", "#####", "#   #", "#   #", "#   #"]),
    ('I', [" ### ", "  #  ", "  #  ", "  #  ", "  #  ", "  #  ", " ### "]),
    ('O', [" ### ", "#   #", "#   #", "#   #", "#   #", "#   #", " ### "]),
    ('R', ["#### ", "#   #", "#   #", "#### ", "# #  ", "#  # ", "#   #"]),
    ('S', [" ####", "#    ", "#    ", " ### ", "    #", "    #", "#### "]),
    ('T', ["#####", "  #  ", "  #  ", "  #  ", "  #  ", "  #  ", "  #  "]),
    ('2', [" ### ", "#   #", "    #", "  ## ", " #   ", "#    ", "#####"]),
    ('7', ["#####", "    #", "   # ", "   # ", "  #  ", "  #  ", "  #  "]),
];

/// Whether a text covers a place; a cell is 1 wide, a character 6.
fn written(text: &str, x: f32, y: f32) -> bool {
    if x < 0.0 || !(0.0..7.0).contains(&y) || x % 6.0 >= 5.0 {
        return false;
    }
    let glyph = text.chars().nth(x as usize / 6);
    let rows = GLYPHS.iter().find(|(character, _)| Some(*character) == glyph);
    rows.is_some_and(|(_, rows)| rows[y as usize].as_bytes()[x as usize % 6] == b'#')
}

/// Waves, and a bell at the beginning and at the cut; 16-bit mono.
fn sound() -> Vec<u8> {
    let mut waves = 0.0;
    let sample = |n: usize| {
        let time = n as f32 / SAMPLE_RATE as f32;
        waves += 0.02 * (hash(n as i32, 0, 41) - 0.5 - waves);
        let swell = 0.6 + 0.4 * (TAU * time / 1.8).sin();
        let bell = |start: f32, pitch: f32| {
            let time = time - start;
            let partials = [(1.0, 1.0), (2.0, 0.5), (2.76, 0.35)];
            let tone = |(ratio, level): (f32, f32)| level * (TAU * pitch * ratio * time).sin();
            if time < 0.0 {
                0.0
            } else {
                (-3.0 * time).exp() * partials.map(tone).iter().sum::<f32>()
            }
        };
        let cut = CUT as f32 / FPS as f32;
        let value = 2.0 * swell * waves + 0.12 * (bell(0.2, 660.0) + bell(cut, 880.0));
        ((value * 32767.0).clamp(-32767.0, 32767.0) as i16).to_le_bytes()
    };
    (0..SAMPLE_RATE * FRAMES / FPS).flat_map(sample).collect()
}

/// Sums of ever finer noise, 0..1.
fn fbm(x: f32, y: f32, seed: u32) -> f32 {
    let octave = |n: u32| {
        let scale = (1 << n) as f32;
        noise(x * scale, y * scale, seed * 8 + n) / scale
    };
    (0..5).map(octave).sum::<f32>() / 1.94
}

/// Smooth noise with one random value per unit, 0..1.
fn noise(x: f32, y: f32, seed: u32) -> f32 {
    let (left, top) = (x.floor() as i32, y.floor() as i32);
    let (u, v) = (smoothstep(0.0, 1.0, x - x.floor()), smoothstep(0.0, 1.0, y - y.floor()));
    let row = |y: i32| hash(left, y, seed) * (1.0 - u) + hash(left + 1, y, seed) * u;
    row(top) * (1.0 - v) + row(top + 1) * v
}

/// A random number of a place, 0..1.
fn hash(x: i32, y: i32, seed: u32) -> f32 {
    let mut n = (x as u32)
        .wrapping_mul(0x9E37_79B1)
        .wrapping_add((y as u32).wrapping_mul(0x85EB_CA77))
        .wrapping_add(seed.wrapping_mul(0xC2B2_AE3D));
    n = (n ^ (n >> 15)).wrapping_mul(0x2C1B_3C6D);
    n = (n ^ (n >> 12)).wrapping_mul(0x297A_2D39);
    ((n ^ (n >> 15)) >> 8) as f32 / (1 << 24) as f32
}

fn smoothstep(low: f32, high: f32, x: f32) -> f32 {
    let x = ((x - low) / (high - low)).clamp(0.0, 1.0);
    x * x * (3.0 - 2.0 * x)
}

fn mix(a: Color, b: Color, share: f32) -> Color {
    std::array::from_fn(|n| a[n] + (b[n] - a[n]) * share)
}

fn add(a: Color, b: Color) -> Color {
    std::array::from_fn(|n| a[n] + b[n])
}
