// SPDX-License-Identifier: MIT OR Apache-2.0
//! Videos that are enhanced in pieces have the frames of a whole run.

#[path = "common/application.rs"]
mod application;
mod common;

use std::path::Path;

use application::{Scratch, fails, text};
use common::{decode, run};
use gst::ClockTime;
use serde_json::Value;

/// Lossless, and delays no frames.
const ENCODER: &str = "x264enc pass=quant quantizer=0 tune=zerolatency";

/// Writes three shots of 96×64 pixels at 8 fps, of 20, 26 and 30 frames, with sound and subtitles. At a `variable` rate,
/// four of ten frames are missing.
fn make_input(scratch: &Scratch, name: &str, variable: bool) {
    let subtitles =
        "1\n00:00:00,200 --> 00:00:04,000\nHello\n\n2\n00:00:05,000 --> 00:00:06,000\nBye\n\n";
    std::fs::write(scratch.path("a.srt"), subtitles).unwrap();
    let shots = [("ball", 20), ("smpte75", 26), ("circular", 30)].map(|(pattern, frames)| {
        format!(
            " videotestsrc pattern={pattern} num-buffers={frames} \
             ! video/x-raw,format=I420,width=96,height=64,framerate=8/1 ! c."
        )
    });
    let drop = if variable { "identity drop-probability=0.4 !" } else { "" };
    run(&format!(
        "concat name=c ! {drop} x264enc bframes=0 ! queue ! matroskamux name=m ! filesink location={} \
         audiotestsrc num-buffers=400 samplesperbuffer=1000 ! audio/x-raw,rate=44100,channels=2 \
         ! avenc_aac ! queue ! m. filesrc location={} ! subparse ! text/x-raw,format=utf8 ! queue ! m.{}",
        scratch.path(name).display(),
        scratch.path("a.srt").display(),
        shots.concat()
    ));
}

/// The arguments of a lossless run.
fn arguments<'a>(input: &'a str, output: &'a str, flags: &'a str) -> Vec<&'a str> {
    let flags = flags.split_whitespace();
    [input, output].into_iter().chain(flags).chain(["--encoder", ENCODER]).collect()
}

/// Plans, makes all pieces in one process, and joins them. Returns the pieces.
fn in_pieces(scratch: &Scratch, output: &str, flags: &str, pieces: u64) -> Vec<Value> {
    let count = pieces.to_string();
    let plan = ["-o", "job.json", "--overwrite", "--pieces", &count];
    succeeds(scratch, &[&["plan"][..], &arguments("in.mkv", output, flags), &plan].concat());
    let job: Value =
        serde_json::from_slice(&std::fs::read(scratch.path("job.json")).unwrap()).unwrap();
    let pieces = job["pieces"].as_array().unwrap().clone();
    let last = (pieces.len() - 1).to_string();
    succeeds(scratch, &["piece", "job.json", "--from", "0", "--to", &last]);
    succeeds(scratch, &["join", "job.json"]);
    assert!(!scratch.path(&format!("{output}.pieces")).exists());
    scratch.nothing_left(output);
    pieces
}

fn succeeds(scratch: &Scratch, arguments: &[&str]) -> String {
    let output = scratch.enhance(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    text(&output)
}

fn pixels(file: &Path) -> Vec<u8> {
    common::pixels(file, "videoconvert ! video/x-raw,format=I420")
}

/// The packets of a stream, one after the other.
fn packets(file: &Path, pad: &str) -> Vec<u8> {
    let copy = file.with_extension("packets");
    run(&format!(
        "filesrc location={} ! matroskademux name=d d.{pad} ! queue ! filesink location={}",
        file.display(),
        copy.display()
    ));
    std::fs::read(copy).unwrap()
}

/// The times of the frames, and those of the sound and the subtitles with their durations.
fn times(file: &Path) -> (Vec<ClockTime>, Vec<(ClockTime, ClockTime)>) {
    let mut video = decode(file);
    // They come from several threads.
    video.audio.sort();
    (video.times, video.audio)
}

/// Compares a whole run with runs in pieces.
fn compare(scratch: &Scratch, flags: &str, counts: &[u64]) {
    succeeds(scratch, &[arguments("in.mkv", "whole.mkv", flags), vec!["--overwrite"]].concat());
    let whole = scratch.path("whole.mkv");
    let (video, expected) = (times(&whole), pixels(&whole));
    let others = ["audio_0", "subtitle_0"].map(|pad| packets(&whole, pad));
    assert!(others.iter().all(|packets| !packets.is_empty()));
    for count in counts {
        let pieces = in_pieces(scratch, "out.mkv", flags, *count);
        assert_eq!(pieces.len() as u64, *count);
        let out = scratch.path("out.mkv");
        assert!(times(&out) == video, "{flags}, {count} pieces: other times");
        assert!(pixels(&out) == expected, "{flags}, {count} pieces: other pixels");
        assert!(["audio_0", "subtitle_0"].map(|pad| packets(&out, pad)) == others);
    }
}

#[test]
fn pieces_have_the_frames_and_streams_of_a_whole_run() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    let lite = "--model lite --up-scale 2";
    compare(&scratch, lite, &[1, 2, 3, 7]);
    compare(&scratch, &format!("{lite} --target-fps 20 --rate-mode exact"), &[3]);
    compare(&scratch, &format!("{lite} --shot-detection false --duplicates merge"), &[2]);
}

#[test]
fn pieces_of_a_variable_rate_have_the_frames_of_a_whole_run() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", true);
    let lite = "--model lite --up-scale 2";
    compare(&scratch, lite, &[7]);
    compare(&scratch, &format!("{lite} --target-fps 20 --rate-mode exact"), &[7]);
}

#[test]
fn pieces_begin_with_shots_where_those_are_near() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    let pieces = in_pieces(&scratch, "out.mkv", "--model lite --up-scale 1", 4);
    let fields =
        |name: &str| pieces.iter().map(|piece| piece[name].as_u64().unwrap()).collect::<Vec<_>>();
    // Of 226 output frames, three for each input frame; the shots begin with 60 and 138.
    assert_eq!(fields("start"), [0, 60, 113, 169]);
    assert_eq!(fields("skip"), [0, 20, 36, 55]);
    assert_eq!(fields("warm_up"), [0, 0, 1, 1]);
}
