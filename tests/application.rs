// SPDX-License-Identifier: MIT OR Apache-2.0
//! The application `venhance`, run as users run it: on real files, interrupted, on full disks.

#[path = "common/application.rs"]
mod application;
mod common;

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use application::{Disk, Scratch, VIDEO, audio, end, fails, pieces, start, text, venhance};
use common::{Video, decode, run, wait_for};
use gst::ClockTime;

/// Video of 16 frames at 8 fps, made twice as large and three times as fast.
fn assert_video(video: &Video) {
    assert_eq!((video.info().width(), video.info().height()), (192, 128));
    assert_eq!(video.times.len(), 46);
    for (n, time) in video.times.iter().enumerate() {
        let expected = ClockTime::SECOND * n as u64 / 24;
        assert!(time.absdiff(expected) < ClockTime::MSECOND, "frame {n} at {time}");
    }
}

/// The beginning and the end of the sound.
fn sound(video: &Video) -> (ClockTime, ClockTime) {
    let (last, duration) = video.audio.last().unwrap();
    (video.audio[0].0, *last + *duration)
}

#[test]
fn video_without_sound() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let video = scratch.result(&["in.mp4", "out.mp4", "--up-scale", "2"]);
    assert_video(&video);
    assert_eq!(video.info().format(), gst_video::VideoFormat::I420);
    assert!(video.audio.is_empty());
}

#[test]
fn sound_of_every_kind_stays_in_sync_in_every_container() {
    let kinds = [
        ("avenc_aac", "mp4mux"),
        ("opusenc", "matroskamux"),
        ("lamemp3enc", "matroskamux"),
        ("identity", "matroskamux"),
        ("vorbisenc", "matroskamux"),
        ("flacenc", "matroskamux"),
    ];
    for (encoder, muxer) in kinds {
        let scratch = Scratch::new();
        let input = scratch.make("in", VIDEO, muxer, &[audio(encoder)]);
        let before = sound(&decode(&input));
        for output in ["out.mp4", "out.mkv"] {
            let video = scratch.result(&["in", output, "--up-scale", "2"]);
            assert_video(&video);
            let after = sound(&video);
            let frame = ClockTime::SECOND / 24;
            assert!(before.0.absdiff(after.0) < frame, "{encoder} {output}: {before:?} {after:?}");
            assert!(
                before.1.absdiff(after.1) < frame * 2,
                "{encoder} {output}: {before:?} {after:?}"
            );
        }
    }
}

#[test]
fn webm_gets_vp9_and_opus() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", VIDEO, "mp4mux", &[audio("avenc_aac")]);
    let video = scratch.result(&["in.mp4", "out.webm", "--up-scale", "2"]);
    assert_video(&video);
    assert!(!video.audio.is_empty());
    let file = scratch.path("out.webm");
    for (pad, codec) in [("video_0", "video/x-vp9"), ("audio_0", "audio/x-opus")] {
        // Another codec would be a not-negotiated error.
        let location = file.display();
        run(&format!(
            "filesrc location={location} ! matroskademux name=d d.{pad} ! {codec} ! fakesink"
        ));
    }
}

#[test]
fn sound_that_can_be_copied_is_copied() {
    let scratch = Scratch::new();
    let input = scratch.make("in.mp4", VIDEO, "mp4mux", &[audio("avenc_aac")]);
    scratch.result(&["in.mp4", "out.mp4", "--up-scale", "2"]);
    let bytes = |file: &Path| packets(file, "audio/mpeg");
    let (before, after) = (bytes(&input), bytes(&scratch.path("out.mp4")));
    assert!(before.len() > 1000);
    assert_eq!(before, after);
}

/// The packets of a stream, one after the other.
fn packets(file: &Path, kind: &str) -> Vec<u8> {
    let copy = file.with_extension("packets");
    run(&format!(
        "filesrc location={} ! qtdemux name=d d.audio_0 ! queue ! {kind} ! filesink location={}",
        file.display(),
        copy.display()
    ));
    std::fs::read(copy).unwrap()
}

#[test]
fn sound_may_be_longer_or_shorter_than_the_video_or_there_twice() {
    let long = audio("avenc_aac").replace("num-buffers=88", "num-buffers=176");
    let short = audio("avenc_aac").replace("num-buffers=88", "num-buffers=20");
    let scratch = Scratch::new();
    for (name, streams) in [("long", vec![long]), ("short", vec![short])] {
        let input = scratch.make(name, VIDEO, "mp4mux", &streams);
        let output = format!("{name}.mp4");
        let video = scratch.result(&[name, &output, "--up-scale", "2"]);
        assert_video(&video);
        let (before, after) = (sound(&decode(&input)), sound(&video));
        assert!(before.1.absdiff(after.1) < ClockTime::from_mseconds(50), "{before:?} {after:?}");
    }
    scratch.make("two", VIDEO, "mp4mux", &[audio("avenc_aac"), audio("avenc_aac")]);
    let video = scratch.result(&["two", "two.mp4", "--up-scale", "2"]);
    let once = scratch.result(&["long", "once.mkv", "--up-scale", "2"]);
    assert!(video.audio.len() > 160 && once.audio.len() > 160, "{}", video.audio.len());
}

#[test]
fn tags_and_subtitles_stay() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("a.srt"), "1\n00:00:00,200 --> 00:00:01,000\nHello\n\n").unwrap();
    let subtitles = format!(
        "filesrc location={} ! subparse ! text/x-raw,format=utf8 ! queue",
        scratch.path("a.srt").display()
    );
    let video = format!("{VIDEO} ! taginject tags=\"title=Waves\"");
    scratch.make("in.mp4", &video, "mp4mux", std::slice::from_ref(&subtitles));
    scratch.result(&["in.mp4", "out.mp4", "--up-scale", "2"]);
    let bytes = std::fs::read(scratch.path("out.mp4")).unwrap();
    let holds = |bytes: &[u8], text: &str| {
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    };
    assert!(holds(&bytes, "Hello") && holds(&bytes, "tx3g"), "no subtitles");
    assert!(holds(&bytes, "Waves"), "no title");
    // The last sample is empty: ffmpeg's libraries would show it too short.
    let track = bytes.windows(4).position(|window| window == b"sbtl").unwrap();
    let sizes = bytes[track..].windows(4).position(|window| window == b"stsz").unwrap() + track;
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let samples: Vec<_> = (0..number(sizes + 12)).map(|n| number(sizes + 16 + 4 * n)).collect();
    // Each begins with its length in two bytes.
    assert_eq!((samples.first(), samples.last()), (Some(&7), Some(&2)), "{samples:?}");

    // Matroska's subtitles come with markup.
    std::fs::write(scratch.path("a.srt"), "1\n00:00:00,200 --> 00:00:01,000\nYou <i>&</i> me\n\n")
        .unwrap();
    scratch.make("in.mkv", VIDEO, "matroskamux", &[subtitles]);
    for output in ["marked.mp4", "marked.mkv"] {
        scratch.result(&["in.mkv", output, "--up-scale", "2"]);
        let bytes = std::fs::read(scratch.path(output)).unwrap();
        assert!(holds(&bytes, "You & me"), "{output} has no subtitles");
    }
}

/// If the muxer does not wait for it, about half of the runs lose it.
#[test]
fn the_language_of_subtitles_stays_beside_sound_whose_headers_have_no_time() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("a.srt"), "1\n00:00:00,200 --> 00:00:01,000\nHello\n\n").unwrap();
    let subtitles = format!(
        "filesrc location={} ! subparse ! text/x-raw,format=utf8 ! taginject tags=language-code=de ! queue",
        scratch.path("a.srt").display()
    );
    for encoder in ["flacenc", "vorbisenc"] {
        let input = format!("{encoder}.mkv");
        scratch.make(&input, VIDEO, "matroskamux", &[audio(encoder), subtitles.clone()]);
        let sound = decode(&scratch.path(&input)).audio;
        for _ in 0..4 {
            let flags = ["--up-scale", "1", "--target-fps", "0", "--overwrite"];
            let out = scratch.result(&[&[&input, "out.mkv"], &flags[..]].concat());
            assert_eq!(out.audio.len(), sound.len());
            let bytes = std::fs::read(scratch.path("out.mkv")).unwrap();
            // The element Language of a track.
            let language = b"\x22\xb5\x9c\x84ger";
            assert!(bytes.windows(language.len()).any(|window| window == language), "{encoder}");
        }
    }
}

#[test]
fn rotated_video_comes_out_upright() {
    let scratch = Scratch::new();
    let input = scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let mut bytes = std::fs::read(&input).unwrap();
    // The track header's matrix: a quarter turn clockwise.
    let header = bytes.windows(4).position(|window| window == b"tkhd").unwrap() + 4;
    let matrix: [i32; 9] = [0, 0x10000, 0, -0x10000, 0, 0, 64 << 16, 0, 0x4000_0000];
    for (n, value) in matrix.iter().enumerate() {
        bytes[header + 40 + n * 4..][..4].copy_from_slice(&value.to_be_bytes());
    }
    std::fs::write(&input, bytes).unwrap();
    let video = scratch.result(&["in.mp4", "out.mp4", "--up-scale", "2"]);
    assert_eq!((video.info().width(), video.info().height()), (128, 192));
    assert_eq!(video.times.len(), 46);
}

#[test]
fn one_frame_works_and_a_file_without_video_is_an_error() {
    let scratch = Scratch::new();
    let one = VIDEO.replace("num-buffers=16", "num-buffers=1");
    scratch.make("one.mp4", &one, "mp4mux", &[]);
    assert_eq!(scratch.result(&["one.mp4", "out.mp4"]).times.len(), 1);
    scratch.make("sound.mp4", &audio("avenc_aac"), "mp4mux", &[]);
    fails(&scratch.enhance(&["sound.mp4", "none.mp4"]), 3, "no video");
    std::fs::write(scratch.path("empty.mp4"), "").unwrap();
    fails(&scratch.enhance(&["empty.mp4", "none.mp4"]), 3, "empty.mp4");
    scratch.nothing_left("none.mp4");
}

#[test]
fn frames_of_a_variable_rate_keep_their_times() {
    let scratch = Scratch::new();
    let video = "videotestsrc num-buffers=40 ! video/x-raw,format=I420,width=96,height=64,framerate=30/1 \
        ! identity drop-probability=0.4 ! x264enc bframes=0 ! queue";
    let input = scratch.make("in.mp4", video, "mp4mux", &[]);
    let before = decode(&input).times;
    // Frames in their order: decoders of GStreamer guess times where they are reordered.
    let encoder = "x264enc bframes=0";
    let arguments = ["in.mp4", "out.mp4", "--up-scale", "2", "--target-fps", "60"];
    let after = scratch.result(&[&arguments[..], &["--encoder", encoder]].concat()).times;
    for time in before {
        let kept = after.iter().any(|after| after.absdiff(time) < ClockTime::from_mseconds(2));
        assert!(kept, "the frame at {time} is gone: {after:?}");
    }
}

#[test]
fn a_file_without_its_index_is_an_input_error() {
    let scratch = Scratch::new();
    let whole = scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let bytes = std::fs::read(whole).unwrap();
    std::fs::write(scratch.path("cut.mp4"), &bytes[..bytes.len() * 6 / 10]).unwrap();
    fails(&scratch.enhance(&["cut.mp4", "cut-out.mp4"]), 3, "cut.mp4");
}

#[test]
fn mistakes_and_bad_files_have_their_exit_codes_and_say_what_to_do() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    std::fs::write(scratch.path("text.mp4"), "This is no video.").unwrap();
    std::fs::write(scratch.path("there.mp4"), "mine").unwrap();
    std::fs::write(scratch.path("there.png"), "mine").unwrap();
    symlink(scratch.path("in.mp4"), scratch.path("in.png")).unwrap();
    fails(&scratch.enhance(&["text.mp4", "out.mp4"]), 3, "text.mp4");
    for output in ["out.mp4", "there.mp4", "nowhere/out.mp4"] {
        fails(&scratch.enhance(&["missing.mp4", output]), 3, "missing.mp4: No such file");
    }
    fails(&scratch.enhance(&["missing.mp4", "--save_dir", "results"]), 3, "missing.mp4");
    fails(&scratch.enhance(&["--input_path", "text.mp4", "--save_dir", "results"]), 3, "text.mp4");
    assert!(!scratch.path("results").exists());
    fails(&scratch.enhance(&["in.mp4", "out.txt"]), 2, ".mkv");
    fails(&scratch.enhance(&["in.mp4", "there.mp4"]), 2, "--overwrite");
    fails(&scratch.enhance(&["in.mp4", "in.mp4", "--overwrite"]), 2, "overwrite the input");
    std::fs::copy(scratch.path("in.mp4"), scratch.path("old.mp4.partial.mkv")).unwrap();
    let partial_as_input = ["old.mp4.partial.mkv", "old.mp4", "--overwrite"];
    fails(&scratch.enhance(&partial_as_input), 2, "overwrite the input");
    assert!(scratch.path("old.mp4.partial.mkv").exists());
    for (picture, why) in [
        ("out.mp4", "use a name that ends in .png"),
        ("in.png", "would overwrite IN"),
        ("there.png", "there.png exists"),
    ] {
        fails(&scratch.enhance(&["in.mp4", "out.mp4", "--compare", picture]), 2, why);
    }
    fails(&scratch.enhance(&["http://example.org/in.mp4", "out.mp4"]), 3, "not addresses");
    fails(&scratch.enhance(&["in.mp4", "out.mp4", "--overwrite", "--resume"]), 2, "--resume");
    fails(&scratch.enhance(&["in.mp4", "out.mp4", "--up-scale", "9"]), 2, "out of range");
    fails(&scratch.enhance(&["in.mp4", "out.mp4", "--noise-aug", "301"]), 2, "use 0 to 300");
    fails(&scratch.enhance(&["in.mp4", "out.mp4", "--version", "3"]), 2, "auto, v1, v2, lite");
    fails(&scratch.enhance(&["in.mp4", "out.mp4", "--up-scal", "2"]), 2, "'--up-scale'");
    fails(&scratch.enhance(&["in.mp4", "out.webm", "--encoder", "x264enc"]), 2, "webmmux");
    fails(&scratch.enhance(&["in.mp4", "out.mp4", "--encoder", "nosuchenc"]), 5, "gst-inspect-1.0");
    fails(&scratch.enhance(&["in.mp4", "out.mp4", "--model", "v1"]), 6, "--model lite");
    for (path, why) in [
        (
            "nowhere",
            "weights in nowhere failed: there is no such file or folder; accept the licence",
        ),
        ("/dev/zero", "weights in /dev/zero failed: it is neither a file nor a folder"),
        (
            "text.mp4",
            "reading text.mp4 failed: it is neither a safetensors file nor a PyTorch file",
        ),
    ] {
        let weights = ["in.mp4", "--plan", "--model", "v2", "--model-dir", path];
        fails(&scratch.enhance(&weights), 6, why);
    }
    fails(&scratch.enhance(&["in.mp4", "--plan", "--prompt_path", "/dev/zero"]), 3, "too long");
    fails(&scratch.enhance(&["in.mp4", "nowhere/out.mp4"]), 4, "create its folder");
    fails(&scratch.enhance(&["in.mp4", "nowhere/out.mp4", "--plan"]), 4, "create its folder");
    assert_eq!(std::fs::read(scratch.path("there.mp4")).unwrap(), b"mine");
    scratch.nothing_left("out.mp4");
}

#[test]
fn help_names_values_as_users_do_and_says_nothing_of_glib_types_or_element_states() {
    let scratch = Scratch::new();
    let output = scratch.enhance(&["--help"]);
    let help = text(&output);
    assert!(output.status.success(), "{help}");
    for flag in ["--up-scale <N>", "--target-fps <FPS>", "--model-dir <DIR>", "--prompt <TEXT>"] {
        assert!(help.contains(flag), "{flag} is not in {help}");
    }
    for word in ["gchararray", "gint", "guint", "gdouble", "Fraction", "READY", "PLAYING"] {
        assert!(!help.contains(word), "{word} is in {help}");
    }
}

#[test]
fn an_encoder_and_its_quality_can_be_chosen() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let size = |output: &str, quality: &str| {
        scratch.result(&["in.mp4", output, "--up-scale", "2", "--quality", quality]);
        scratch.path(output).metadata().unwrap().len()
    };
    assert!(size("fine.mp4", "5") > size("coarse.mp4", "45"));
    let video = scratch.result(&[
        "in.mp4",
        "out.mkv",
        "--up-scale",
        "2",
        "--encoder",
        "x264enc tune=zerolatency",
    ]);
    assert_video(&video);
}

#[test]
fn the_comparison_shows_input_and_output_side_by_side() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    scratch.result(&["in.mp4", "out.mp4", "--up-scale", "2", "--compare", "picture.png"]);
    let file = std::io::BufReader::new(std::fs::File::open(scratch.path("picture.png")).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    assert_eq!((reader.info().width, reader.info().height), (192 * 2 + 8, 128 * 3 + 8 * 2));
}

#[test]
fn a_folder_is_enhanced_with_one_model_load_and_a_broken_file_stops_nothing() {
    let scratch = Scratch::new();
    let folder = scratch.path("in");
    std::fs::create_dir(&folder).unwrap();
    let one = scratch.make("one.mp4", &VIDEO.replace("=16", "=4"), "mp4mux", &[]);
    for n in 0..9 {
        std::fs::copy(&one, folder.join(format!("{n}.mp4"))).unwrap();
    }
    std::fs::write(folder.join("4a.mp4"), "broken").unwrap();
    for name in ["notes.txt", "cover.png", "0.txt", "x.mp4.partial.mkv"] {
        std::fs::write(folder.join(name), "no video").unwrap();
    }
    std::fs::create_dir(folder.join("more")).unwrap();
    fails(&scratch.enhance(&["in", "out.mp4"]), 2, "in is a folder, so OUT must be one");
    let output = scratch.enhance(&["in", "out", "--up-scale", "2"]);
    fails(&output, 3, "9 enhanced, 0 already finished, 1 failed, 3 skipped");
    assert!(text(&output).contains("skipping cover.png, more/, notes.txt:"), "{}", text(&output));
    assert_eq!(text(&output).matches("is loaded").count(), 1, "{}", text(&output));
    for n in 0..9 {
        assert_eq!(decode(&scratch.path(&format!("out/{n}.mp4"))).times.len(), 10);
    }
    let again = scratch.enhance(&["in", "out", "--up-scale", "3", "--resume"]);
    fails(&again, 3, "0 enhanced, 9 already finished, 1 failed");
    let said = "the settings of those already finished are not compared: use --overwrite to make them again";
    assert!(text(&again).contains(said), "{}", text(&again));
    let again = scratch.enhance(&["in/0.mp4", "out", "--up-scale", "3", "--resume"]);
    let said =
        "0.mp4: already finished; its settings are not compared: use --overwrite to make it again";
    assert!(again.status.success() && text(&again).contains(said), "{}", text(&again));

    // Both would be written to 0.mp4, with others in between.
    for name in ["0.avi", "0.mkv"] {
        std::fs::copy(&one, folder.join(name)).unwrap();
    }
    fails(&scratch.enhance(&["in", "new"]), 2, "would both become new/0.mp4");
    fails(&scratch.enhance(&["in", "in", "--overwrite"]), 2, "would replace");
}

#[test]
fn a_folder_resumes_where_it_was_interrupted() {
    let scratch = Scratch::new();
    let one = long(&scratch);
    let folder = scratch.path("in");
    std::fs::create_dir(&folder).unwrap();
    for name in ["a.mp4", "b.mp4"] {
        std::fs::copy(&one, folder.join(name)).unwrap();
    }
    let mut child = start(&scratch, &["in", "out", "--up-scale", "4"]);
    let index = scratch.path("out/a.mp4.partial.json");
    let pieces = || pieces(&index);
    wait_for("a first piece", || pieces() >= 3 || child.try_wait().unwrap().is_some());
    signal(&child, "-KILL");
    end(&mut child);
    assert!(!scratch.path("out/a.mp4").exists());
    let again = scratch.enhance(&["in", "out", "--up-scale", "4", "--resume"]);
    assert!(again.status.success(), "{}", text(&again));
    for name in ["a.mp4", "b.mp4"] {
        assert_eq!(decode(&scratch.path(&format!("out/{name}"))).times.len(), 238, "{name}");
    }
}

/// The times of frames that libav reads from a GIF all are 0.
#[test]
fn a_gif_resumes_where_it_was_interrupted() {
    let scratch = Scratch::new();
    common::gif(&scratch.path("in.gif"), (128, 96), 300, |n, column| column == n % 128);
    let whole = scratch.result(&["in.gif", "whole.mp4", "--up-scale", "2"]);
    let arguments = ["in.gif", "out.mp4", "--up-scale", "2"];
    let mut child = start(&scratch, &arguments);
    let index = scratch.path("out.mp4.partial.json");
    let pieces = || pieces(&index);
    // Farther than the warm-up reaches back.
    wait_for("some pieces", || pieces() >= 8 || child.try_wait().unwrap().is_some());
    signal(&child, "-KILL");
    end(&mut child);
    let resumed = scratch.result(&[&arguments[..], &["--resume"]].concat());
    assert!(whole.times.len() > 300, "{}", whole.times.len());
    assert_eq!(resumed.times.len(), whole.times.len());
}

#[test]
fn an_interrupt_acts_at_once_however_fast_the_frames_come() {
    let scratch = Scratch::new();
    let video = VIDEO.replace("num-buffers=16", "num-buffers=4000");
    scratch.make("in.mp4", &video, "mp4mux", &[]);
    let mut child = start(&scratch, &["in.mp4", "out.mp4", "--up-scale", "1"]);
    let index = scratch.path("out.mp4.partial.json");
    let pieces = || std::fs::read_to_string(&index).unwrap_or_default();
    wait_for("some pieces", || pieces().lines().count() >= 8);
    // No more than two seconds are lost when the machine is.
    for (n, piece) in pieces().lines().skip(2).enumerate() {
        let time = format!("\"time\":{},", (n as u64 + 1) * 2_000_000_000);
        assert!(piece.contains(&time), "piece {n}: {piece}");
    }
    let before = Instant::now();
    signal(&child, "-INT");
    assert_eq!(end(&mut child).code(), Some(130));
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    assert!(!scratch.path("out.mp4").exists() && scratch.path("out.mp4.partial.mkv").exists());
}

#[test]
fn a_read_only_folder_is_an_output_error() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    // Root may write everywhere but into the kernel's own folders.
    fails(&scratch.enhance(&["in.mp4", "/proc/out.mp4"]), 4, "cannot write");
}

/// A video of 10 seconds with sound, which takes long enough to be interrupted.
fn long(scratch: &Scratch) -> PathBuf {
    let video = "videotestsrc pattern=ball num-buffers=80 \
        ! video/x-raw,format=I420,width=160,height=90,framerate=8/1 ! x264enc ! queue";
    let sound = audio("avenc_aac").replace("num-buffers=88", "num-buffers=441");
    scratch.make("in.mp4", video, "mp4mux", &[sound])
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

/// At an exact rate, the grid goes on where it was interrupted.
#[test]
fn a_resumed_run_at_an_exact_rate_gives_the_same_frames() {
    let scratch = Scratch::new();
    let video = "videotestsrc pattern=ball num-buffers=200 \
        ! video/x-raw,format=I420,width=96,height=64,framerate=24000/1001 ! x264enc";
    // Matroska rounds times to milliseconds.
    scratch.make("in.mkv", video, "matroskamux", &[]);
    let arguments = |output| {
        let flags = "--model lite --up-scale 1 --target-fps 60 --rate-mode exact --encoder";
        // Lossless, delays no frames, and slow enough to be interrupted.
        let encoder = "identity sleep-time=10000 ! x264enc pass=quant quantizer=0 tune=zerolatency";
        ["in.mkv", output].into_iter().chain(flags.split(' ')).chain([encoder]).collect::<Vec<_>>()
    };
    let whole = scratch.result(&arguments("whole.mkv"));
    assert_eq!(whole.times.len(), 501, "200 · 2.5025 = 500.5");
    let mut child = start(&scratch, &arguments("cut.mkv"));
    let index = scratch.path("cut.mkv.partial.json");
    wait_for("some pieces", || pieces(&index) >= 4 || child.try_wait().unwrap().is_some());
    signal(&child, "-KILL");
    end(&mut child);
    assert!(!scratch.path("cut.mkv").exists());
    let resumed = scratch.result(&[arguments("cut.mkv"), vec!["--resume"]].concat());
    assert_eq!(resumed.times, whole.times);
    let pixels =
        |name: &str| common::pixels(&scratch.path(name), "videoconvert ! video/x-raw,format=I420");
    assert!(pixels("cut.mkv") == pixels("whole.mkv"));
}

/// The frames of a file as small 8-bit pictures, one after the other.
fn pictures(file: &Path) -> Vec<u8> {
    let small = "video/x-raw,format=I420 ! videoscale ! video/x-raw,width=160,height=90";
    common::pixels(file, small)
}

#[test]
fn a_run_interrupted_at_any_time_plays_and_resumes_to_the_same_video() {
    let scratch = Scratch::new();
    long(&scratch);
    let arguments = ["in.mp4", "whole.mp4", "--up-scale", "4"];
    let began = Instant::now();
    let whole = scratch.result(&arguments);
    let whole_took = began.elapsed();
    assert_eq!(whole.times.len(), 238);
    let expected = pictures(&scratch.path("whole.mp4"));

    for (n, name) in ["-INT", "-KILL"].into_iter().enumerate() {
        let output = format!("cut{n}.mp4");
        let partial = scratch.path(&format!("{output}.partial.mkv"));
        let index = scratch.path(&format!("{output}.partial.json"));
        let arguments = ["in.mp4", &output, "--up-scale", "4"];
        let mut child = start(&scratch, &arguments);
        let pieces = || pieces(&index);
        wait_for("a first piece", || pieces() >= 3 || child.try_wait().unwrap().is_some());
        // The run can be interrupted anywhere between there and the end.
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        std::thread::sleep(whole_took.mul_f64(f64::from(clock.subsec_micros() % 100) / 400.0));
        signal(&child, name);
        let status = end(&mut child);
        assert_eq!(status.code(), (name == "-INT").then_some(130), "{name}");
        assert!(!scratch.path(&output).exists());

        let so_far = decode(&partial);
        assert!(so_far.times.len() >= 40 && !so_far.audio.is_empty(), "{name}");

        fails(&scratch.enhance(&arguments), 2, "--resume");
        let changed = scratch.enhance(&["in.mp4", &output, "--up-scale", "2", "--resume"]);
        fails(&changed, 2, "--up-scale was 4 and is now 2; use --up-scale 4, or start over");
        // The same values, and one that this model does not use.
        let same = ["--resume", "--model", "lite", "--target-fps", "48/2", "--prompt", "waves"];
        let again = [&arguments[..], &same].concat();
        let run = scratch.enhance(&again);
        assert!(run.status.success(), "{}", text(&run));
        for part in ["238 frames of 640x360 at 24 fps, ", " of them in this run, in "] {
            assert!(text(&run).contains(part), "{part:?} is not in {}", text(&run));
        }
        scratch.nothing_left(&output);
        let video = decode(&scratch.path(&output));
        assert_eq!(video.times.len(), whole.times.len());
        for (before, after) in whole.times.iter().zip(&video.times) {
            assert!(before.absdiff(*after) < ClockTime::MSECOND, "{before} {after}");
        }
        assert_eq!(video.audio, whole.audio);
        let pictures = pictures(&scratch.path(&output));
        assert_eq!(pictures.len(), expected.len());
        let error = pictures.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(error <= Some(24), "a jump of {error:?}");
    }
}

/// What a run that is interrupted in the first seconds of a long video writes to standard error, and its
/// exit code. With `twice`, a second signal comes once the stop has begun, which takes two seconds here:
/// frames wait in the encoder's queue.
fn interrupted(twice: bool) -> (String, Option<i32>) {
    let scratch = Scratch::new();
    long(&scratch);
    let mut command = venhance();
    let held_up = ["--encoder", "queue ! identity sleep-time=100000 ! x264enc tune=zerolatency"];
    command
        .current_dir(scratch.0.path())
        .args(["in.mp4", "out.mkv", "--up-scale", "1"])
        .args(held_up);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let partial = scratch.path("out.mkv.partial.mkv");
    wait_for("the first frame", || partial.metadata().is_ok_and(|partial| partial.len() > 0));
    signal(&child, "-INT");
    if twice {
        // Two signals at once can arrive as one.
        std::thread::sleep(Duration::from_millis(200));
        signal(&child, "-INT");
    }
    end(&mut child);
    let output = child.wait_with_output().unwrap();
    (text(&output), output.status.code())
}

#[test]
fn a_second_interrupt_aborts_at_once() {
    let (said, code) = interrupted(false);
    assert_eq!(code, Some(130));
    assert!(said.contains("cancelled:"), "{said}");
    let (said, code) = interrupted(true);
    assert_eq!(code, Some(130));
    assert!(!said.contains("cancelled:"), "{said}");
}

#[test]
fn a_full_disk_is_an_output_error_and_the_run_resumes_when_there_is_space() {
    let scratch = Scratch::new();
    let input = scratch.make("in.mp4", VIDEO, "mp4mux", &[audio("avenc_aac")]);
    let disk = scratch.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let Some(mounted) = Disk::mount(&disk, "16k") else {
        // Where mounting is not permitted, a limit for the size of files makes writing fail as well.
        let mut limited = Command::new("sh");
        limited.args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" in.mp4 out.mp4 --up-scale 8"]);
        let limited = limited.arg(env!("CARGO_BIN_EXE_venhance")).current_dir(scratch.0.path());
        fails(&limited.output().unwrap(), 4, "cannot write");
        let again = scratch.result(&["in.mp4", "out.mp4", "--up-scale", "8", "--resume"]);
        return assert_eq!(again.times.len(), 46);
    };
    let output = disk.join("out.mp4");
    let arguments = [input.to_str().unwrap(), output.to_str().unwrap(), "--up-scale", "8"];
    let full = scratch.enhance(&arguments);
    fails(&full, 4, "free some space");
    mounted.grow();
    let again = scratch.enhance(&[&arguments[..], &["--resume"]].concat());
    assert!(again.status.success(), "{}", text(&again));
    assert_eq!(decode(&output).times.len(), 46);
}
