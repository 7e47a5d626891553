// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the application `venhance` writes: every file that it calls finished can be read, and what cannot work
//! is refused before the work.

#[path = "common/application.rs"]
mod application;
mod common;

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use application::{Scratch, VIDEO, audio, chapters, end, fails, media, text, venhance};
use base64::{Engine, engine::general_purpose::STANDARD};
use common::{decode, run, wait_for};
use gst::{ClockTime, prelude::*};

/// A few frames.
const SHORT: &str = "videotestsrc pattern=ball num-buffers=4 \
    ! video/x-raw,format=I420,width=96,height=64,framerate=24/1 ! x264enc ! queue";

/// Flags for the fastest run.
const FAST: [&str; 6] = ["--model", "lite", "--up-scale", "1", "--target-fps", "0/1"];

impl Scratch {
    /// The arguments, then [`FAST`].
    fn fast(&self, arguments: &[&str]) -> std::process::Output {
        self.enhance(&[arguments, &FAST].concat())
    }

    /// Fails if a run has left any file but those named.
    fn only(&self, names: &[&str]) {
        let mut found: Vec<_> = std::fs::read_dir(self.path(""))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, names);
    }
}

/// Runs a pipeline that begins with `filesrc` and ends with an element `end`, and returns the caps there.
fn caps_of(file: &Path, elements: &str) -> gst::Structure {
    common::init();
    let description = format!("filesrc location={} ! {elements}", file.display());
    let pipeline = gst::parse::launch(&description).unwrap().downcast::<gst::Pipeline>().unwrap();
    pipeline.set_state(gst::State::Paused).unwrap();
    pipeline.state(ClockTime::try_from(common::TIMEOUT).unwrap()).0.unwrap();
    let caps = pipeline.by_name("end").unwrap().static_pad("sink").unwrap().current_caps().unwrap();
    pipeline.set_state(gst::State::Null).unwrap();
    caps.structure(0).unwrap().to_owned()
}

/// The colorimetry that the H.264 video itself has; GStreamer's demuxers put another range into its caps.
fn colorimetry(file: &Path) -> gst_video::VideoColorimetry {
    let demuxer = match file.extension().unwrap().to_str() {
        Some("mkv") => "matroskademux",
        _ => "qtdemux",
    };
    let unknown_range = "capssetter caps=video/x-h264,colorimetry=(string)0:0:0:1";
    let decoder = format!("{demuxer} ! {unknown_range} ! avdec_h264 ! fakesink name=end");
    caps_of(file, &decoder).get::<&str>("colorimetry").unwrap().parse().unwrap()
}

/// The decoded pixels of a video in the format that the decoder gives.
fn pixels(file: &Path) -> Vec<u8> {
    common::pixels(file, "video/x-raw")
}

#[test]
fn full_range_stays_full_range() {
    let scratch = Scratch::new();
    let video = SHORT.replace("framerate", "colorimetry=(string)1:3:5:1,framerate");
    for (input, muxer) in [("in.mp4", "mp4mux"), ("in.mov", "qtmux"), ("in.mkv", "matroskamux")] {
        let input_file = scratch.make(input, &video, muxer, &[]);
        for output in ["out.mp4", "out.mov", "out.mkv"] {
            let lossless = ["--encoder", "x264enc pass=quant quantizer=0", "--overwrite"];
            let run = scratch.fast(&[&[input, output][..], &lossless].concat());
            assert!(run.status.success(), "{}", text(&run));
            let range = colorimetry(&scratch.path(output)).range();
            assert_eq!(range, gst_video::VideoColorRange::Range0_255, "{input} to {output}");
            let (before, after) = (pixels(&input_file), pixels(&scratch.path(output)));
            assert_eq!(before.len(), after.len());
            let error = before.iter().zip(&after).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(error <= Some(1), "{input} to {output}: {error:?}");
        }
    }
    // The video says that it has full range, but nothing else of its colours.
    let input = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/media/full_range.h265.mp4");
    for output in ["bare.mp4", "bare.mov", "bare.mkv"] {
        let run = scratch.fast(&[input, output]);
        assert!(run.status.success(), "{}", text(&run));
        let range = colorimetry(&scratch.path(output)).range();
        assert_eq!(range, gst_video::VideoColorRange::Range0_255, "{output}");
    }
}

#[test]
fn the_default_encoder_makes_4_2_0_of_everything() {
    let scratch = Scratch::new();
    for (format, encoder, muxer) in [
        ("Y42B", "x264enc", "matroskamux"),
        ("Y444", "x264enc", "matroskamux"),
        ("I420_10LE", "x264enc", "matroskamux"),
        ("BGR", "identity", "avimux"),
        ("GRAY8", "identity", "matroskamux"),
    ] {
        let video = SHORT.replace("format=I420", &format!("format={format}"));
        scratch.make("in", &video.replace("x264enc", encoder), muxer, &[]);
        for output in ["out.mp4", "out.webm"] {
            let run = scratch.fast(&["in", output, "--overwrite"]);
            assert!(run.status.success(), "{format} to {output}: {}", text(&run));
            let video = decode(&scratch.path(output));
            let found = video.info().format();
            assert_eq!(found, gst_video::VideoFormat::I420, "{format} to {output}");
        }
    }
}

/// Every encoder that `--help` names, in every container that it names.
#[test]
fn every_named_encoder_works_in_every_container_that_supports_it() {
    let scratch = Scratch::new();
    let sound = audio("avenc_aac").replace("num-buffers=88", "num-buffers=8");
    scratch.make("in.mp4", SHORT, "mp4mux", &[sound]);
    let help = text(&scratch.enhance(&["--help"]));
    for encoder in ["x264enc", "x265enc", "vp9enc", "av1enc"] {
        assert!(help.contains(encoder));
        for container in ["mp4", "m4v", "mov", "mkv", "webm"] {
            assert!(help.contains(&format!(".{container}")));
            let output = format!("{encoder}.{container}");
            let run = scratch.fast(&["in.mp4", &output, "--encoder", encoder, "--quality", "30"]);
            if container == "webm" && encoder.starts_with("x26") {
                fails(&run, 2, "does not support the output of");
                continue;
            }
            assert!(run.status.success(), "{output}: {}", text(&run));
            let video = decode(&scratch.path(&output));
            assert_eq!(video.times.len(), 4, "{output}");
            assert!(!video.audio.is_empty(), "{output}");
        }
    }
}

/// With a lookahead, vp9enc of GStreamer 1.22 loses frames of a video like this one.
#[test]
fn vp9_loses_no_frames() {
    let scratch = Scratch::new();
    let video = "videotestsrc pattern=smpte num-buffers=75 ! video/x-raw,width=96,height=64,framerate=25/1 \
        ! x264enc";
    scratch.make("in.mp4", video, "mp4mux", &[]);
    for encoder in [&[][..], &["--encoder", "vp9enc deadline=1"]] {
        let arguments = ["in.mp4", "out.webm", "--overwrite"];
        let run = scratch.fast(&[&arguments[..], encoder].concat());
        assert!(run.status.success(), "{encoder:?}: {}", text(&run));
        assert_eq!(decode(&scratch.path("out.webm")).times.len(), 75);
    }
}

#[test]
fn other_encoders_give_a_file_or_are_refused_before_the_work() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", SHORT, "mp4mux", &[]);
    for (encoder, output) in [
        // GStreamer's Matroska demuxer and muxer use different names for a field of its caps.
        ("avenc_ffv1", "ffv1.mkv"),
        // Not video/…, but image/jpeg.
        ("jpegenc", "jpeg.mkv"),
        ("avenc_mjpeg", "mjpeg.mkv"),
        ("theoraenc", "theora.mkv"),
        ("vp8enc", "vp8.webm"),
        // GStreamer 1.22 gives its packets one invalid timestamp,
        ("avenc_mpeg4", "mpeg4.mkv"),
        ("avenc_mpeg4", "mpeg4.mov"),
        // reads none for these from the partial file,
        ("avenc_prores_ks", "prores.mov"),
        // and only one for decoding for these.
        ("avenc_h263p", "h263.mov"),
    ] {
        let run = scratch.fast(&["in.mp4", output, "--encoder", encoder]);
        assert!(run.status.success(), "{encoder}: {}", text(&run));
        assert_eq!(decode(&scratch.path(output)).times.len(), 4, "{encoder}");
    }
    // GStreamer 1.22 reads no timestamps from this file, others do.
    let run = scratch.fast(&["in.mp4", "prores.mkv", "--encoder", "avenc_prores_ks"]);
    assert!(run.status.success(), "{}", text(&run));
    let scratch = Scratch::new();
    scratch.make("in.mp4", SHORT, "mp4mux", &[]);
    for (encoder, output) in [
        // With B-frames, GStreamer 1.22 does not say when a packet is shown.
        ("avenc_mpeg4 max-bframes=2", "out.mkv"),
        ("avenc_mpeg2video", "out.mkv"),
        ("pngenc", "out.mkv"),
    ] {
        let run = scratch.fast(&["in.mp4", output, "--encoder", encoder]);
        fails(&run, 2, encoder);
        assert!(!text(&run).contains("is loaded"), "{encoder}: {}", text(&run));
        scratch.only(&["in.mp4"]);
    }
}

#[test]
fn sizes_that_an_encoder_does_not_support_are_refused_before_the_work() {
    let scratch = Scratch::new();
    let small = SHORT.replace("width=96,height=64", "width=8,height=8");
    scratch.make("in.mkv", &small.replace("x264enc", "identity"), "matroskamux", &[]);
    for (arguments, why) in [
        (&["out.mp4"][..], "mp4mux does not support video of 8x8 pixels from x264enc"),
        (&["out.mov", "--encoder", "x264enc"], "qtmux does not support video of 8x8 pixels"),
        (&["out.mkv", "--encoder", "x265enc"], "cannot make video of 8x8 pixels"),
    ] {
        let run = scratch.fast(&[&["in.mkv"][..], arguments].concat());
        fails(&run, 2, why);
        assert!(!text(&run).contains("is loaded"), "{}", text(&run));
        scratch.only(&["in.mkv"]);
    }
}

#[test]
fn sound_may_be_much_longer_than_the_video() {
    let scratch = Scratch::new();
    scratch.make("in.mkv", SHORT, "matroskamux", &[audio("avenc_aac")]);
    let run = scratch.fast(&["in.mkv", "out.mkv"]);
    assert!(run.status.success(), "{}", text(&run));
    assert_eq!(decode(&scratch.path("out.mkv")).times.len(), 4);
    // GStreamer takes the video of such an MP4 for a preview. Other players do not.
    let run = scratch.fast(&["in.mkv", "out.mp4"]);
    assert!(run.status.success(), "{}", text(&run));
    let run = scratch.fast(&["out.mp4", "again.mkv"]);
    assert!(run.status.success(), "{}", text(&run));
    assert_eq!(decode(&scratch.path("again.mkv")).times.len(), 4);
    scratch.only(&["again.mkv", "in.mkv", "out.mkv", "out.mp4"]);
}

#[test]
fn an_empty_sound_track_is_left_out() {
    let scratch = Scratch::new();
    let empty = "audiotestsrc num-buffers=2 ! identity drop-probability=1 ! queue".to_owned();
    scratch.make("in.mkv", SHORT, "matroskamux", &[empty]);
    for output in ["out.mp4", "out.mkv"] {
        let run = scratch.fast(&["in.mkv", output]);
        assert!(run.status.success(), "{}", text(&run));
        assert!(text(&run).contains("leaving out an empty sound track"), "{}", text(&run));
        let video = decode(&scratch.path(output));
        assert_eq!((video.times.len(), video.audio.len()), (4, 0));
    }
}

/// Mono sound of a file at a sample rate.
fn samples(file: &Path, rate: i32) -> Vec<f32> {
    let raw = file.with_extension("pcm");
    run(&format!(
        "filesrc location={} ! decodebin name=d  d. ! audio/x-raw ! audioconvert ! audioresample \
         ! audio/x-raw,format=F32LE,channels=1,rate={rate} \
         ! filesink location={}  d. ! video/x-raw ! fakesink",
        file.display(),
        raw.display()
    ));
    bytemuck::cast_slice(&std::fs::read(raw).unwrap()).to_vec()
}

#[test]
fn sound_that_is_encoded_again_is_not_late() {
    let scratch = Scratch::new();
    for rate in [8000, 48000] {
        // A tone that never repeats.
        let count = rate as usize;
        let tone =
            |n: usize| (n as f32 / rate as f32).powi(2) * 900.0 + n as f32 / rate as f32 * 200.0;
        let sound: Vec<f32> =
            (0..count).map(|n| 0.5 * (std::f32::consts::TAU * tone(n)).sin()).collect();
        std::fs::write(scratch.path("raw"), bytemuck::cast_slice::<f32, u8>(&sound)).unwrap();
        let sound_source = format!(
            "filesrc location={} ! rawaudioparse pcm-format=f32le sample-rate={rate} num-channels=1 \
             ! audioconvert ! audio/x-raw,format=S16LE ! queue",
            scratch.path("raw").display()
        );
        let video = SHORT.replace("num-buffers=4", "num-buffers=24");
        let input = scratch.make("in.mkv", &video, "matroskamux", &[sound_source]);
        let before = samples(&input, rate);
        for output in ["out.mp4", "out.mov", "out.webm"] {
            let run = scratch.fast(&["in.mkv", output, "--overwrite"]);
            assert!(run.status.success(), "{}", text(&run));
            let after = samples(&scratch.path(output), rate);
            let part = count / 4..count / 2;
            let product = |late: i32| -> f32 {
                let shifted = |n: usize| after.get((n as i32 + late) as usize).copied();
                part.clone().map(|n| before[n] * shifted(n).unwrap_or(0.0)).sum()
            };
            let late = (-1500..1500).max_by(|a, b| product(*a).total_cmp(&product(*b))).unwrap();
            let most = rate / 1000;
            assert!(late.abs() <= most, "{rate} Hz in {output}: {late} samples late");
        }
    }
}

/// How long a file is for a player.
fn length(file: &Path) -> ClockTime {
    let pipeline = gst::parse::launch(&format!(
        "filesrc location={} ! decodebin ! video/x-raw ! fakesink",
        file.display()
    ));
    let pipeline = pipeline.unwrap();
    pipeline.set_state(gst::State::Paused).unwrap();
    pipeline.state(ClockTime::try_from(common::TIMEOUT).unwrap()).0.unwrap();
    let length = pipeline.query_duration::<ClockTime>();
    pipeline.set_state(gst::State::Null).unwrap();
    length.unwrap_or_default()
}

#[test]
fn every_frame_of_a_variable_rate_is_shown_for_its_duration() {
    let scratch = Scratch::new();
    // The file says 60 fps. Its frames come every half second.
    let video = "videotestsrc num-buffers=12 ! video/x-raw,format=I420,width=96,height=64,framerate=2/1 \
        ! capssetter caps=video/x-raw,framerate=60/1 ! x264enc bframes=0 ! queue";
    scratch.make("in.mp4", video, "mp4mux", &[]);
    for output in ["out.mp4", "out.mov", "out.mkv"] {
        let run = scratch.fast(&["in.mp4", output]);
        assert!(run.status.success(), "{}", text(&run));
        let times = decode(&scratch.path(output)).times;
        assert_eq!(times.len(), 12, "{output}");
        assert!(length(&scratch.path(output)) > times[11], "{output}");
    }
}

#[test]
fn the_pixel_aspect_ratio_stays_exact_in_mp4() {
    let scratch = Scratch::new();
    let video = SHORT.replace("height=64", "height=64,pixel-aspect-ratio=16/11");
    scratch.make("in.mp4", &video, "mp4mux", &[]);
    for output in ["out.mp4", "out.mov"] {
        let run = scratch.fast(&["in.mp4", output]);
        assert!(run.status.success(), "{}", text(&run));
        let info = decode(&scratch.path(output)).info();
        assert_eq!(info.par(), gst::Fraction::new(16, 11), "{output}");
    }
}

#[test]
fn at_an_exact_rate_the_video_ends_with_its_input() {
    let scratch = Scratch::new();
    let video = "videotestsrc pattern=ball num-buffers=17 \
        ! video/x-raw,format=I420,width=96,height=64,framerate=24/1 ! x264enc ! queue";
    scratch.make("in.mp4", video, "mp4mux", &[]);
    let input = ClockTime::SECOND * 17 / 24;
    for output in ["out.mp4", "out.mkv", "out.webm"] {
        for target in ["25", "7"] {
            let flags =
                ["--rate-mode", "exact", "--model", "lite", "--up-scale", "1", "--overwrite"];
            let run = scratch
                .enhance(&[&["in.mp4", output, "--target-fps", target], &flags[..]].concat());
            assert!(run.status.success(), "{}", text(&run));
            let length = length(&scratch.path(output));
            assert!(
                length.absdiff(input) < ClockTime::from_mseconds(2),
                "{output}, {target} fps: {length}"
            );
        }
    }
}

#[test]
fn a_picture_becomes_a_video_of_one_frame() {
    let scratch = Scratch::new();
    for (name, encoder) in [("in.png", "pngenc"), ("in.jpg", "jpegenc")] {
        let video =
            format!("videotestsrc num-buffers=1 ! video/x-raw,width=96,height=64 ! {encoder}");
        scratch.make(name, &video, "identity", &[]);
        for output in ["out.mp4", "out.mov", "out.mkv", "out.webm"] {
            let run = scratch.fast(&[name, output, "--overwrite"]);
            assert!(run.status.success(), "{name} to {output}: {}", text(&run));
            let file = scratch.path(output);
            assert_eq!(decode(&file).times, [ClockTime::ZERO], "{name} to {output}");
            assert!(length(&file) >= ClockTime::from_mseconds(39), "{name} to {output}");
        }
    }
}

#[test]
fn one_two_and_three_frames_are_videos() {
    let scratch = Scratch::new();
    for frames in 1..=3 {
        let video = SHORT.replace("num-buffers=4", &format!("num-buffers={frames}"));
        scratch.make("in.mp4", &video, "mp4mux", &[]);
        for output in ["out.mp4", "out.mov", "out.mkv", "out.webm"] {
            let run = scratch.fast(&["in.mp4", output, "--overwrite"]);
            assert!(run.status.success(), "{frames} to {output}: {}", text(&run));
            assert_eq!(decode(&scratch.path(output)).times.len(), frames, "{output}");
            let plural = if frames == 1 { "" } else { "s" };
            let said = format!("{frames} frame{plural} of 96x64 at 24 fps in ");
            assert!(text(&run).contains(&said), "{}", text(&run));
        }
    }
}

#[test]
fn the_partial_file_stays_until_the_finished_file_is_checked() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", SHORT, "mp4mux", &[]);
    // A folder in the place of the finished file.
    let obstacle = scratch.path("out.mp4.partial.new");
    std::fs::create_dir(&obstacle).unwrap();
    fails(&scratch.fast(&["in.mp4", "out.mp4"]), 4, "out.mp4.partial.new");
    std::fs::remove_dir(&obstacle).unwrap();

    let index = scratch.path("out.mp4.partial.json");
    let written = std::fs::read_to_string(&index).unwrap();
    let changed = written.replace("\"frames\":4", "\"frames\":5");
    assert_ne!(changed, written);
    std::fs::write(&index, changed).unwrap();
    let run = scratch.fast(&["in.mp4", "out.mp4", "--resume"]);
    fails(&run, 4, "it has 4 of 5 frames");
    scratch.only(&["in.mp4", "out.mp4.partial.json", "out.mp4.partial.mkv"]);

    std::fs::write(&index, written).unwrap();
    let run = scratch.fast(&["in.mp4", "out.mp4", "--resume"]);
    assert!(run.status.success(), "{}", text(&run));
    assert!(
        text(&run).contains("out.mp4: finished; all frames were already done"),
        "{}",
        text(&run)
    );
    scratch.only(&["in.mp4", "out.mp4"]);
    assert_eq!(decode(&scratch.path("out.mp4")).times.len(), 4);
}

#[test]
fn names_that_cannot_be_written_are_refused_before_the_work() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", SHORT, "mp4mux", &[]);
    let refused = |arguments: &[&str], code, why: &str| {
        let run = scratch.fast(&[&["in.mp4"][..], arguments].concat());
        fails(&run, code, why);
        assert!(!text(&run).contains("is loaded"), "{}", text(&run));
    };
    // The names of the temporary files are longer.
    for length in [240, 251, 300] {
        refused(&[&("x".repeat(length) + ".mp4")], 4, "use a shorter name");
    }
    std::fs::create_dir_all(scratch.path("folder.mp4/in.mp4")).unwrap();
    refused(&["folder.mp4"], 2, "folder.mp4/in.mp4 is a folder");
    refused(&["folder.mp4", "--overwrite"], 2, "folder.mp4/in.mp4 is a folder");
    refused(&["."], 2, "would overwrite the input");
    refused(&["out.mp4", "--compare", "nowhere/picture.png"], 4, "create its folder first");
    for folder in ["nowhere/", "nowhere.mp4/"] {
        refused(&[folder], 4, &format!("the folder {folder} does not exist"));
    }
    refused(&["nowhere"], 2, "a folder that exists");
    let run = scratch.fast(&["in.mp4", "/proc/out.mp4"]);
    fails(&run, 4, "cannot write /proc/out.mp4");
    assert!(!text(&run).contains("create its folder"), "{}", text(&run));
    std::fs::create_dir(scratch.path("folder.png")).unwrap();
    refused(&["out.mp4", "--compare", "folder.png", "--overwrite"], 4, "folder.png");
    scratch.only(&["folder.mp4", "folder.png", "in.mp4"]);
}

#[test]
fn two_runs_do_not_write_the_same_output() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", &VIDEO.replace("num-buffers=16", "num-buffers=4000"), "mp4mux", &[]);
    let mut first = venhance();
    let arguments = ["in.mp4", "out.mp4", "--model", "lite", "--up-scale", "8"];
    first.current_dir(scratch.path("")).args(arguments);
    let mut first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let partial = scratch.path("out.mp4.partial.mkv");
    wait_for("the first frame", || partial.metadata().is_ok_and(|partial| partial.len() > 0));
    let second = scratch.enhance(&[&arguments[..], &["--overwrite"]].concat());
    first.kill().unwrap();
    end(&mut first);
    fails(&second, 4, "another venhance process is writing out.mp4.partial.mkv; wait for it");
}

#[test]
fn a_plan_whose_reader_goes_away_is_no_failure() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", SHORT, "mp4mux", &[]);
    let mut command = venhance();
    command.current_dir(scratch.path("")).args(["in.mp4", "--plan", "--model", "lite"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    end(&mut child);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(text(&output), "");
}

#[test]
fn a_plan_lists_every_video_of_a_folder() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("in")).unwrap();
    for name in ["a.mp4", "b.mp4"] {
        let file = scratch.make(name, SHORT, "mp4mux", &[]);
        std::fs::rename(file, scratch.path("in").join(name)).unwrap();
    }
    let run = scratch.enhance(&["in", "--plan", "--model", "lite", "--up-scale", "2"]);
    assert!(run.status.success(), "{}", text(&run));
    for line in
        ["in/a.mp4:", "in/b.mp4:", "resolution: 96x64 to 192x128", "frame rate: 24 to 24 fps"]
    {
        assert!(text(&run).contains(line), "{line:?} is not in {}", text(&run));
    }
}

#[test]
fn a_plan_counts_the_shots() {
    let scratch = Scratch::new();
    // Three pictures, each for some frames.
    let raw = scratch.path("in.raw");
    let luma = |scene: usize, at: usize| ((at / 8 + at / 960 * 3) * scene * 37 % 200) as u8;
    let frames = [(1, 10), (2, 5), (3, 12)]
        .into_iter()
        .flat_map(|(scene, count)| (0..count * 96 * 64).map(move |at| luma(scene, at % (96 * 64))));
    std::fs::write(&raw, frames.collect::<Vec<u8>>()).unwrap();
    run(&format!(
        "filesrc location={} blocksize={} ! rawvideoparse format=gray8 width=96 height=64 framerate=24/1 \
         ! videoconvert ! video/x-raw,format=I420 ! x264enc pass=quant quantizer=0 ! mp4mux ! filesink location={}",
        raw.display(),
        96 * 64,
        scratch.path("in.mp4").display()
    ));
    let plan = |flags: &[&str]| {
        let run = scratch.enhance(&[&["in.mp4", "--plan", "--model", "lite"], flags].concat());
        assert!(run.status.success(), "{}", text(&run));
        text(&run)
    };
    let shots = "shots: each is enhanced separately\nshots found: 3\n";
    assert!(plan(&[]).contains(shots), "{}", plan(&[]));
    assert!(!plan(&["--shot-detection", "false"]).contains("shots"));
}

#[test]
fn a_plan_counts_the_frames_where_the_duration_cannot_be_right() {
    let scratch = Scratch::new();
    // Two frames at 25 fps, three hours apart.
    let video = SHORT
        .replace("num-buffers=4", "num-buffers=2")
        .replace("framerate=24/1", "framerate=1/10000 ! capssetter caps=video/x-raw,framerate=25/1")
        .replace("x264enc", "x264enc bframes=0");
    scratch.make("in.mkv", &video, "matroskamux", &[]);
    let run = scratch.enhance(&["in.mkv", "--plan", "--model", "lite"]);
    assert!(run.status.success(), "{}", text(&run));
    assert!(text(&run).contains("frames: 2 in the input, 2 in the output\n"), "{}", text(&run));
}

#[test]
fn a_plan_of_a_file_that_does_not_name_its_rate_counts_the_output_frames() {
    let scratch = Scratch::new();
    let video = SHORT
        .replace("num-buffers=4", "num-buffers=60")
        .replace("framerate=24/1", "framerate=60/1 ! capssetter caps=video/x-raw,framerate=0/1");
    scratch.make("in.mkv", &video, "matroskamux", &[]);
    let flags =
        ["--model", "lite", "--up-scale", "1", "--rate-mode", "exact", "--target-fps", "30"];
    let plan = scratch.enhance(&[&["in.mkv", "--plan"], &flags[..]].concat());
    assert!(plan.status.success(), "{}", text(&plan));
    let run = scratch.enhance(&[&["in.mkv", "out.mkv"], &flags[..]].concat());
    assert!(run.status.success(), "{}", text(&run));
    assert_eq!(decode(&scratch.path("out.mkv")).times.len(), 30);
    for line in ["frames: 60 in the input, 30 in the output\n", "frame rate: 60 to 30 fps\n"] {
        assert!(text(&plan).contains(line), "{}", text(&plan));
    }
}

/// A run that hangs is found by its time.
#[test]
fn a_stream_that_is_not_there_is_an_error_and_no_hang() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", SHORT, "mp4mux", &[]);
    let obstacle = scratch.path("out.mp4.partial.new");
    std::fs::create_dir(&obstacle).unwrap();
    fails(&scratch.fast(&["in.mp4", "out.mp4"]), 4, "out.mp4.partial.new");
    std::fs::remove_dir(&obstacle).unwrap();
    // A file of the same length without the video.
    let partial = scratch.path("out.mp4.partial.mkv");
    let length = partial.metadata().unwrap().len();
    run(&format!(
        "audiotestsrc num-buffers=200 ! audio/x-raw,rate=44100 ! matroskamux ! filesink location={}",
        partial.display()
    ));
    assert!(partial.metadata().unwrap().len() >= length);
    let began = Instant::now();
    let run = scratch.fast(&["in.mp4", "out.mp4", "--resume"]);
    fails(&run, 4, "a stream is missing");
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn flags_that_an_encoder_does_not_take_are_refused_before_the_work() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", SHORT, "mp4mux", &[]);
    for (arguments, code, why) in [
        (&["--quality", "60"][..], 2, "--quality 60: x264enc takes 0 to 51"),
        (&["--quality", "99"], 2, "use a whole number from 0 to 63"),
        (&["--encoder", ""], 2, "--encoder is empty"),
        (&["--encoder", "x264"], 5, "there is no GStreamer element x264; gst-inspect-1.0 lists"),
        (&["--encoder", "x264enc  foo=1"], 2, "x264enc foo=1: "),
        (&["--encoder", "x264enc pass=pass2"], 2, "--encoder x264enc pass=pass2"),
        (&["--compare", "picture.jpg"], 2, "--compare picture.jpg: it writes a PNG"),
    ] {
        for files in [&["in.mp4", "out.mp4"][..], &["in.mp4", "--plan"]] {
            // Without OUT, there is nothing to compare.
            if !(files.contains(&"--plan") && arguments.contains(&"--compare")) {
                fails(&scratch.fast(&[files, arguments].concat()), code, why);
            }
            scratch.only(&["in.mp4"]);
        }
        fails(&scratch.fast(&[&["in.mp4", "out.mp4", "--plan"], arguments].concat()), code, why);
    }
    for (output, code, why) in [
        ("in.mp4", 2, "would overwrite the input"),
        ("out.avi", 2, "unknown output format"),
        ("in.mkv", 2, "in.mkv exists"),
    ] {
        std::fs::copy(scratch.path("in.mp4"), scratch.path("in.mkv")).unwrap();
        fails(&scratch.fast(&["in.mp4", output]), code, why);
        fails(&scratch.fast(&["in.mp4", output, "--plan"]), code, why);
    }
}

#[test]
fn an_empty_file_of_an_aborted_run_is_not_in_the_way() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", SHORT, "mp4mux", &[]);
    std::fs::write(scratch.path("out.mp4.partial.mkv"), "").unwrap();
    let run = scratch.fast(&["in.mp4", "out.mp4"]);
    assert!(run.status.success(), "{}", text(&run));
    scratch.only(&["in.mp4", "out.mp4"]);
}

#[test]
fn a_target_height_sets_the_size_of_the_output_and_the_plan_says_it() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", SHORT, "mp4mux", &[]);
    let with = |arguments: &[&str], target: &[&str]| {
        let flags = ["--model", "lite", "--target-fps", "0/1"];
        scratch.enhance(&[arguments, target, &flags].concat())
    };
    let target = ["--target-height", "128"];
    let plan = with(&["in.mp4", "--plan"], &target);
    assert!(text(&plan).contains("resolution: 96x64 to 192x128"), "{}", text(&plan));
    let run = with(&["in.mp4", "out.mp4"], &target);
    assert!(run.status.success(), "{}", text(&run));
    let info = decode(&scratch.path("out.mp4")).info();
    assert_eq!((info.width(), info.height()), (192, 128));

    std::fs::remove_file(scratch.path("out.mp4")).unwrap();
    for (target, code, why) in [
        (
            &["--target-height", "48"][..],
            3,
            "in.mp4: --target-height 48 cannot be used: the input is 64",
        ),
        (
            &["--target-width", "800"],
            3,
            "in.mp4: --target-width 800 cannot be used: the input is 96",
        ),
        (&["--target-height", "128", "--up-scale", "2"], 2, "--up-scale"),
        (&["--target-height", "-1"], 2, "cannot be negative"),
    ] {
        fails(&with(&["in.mp4", "--plan"], target), code, why);
        fails(&with(&["in.mp4", "out.mp4"], target), code, why);
        scratch.only(&["in.mp4"]);
    }
}

/// The videos in a page.
fn embedded(page: &str) -> Vec<Vec<u8>> {
    let urls = page.split("data:video/mp4;base64,").skip(1);
    urls.map(|url| STANDARD.decode(url.split('"').next().unwrap()).unwrap()).collect()
}

#[test]
fn a_page_contains_both_videos_and_needs_nothing_else() {
    let scratch = Scratch::new();
    let name = "<b>&\"{{after}}.mp4";
    scratch.make(name, VIDEO, "mp4mux", &[audio("avenc_aac")]);
    let output = scratch.enhance(&[name, "out.mp4", "--up-scale", "2", "--compare", "page.html"]);
    assert!(output.status.success(), "{}", text(&output));
    let page = std::fs::read_to_string(scratch.path("page.html")).unwrap();
    assert!(text(&output).contains("page.html: 0.1 MiB"), "{}", text(&output));
    let files = [name, "out.mp4"].map(|name| std::fs::read(scratch.path(name)).unwrap());
    assert_eq!(embedded(&page), files);
    assert!(page.contains("<h1>&lt;b&gt;&amp;&quot;{{after}}.mp4</h1>"));
    assert!(page.contains("default-src 'none'") && !page.contains("http://"));
    let again = scratch.enhance(&[name, "new.mp4", "--compare", "page.html"]);
    fails(&again, 2, "page.html exists: replace it with --overwrite");
    fails(&scratch.enhance(&[name, "new.mp4", "--compare", "a.gif"]), 2, "ends in .png or .html");
}

#[test]
fn a_page_contains_h264_of_what_browsers_do_not_play() {
    let scratch = Scratch::new();
    let video = VIDEO.replace("width=96,height=64", "width=97,height=65");
    let video = video.replace("x264enc", "avenc_mpeg4");
    scratch.make("in.avi", &video, "avimux", &[]);
    let output =
        scratch.enhance(&["in.avi", "out.mkv", "--up-scale", "2", "--compare", "page.html"]);
    assert!(output.status.success(), "{}", text(&output));
    let page = std::fs::read_to_string(scratch.path("page.html")).unwrap();
    let videos = embedded(&page);
    for (video, frames, size) in [(&videos[0], 16, (98, 66)), (&videos[1], 46, (194, 130))] {
        std::fs::write(scratch.path("embedded.mp4"), video).unwrap();
        let video = decode(&scratch.path("embedded.mp4"));
        assert_eq!(video.times.len(), frames);
        assert_eq!((video.info().width(), video.info().height()), size);
    }
}

#[test]
fn other_programs_read_the_progress() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let output = scratch.enhance(&["in.mp4", "out.mp4", "--up-scale", "2", "--progress", "json"]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    let (summary, progress): (Vec<_>, Vec<_>) =
        stdout.lines().partition(|line| line.starts_with("out.mp4: "));
    assert_eq!(summary.len(), 1, "{stdout}");
    let last: serde_json::Value = serde_json::from_str(progress.last().unwrap()).unwrap();
    assert_eq!(
        (&last["frames"], &last["fps"], &last["duration"]),
        (&46.into(), &24.0.into(), &2.0.into())
    );
    assert!(last["position"].as_f64().unwrap() > 1.8, "{last}");
}

#[test]
fn chapters_are_kept_and_count_from_where_the_video_begins() {
    let scratch = Scratch::new();
    // Two editions, chapters within others, without titles and in other languages. The video begins at 0.5 s.
    std::fs::copy(media("chapters.mkv"), scratch.path("in.mkv")).unwrap();
    let begin = ["edition", "0-500 ", "500-4748 終わり"];
    let other = ["edition", "250-4748 Other edition"];
    for name in ["out.mkv", "out.webm"] {
        let run = scratch.fast(&["in.mkv", name]);
        assert!(run.status.success() && !text(&run).contains("chapters"), "{}", text(&run));
        assert_eq!(chapters(&scratch.path(name)), [&begin[..], &other].concat());
    }
    let run = scratch.fast(&["in.mkv", "out.mp4"]);
    let lost = "mp4 keeps 255 chapters, without those within others: dropping 1 of 3";
    assert!(run.status.success() && text(&run).contains(lost), "{}", text(&run));
    let back = scratch.fast(&["out.mp4", "back.mkv"]);
    assert!(back.status.success(), "{}", text(&back));
    assert_eq!(chapters(&scratch.path("back.mkv")), ["edition", "0-500 ", "500-5248 終わり"]);
}

#[test]
fn chapters_of_mp4_are_kept() {
    let scratch = Scratch::new();
    std::fs::copy(media("chapters.mp4"), scratch.path("in.mp4")).unwrap();
    let expected = ["edition", "0-500 Anfang „1“", "500-1250 Mitte", "1250-5248 End"];
    for name in ["out.mp4", "out.mov", "out.mkv"] {
        let run = scratch.fast(&["in.mp4", name]);
        assert!(run.status.success() && !text(&run).contains("chapters"), "{}", text(&run));
        let back = format!("back.{name}.mkv");
        assert!(scratch.fast(&[name, &back]).status.success());
        assert_eq!(chapters(&scratch.path(&back)), expected, "{name}");
    }
}

#[test]
fn chapters_within_chapters_stay_there() {
    let scratch = Scratch::new();
    std::fs::copy(media("nested.mkv"), scratch.path("in.mkv")).unwrap();
    assert!(scratch.fast(&["in.mkv", "out.mkv"]).status.success());
    let expected = [
        "edition",
        "0-500 Beginning|Anfang & „Überblick“",
        ">250-500 Nested",
        "500-1000 ",
        "1000-2000 終わり",
    ];
    assert_eq!(chapters(&scratch.path("out.mkv")), expected);
}

#[test]
fn damaged_chapters_do_no_harm() {
    let scratch = Scratch::new();
    let whole = std::fs::read(media("chapters.mp4")).unwrap();
    let at = whole.windows(4).position(|name| name == b"chpl").unwrap();
    // The size of the box, its version, the number of chapters, a time, the length and the text of a title.
    for (position, byte) in [
        (at - 4, 255),
        (at - 1, 9),
        (at + 4, 0),
        (at + 12, 255),
        (at + 13, 255),
        (at + 21, 255),
        (at + 22, 255),
    ] {
        let mut damaged = whole.clone();
        damaged[position] = byte;
        std::fs::write(scratch.path("in.mp4"), damaged).unwrap();
        let run = scratch.fast(&["in.mp4", "out.mp4", "--overwrite"]);
        assert!(run.status.success(), "{position}: {}", text(&run));
        assert_eq!(decode(&scratch.path("out.mp4")).times.len(), 40, "{position}");
    }
    // What can be read is kept: with too large a number of chapters, and with a first time beyond the end.
    let kept = ["0-500 Anfang „1“", "500-1250 Mitte", "1250-5248 End"];
    for (position, kept) in [(at + 12, &kept[..]), (at + 13, &kept[1..])] {
        let mut damaged = whole.clone();
        damaged[position] = 255;
        std::fs::write(scratch.path("in.mp4"), damaged).unwrap();
        assert!(scratch.fast(&["in.mp4", "out.mkv", "--overwrite"]).status.success());
        assert_eq!(chapters(&scratch.path("out.mkv"))[1..], *kept, "{position}");
    }
}

#[test]
fn a_plan_is_measured_and_writes_nothing() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let output = scratch.enhance(&["in.mp4", "--plan", "--measure", "--up-scale", "2"]);
    let plan = text(&output);
    assert!(plan.contains("\ntime: about "), "{plan}");
    assert!(plan.contains(" MiB, measured on "), "{plan}");
    scratch.only(&["in.mp4"]);
}

#[test]
fn missing_plugins_are_named_and_have_their_exit_code() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", SHORT, "mp4mux", &[]);
    let run = venhance()
        .current_dir(scratch.path(""))
        .env("GST_PLUGIN_SYSTEM_PATH_1_0", "/nonexistent")
        .env("GST_REGISTRY", scratch.path("registry"))
        .env_remove("GST_PLUGIN_PATH")
        .args(["in.mp4", "out.mp4"])
        .output()
        .unwrap();
    fails(&run, 5, "element uridecodebin is not installed");
    assert!(text(&run).contains("apt-get install gstreamer1.0-plugins-base"), "{}", text(&run));
}
