// SPDX-License-Identifier: MIT OR Apache-2.0
//! Measures the quality of `model=lite`: downscales each clip and halves its frame rate, enhances the result, and compares
//! it with the clip; the same for filters of ffmpeg.
//!
//!     cargo run --release --example quality -- --scale 2 clip.mp4 …
//!
//! Needs `ffmpeg`. Prints the PSNR in dB and the SSIM of the luma, each the mean over input frames ("input") and over
//! interpolated frames ("interp.").

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

#[derive(Parser)]
struct Args {
    /// Downscale factor.
    #[arg(long, default_value_t = 2)]
    scale: usize,
    /// Filter for the downscale: one of the flags of ffmpeg's scale filter.
    #[arg(long, default_value = "bicubic", value_name = "FLAGS")]
    downscale: String,
    /// Maximum number of frames per clip.
    #[arg(long, default_value_t = 120)]
    frames: usize,
    /// Keep the videos in this folder.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Reference clips.
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
        "{:28} {:26} {:>7} {:>7} {:>7} {:>7} {:>6}",
        "clip", "method", "input", "interp.", "SSIM", "SSIM", "fps"
    );
    let mut sums: Vec<(String, [f64; 4])> = Vec::new();
    for clip in &args.clips {
        let results = compare(clip, &args, &folder)?;
        for (n, (name, figures)) in results.into_iter().enumerate() {
            if sums.len() <= n {
                sums.push((name, [0.0; 4]));
            }
            sums[n].1.iter_mut().zip(figures).for_each(|(sum, figure)| *sum += figure);
        }
    }
    for (name, sum) in sums {
        print_line("mean", &name, sum.map(|sum| sum / args.clips.len() as f64), None);
    }
    Ok(())
}

/// Prints the figures of a method.
fn print_line(
    clip: &str,
    name: &str,
    [input, interpolated, input_ssim, interpolated_ssim]: [f64; 4],
    fps: Option<f64>,
) {
    let fps = fps.map_or(String::new(), |fps| format!("{fps:.1}"));
    println!(
        "{clip:28} {name:26} {input:7.2} {interpolated:7.2} {input_ssim:7.4} {interpolated_ssim:7.4} \
         {fps:>6}"
    );
}

/// Runs all methods on a clip; returns their names and figures.
fn compare(clip: &Path, args: &Args, folder: &Path) -> Result<Vec<(String, [f64; 4])>> {
    let stem = clip.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let path = |name: &str| folder.join(format!("{stem}-x{}-{name}.yuv", args.scale));
    let (reference, small) = (path("reference"), path("small"));

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
    let downscale = format!(
        "select=not(mod(n\\,2)),scale={}:{}:flags={}",
        low.width, low.height, args.downscale
    );
    let mut arguments: Vec<String> = large.input(25).into();
    arguments.extend(
        ["-i", &text(&reference), "-vf", &downscale, "-vsync", "passthrough"].map(String::from),
    );
    ffmpeg(&arguments, &small)?;

    let scaled = |flags: &str| format!("scale={}:{}:flags={flags}", large.width, large.height);
    let filters = [
        ("repeat + bicubic", format!("fps=24,{}", scaled("bicubic"))),
        ("blend + lanczos", format!("minterpolate=fps=24:mi_mode=blend,{}", scaled("lanczos"))),
        (
            "motion comp. + lanczos",
            format!("minterpolate=fps=24:mi_mode=mci,{}", scaled("lanczos")),
        ),
    ];
    let mut results = Vec::new();
    for (n, (name, filter)) in filters.iter().enumerate() {
        let output = path(&format!("filter{n}"));
        let mut arguments: Vec<String> = low.input(12).into();
        arguments.extend(["-i", &text(&small), "-vf", filter].map(String::from));
        let start = Instant::now();
        ffmpeg(&arguments, &output)?;
        let took = start.elapsed().as_secs_f64();
        results.push((name.to_string(), measure(&reference, &output, large, took, &stem, name)?));
    }
    let output = path("lite");
    let start = Instant::now();
    enhance(&small, &output, low, args.scale)?;
    let took = start.elapsed().as_secs_f64();
    results.push(("lite".into(), measure(&reference, &output, large, took, &stem, "lite")?));
    Ok(results)
}

/// Compares an output with the reference, and prints the figures.
fn measure(
    reference: &Path,
    output: &Path,
    raw: Raw,
    took: f64,
    stem: &str,
    name: &str,
) -> Result<[f64; 4]> {
    let open = |path: &Path| File::open(path).map(BufReader::new);
    let (mut reference, mut output) = (open(reference)?, open(output)?);
    let mut frames = [vec![0; raw.frame_bytes()], vec![0; raw.frame_bytes()]];
    let (mut sums, mut counts, mut count) = ([0.0; 4], [0.0_f64; 2], 0);
    loop {
        let [a, b] = &mut frames;
        if reference.read_exact(a).is_err() || output.read_exact(b).is_err() {
            break;
        }
        let luma = raw.width * raw.height;
        let interpolated = count % 2;
        sums[interpolated] += psnr(&a[..luma], &b[..luma]);
        sums[2 + interpolated] += ssim(&a[..luma], &b[..luma], raw.width);
        counts[interpolated] += 1.0;
        count += 1;
    }
    let figures = std::array::from_fn(|n| sums[n] / counts[n % 2].max(1.0));
    print_line(stem, name, figures, Some(count as f64 / took));
    Ok(figures)
}

/// PSNR in dB. Limited to 60 dB, since one pair of equal frames would make the mean infinite.
fn psnr(a: &[u8], b: &[u8]) -> f64 {
    let square = |(a, b): (&u8, &u8)| f64::from(i32::from(*a) - i32::from(*b)).powi(2);
    let error = a.iter().zip(b).map(square).sum::<f64>() / a.len() as f64;
    (10.0 * (255.0_f64.powi(2) / error).log10()).min(60.0)
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
    let out = String::from_utf8(out.stdout)?;
    let (width, height) = out.trim().split_once(',').ok_or("ffprobe found no video stream")?;
    Ok((width.parse()?, height.trim_end_matches(',').parse()?))
}

/// Runs ffmpeg with raw video as output.
fn ffmpeg(arguments: &[impl AsRef<std::ffi::OsStr>], output: &Path) -> Result<()> {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-y", "-threads", "2"]).args(arguments);
    command.args(["-f", "rawvideo"]).arg(output).stdin(Stdio::null());
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
