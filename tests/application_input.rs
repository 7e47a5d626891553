// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the application `venhance` reads: rare formats, damaged files, what changes within a file, and what is
//! no file.

#[path = "common/application.rs"]
mod application;
mod common;

use std::{
    net::TcpListener,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use application::{Scratch, VIDEO, audio, end, fails, media, text, venhance};
use common::decode;
use gst::ClockTime;
use gst_video::VideoFormat;

/// Flags for the fastest run.
const FAST: [&str; 6] = ["--model", "lite", "--up-scale", "1", "--target-fps", "0/1"];

/// Ten frames.
const SOURCE: &str = "videotestsrc num-buffers=10 pattern=ball";

fn fast(scratch: &Scratch, input: &Path, output: &str) -> Output {
    scratch.enhance(&[&[input.to_str().unwrap(), output], &FAST[..]].concat())
}

fn succeeds(output: &Output) {
    assert!(output.status.success(), "{}", text(output));
}

#[test]
fn a_run_says_which_model_was_chosen_and_which_flags_it_does_not_use() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let flags = ["--prompt", "a cat", "--noise-aug", "100", "--filename_as_prompt"];
    let run = scratch.enhance(&[&["in.mp4", "out.mp4", "--up-scale", "1"], &flags[..]].concat());
    succeeds(&run);
    says(&run, "model lite does not use --noise-aug, --prompt, --filename_as_prompt\n");
    says(&run, "model: lite (--model auto: ");
    let run = scratch.enhance(&["in.mp4", "other.mp4", "--model", "lite", "--device", "cuda:0"]);
    fails(&run, 6, "model lite runs on the CPU only; use --device auto or --device cpu");
}

fn says(output: &Output, what: &str) {
    assert!(text(output).contains(what), "{what:?} is not in {}", text(output));
}

#[test]
fn videos_of_rare_formats_are_enhanced() {
    let scratch = Scratch::new();
    let formats = [
        ("v210", "identity", "qtmux"),
        ("Y41B", "avenc_ffv1", "matroskamux"),
        ("YUV9", "avenc_ffv1", "matroskamux"),
        ("GRAY16_LE", "avenc_ffv1", "matroskamux"),
    ];
    for (format, encoder, muxer) in formats {
        let video = format!(
            "{SOURCE} ! video/x-raw,format={format},width=96,height=64,framerate=25/1 ! {encoder} ! queue"
        );
        let input = scratch.make(format, &video, muxer, &[]);
        let output = format!("{format}.mp4");
        let run = fast(&scratch, &input, &output);
        succeeds(&run);
        let deep = ["v210", "GRAY16_LE"].contains(&format);
        assert_eq!(text(&run).contains("become 8"), deep, "{}", text(&run));
        assert_eq!(decode(&scratch.path(&output)).times.len(), 10, "{format}");
    }
    let hevc = media("hevc12_444.mkv");
    let run = fast(&scratch, &hevc, "hevc.mp4");
    succeeds(&run);
    says(&run, "its 12 bits become 8 with the default encoder; --encoder x265enc keeps more");
    assert_eq!(decode(&scratch.path("hevc.mp4")).times.len(), 75);
    let deep = [hevc.to_str().unwrap(), "deep.mp4", "--encoder", "x265enc"];
    let run = scratch.enhance(&[&deep, &FAST[..]].concat());
    succeeds(&run);
    assert!(!text(&run).contains("become 8"), "{}", text(&run));
    assert_eq!(decode(&scratch.path("deep.mp4")).info().comp_depth(0), 12);
}

#[test]
fn an_alpha_channel_is_kept_where_the_encoder_takes_it_and_its_loss_is_said() {
    let scratch = Scratch::new();
    let lost = fast(&scratch, &media("alpha.webm"), "lost.mp4");
    succeeds(&lost);
    says(&lost, "its transparency is lost");
    assert_eq!(decode(&scratch.path("lost.mp4")).info().format(), VideoFormat::I420);
    let input = media("alpha.webm");
    let arguments = [input.to_str().unwrap(), "kept.mkv", "--encoder", "avenc_huffyuv"];
    let kept = scratch.enhance(&[&arguments, &FAST[..]].concat());
    succeeds(&kept);
    assert!(!text(&kept).contains("alpha"), "{}", text(&kept));
    assert!(decode(&scratch.path("kept.mkv")).info().has_alpha());
    // An alpha channel in which everything is opaque, also that of a palette.
    common::gif(&scratch.path("gif"), (400, 300), 4, |n, column| column == n);
    for format in ["A420", "BGRA", "A422_10LE", "gif"] {
        let video = format!(
            "{SOURCE} ! video/x-raw,format={format},width=400,height=300 ! avenc_ffv1 ! queue"
        );
        if format != "gif" {
            scratch.make(format, &video, "matroskamux", &[]);
        }
        let opaque = fast(&scratch, &scratch.path(format), &format!("{format}.mp4"));
        succeeds(&opaque);
        assert!(!text(&opaque).contains("transparency"), "{}", text(&opaque));
    }
}

#[test]
fn a_demuxer_that_stops_at_a_stream_nobody_reads_gets_readers_for_all() {
    let scratch = Scratch::new();
    let input = scratch.make("in.flv", VIDEO, "flvmux", &[audio("avenc_aac")]);
    succeeds(&fast(&scratch, &input, "out.mp4"));
    let video = decode(&scratch.path("out.mp4"));
    assert_eq!(video.times.len(), 16);
    assert!(video.audio.len() > 80, "{}", video.audio.len());
}

#[test]
fn parts_of_another_size_or_aspect_are_scaled_into_the_first() {
    let scratch = Scratch::new();
    let part = |name: &str, format: &str| {
        let raw = "x264enc ! video/x-h264,stream-format=byte-stream ! queue";
        let video = format!("{SOURCE} ! video/x-raw,framerate=25/1,{format} ! {raw}");
        std::fs::read(scratch.make(name, &video, "identity", &[])).unwrap()
    };
    let first = part("first", "format=I420,width=96,height=64");
    for (name, format) in [
        ("larger", "format=I420,width=160,height=120"),
        ("wider", "format=I420,width=96,height=64,pixel-aspect-ratio=4/3"),
        ("other", "format=Y444,width=96,height=64"),
    ] {
        let both = [&first[..], &part(name, format)].concat();
        let input = scratch.path(&format!("{name}.h264"));
        std::fs::write(&input, both).unwrap();
        let output = format!("{name}.mp4");
        let run = fast(&scratch, &input, &output);
        succeeds(&run);
        let changes = text(&run).contains("this part is scaled into the first size");
        assert_eq!(changes, name != "other", "{}", text(&run));
        let video = decode(&scratch.path(&output));
        assert_eq!(video.times.len(), 20, "{name}");
        assert_eq!((video.info().width(), video.info().height()), (96, 64), "{name}");
    }
}

#[test]
fn interlaced_video_of_any_depth_is_deinterlaced() {
    let scratch = Scratch::new();
    let interlaced = ["I420", "I422_10LE"].map(|format| {
        let video = format!(
            "{SOURCE} ! video/x-raw,format={format},width=96,height=64,framerate=25/1 \
             ! capssetter caps=video/x-raw,interlace-mode=interleaved,field-order=top-field-first \
             ! avenc_ffv1 ! queue"
        );
        scratch.make(format, &video, "matroskamux", &[])
    });
    for (input, frames) in interlaced.iter().zip([20, 20]).chain([(&media("mixed.ts"), 15)]) {
        let run = fast(&scratch, input, "out.mp4");
        succeeds(&run);
        let video = decode(&scratch.path("out.mp4"));
        assert!(!video.info().is_interlaced());
        let frames_of = |which| format!("{} in the {which}", video.times.len());
        let described = ["input", "output"].map(frames_of);
        let is_described = described.iter().all(|part| text(&run).contains(part));
        assert!(frames == 15 || is_described, "{}", text(&run));
        assert!(video.times.len() >= frames, "{}: {}", input.display(), video.times.len());
        std::fs::remove_file(scratch.path("out.mp4")).unwrap();
    }
}

#[test]
fn frames_without_times_get_a_constant_rate() {
    let scratch = Scratch::new();
    let video = format!(
        "{SOURCE} ! video/x-raw,width=96,height=64,framerate=25/1 ! openh264enc \
         ! video/x-h264,stream-format=byte-stream ! queue"
    );
    let input = scratch.make("in.jsv", &video, "identity", &[]);
    let run = fast(&scratch, &input, "out.mp4");
    succeeds(&run);
    says(&run, "its frames have no usable timestamps: 25 fps assumed");
    let times = decode(&scratch.path("out.mp4")).times;
    let expected: Vec<_> = (0..10).map(|n| ClockTime::from_mseconds(40 * n)).collect();
    assert_eq!(times, expected);
}

#[test]
fn what_a_damaged_file_gives_is_kept_and_the_rest_is_missed() {
    let scratch = Scratch::new();
    let whole = scratch.make("in.mkv", VIDEO, "matroskamux", &[audio("opusenc")]);
    let mut bytes = std::fs::read(whole).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].fill(0);
    std::fs::write(scratch.path("zeros.mkv"), &bytes).unwrap();
    bytes.truncate(half);
    std::fs::write(scratch.path("cut.mkv"), &bytes).unwrap();
    for name in ["zeros.mkv", "cut.mkv"] {
        let output = format!("{name}.mp4");
        let run = fast(&scratch, &scratch.path(name), &output);
        fails(&run, 3, "of 2.0 s; the file is damaged or truncated");
        scratch.nothing_left(&output);
        let frames = decode(&scratch.path(&output)).times.len();
        assert!((4..16).contains(&frames), "{frames}");
    }

    // Subtitles that are shown for longer than the video are not counted.
    std::fs::write(scratch.path("a.srt"), "1\n00:00:00,000 --> 00:00:01,400\nHello\n\n").unwrap();
    let subtitles = format!(
        "filesrc location={} ! subparse ! text/x-raw,format=utf8 ! queue",
        scratch.path("a.srt").display()
    );
    let whole = scratch.make("subtitled.mkv", VIDEO, "matroskamux", &[subtitles]);
    let bytes = std::fs::read(&whole).unwrap();
    std::fs::write(&whole, &bytes[..bytes.len() * 2 / 3]).unwrap();
    let run = fast(&scratch, &whole, "subtitled.mp4");
    let frames = decode(&scratch.path("subtitled.mp4")).times.len();
    assert!((1..10).contains(&frames), "{frames}");
    fails(&run, 3, &format!("the output has {:.1} s of 2.0 s", frames as f64 / 8.0));

    // In a folder, it counts as enhanced.
    std::fs::create_dir(scratch.path("folder")).unwrap();
    std::fs::copy(scratch.path("cut.mkv"), scratch.path("folder/a.mkv")).unwrap();
    let folder = fast(&scratch, &scratch.path("folder"), "results");
    fails(&folder, 3, "1 enhanced, 0 already finished, 0 failed");
}

#[test]
fn a_pixel_aspect_ratio_that_makes_no_sense_is_square() {
    let scratch = Scratch::new();
    let run = fast(&scratch, &media("negative_aspect.avi"), "out.mkv");
    succeeds(&run);
    says(&run, "aspect ratio -1/1 is invalid");
    let info = decode(&scratch.path("out.mkv")).info();
    assert_eq!(info.par(), gst::Fraction::new(1, 1));
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("pipes")).unwrap();
    for pipe in ["pipe", "pipes/a.mp4"] {
        assert!(Command::new("mkfifo").arg(scratch.path(pipe)).status().unwrap().success());
    }
    symlink(scratch.path("pipe"), scratch.path("link.mp4")).unwrap();
    let _listener = UnixListener::bind(scratch.path("socket")).unwrap();
    for (input, why) in [
        ("pipe", "a pipe, not a file"),
        ("link.mp4", "a pipe, not a file"),
        ("socket", "a socket, not a file"),
        ("/dev/zero", "a device, not a file"),
        ("pipes", "there is no video in this folder"),
    ] {
        fails(&scratch.enhance(&[input, "out.mp4"]), 3, why);
        fails(&scratch.enhance(&[input, "--plan"]), 3, why);
    }
}

#[test]
fn a_signal_ends_a_run_that_waits_for_a_file() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let pipe = scratch.path("prompts");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut command = venhance();
    command.current_dir(scratch.path("")).args(["in.mp4", "out.mp4", "--prompt_path", "prompts"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // It waits for somebody to write into the pipe, who never comes.
    std::thread::sleep(Duration::from_secs(2));
    let began = Instant::now();
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(end(&mut child).code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn nothing_that_a_file_says_opens_a_connection_or_another_file() {
    let scratch = Scratch::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let address = server.local_addr().unwrap();
    let video = scratch.make("part.ts", VIDEO, "mpegtsmux", &[]);
    let url = format!("http://{address}/part.ts");
    let hls = |part: &str| {
        format!(
            "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{part}\n#EXT-X-ENDLIST\n"
        )
    };
    let dash = format!(
        "<?xml version=\"1.0\"?>\n<MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\" type=\"static\" \
         mediaPresentationDuration=\"PT2S\" profiles=\"urn:mpeg:dash:profile:isoff-main:2011\"><Period>\
         <AdaptationSet mimeType=\"video/mp4\"><Representation id=\"1\" bandwidth=\"1000\"><BaseURL>{url}\
         </BaseURL></Representation></AdaptationSet></Period></MPD>"
    );
    let sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n\
               a=rtpmap:96 H264/90000\n";
    for (name, content) in [
        ("hls.mp4", hls(&url)),
        ("local.mp4", hls("part.ts")),
        ("absolute.mp4", hls(&format!("file://{}", video.display()))),
        ("dash.mp4", dash),
        ("sdp.mp4", sdp.to_owned()),
        ("quicktime.mp4", format!("RTSPtext\nrtsp://{address}/x\n")),
        ("reference.mp4", format!("[Reference]\r\nRef1={url}\r\n")),
        ("list.mp4", format!("{url}\n")),
        (
            "smil.mp4",
            format!("<?xml version=\"1.0\"?>\n<smil><body><video src=\"{url}\"/></body></smil>"),
        ),
    ] {
        std::fs::write(scratch.path(name), content).unwrap();
        let began = Instant::now();
        fails(&scratch.enhance(&[name, "out.mp4"]), 3, name);
        fails(&scratch.enhance(&[name, "--plan"]), 3, "use the video file itself");
        assert!(began.elapsed() < Duration::from_secs(10), "{name}");
        assert!(server.accept().is_err(), "{name} was followed");
    }
}

#[test]
fn nobody_has_to_read_what_is_printed() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let full = || Stdio::from(std::fs::File::create("/dev/full").unwrap());
    let run = |arguments: &[&str]| {
        let mut command = venhance();
        command.current_dir(scratch.path("")).args(arguments);
        let mut child = command.stdout(full()).stderr(full()).spawn().unwrap();
        end(&mut child).code()
    };
    // But then a plan is of no use.
    assert_eq!(run(&["in.mp4", "--plan"]), Some(4));
    assert_eq!(run(&[&["in.mp4", "out.mp4"], &FAST[..]].concat()), Some(0));
    assert_eq!(decode(&scratch.path("out.mp4")).times.len(), 16);
    assert_eq!(run(&["missing.mp4", "none.mp4"]), Some(3));
}

#[test]
fn subtitles_are_kept_or_converted_or_their_loss_is_said() {
    let scratch = Scratch::new();
    let holds = |file: &str, text: &str| {
        let bytes = std::fs::read(scratch.path(file)).unwrap();
        bytes.windows(text.len()).any(|window| window == text.as_bytes())
    };
    let kept = fast(&scratch, &media("ass.mkv"), "kept.mkv");
    succeeds(&kept);
    assert!(!text(&kept).contains("CRITICAL"), "{}", text(&kept));
    assert!(holds("kept.mkv", "S_TEXT/ASS") && holds("kept.mkv", r"{\i1}Hello{\i0} there"));
    succeeds(&fast(&scratch, &media("ass.mkv"), "converted.mp4"));
    assert!(holds("converted.mp4", "Hello there"));
    let lost = fast(&scratch, &media("webvtt.webm"), "lost.mkv");
    succeeds(&lost);
    says(&lost, "dropping them");
}

#[test]
fn the_sound_behind_an_edit_list_is_kept_to_its_end() {
    let scratch = Scratch::new();
    succeeds(&fast(&scratch, &media("edit_list.mp4"), "out.mp4"));
    let (last, duration) = *decode(&scratch.path("out.mp4")).audio.last().unwrap();
    let end = last + duration;
    assert!(end >= ClockTime::from_mseconds(580), "the sound ends at {end}");
}

#[test]
fn a_gap_costs_no_frame() {
    let scratch = Scratch::new();
    let input = media("gap.mkv");
    let arguments = [input.to_str().unwrap(), "out.mp4", "--up-scale", "1", "--target-fps", "50"];
    succeeds(&scratch.enhance(&arguments));
    // Two runs of 25 frames, and one frame between two.
    assert_eq!(decode(&scratch.path("out.mp4")).times.len(), 2 * 49);
}

/// Files whose video begins late, or with frames that need an earlier one, are whole.
#[test]
fn video_that_does_not_begin_at_0_is_complete() {
    let scratch = Scratch::new();
    for input in ["late.mp4", "late.mkv", "no_key_frame.mp4"] {
        for output in ["out.mp4", "out.mkv"] {
            let arguments =
                [media(input).to_str().unwrap(), output, "--overwrite"].map(str::to_owned);
            let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(FAST).collect();
            let run = scratch.enhance(&arguments);
            succeeds(&run);
            assert!(!text(&run).contains("ended early"), "{}", text(&run));
            scratch.nothing_left(output);
        }
    }
}

#[test]
fn a_file_without_frames_leaves_nothing_behind() {
    let scratch = Scratch::new();
    for _ in 0..2 {
        fails(&fast(&scratch, &media("no_frames.mkv"), "out.mkv"), 3, "no video frames");
        scratch.nothing_left("out.mkv");
    }
}
