// SPDX-License-Identifier: MIT OR Apache-2.0
//! Synthetic scenes for training: the dead leaves model, in layered motion.
//!
//! Random shapes that occlude each other and whose sizes follow a power law have the statistics of natural images
//! (Lee, Mumford, Huang: "Occlusion models for natural images", 2001). Layers of them that rotate, scale and move
//! over each other give scenes whose flow and occlusion are known exactly. Layers that are joined make figures with limbs.

use std::{f32::consts::TAU, sync::Arc};

use super::{image::Plane, random::Random};

/// Side of a canvas in canvas pixels. It is periodic.
const CANVAS: usize = 768;
/// Canvas pixels per frame pixel at scale 1.
const DENSITY: f32 = 2.0;
/// Side of a texture in canvas pixels. It is periodic.
const TEXTURE: usize = 256;

/// A shape around the origin, within −1..=1 on both axes.
#[derive(Debug, Clone, Copy)]
enum Outline {
    Ellipse,
    Box,
    Diamond,
    Ring,
    Star {
        points: f32,
        depth: f32,
    },
    /// Rows of glyphs, each of 5×7 cells.
    Text {
        columns: f32,
        rows: f32,
        seed: u32,
    },
}

impl Outline {
    fn random(random: &mut Random) -> Self {
        match random.below(20) {
            0..8 => Self::Ellipse,
            8..13 => Self::Box,
            13..15 => Self::Diamond,
            15 => Self::Ring,
            16..19 => {
                Self::Star { points: (2 + random.below(5)) as f32, depth: random.uniform(0.1, 0.6) }
            }
            _ => Self::text(random),
        }
    }

    fn text(random: &mut Random) -> Self {
        let columns = random.uniform(2.0, 9.0).floor();
        Self::Text { columns, rows: random.uniform(1.0, 4.0).floor(), seed: random.seed() as u32 }
    }

    fn contains(&self, u: f32, v: f32) -> bool {
        if u.abs() > 1.0 || v.abs() > 1.0 {
            return false;
        }
        match *self {
            Self::Ellipse => u * u + v * v <= 1.0,
            Self::Box => true,
            Self::Diamond => u.abs() + v.abs() <= 1.0,
            Self::Ring => (0.5..=1.0).contains(&(u * u + v * v)),
            Self::Star { points, depth } => {
                let radius = 1.0 - depth * (0.5 + 0.5 * (points * v.atan2(u)).cos());
                u * u + v * v <= radius * radius
            }
            Self::Text { columns, rows, seed } => {
                let (x, y) = ((u + 1.0) / 2.0 * columns * 6.0, (v + 1.0) / 2.0 * rows * 9.0);
                let (x, y) = (x as u32, y as u32);
                let (glyph, line) = (x / 6, y / 9);
                let (x, y) = (x % 6, y % 9);
                // A glyph has random vertical strokes, horizontal strokes, and single cells.
                let hash = |n: u32| {
                    let n = (n ^ seed).wrapping_mul(0x9E37_79B1).rotate_left(13);
                    (n ^ (n >> 15)).wrapping_mul(0x85EB_CA77) >> 24
                };
                let glyph = (line * 64 + glyph) * 64;
                x < 5
                    && y < 7
                    && ((hash(glyph + x) < 80 && x % 2 == 0)
                        || (hash(glyph + 8 + y) < 90 && y % 3 == 0)
                        || hash(glyph + 16 + y * 5 + x) < 40)
            }
        }
    }
}

/// A rotation and scaling.
#[derive(Debug, Clone, Copy)]
struct Rotation {
    cos: f32,
    sin: f32,
}

impl Rotation {
    fn new(angle: f32, scale: f32) -> Self {
        Self { cos: angle.cos() * scale, sin: angle.sin() * scale }
    }

    fn apply(self, x: f32, y: f32) -> (f32, f32) {
        (self.cos * x - self.sin * y, self.sin * x + self.cos * y)
    }
}

/// Periodic value noise with a power-law spectrum, of unit power, [`TEXTURE`]².
fn texture(random: &mut Random) -> Vec<f32> {
    let mut values = vec![0.0; TEXTURE * TEXTURE];
    let persistence = random.uniform(0.45, 1.0);
    let mut amplitude = 1.0;
    for octave in 1..8 {
        let cells = 1 << octave;
        let lattice: Vec<f32> = (0..cells * cells).map(|_| random.normal()).collect();
        for (n, value) in values.iter_mut().enumerate() {
            let at = |n: usize| n as f32 * cells as f32 / TEXTURE as f32;
            let (x, y) = (at(n % TEXTURE), at(n / TEXTURE));
            let smooth = |x: f32| (x.fract() * x.fract()) * (3.0 - 2.0 * x.fract());
            let (fx, fy) = (smooth(x), smooth(y));
            let cell = |i: usize, j: usize| {
                lattice[(y as usize + j) % cells * cells + (x as usize + i) % cells]
            };
            let top = cell(0, 0) * (1.0 - fx) + cell(1, 0) * fx;
            let bottom = cell(0, 1) * (1.0 - fx) + cell(1, 1) * fx;
            *value += amplitude * (top * (1.0 - fy) + bottom * fy);
        }
        amplitude *= persistence;
    }
    let power = values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32;
    values.iter_mut().for_each(|value| *value /= power.sqrt());
    values
}

/// The surface of a shape.
struct Paint {
    base: f32,
    /// Gradient of the brightness by x and y.
    slope: (f32, f32),
    contrast: f32,
    texture: usize,
    /// From canvas pixels to texture pixels.
    rotation: Rotation,
    /// Stripes: from canvas pixels to cycles, contrast, and whether they are a square wave instead of a sine.
    stripes: Option<(Rotation, f32, bool)>,
}

impl Paint {
    fn random(random: &mut Random, size: f32, textures: usize) -> Self {
        let contrast = if random.chance(0.3) { 0.0 } else { random.log_uniform(0.005, 0.12) };
        let stripes = random.chance(0.12).then(|| {
            let rotation = Rotation::new(random.uniform(0.0, TAU), random.log_uniform(0.01, 0.2));
            (rotation, random.uniform(0.02, 0.3), random.chance(0.5))
        });
        Self {
            base: random.uniform(0.0, 1.0),
            slope: (random.normal() * 0.15 / size, random.normal() * 0.15 / size),
            contrast,
            texture: random.below(textures),
            rotation: Rotation::new(random.uniform(0.0, TAU), random.log_uniform(0.3, 2.0)),
            stripes,
        }
    }

    fn shade(&self, textures: &[Vec<f32>], x: f32, y: f32) -> f32 {
        let mut value = self.base + self.slope.0 * x + self.slope.1 * y;
        if self.contrast > 0.0 {
            let (u, v) = self.rotation.apply(x, y);
            let wrap = |x: f32| (x.floor() as i32).rem_euclid(TEXTURE as i32) as usize;
            value += self.contrast * textures[self.texture][wrap(v) * TEXTURE + wrap(u)];
        }
        if let Some((rotation, contrast, square)) = self.stripes {
            let wave = (TAU * rotation.apply(x, y).0).sin();
            value += contrast * if square { wave.signum() } else { wave };
        }
        value.clamp(0.0, 1.0)
    }
}

/// An image of dead leaves, [`CANVAS`]², values 0 to 1.
pub struct Canvas(Vec<f32>);

impl Canvas {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let textures: Vec<_> = (0..4).map(|_| texture(&mut random)).collect();
        let mut values = vec![f32::NAN; CANVAS * CANVAS];
        let mut empty = values.len();
        // The density of sizes between these is proportional to r⁻³.
        let (smallest, largest) = (random.log_uniform(3.0, 12.0), random.uniform(80.0, 380.0));
        while empty > values.len() / 200 {
            let u = random.uniform(0.0, 1.0);
            let between = smallest.powi(-2) * (1.0 - u) + f32::powi(largest, -2) * u;
            let size = between.powf(-0.5);
            empty -= Self::draw(&mut values, &textures, size, &mut random);
        }
        let ground = random.uniform(0.0, 1.0);
        values.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = ground);
        Self(values)
    }

    /// Draws a shape of a random kind below all others. Returns the number of visible pixels.
    fn draw(values: &mut [f32], textures: &[Vec<f32>], size: f32, random: &mut Random) -> usize {
        let outline = Outline::random(random);
        let paint = Paint::random(random, size, textures.len());
        let flat = if random.chance(0.12) {
            random.log_uniform(0.02, 0.2)
        } else {
            random.uniform(0.3, 1.0)
        };
        let angle = match random.chance(0.3) {
            true => random.below(4) as f32 * TAU / 4.0,
            false => random.uniform(0.0, TAU),
        };
        let rotation = Rotation::new(angle, 1.0 / size);
        let (x, y) = (random.uniform(0.0, CANVAS as f32), random.uniform(0.0, CANVAS as f32));
        let radius = (size * 1.415).ceil() as i32;
        let mut visible = 0;
        for dy in -radius..=radius {
            let row = (y as i32 + dy).rem_euclid(CANVAS as i32) as usize * CANVAS;
            for dx in -radius..=radius {
                let at = row + (x as i32 + dx).rem_euclid(CANVAS as i32) as usize;
                if !values[at].is_nan() {
                    continue;
                }
                let (u, v) = rotation.apply(dx as f32, dy as f32);
                if outline.contains(u, v / flat) {
                    values[at] = paint.shade(textures, dx as f32, dy as f32);
                    visible += 1;
                }
            }
        }
        visible
    }

    /// Samples with bilinear interpolation.
    fn sample(&self, x: f32, y: f32) -> f32 {
        let (left, top) = (x.floor(), y.floor());
        let (fx, fy) = (x - left, y - top);
        let wrap = |n: i32| n.rem_euclid(CANVAS as i32) as usize;
        let (x0, y0) = (wrap(left as i32), wrap(top as i32));
        let (x1, y1) = ((x0 + 1) % CANVAS, (y0 + 1) % CANVAS);
        let at = |x: usize, y: usize| self.0[y * CANVAS + x];
        let top = at(x0, y0) * (1.0 - fx) + at(x1, y0) * fx;
        let bottom = at(x0, y1) * (1.0 - fx) + at(x1, y1) * fx;
        top * (1.0 - fy) + bottom * fy
    }
}

/// A part of a canvas, bounded by a shape, in motion.
struct Layer {
    canvas: Arc<Canvas>,
    /// The shape and its half width and height; `None` for the background.
    outline: Option<(Outline, f32, f32)>,
    /// What moves a limb, instead of `centre` and `velocity`.
    joint: Option<Joint>,
    centre: (f32, f32),
    /// Pixels per unit of time.
    velocity: (f32, f32),
    /// Relative to the layer that it is joined to, if any. So is the spin.
    angle: f32,
    /// Radians per unit of time.
    spin: f32,
    scale: f32,
    /// Relative change of the scale per unit of time.
    growth: f32,
    /// Origin on the canvas.
    offset: (f32, f32),
    gain: f32,
    bias: f32,
}

/// What joins a limb to another layer.
struct Joint {
    /// Number of layers from the limb back to the other layer.
    distance: usize,
    /// The joint in coordinates of the other layer.
    anchor: (f32, f32),
    /// The joint in coordinates of the limb.
    end: (f32, f32),
}

/// The position and orientation of a layer at a time.
struct Pose {
    centre: (f32, f32),
    /// Radians, in the frame.
    angle: f32,
    inverse: Rotation,
    forward: Rotation,
}

impl Layer {
    /// A whole canvas that does not move.
    fn still(canvas: Arc<Canvas>, centre: (f32, f32)) -> Self {
        Self {
            canvas,
            outline: None,
            joint: None,
            centre,
            velocity: (0.0, 0.0),
            angle: 0.0,
            spin: 0.0,
            scale: 1.0,
            growth: 0.0,
            offset: (0.0, 0.0),
            gain: 1.0,
            bias: 0.0,
        }
    }

    /// The pose at a time. `behind` are the poses of the layers behind this one, from the back.
    fn pose(&self, time: f32, behind: &[Pose]) -> Pose {
        let scale = self.scale * (1.0 + self.growth * time);
        let mut angle = self.angle + self.spin * time;
        let mut centre =
            (self.centre.0 + self.velocity.0 * time, self.centre.1 + self.velocity.1 * time);
        if let Some(joint) = &self.joint {
            let other = &behind[behind.len() - joint.distance];
            angle += other.angle;
            let (x, y) = other.to_frame(joint.anchor);
            let (dx, dy) = Rotation::new(angle, scale).apply(joint.end.0, joint.end.1);
            centre = (x - dx, y - dy);
        }
        Pose {
            centre,
            angle,
            inverse: Rotation::new(-angle, 1.0 / scale),
            forward: Rotation::new(angle, scale),
        }
    }

    /// The brightness at (u, v) of the layer, or `None` outside its shape.
    fn shade(&self, (u, v): (f32, f32)) -> Option<f32> {
        if let Some((outline, w, h)) = &self.outline
            && !outline.contains(u / w, v / h)
        {
            return None;
        }
        let (x, y) = (u * DENSITY + self.offset.0, v * DENSITY + self.offset.1);
        Some((self.canvas.sample(x, y) * self.gain + self.bias).clamp(0.0, 1.0))
    }
}

impl Pose {
    /// From frame coordinates to those of the layer.
    fn to_layer(&self, x: f32, y: f32) -> (f32, f32) {
        self.inverse.apply(x - self.centre.0, y - self.centre.1)
    }

    /// From coordinates of the layer to those of the frame.
    fn to_frame(&self, (u, v): (f32, f32)) -> (f32, f32) {
        let (x, y) = self.forward.apply(u, v);
        (x + self.centre.0, y + self.centre.1)
    }
}

/// Layers in motion.
pub struct Scene {
    /// Front to back; the last one is the background.
    layers: Vec<Layer>,
    /// Exposure time.
    shutter: f32,
}

impl Scene {
    /// A random scene for frames of `size` (w, h), with motion of up to `speed` pixels per unit of time.
    pub fn new(
        canvases: &[Arc<Canvas>],
        size: (usize, usize),
        speed: f32,
        random: &mut Random,
    ) -> Self {
        let (w, h) = (size.0 as f32, size.1 as f32);
        let camera = velocity(random, speed);
        let count = random.below(5);
        let mut layers: Vec<_> = (0..=count)
            .map(|n| {
                let background = n == count;
                let scale = random.log_uniform(0.6, 1.8);
                let still = !background && random.chance(0.1);
                let own = if background { (0.0, 0.0) } else { velocity(random, speed) };
                let outline = (!background).then(|| {
                    let size = random.log_uniform(0.03, 0.5) * w / scale;
                    let thin = random.chance(0.15);
                    let flat =
                        if thin { random.uniform(0.02, 0.1) } else { random.uniform(0.3, 1.0) };
                    (Outline::random(random), size, (size * flat).max(0.7))
                });
                let change = |random: &mut Random, amount: f32| match random.chance(0.5) && !still {
                    true => random.normal() * amount * (speed / w).min(0.3),
                    false => 0.0,
                };
                let gain = random.uniform(0.3, 1.0);
                Layer {
                    canvas: random.pick(canvases).clone(),
                    outline,
                    joint: None,
                    centre: match background {
                        true => (w / 2.0, h / 2.0),
                        false => (random.uniform(0.0, w), random.uniform(0.0, h)),
                    },
                    velocity: if still { (0.0, 0.0) } else { (camera.0 + own.0, camera.1 + own.1) },
                    angle: if random.chance(0.3) { 0.0 } else { random.uniform(0.0, TAU) },
                    spin: change(random, 0.3),
                    scale,
                    growth: change(random, 0.2),
                    offset: (random.uniform(0.0, 768.0), random.uniform(0.0, 768.0)),
                    gain,
                    bias: random.uniform(0.0, 1.0 - gain),
                }
            })
            .collect();
        // Centres the motion on time ½.
        for layer in &mut layers {
            layer.centre.0 -= layer.velocity.0 / 2.0;
            layer.centre.1 -= layer.velocity.1 / 2.0;
        }
        let shutter = if random.chance(0.6) { 0.0 } else { random.uniform(0.0, 0.5) };
        Self { layers, shutter }
    }

    /// A camera that moves over a canvas by `velocity` pixels per unit of time.
    pub fn pan(
        canvases: &[Arc<Canvas>],
        (w, h): (usize, usize),
        velocity: (f32, f32),
        random: &mut Random,
    ) -> Self {
        let background = Layer {
            offset: (random.uniform(0.0, 768.0), random.uniform(0.0, 768.0)),
            gain: 0.9,
            bias: 0.05,
            velocity,
            ..Layer::still(random.pick(canvases).clone(), (w as f32 / 2.0, h as f32 / 2.0))
        };
        Self { layers: vec![background], shutter: 0.0 }
    }

    /// A black picture.
    pub fn black((w, h): (usize, usize)) -> Self {
        let canvas = Arc::new(Canvas(vec![0.0; CANVAS * CANVAS]));
        let background = Layer::still(canvas, (w as f32 / 2.0, h as f32 / 2.0));
        Self { layers: vec![background], shutter: 0.0 }
    }

    /// The scene with this exposure time.
    pub fn with_shutter(self, shutter: f32) -> Self {
        Self { shutter, ..self }
    }

    /// The scene with two lines of white text in front, at `height` (0: top, 1: bottom) at time 0.
    pub fn with_text(mut self, velocity: (f32, f32), height: f32, random: &mut Random) -> Self {
        let (x, y) = self.layers[self.layers.len() - 1].centre;
        let canvas = Arc::new(Canvas(vec![0.95; CANVAS * CANVAS]));
        let outline = Outline::Text { columns: 18.0, rows: 2.0, seed: random.seed() as u32 };
        let text = Layer {
            outline: Some((outline, 0.7 * x, 0.14 * y)),
            velocity,
            ..Layer::still(canvas, (x, 2.0 * y * height))
        };
        self.layers.insert(0, text);
        self
    }

    /// The scene with thin rods in front that turn and move.
    pub fn with_rods(mut self, random: &mut Random) -> Self {
        let (x, y) = self.layers[self.layers.len() - 1].centre;
        for _ in 0..6 {
            let canvas = Arc::new(Canvas(vec![random.uniform(0.0, 1.0); CANVAS * CANVAS]));
            let at = (random.uniform(0.0, 2.0 * x), random.uniform(0.0, 2.0 * y));
            let rod = Layer {
                outline: Some((Outline::Box, random.uniform(0.3, 0.9) * y, 1.2)),
                velocity: (random.normal() * 0.4 * x, random.normal() * 0.4 * y),
                angle: random.uniform(0.0, TAU),
                spin: random.normal() * 1.5,
                ..Layer::still(canvas, at)
            };
            self.layers.insert(0, rod);
        }
        self
    }

    /// The scene with a figure in front whose four limbs bend at two joints each. Its body moves by `velocity` pixels per
    /// unit of time.
    pub fn with_figure(
        mut self,
        canvases: &[Arc<Canvas>],
        velocity: (f32, f32),
        random: &mut Random,
    ) -> Self {
        let (x, y) = self.layers[self.layers.len() - 1].centre;
        // Half of the length of the body and of each part of a limb.
        let length = 0.3 * y;
        let part = |thickness: f32, random: &mut Random| {
            let outline = if random.chance(0.5) { Outline::Box } else { Outline::Ellipse };
            let gain = random.uniform(0.3, 1.0);
            Layer {
                outline: Some((outline, length, thickness * length)),
                angle: random.uniform(0.0, TAU),
                spin: random.uniform(-0.15, 0.15),
                offset: (random.uniform(0.0, 768.0), random.uniform(0.0, 768.0)),
                gain,
                bias: random.uniform(0.0, 1.0 - gain),
                ..Layer::still(random.pick(canvases).clone(), (x, y))
            }
        };
        let body = Layer { velocity, ..part(0.5, random) };
        self.layers.insert(0, body);
        for n in 0..4 {
            let thickness = random.uniform(0.08, 0.3);
            let shoulder = (if n < 2 { length } else { -length }, 0.0);
            for (distance, anchor) in [(1 + 2 * n, shoulder), (1, (length, 0.0))] {
                let joint = Joint { distance, anchor, end: (-length, 0.0) };
                let limb = Layer { joint: Some(joint), ..part(thickness, random) };
                self.layers.insert(0, limb);
            }
        }
        self
    }

    /// The poses of the layers at a time, front to back.
    fn poses(&self, time: f32) -> Vec<Pose> {
        let mut poses: Vec<Pose> = Vec::new();
        for layer in self.layers.iter().rev() {
            poses.push(layer.pose(time, &poses));
        }
        poses.reverse();
        poses
    }

    /// Renders the luma at a time, with 4 samples per pixel.
    pub fn frame(&self, (w, h): (usize, usize), time: f32) -> Plane {
        const SUB: [(f32, f32); 4] = [(0.25, 0.25), (0.75, 0.75), (0.75, 0.25), (0.25, 0.75)];
        let poses: [_; 4] =
            std::array::from_fn(|n| self.poses(time + self.shutter * (n as f32 - 1.5) / 4.0));
        let mut frame = Plane::new(w, h);
        for (n, value) in frame.values.iter_mut().enumerate() {
            let (x, y) = ((n % w) as f32, (n / w) as f32);
            *value = SUB
                .iter()
                .zip(&poses)
                .map(|((dx, dy), poses)| {
                    let mut layers = self.layers.iter().zip(poses);
                    layers
                        .find_map(|(layer, pose)| layer.shade(pose.to_layer(x + dx, y + dy)))
                        .unwrap_or(0.0)
                })
                .sum::<f32>()
                / 4.0;
        }
        frame
    }

    /// The true flow at a time: how far the surface visible at each pixel moves from time 0 to time 1, in x and y.
    pub fn flow(&self, (w, h): (usize, usize), time: f32) -> [Plane; 2] {
        let (before, now, after) = (self.poses(0.0), self.poses(time), self.poses(1.0));
        let mut flow = [Plane::new(w, h), Plane::new(w, h)];
        for n in 0..w * h {
            let (x, y) = ((n % w) as f32 + 0.5, (n / w) as f32 + 0.5);
            for (i, layer) in self.layers.iter().enumerate() {
                let local = now[i].to_layer(x, y);
                if layer.shade(local).is_some() {
                    let ((x0, y0), (x1, y1)) =
                        (before[i].to_frame(local), after[i].to_frame(local));
                    (flow[0].values[n], flow[1].values[n]) = (x1 - x0, y1 - y0);
                    break;
                }
            }
        }
        flow
    }
}

/// A random velocity of up to `speed`, often 0.
fn velocity(random: &mut Random, speed: f32) -> (f32, f32) {
    if speed == 0.0 || random.chance(0.2) {
        return (0.0, 0.0);
    }
    let (sin, cos) = random.uniform(0.0, TAU).sin_cos();
    let length = random.log_uniform(speed / 30.0, speed);
    // Many pans are nearly horizontal.
    let vertical = if random.chance(0.4) { 0.15 } else { 1.0 };
    (cos * length, sin * length * vertical)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene(seed: u64) -> Scene {
        let canvases = [Arc::new(Canvas::new(seed)), Arc::new(Canvas::new(seed + 1))];
        Scene::new(&canvases, (96, 64), 12.0, &mut Random::new(seed))
    }

    #[test]
    fn equal_seeds_make_equal_scenes() {
        let (a, b) = (scene(7), scene(7));
        assert_eq!(a.frame((96, 64), 0.3).values, b.frame((96, 64), 0.3).values);
        assert_ne!(a.frame((96, 64), 0.3).values, scene(8).frame((96, 64), 0.3).values);
    }

    #[test]
    fn the_flow_points_to_the_same_surface_before_and_after() {
        // Occluded areas do not match, but most of the image is visible at all times.
        for seed in 0..4 {
            let mut scene = scene(seed);
            scene.shutter = 0.0;
            let size = (96, 64);
            let [before, now, after] = [0.0, 0.5, 1.0].map(|time| scene.frame(size, time));
            let flow = scene.flow(size, 0.5);
            let (mut matches, mut count) = (0, 0);
            for y in 12..52 {
                for x in 12..84 {
                    let n = y * 96 + x;
                    let (dx, dy) = (flow[0].values[n] / 2.0, flow[1].values[n] / 2.0);
                    let at = |plane: &Plane, sign: f32| {
                        plane.sample(x as f32 + sign * dx, y as f32 + sign * dy)
                    };
                    let error = (at(&before, -1.0) - now.values[n])
                        .abs()
                        .max((at(&after, 1.0) - now.values[n]).abs());
                    count += 1;
                    matches += usize::from(error < 0.1);
                }
            }
            assert!(matches * 10 > count * 7, "seed {seed}: {matches} of {count}");
        }
    }

    #[test]
    fn limbs_stay_joined() {
        let (canvases, size) = ([Arc::new(Canvas::new(1))], (128, 128));
        for seed in 0..4 {
            let mut random = Random::new(seed);
            let scene = Scene::pan(&canvases, size, (5.0, 0.0), &mut random);
            let scene = scene.with_figure(&canvases, (2.0, 1.0), &mut random);
            for (time, poses) in [0.0, 3.0, 40.0].map(|time| (time, scene.poses(time))) {
                let mut anchors = Vec::new();
                for (n, layer) in scene.layers.iter().enumerate() {
                    let Some(joint) = &layer.joint else { continue };
                    let other = &poses[n + joint.distance];
                    let bend = poses[n].angle - other.angle;
                    assert!((bend - layer.angle - layer.spin * time).abs() < 1e-4);
                    let (x, y) = poses[n].to_frame(joint.end);
                    let (u, v) = other.to_frame(joint.anchor);
                    assert!((x - u).hypot(y - v) < 1e-3, "seed {seed}, layer {n}");
                    anchors.push(n + joint.distance);
                }
                // The body is layer 8, behind four limbs: a lower part is joined to the upper one behind it.
                assert_eq!(anchors, [1, 8, 3, 8, 5, 8, 7, 8]);
            }
        }
    }
}
