// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the debug log says of a run.

mod common;
#[path = "common/tiny_model.rs"]
mod tiny_model;

use std::process::Command;

use common::{Rig, caps};
use gst::prelude::*;
use tiny_model::TinyModel;

/// Set in the process whose log is read: the folder of the model.
const MODEL: &str = "VENHANCE_TEST_MODEL";

/// A run with two clips: frames are missing between the second and the third.
fn run(model: &str) {
    let properties = format!(
        "model=v1 model-dir={model} solver=normal steps=1 up-scale=1 min-height=0 target-fps=0/1"
    );
    let mut rig = Rig::with(&properties, &caps("GRAY8", 32, 16, (10, 1)));
    for ms in [0, 100, 1000] {
        rig.push_at(ms);
    }
    rig.finish();
    rig.event(gst::event::FlushStart::new());
    rig.element.set_state(gst::State::Null).unwrap();
}

/// Takes 2 s: a diffusion model runs.
#[test]
fn the_log_names_model_device_clips_with_the_reason_for_their_end_windows_and_steps() {
    if let Ok(model) = std::env::var(MODEL) {
        return run(&model);
    }
    let model = TinyModel::with_model((16, 64), &[1, 2]);
    let output = Command::new(std::env::current_exe().unwrap())
        .arg("--nocapture")
        .env(MODEL, model.path("model"))
        .env("GST_DEBUG", "venhance*:6")
        .env("GST_DEBUG_NO_COLOR", "1")
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let mut lines = log.lines();
    // In this order, each in its category.
    for (category, text) in [
        ("venhance", "Model v1 on cpu: model=v1 is set"),
        ("venhance-weights", "unet.safetensors"),
        ("venhance-models", "Loading the denoiser on cpu as F32"),
        ("venhance", "Format: (32, 16) to (32, 16), an input frame each 0:00:00.100000000"),
        ("venhance", "Start of clip 1 at 0:00:00.000000000 with input frame 0"),
        ("venhance-sampler", "window 0, step 0: frames 0 to 2, final window"),
        ("venhance-sampler", "window 0, step 0 took"),
        (
            "venhance",
            "End of clip 1 after 2 input and 2 output frames: frames missing between \
             0:00:00.100000000 and 0:00:01.000000000",
        ),
        ("venhance", "Start of clip 2 at 0:00:01.000000000"),
        ("venhance", "End of clip 2 after 1 input and 1 output frames: end of stream"),
        ("venhance", "Flushing"),
        ("venhance", "Stopped"),
    ] {
        let found = lines.any(|line| {
            line.split_whitespace().any(|word| word == category) && line.contains(text)
        });
        assert!(found, "{category}: {text} is not in its place in\n{log}");
    }
    for text in ["Input video/x-raw", "Latency is now", "Segment from"] {
        assert!(log.contains(text), "{text} is not in\n{log}");
    }
}
