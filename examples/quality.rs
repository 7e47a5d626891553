// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measures the quality of `model=lite`: downscales each clip and halves its frame rate, enhances the result, and compares
//! it with the clip; the same for filters of ffmpeg. The input can be compressed or noisy.
//!
//!     cargo run --release --example quality -- --scale 2 --crf 28 clip.mp4 …
//!
//! Needs `ffmpeg`. Prints, of the luma, each over input frames ("input") and over interpolated frames ("interp."):
//! the mean PSNR in dB, the mean SSIM, and the sharpness: the energy of the Laplacian relative to that of the clip. With
//! `--noise` also how much of the noise is in the output, relative to Lanczos. Only frames that every method outputs are
//! compared: ffmpeg's interpolation drops the last ones.
//! `train_lite --clips DIR` makes clips with subtitles, fades and other things that are hard.

use std::{
    error::Error,
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use clap::Parser;
use gst::prelude::*;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use rand_distr::{Distribution, Normal};

#[derive(Parser)]
struct Args {
    /// Downscale factor; 1: frames are only interpolated.
    #[arg(long, default_value_t = 2)]
    scale: usize,
    /// Filter for the downscale: one of the flags of ffmpeg's scale filter.
    #[arg(long, default_value = "bicubic", value_name = "FLAGS")]
    downscale: String,
    /// Standard deviation of a Gaussian blur before the downscale, in pixels of the smaller frame.
    #[arg(long, default_value_t = 0.0, value_name = "PIXELS")]
    blur: f64,
    /// Standard deviation of noise that is added to the luma of the input, in 8-bit code values.
    #[arg(long, default_value_t = 0.0, value_name = "STD")]
    noise: f32,
    /// Compress the input with x264 at this constant rate factor.
    #[arg(long, value_name = "CRF")]
    crf: Option<u32>,
    /// Compress the input as Motion JPEG at this quantizer scale. Luma outside 16–235 is clipped.
    #[arg(long, value_name = "SCALE", conflicts_with = "crf", value_parser = clap::value_parser!(u32).range(2..=31))]
    mjpeg: Option<u32>,
    /// Maximum number of frames per clip.
    #[arg(long, default_value_t = 120)]
    frames: usize,
    /// Keep the videos in this folder.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Reference clips of at least 5 frames.
    #[arg(required = true)]
    clips: Vec<PathBuf>,
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The size of raw I420 video.
#[derive(Clone, Copy)]
struct Raw {
    width: usize,
    height: usize,
}

impl Raw {
    fn frame_bytes(self) -> usize {
        self.width * self.height * 3 / 2
    }

    fn input(self, rate: usize) -> [String; 8] {
        let size = format!("{}x{}", self.width, self.height);
        ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", &size, "-r", &rate.to_string()]
            .map(String::from)
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    gst::init()?;
    gstvenhance::plugin_register_static()?;
    let temporary = tempfile::tempdir()?;
    let folder = args.keep.clone().unwrap_or_else(|| temporary.path().into());
    std::fs::create_dir_all(&folder)?;
    println!(
        "{:28} {:23} {:>6} {:>7} {:>6} {:>6} {:>5} {:>5} {:>6} {:>6}",
        "clip", "method", "input", "interp.", "SSIM", "SSIM", "sharp", "sharp", "noise", "fps"
    );
    let mut sums = [[0.0; FIGURES]; METHODS.len()];
    for clip in &args.clips {
        for (sum, figures) in sums.iter_mut().zip(compare(clip, &args, &folder)?) {
            sum.iter_mut().zip(figures).for_each(|(sum, figure)| *sum += figure);
        }
    }
    for (method, sum) in METHODS.iter().zip(sums) {
        print_line("mean", method, sum.map(|sum| sum / args.clips.len() as f64), None);
    }
    Ok(())
}

/// The figures of a method: PSNR, SSIM and sharpness, each of input frames and of interpolated frames, and noise.
const FIGURES: usize = 7;

/// The methods that are compared.
const METHODS: [&str; 4] =
    ["repeat + bicubic", "blend + lanczos", "motion comp. + lanczos", "lite"];
/// The one whose noise is that of Lanczos.
const LANCZOS: usize = 1;

/// Prints the figures of a method.
fn print_line(clip: &str, method: &str, figures: [f64; FIGURES], fps: Option<f64>) {
    let [
        input,
        interpolated,
        input_ssim,
        interpolated_ssim,
        input_sharp,
        interpolated_sharp,
        noise,
    ] = figures;
    let fps = fps.map_or(String::new(), |fps| format!("{fps:.1}"));
    let noise = if noise > 0.0 { format!("{noise:.2}") } else { String::new() };
    println!(
        "{clip:28} {method:23} {input:6.2} {interpolated:7.2} {input_ssim:6.4} {interpolated_ssim:6.4} \
         {input_sharp:5.2} {interpolated_sharp:5.2} {noise:>6} {fps:>6}"
    );
}

/// Runs all methods on a clip; returns their figures.
fn compare(clip: &Path, args: &Args, folder: &Path) -> Result<Vec<[f64; FIGURES]>> {
    let stem = clip.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let path = |name: &str| folder.join(format!("{stem}-x{}-{name}.yuv", args.scale));
    let (reference, clean) = (path("reference"), path("small"));

    // Crop so that neither the downscaled luma nor its chroma needs padding.
    let (width, height) = size(clip)?;
    let unit = 8 * args.scale;
    let large = Raw { width: width / unit * unit, height: height / unit * unit };
    let low = Raw { width: large.width / args.scale, height: large.height / args.scale };
    let crop = format!("crop={}:{}:0:0,format=yuv420p", large.width, large.height);
    let frames = args.frames.to_string();
    ffmpeg(
        &["-i", &text(clip), "-vf", &crop, "-frames:v", &frames, "-vsync", "passthrough"],
        &reference,
    )?;
    let blur = match args.blur > 0.0 {
        true => format!("gblur=sigma={},", args.blur * args.scale as f64),
        false => String::new(),
    };
    let downscale = format!(
        "select=not(mod(n\\,2)),{blur}scale={}:{}:flags={}",
        low.width, low.height, args.downscale
    );
    let mut arguments: Vec<String> = large.input(25).into();
    arguments.extend(
        ["-i", &text(&reference), "-vf", &downscale, "-vsync", "passthrough"].map(String::from),
    );
    ffmpeg(&arguments, &clean)?;
    let noisy = path("noisy");
    if args.noise > 0.0 {
        add_noise(&clean, &noisy, low, args.noise)?;
    }
    let mut small = if args.noise > 0.0 { noisy } else { clean.clone() };
    if let Some(crf) = args.crf {
        small = compress(&small, &path("compressed"), low, ["libx264", "-crf"], crf)?;
    }
    if let Some(scale) = args.mjpeg {
        small = compress(&small, &path("compressed"), low, ["mjpeg", "-q:v"], scale)?;
    }

    let (mut outputs, mut speeds) = (Vec::new(), Vec::new());
    // Frames that every method outputs.
    let count = |path: &Path| -> Result<usize> {
        Ok(std::fs::metadata(path)?.len() as usize / large.frame_bytes())
    };
    let mut compared = count(&reference)?;
    for n in 0..METHODS.len() {
        let output = path(&format!("method{n}"));
        let start = Instant::now();
        run(n, &small, &output, [low, large], args.scale)?;
        let took = start.elapsed().as_secs_f64();
        let count = count(&output)?;
        compared = compared.min(count);
        outputs.push(output);
        speeds.push(count as f64 / took);
    }
    if compared < 2 {
        return Err(format!("{}: too short, 5 frames are needed", clip.display()).into());
    }
    let mut results = Vec::new();
    for (n, (output, fps)) in outputs.iter().zip(speeds).enumerate() {
        let mut figures = measure([&reference, output], large, compared)?;
        if args.noise > 0.0 {
            let without = path("without-noise");
            run(n, &clean, &without, [low, large], args.scale)?;
            figures[FIGURES - 1] = difference([output, &without], large, compared)?;
        }
        results.push((figures, fps));
    }
    let lanczos = results[LANCZOS].0[FIGURES - 1];
    for (method, (figures, fps)) in METHODS.iter().zip(&mut results) {
        if lanczos > 0.0 {
            figures[FIGURES - 1] /= lanczos;
        }
        print_line(&stem, method, *figures, Some(*fps));
    }
    Ok(results.into_iter().map(|(figures, _)| figures).collect())
}

/// Runs the method n on raw video: `low` is the size of the input, `large` that of the output.
fn run(n: usize, input: &Path, output: &Path, [low, large]: [Raw; 2], scale: usize) -> Result<()> {
    let resize = |flags: &str| format!("scale={}:{}:flags={flags}", large.width, large.height);
    let filter = match n {
        0 => format!("fps=24,{}", resize("bicubic")),
        LANCZOS => format!("minterpolate=fps=24:mi_mode=blend,{}", resize("lanczos")),
        2 => format!("minterpolate=fps=24:mi_mode=mci,{}", resize("lanczos")),
        _ => return enhance(input, output, low, scale),
    };
    let mut arguments: Vec<String> = low.input(12).into();
    arguments.extend(["-i", &text(input), "-vf", &filter].map(String::from));
    ffmpeg(&arguments, output)
}

/// Adds Gaussian noise to the luma of a raw video.
fn add_noise(input: &Path, output: &Path, raw: Raw, std: f32) -> Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let noise = Normal::new(0.0, std)?;
    let mut bytes = std::fs::read(input)?;
    for frame in bytes.chunks_exact_mut(raw.frame_bytes()) {
        for byte in &mut frame[..raw.width * raw.height] {
            *byte = (f32::from(*byte) + noise.sample(&mut random)).round() as u8;
        }
    }
    Ok(std::fs::write(output, bytes)?)
}

/// Compresses a raw video and decompresses it to `output`. `codec` names the encoder and the option that `quality` is for.
fn compress(
    input: &Path,
    output: &Path,
    raw: Raw,
    codec: [&str; 2],
    quality: u32,
) -> Result<PathBuf> {
    let encoded = output.with_extension("mp4");
    let [encoder, option] = codec;
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-y"]).args(raw.input(12)).arg("-i").arg(input);
    command.args(["-c:v", encoder, option, &quality.to_string()]).arg(&encoded);
    command.stdin(Stdio::null());
    check(command)?;
    // ffmpeg encodes MJPEG in the full range. This converts it back.
    ffmpeg(&["-i", &text(&encoded), "-pix_fmt", "yuv420p"], output)?;
    Ok(output.into())
}

/// Reads `frames` frames of two raw videos, and calls `compare` with the index and the luma of both.
fn for_each_luma(
    paths: [&Path; 2],
    raw: Raw,
    frames: usize,
    mut compare: impl FnMut(usize, [&[u8]; 2]),
) -> Result<()> {
    let [mut first, mut second] =
        [File::open(paths[0])?, File::open(paths[1])?].map(BufReader::new);
    let [mut a, mut b] = [vec![0; raw.frame_bytes()], vec![0; raw.frame_bytes()]];
    for n in 0..frames {
        first.read_exact(&mut a)?;
        second.read_exact(&mut b)?;
        let luma = raw.width * raw.height;
        compare(n, [&a[..luma], &b[..luma]]);
    }
    Ok(())
}

/// Compares the first `frames` frames of two raw videos: all figures except the noise.
fn measure(paths: [&Path; 2], raw: Raw, frames: usize) -> Result<[f64; FIGURES]> {
    let (mut psnrs, mut ssims, mut counts) = ([0.0; 2], [0.0; 2], [0.0_f64; 2]);
    // Energies of the Laplacian: of the reference, and of the output.
    let mut energies = [[0.0; 2]; 2];
    for_each_luma(paths, raw, frames, |n, [a, b]| {
        let kind = n % 2;
        psnrs[kind] += psnr(a, b);
        ssims[kind] += ssim(a, b, raw.width);
        energies[kind][0] += laplacian_energy(a, raw.width);
        energies[kind][1] += laplacian_energy(b, raw.width);
        counts[kind] += 1.0;
    })?;
    let mean = |sums: [f64; 2], kind: usize| sums[kind] / counts[kind].max(1.0);
    let sharpness = |kind: usize| energies[kind][1] / energies[kind][0].max(1.0);
    Ok([
        mean(psnrs, 0),
        mean(psnrs, 1),
        mean(ssims, 0),
        mean(ssims, 1),
        sharpness(0),
        sharpness(1),
        0.0,
    ])
}

/// The root of the mean square difference of the luma of input frames.
fn difference(paths: [&Path; 2], raw: Raw, frames: usize) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0.0_f64);
    for_each_luma(paths, raw, frames, |n, [a, b]| {
        if n % 2 == 0 {
            sum += square_error(a, b);
            count += 1.0;
        }
    })?;
    Ok((sum / count.max(1.0)).sqrt())
}

/// The mean square of the difference of neighbours to each pixel: of its discrete Laplacian.
fn laplacian_energy(luma: &[u8], width: usize) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for rows in luma.chunks_exact(width).collect::<Vec<_>>().windows(3) {
        for x in 1..width - 1 {
            let at = |row: usize, x: usize| f64::from(rows[row][x]);
            let around = at(0, x) + at(2, x) + at(1, x - 1) + at(1, x + 1);
            sum += (4.0 * at(1, x) - around).powi(2);
            count += 1.0;
        }
    }
    sum / count
}

/// Mean square error.
fn square_error(a: &[u8], b: &[u8]) -> f64 {
    let square = |(a, b): (&u8, &u8)| f64::from(i32::from(*a) - i32::from(*b)).powi(2);
    a.iter().zip(b).map(square).sum::<f64>() / a.len() as f64
}

/// PSNR in dB. Limited to 60 dB, since one pair of equal frames would make the mean infinite.
fn psnr(a: &[u8], b: &[u8]) -> f64 {
    (10.0 * (255.0_f64.powi(2) / square_error(a, b)).log10()).min(60.0)
}

/// Mean SSIM over 8×8 blocks with a stride of 4 (Wang et al., "Image Quality Assessment: From Error Visibility to
/// Structural Similarity", 2004).
fn ssim(a: &[u8], b: &[u8], width: usize) -> f64 {
    const SIDE: usize = 8;
    let (c1, c2) = ((0.01_f64 * 255.0).powi(2), (0.03_f64 * 255.0).powi(2));
    let (mut sum, mut count) = (0.0, 0.0);
    for top in (0..=a.len() / width - SIDE).step_by(4) {
        for left in (0..=width - SIDE).step_by(4) {
            let [mut sa, mut sb, mut saa, mut sbb, mut sab] = [0.0; 5];
            for y in top..top + SIDE {
                for x in left..left + SIDE {
                    let (a, b) = (f64::from(a[y * width + x]), f64::from(b[y * width + x]));
                    (sa, sb) = (sa + a, sb + b);
                    (saa, sbb, sab) = (saa + a * a, sbb + b * b, sab + a * b);
                }
            }
            let n = (SIDE * SIDE) as f64;
            let (ma, mb) = (sa / n, sb / n);
            let (va, vb, cov) = (saa / n - ma * ma, sbb / n - mb * mb, sab / n - ma * mb);
            sum += (2.0 * ma * mb + c1) * (2.0 * cov + c2)
                / ((ma * ma + mb * mb + c1) * (va + vb + c2));
            count += 1.0;
        }
    }
    sum / count
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The size (w, h) of a video.
fn size(clip: &Path) -> Result<(usize, usize)> {
    let entries =
        ["-select_streams", "v:0", "-show_entries", "stream=width,height", "-of", "csv=p=0"];
    let out = Command::new("ffprobe").args(["-v", "error"]).args(entries).arg(clip).output()?;
    let text = String::from_utf8(out.stdout)?;
    let (width, height) = text.trim().split_once(',').ok_or_else(|| {
        let why = String::from_utf8_lossy(&out.stderr).trim().to_string();
        format!("ffprobe found no video in {}: {why}", clip.display())
    })?;
    Ok((width.parse()?, height.trim_end_matches(',').parse()?))
}

/// Runs ffmpeg with raw video as output.
fn ffmpeg(arguments: &[impl AsRef<std::ffi::OsStr>], output: &Path) -> Result<()> {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-y", "-threads", "2"]).args(arguments);
    command.args(["-f", "rawvideo"]).arg(output).stdin(Stdio::null());
    check(command)
}

/// Runs a command.
fn check(mut command: Command) -> Result<()> {
    match command.status()?.success() {
        true => Ok(()),
        false => Err(format!("{command:?} failed").into()),
    }
}

/// Runs the element on raw video.
fn enhance(input: &Path, output: &Path, raw: Raw, scale: usize) -> Result<()> {
    let pipeline = format!(
        "filesrc location={:?} ! rawvideoparse format=i420 width={} height={} framerate=12/1 \
         ! venhance model=lite up-scale={scale} target-fps=24/1 ! filesink location={:?}",
        text(input),
        raw.width,
        raw.height,
        text(output)
    );
    let pipeline = gst::parse::launch(&pipeline)?;
    pipeline.set_state(gst::State::Playing)?;
    let bus = pipeline.bus().ok_or("the pipeline has no bus")?;
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let end = bus.timed_pop_filtered(gst::ClockTime::NONE, &ends);
    pipeline.set_state(gst::State::Null)?;
    match end.as_ref().map(|message| message.view()) {
        Some(gst::MessageView::Error(error)) => Err(error.error().to_string().into()),
        _ => Ok(()),
    }
}
