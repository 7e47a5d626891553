// SPDX-License-Identifier: MIT OR Apache-2.0
//! The application with a tiny diffusion model.

mod common;
#[path = "common/tiny_model.rs"]
mod tiny_model;

use std::{path::Path, process::Command};

use gst::prelude::*;
use serde_json::Value;
use tiny_model::TinyModel;

/// The application, in the folder of the model.
fn program(model: &TinyModel) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_venhance"));
    command.current_dir(model.path(""));
    command
}

/// What the application writes to standard output.
fn enhance(model: &TinyModel, arguments: &[&str]) -> String {
    let output = program(model).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The decoded pixels of a video.
fn pixels(file: &Path) -> Vec<u8> {
    common::pixels(file, "videoconvert ! video/x-raw,format=RGB")
}

#[test]
fn the_application_takes_the_command_line_of_the_reference() {
    let model = TinyModel::new();
    let script = |rest: &[&str]| {
        let all = "--version v2 --model_path model/unet.safetensors --up_scale 3 --target_fps 24 --noise_aug 250 \
            --solver_mode normal --steps 1 --cfg 7.5 --s_cond 8 --min-height 0 --overwrite";
        // Lossless: at other qualities, the output of x264 depends on memory that it does not initialize.
        let lossless = ["--encoder", "x264enc pass=quant quantizer=0"];
        let all = all.split_whitespace().chain(lossless).chain(rest.iter().copied());
        enhance(&model, &all.collect::<Vec<_>>());
    };
    let one = ["--input_path", "in.mp4", "--save_dir", "results"];
    let results = model.path("results");
    script(&[&one[..], &["--prompt", "a red balloon"]].concat());
    let given = pixels(&results.join("in.mp4"));
    assert_eq!(given.len(), 10 * 108 * 72 * 3);

    // A text file beside the video is its prompt.
    std::fs::write(model.path("in.txt"), "a red balloon\n").unwrap();
    script(&one);
    assert_eq!(pixels(&results.join("in.mp4")), given);
    script(&[&one[..], &["--filename_as_prompt"]].concat());
    let named = pixels(&results.join("in.mp4"));
    assert_ne!(named, given);

    // A line for each video of a folder.
    std::fs::create_dir(model.path("videos")).unwrap();
    for name in ["a.mp4", "b.mp4"] {
        std::fs::copy(model.path("in.mp4"), model.path("videos").join(name)).unwrap();
    }
    std::fs::write(model.path("prompts"), "in\na red balloon\n").unwrap();
    script(&["--input_path", "videos", "--save_dir", "results", "--prompt_path", "prompts"]);
    assert_eq!(pixels(&results.join("a.mp4")), named);
    assert_eq!(pixels(&results.join("b.mp4")), given);
}

/// A video of `frames` frames at 8 fps, without the one that is number `hole`.
fn video_with_a_hole(path: &Path, frames: u32, hole: u64) {
    let pipeline = gst::parse::launch(&format!(
        "videotestsrc pattern=ball num-buffers={frames} ! video/x-raw,format=I420,width=32,height=16,framerate=8/1 \
         ! identity name=i ! x264enc bframes=0 ! matroskamux ! filesink location={}",
        path.display()
    ));
    let pipeline = pipeline.unwrap().downcast::<gst::Pipeline>().unwrap();
    let pad = pipeline.by_name("i").unwrap().static_pad("src").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        match info.buffer().and_then(|buffer| buffer.pts()) {
            Some(time) if time == gst::ClockTime::SECOND * hole / 8 => gst::PadProbeReturn::Handled,
            _ => gst::PadProbeReturn::Ok,
        }
    });
    common::play(&pipeline);
}

#[test]
fn a_resumed_run_gives_the_same_frames_as_an_uninterrupted_one() {
    resume("", 7 + 118);
}

/// The clips have 3 and 40 frames of 1/8 s.
#[test]
fn a_resumed_run_at_an_exact_rate_gives_the_same_frames_as_an_uninterrupted_one() {
    // The missing frame is made up for.
    resume(" --target-fps 20 --rate-mode exact", 110);
}

/// Interrupts and resumes a run with these flags, which gives so many frames.
fn resume(flags: &str, frames: usize) {
    let model = TinyModel::with_model((16, 64), &[1, 2]);
    // Two clips: the second begins with the fourth of 43 frames.
    video_with_a_hole(&model.path("long.mkv"), 44, 3);
    let arguments = |output| {
        let all = format!(
            "--model v1 --model-dir model --up-scale 1 --min-height 0 --solver normal --steps 2 --guidance-scale 1{flags}"
        );
        let lossless = ["--encoder", "x264enc pass=quant quantizer=0 tune=zerolatency"];
        let all = ["long.mkv", output].into_iter().chain(all.split(' ')).chain(lossless);
        all.map(str::to_owned).collect::<Vec<_>>()
    };
    let run =
        |arguments: &[String]| enhance(&model, &arguments.iter().map(|a| &**a).collect::<Vec<_>>());
    run(&arguments("whole.mkv"));
    let whole = pixels(&model.path("whole.mkv"));
    assert_eq!(whole.len(), frames * 32 * 16 * 3);

    // The encoder delays no frames. Killed when resuming does not need all of the second clip.
    let mut child = program(&model).args(arguments("cut.mkv")).spawn().unwrap();
    let index = model.path("cut.mkv.partial.json");
    let point = || {
        let text = std::fs::read_to_string(&index).unwrap_or_default();
        let number = |line: &str, name| serde_json::from_str::<Value>(line).ok()?[name].as_u64();
        let mut points = text.lines().filter_map(|line| number(line, "skip"));
        points.next_back().filter(|skip| *skip > 3)
    };
    common::wait_for("a resume point far enough", || {
        point().is_some() || child.try_wait().unwrap().is_some()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!model.path("cut.mkv").exists());
    run(&[arguments("cut.mkv"), vec!["--resume".into()]].concat());
    let resumed = pixels(&model.path("cut.mkv"));
    assert_eq!(resumed.len(), whole.len());
    assert!(resumed == whole);
}

/// Compares a whole run with one in pieces. Returns the pieces.
fn compare_pieces(model: &TinyModel, flags: &str, pieces: &str) -> Vec<Value> {
    let run = |before: &[&str], output: &str, after: &[&str]| {
        let flags =
            format!("long.mkv {output} --model-dir model --up-scale 1 --min-height 0 {flags}");
        let lossless = ["--encoder", "x264enc pass=quant quantizer=0", "--overwrite"];
        let all = before.iter().copied().chain(flags.split(' ')).chain(lossless);
        enhance(model, &all.chain(after.iter().copied()).collect::<Vec<_>>());
    };
    run(&[], "whole.mkv", &[]);
    run(&["plan"], "out.mkv", &["--pieces", pieces, "-o", "job.json"]);
    let job: Value =
        serde_json::from_slice(&std::fs::read(model.path("job.json")).unwrap()).unwrap();
    let pieces = job["pieces"].as_array().unwrap();
    for piece in 0..pieces.len() {
        enhance(model, &["piece", "job.json", &piece.to_string()]);
    }
    enhance(model, &["join", "job.json"]);
    let [whole, out] = ["whole.mkv", "out.mkv"].map(|name| pixels(&model.path(name)));
    assert!(!whole.is_empty() && whole == out, "{flags}: other frames");
    pieces.clone()
}

/// Writes `long.mkv`: shots of so many frames of 32×16 pixels at 8 fps.
fn make_shots(model: &TinyModel, lengths: &[u32]) {
    let shots = ["ball", "smpte75", "circular"].iter().zip(lengths).map(|(pattern, frames)| {
        format!(
            " videotestsrc pattern={pattern} num-buffers={frames} \
             ! video/x-raw,format=I420,width=32,height=16,framerate=8/1 ! c."
        )
    });
    common::run(&format!(
        "concat name=c ! x264enc bframes=0 ! matroskamux ! filesink location={}{}",
        model.path("long.mkv").display(),
        shots.collect::<String>()
    ));
}

#[test]
fn pieces_of_shots_have_the_frames_of_a_whole_run() {
    let model = TinyModel::with_model((16, 64), &[1, 2]);
    make_shots(&model, &[7, 8, 8]);
    for flags in ["--model v1 --solver fast", "--model v2 --solver heun --steps 2"] {
        let pieces = compare_pieces(&model, flags, "3");
        assert_eq!((&pieces[1]["skip"], &pieces[2]["skip"]), (&7.into(), &15.into()));
    }
}

#[test]
fn pieces_within_a_shot_have_the_frames_of_a_whole_run() {
    let model = TinyModel::with_model((16, 64), &[1, 2]);
    make_shots(&model, &[64]);
    let flags = "--model v2 --solver normal --steps 2 --guidance-scale 1 --target-fps 20";
    let pieces = compare_pieces(&model, &format!("{flags} --rate-mode exact"), "3");
    let last = &pieces[2];
    assert!(last["skip"].as_u64() > Some(0) && last["warm_up"].as_u64() > Some(0), "{last}");
}

#[test]
fn the_application_says_what_it_would_do() {
    let model = TinyModel::new();
    let options = "in.mp4 --plan --model v1 --model-dir model --up-scale 3 --min-height 0";
    let plan = enhance(&model, &options.split(' ').collect::<Vec<_>>());
    for part in ["padded: 128×80", "14 per window", "GiB"] {
        assert!(plan.contains(part), "{part} is not in {plan}");
    }
    // Each fact once.
    assert_eq!(plan.matches("108").count(), 1, "{plan}");
    let options = format!("{options} --target-fps 20 --rate-mode exact");
    let plan = enhance(&model, &options.split(' ').collect::<Vec<_>>());
    for line in [
        "frame rate: 8 to 20 fps",
        "exact rate: interpolated from 10 frames of the model, 0.00 GiB of host memory",
    ] {
        assert!(plan.lines().any(|said| said == line), "{line:?} is not in {plan}");
    }
    let plan = enhance(&model, &["in.mp4", "--plan", "--model", "v1", "--model-dir", "model"]);
    let limit = "size: the output is 720 pixels high, not 96 as --up-scale 4 asks, because of --min-height; set \
                 --min-height 0 to remove the limit";
    assert!(plan.lines().any(|said| said == limit), "{plan}");
}

/// What the application says that it would do, and what it warns of.
fn plan(model: &TinyModel, flags: &[&str]) -> (String, String) {
    let all = "in.mp4 --plan --version v1 --model_path model --min-height 0";
    let output = program(model).args(all.split(' ')).args(flags).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{flags:?}: {}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_plan_says_what_the_log_of_the_reference_says() {
    let model = TinyModel::new();
    let (said, _) = plan(&model, &["--up_scale", "3"]);
    for line in [
        "frames: 4 in the input (from its duration), 10 in the output",
        "frame rate: 8 to 24 fps",
        "resolution: 36x24 to 108x72",
        "prompt: a good video",
        "noise augmentation: 200",
        "s: 8",
    ] {
        assert!(said.lines().any(|said| said == line), "{line:?} is not in {said}");
    }
    // A run says the same.
    let flags = "in.mp4 out.mp4 --model v1 --model-dir model --min-height 0 --up-scale 3 --solver normal --steps 1";
    let output = program(&model).args(flags.split(' ')).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    for line in [
        "frames: 4 in the input (from its duration), 10 in the output",
        "prompt: a good video",
        "s: 8",
    ] {
        assert!(log.lines().any(|said| said == line), "{line:?} is not in {log}");
    }
}

#[test]
fn values_that_the_reference_takes_are_taken() {
    let model = TinyModel::new();
    let has = |flags: &[&str], line: &str| {
        let (said, _) = plan(&model, flags);
        assert!(said.lines().any(|said| said == line), "{flags:?}: {line:?} is not in {said}");
    };
    has(&["--s_cond", "8.0"], "s: 8");
    has(&["--s_cond", "7.5"], "s: 7");
    has(&["--noise_aug", "350"], "noise augmentation: 300");
    has(&["--noise_aug", "-1"], "noise augmentation: 0");
    let (_, warning) = plan(&model, &["--noise_aug", "350"]);
    assert!(warning.contains("--noise_aug 350 is not supported: using 300"), "{warning}");
    let (_, warning) = plan(&model, &["--noise_aug", "300"]);
    assert_eq!(warning, "");
    for cfg in ["-1", "0", "0.5", "25", "100"] {
        plan(&model, &["--cfg", cfg]);
    }
    has(
        &["--solver_mode", "normal", "--steps", "150"],
        "evaluations: 150 per window, 150 in total",
    );
    let run = "in.mp4 out.mp4 --version v1 --model_path model --min-height 0 --up_scale 1 --solver_mode normal --steps 1";
    let extreme = ["--cfg", "0.5", "--negative-prompt", "", "--overwrite"];
    enhance(&model, &run.split(' ').chain(extreme).collect::<Vec<_>>());

    has(&["--prompt", ""], "prompt: ");
    has(&["--negative-prompt", ""], "negative prompt: ");
    std::fs::write(model.path("in.txt"), "\u{feff}\n\n  a red balloon \r\nsomething else\n")
        .unwrap();
    has(&[], "prompt: a red balloon");
    has(&["--prompt", ""], "prompt: ");
    std::fs::write(model.path("prompts"), "\n \r\na cat\n\na dog\n").unwrap();
    has(&["--prompt_path", "prompts"], "prompt: a cat");
    std::fs::create_dir(model.path("videos")).unwrap();
    for name in ["a.mp4", "b.mp4", "c.mp4"] {
        std::fs::copy(model.path("in.mp4"), model.path("videos").join(name)).unwrap();
    }
    let folder = "--plan --input_path videos --model lite --prompt_path prompts";
    let output = program(&model).args(folder.split(' ')).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        said.contains("prompts has 2 lines but there are more videos; add one line for each"),
        "{said}"
    );
}

#[test]
fn what_is_not_beside_a_denoiser_is_looked_for_in_the_hub_cache() {
    let model = TinyModel::new();
    // As a PyTorch file begins.
    std::fs::write(model.path("tuned.pt"), "PK\x03\x04").unwrap();
    let output = program(&model)
        .args("in.mp4 out.mp4 --version v2 --model_path tuned.pt".split(' '))
        .envs([("HF_HUB_OFFLINE", "1"), ("HF_HOME", "~/hf")])
        .env("HOME", model.path("home"))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{error}");
    let cache = model.path("home/hf/hub");
    for part in ["diffusion_pytorch_model.fp16", "open_clip_model", &cache.display().to_string()] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!error.contains("venhancer_v2.pt"), "{error}");
}
