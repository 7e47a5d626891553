// SPDX-License-Identifier: MIT OR Apache-2.0
//! How good `model=lite` is: makes a small video of half the rate from each clip, has it enhanced, and
//! compares with the clip, beside what else can be had on a CPU.
//!
//!     cargo run --release --example quality -- --scale 2 clip.mp4 …
//!
//! Needs `ffmpeg`. Figures are of the brightness: PSNR in dB and SSIM, each the mean over frames, of frames
//! that are in the input (kept) and frames between them (made).

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
    /// How many times smaller the input is made.
    #[arg(long, default_value_t = 2)]
    scale: usize,
    /// How it is made smaller: a filter of ffmpeg's scaler.
    #[arg(long, default_value = "bicubic")]
    shrink: String,
    /// Frames of each clip that are looked at, at most.
    #[arg(long, default_value_t = 120)]
    frames: usize,
    /// Where videos are kept to be looked at, instead of a folder that is removed.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// The reference clips.
    #[arg(required = true)]
    clips: Vec<PathBuf>,
}

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// I420 without a header.
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
        "clip", "by", "kept", "made", "SSIM", "SSIM", "fps"
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
        print_line("mean of all", &name, sum.map(|sum| sum / args.clips.len() as f64), None);
    }
    Ok(())
}

fn print_line(
    clip: &str,
    name: &str,
    [kept, made, kept_ssim, made_ssim]: [f64; 4],
    fps: Option<f64>,
) {
    let fps = fps.map_or(String::new(), |fps| format!("{fps:.1}"));
    println!("{clip:28} {name:26} {kept:7.2} {made:7.2} {kept_ssim:7.4} {made_ssim:7.4} {fps:>6}");
}

fn compare(clip: &Path, args: &Args, folder: &Path) -> Result<Vec<(String, [f64; 4])>> {
    let stem = clip.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let path = |name: &str| folder.join(format!("{stem}-x{}-{name}.yuv", args.scale));
    let (reference, small) = (path("reference"), path("small"));

    // Sides that the scale divides into such as need no padding, of chroma either.
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
    let shrink =
        format!("select=not(mod(n\\,2)),scale={}:{}:flags={}", low.width, low.height, args.shrink);
    let mut arguments: Vec<String> = large.input(25).into();
    arguments.extend(
        ["-i", &text(&reference), "-vf", &shrink, "-vsync", "passthrough"].map(String::from),
    );
    ffmpeg(&arguments, &small)?;

    let scaled = |flags: &str| format!("scale={}:{}:flags={flags}", large.width, large.height);
    let peers = [
        ("repeat + bicubic", format!("fps=24,{}", scaled("bicubic"))),
        ("blend + lanczos", format!("minterpolate=fps=24:mi_mode=blend,{}", scaled("lanczos"))),
        (
            "motion comp. + lanczos",
            format!("minterpolate=fps=24:mi_mode=mci,{}", scaled("lanczos")),
        ),
    ];
    let mut results = Vec::new();
    for (n, (name, filter)) in peers.iter().enumerate() {
        let output = path(&format!("peer{n}"));
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
        let made = count % 2;
        sums[made] += psnr(&a[..luma], &b[..luma]);
        sums[2 + made] += ssim(&a[..luma], &b[..luma], raw.width);
        counts[made] += 1.0;
        count += 1;
    }
    let figures = std::array::from_fn(|n| sums[n] / counts[n % 2].max(1.0));
    print_line(stem, name, figures, Some(count as f64 / took));
    Ok(figures)
}

/// At most 60 dB for a frame: equal ones would count for all others.
fn psnr(a: &[u8], b: &[u8]) -> f64 {
    let square = |(a, b): (&u8, &u8)| f64::from(i32::from(*a) - i32::from(*b)).powi(2);
    let error = a.iter().zip(b).map(square).sum::<f64>() / a.len() as f64;
    (10.0 * (255.0_f64.powi(2) / error).log10()).min(60.0)
}

/// Mean over blocks of 8×8, 4 apart (Wang et al., 2004).
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

fn size(clip: &Path) -> Result<(usize, usize)> {
    let entries =
        ["-select_streams", "v:0", "-show_entries", "stream=width,height", "-of", "csv=p=0"];
    let out = Command::new("ffprobe").args(["-v", "error"]).args(entries).arg(clip).output()?;
    let out = String::from_utf8(out.stdout)?;
    let (width, height) = out.trim().split_once(',').ok_or("ffprobe finds no video in it")?;
    Ok((width.parse()?, height.trim_end_matches(',').parse()?))
}

fn ffmpeg(arguments: &[impl AsRef<std::ffi::OsStr>], output: &Path) -> Result<()> {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-y", "-threads", "2"]).args(arguments);
    command.args(["-f", "rawvideo"]).arg(output).stdin(Stdio::null());
    match command.status()?.success() {
        true => Ok(()),
        false => Err(format!("{command:?} failed").into()),
    }
}

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
    let bus = pipeline.bus().ok_or("a pipeline has a bus")?;
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let end = bus.timed_pop_filtered(gst::ClockTime::NONE, &ends);
    pipeline.set_state(gst::State::Null)?;
    match end.as_ref().map(|message| message.view()) {
        Some(gst::MessageView::Error(error)) => Err(error.error().to_string().into()),
        _ => Ok(()),
    }
}
