// SPDX-License-Identifier: MIT OR Apache-2.0
//! `model=v1` and `model=v2` through the front door, with a tiny model in a folder.

mod common;
#[path = "common/sink.rs"]
mod sink;
#[path = "common/torch.rs"]
mod torch;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use common::{TIMEOUT, decode, run, try_run};
use gst::prelude::*;
use gstvenhance::{
    engine::{Cancel, Format, Frame, Model, Options},
    models,
    networks::{text, unet, vae},
    weights::{self, Config},
};
use serde_json::Value;
use sink::Record;

/// A folder with a model, and a video of four frames of 36×24 at 8 fps.
struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Self {
        let room = Self::with_model((80, 128), &[1, 2, 4, 4]);
        run(&format!(
            "videotestsrc pattern=ball num-buffers=4 ! video/x-raw,format=I420,width=36,height=24,framerate=8/1 \
             ! x264enc ! mp4mux ! filesink location={}",
            room.path("in.mp4").display()
        ));
        room
    }

    /// Only the model, with a smallest canvas and the multiples of its levels' channels.
    fn with_model(min_padded: (usize, usize), dim_mult: &[usize]) -> Self {
        common::init();
        let room = Self(tempfile::tempdir().unwrap());
        let config = Config {
            min_padded,
            unet: unet::Config {
                dim: 32,
                head_dim: 8,
                context_dim: 48,
                num_res_blocks: 1,
                dim_mult: dim_mult.to_vec(),
                ..unet::Config::full()
            },
            vae: vae::Config { block_out_channels: vec![32, 32, 64, 64], layers_per_block: 1 },
            text: text::Config { width: 48, heads: 4, layers: 3 },
        };
        weights::synthesize(&room.path("model"), &config, candle_core::DType::F32).unwrap();
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The element, as in gst-launch.
    fn element(&self, model: &str, properties: &str) -> String {
        let folder = self.path("model");
        format!("venhance model={model} model-dir={} {properties}", folder.display())
    }

    fn source(&self) -> String {
        format!("filesrc location={} ! decodebin", self.path("in.mp4").display())
    }
}

#[test]
fn one_line_enhances_a_video() {
    let room = Room::new();
    let (input, out) = (room.source(), room.path("out.mp4"));
    let element = room.element("v2", "up-scale=3 min-height=0 target-fps=24");
    let messages = run(&format!(
        "{input} ! {element} ! x264enc ! mp4mux ! filesink location={}",
        out.display()
    ));
    let video = decode(&out);
    assert_eq!((video.info().width(), video.info().height()), (108, 72));
    assert_eq!(video.times.len(), 10);
    for (n, time) in video.times.iter().enumerate() {
        let expected = gst::ClockTime::SECOND * n as u64 / 24;
        assert!(time.absdiff(expected) < gst::ClockTime::MSECOND, "frame {n} at {time}");
    }
    let units: Vec<String> =
        messages.iter().filter_map(|message| message.get("unit").ok()).collect();
    for step in 0..14 {
        assert!(units.contains(&format!("window 0, step {step}")), "{units:?}");
    }
}

/// Frames of 8 bits, [h, w, 3], one after the other.
fn frames(file: &Path, (width, height): (usize, usize)) -> Vec<Frame> {
    let bytes = std::fs::read(file).unwrap();
    let frame = |bytes: &[u8]| {
        let mut frame = Frame::new(width, height).unwrap();
        for (out, pixel) in frame.pixels_mut().chunks_exact_mut(4).zip(bytes.chunks_exact(3)) {
            let wide = |n: usize| u16::from(pixel[n]) * 257;
            out.copy_from_slice(&[wide(0), wide(1), wide(2), u16::MAX]);
        }
        frame
    };
    bytes.chunks_exact(3 * width * height).map(frame).collect()
}

#[test]
fn the_element_gives_what_the_library_gives_for_the_same_frames() {
    let room = Room::new();
    let (input, raw) = (room.path("in.raw"), room.path("out.raw"));
    let (input, raw) = (input.display(), raw.display());
    let rgb = "video/x-raw,format=RGB";
    run(&format!(
        "{} ! videoconvert ! {rgb} ! tee name=t ! queue ! filesink location={input} t. ! queue ! {} ! {rgb} \
         ! filesink location={raw}",
        room.source(),
        room.element("v1", "up-scale=3 min-height=0 seed=7 solver=normal steps=3 prompt=a\\ ball")
    ));
    let options = Options {
        model: Some(Model::V1),
        model_dir: Some(room.path("model")),
        seed: 7,
        solver: gstvenhance::engine::Solver::Normal,
        steps: 3,
        prompt: "a ball".into(),
        ..Options::default()
    };
    let cancel = Cancel::default();
    let choice = models::choose(&options).unwrap();
    let mut loaded = models::build(&choice, None, &cancel, &mut |_| {}).unwrap();
    let sink = Arc::new(Record::default());
    let format = Format { input: (36, 24), output: (108, 72), made: 2, alpha: false };
    loaded.enhancer.start(format, sink::clip(&sink)).unwrap();
    for frame in frames(&room.path("in.raw"), (36, 24)) {
        loaded.enhancer.push(frame).unwrap();
    }
    loaded.enhancer.finish().unwrap();
    let (ours, theirs) = (sink.take(), frames(&room.path("out.raw"), (108, 72)));
    assert_eq!((ours.len(), theirs.len()), (10, 10));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let off = ours.pixels().iter().zip(theirs.pixels()).map(|(a, b)| a.abs_diff(*b)).max();
        // Of 8 bits.
        assert!(off <= Some(257), "{off:?}");
    }
}

/// The warnings of a pipeline that runs to its end.
fn warnings(pipeline: &str) -> String {
    common::init();
    let pipeline = gst::parse::launch(pipeline).unwrap();
    let bus = pipeline.bus().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut text = String::new();
    loop {
        let timeout = gst::ClockTime::try_from(TIMEOUT).unwrap();
        let message = bus.timed_pop(timeout).unwrap_or_else(|| panic!("the pipeline hangs"));
        match message.view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(error) => panic!("{error:?}"),
            gst::MessageView::Warning(warning) => text += &warning.error().to_string(),
            _ => {}
        }
    }
    pipeline.set_state(gst::State::Null).unwrap();
    text
}

#[test]
fn what_is_not_done_as_asked_is_a_warning() {
    let room = Room::new();
    let source = room.source();
    let said = |properties: &str| {
        let element = room.element("v2", &format!("solver=normal steps=1 {properties}"));
        warnings(&format!("{source} ! {element} ! fakesink"))
    };
    assert_eq!(said("up-scale=3 min-height=72"), "");
    let text = said("up-scale=1 min-height=72");
    assert!(text.contains("min-height makes it 72"), "{text}");
    let text = said("up-scale=4 min-height=0 max-pixels=3500");
    assert!(text.contains("height of 96; max-pixels makes it 48"), "{text}");
    let text = said(&format!("min-height=0 negative-prompt=\"{}the end\"", "no cats, ".repeat(40)));
    assert!(text.contains("negative-prompt is too long") && text.contains("the end"), "{text}");
}

/// Makes a safetensors file what PyTorch would have written instead.
fn as_torch_file(path: &Path) {
    let tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
    let bytes = tensors.iter().map(|(name, tensor)| {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (name.as_str(), values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>())
    });
    let bytes: Vec<_> = bytes.collect();
    let described = tensors.iter().map(|(name, tensor)| {
        let (storage, length) = (name.as_str(), tensor.elem_count());
        let (shape, strides) = (tensor.dims(), tensor.stride());
        (
            storage,
            torch::Tensor { kind: "FloatStorage", storage, length, offset: 0, shape, strides },
        )
    });
    let pickle = torch::state_dict(torch::Pickle::new(), &described.collect::<Vec<_>>()).end();
    let storages: Vec<_> = bytes.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    torch::write(path, &pickle, &storages);
}

#[test]
fn a_pytorch_file_is_copied_once_and_that_is_on_the_bus() {
    let room = Room::with_model((16, 64), &[1, 2]);
    as_torch_file(&room.path("model/text.safetensors"));
    let copy = room.path("model/text.safetensors.f16.safetensors");
    let pipeline = format!(
        "videotestsrc num-buffers=2 ! video/x-raw,width=32,height=16,framerate=8/1 ! {} ! fakesink",
        room.element("v1", "up-scale=1 min-height=0 solver=normal steps=1")
    );
    let copies = || {
        let messages =
            run(&pipeline).into_iter().filter(|message| message.has_name("venhance-copy"));
        messages.collect::<Vec<_>>()
    };
    let said = copies();
    let last = said.last().unwrap();
    assert_eq!(last.get::<String>("file").unwrap(), copy.display().to_string());
    let bytes: u64 = last.get("bytes").unwrap();
    assert_eq!(bytes, last.get::<u64>("total-bytes").unwrap());
    assert!((1..=copy.metadata().unwrap().len()).contains(&bytes));
    assert!(copies().is_empty());
}

#[test]
fn missing_weights_are_an_error_that_says_how_to_have_them() {
    let room = Room::new();
    let folder = room.path("empty");
    std::fs::create_dir(&folder).unwrap();
    let (_, error) = try_run(&format!(
        "videotestsrc num-buffers=3 ! venhance model=v1 model-dir={} ! fakesink",
        folder.display()
    ));
    let error = error.unwrap();
    let licence = "https://huggingface.co/stabilityai/stable-video-diffusion-img2vid";
    for part in ["venhancer_paper.pt", licence, "HF_TOKEN", "model-dir", "model=lite"] {
        assert!(error.contains(part), "{error}");
    }
}

/// The application, to be run in the room.
fn program(room: &Room) -> Command {
    let tests = std::env::current_exe().unwrap();
    let mut command = Command::new(tests.parent().unwrap().with_file_name("examples/enhance"));
    command.current_dir(&room.0);
    command
}

/// What the application, run in the room, says on standard output.
fn enhance(room: &Room, arguments: &[&str]) -> String {
    let output = program(room).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The decoded pixels of a video.
fn pixels(file: &Path) -> Vec<u8> {
    let raw = file.with_extension("raw");
    run(&format!(
        "filesrc location={} ! decodebin ! videoconvert ! video/x-raw,format=RGB ! filesink location={}",
        file.display(),
        raw.display()
    ));
    std::fs::read(raw).unwrap()
}

#[test]
fn the_application_takes_the_command_line_of_the_reference() {
    let room = Room::new();
    let script = |rest: &[&str]| {
        let all = "--version v2 --model_path model --up_scale 3 --target_fps 24 --noise_aug 250 \
            --solver_mode normal --steps 1 --cfg 7.5 --s_cond 8 --min-height 0 --overwrite";
        enhance(&room, &all.split_whitespace().chain(rest.iter().copied()).collect::<Vec<_>>());
    };
    let one = ["--input_path", "in.mp4", "--save_dir", "results"];
    let results = room.path("results");
    script(&[&one[..], &["--prompt", "a red balloon"]].concat());
    let given = pixels(&results.join("in.mp4"));
    assert_eq!(given.len(), 10 * 108 * 72 * 3);

    // A text file beside the video is its prompt.
    std::fs::write(room.path("in.txt"), "a red balloon\n").unwrap();
    script(&one);
    assert_eq!(pixels(&results.join("in.mp4")), given);
    script(&[&one[..], &["--filename_as_prompt"]].concat());
    let named = pixels(&results.join("in.mp4"));
    assert_ne!(named, given);

    // A line for each video of a folder.
    std::fs::create_dir(room.path("videos")).unwrap();
    for name in ["a.mp4", "b.mp4"] {
        std::fs::copy(room.path("in.mp4"), room.path("videos").join(name)).unwrap();
    }
    std::fs::write(room.path("prompts"), "in\na red balloon\n").unwrap();
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
    let bus = pipeline.bus().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let end = bus.timed_pop_filtered(
        gst::ClockTime::try_from(TIMEOUT).unwrap(),
        &[gst::MessageType::Eos, gst::MessageType::Error],
    );
    pipeline.set_state(gst::State::Null).unwrap();
    assert_eq!(end.unwrap().type_(), gst::MessageType::Eos);
}

#[test]
fn a_run_that_goes_on_gives_what_an_uninterrupted_one_gives_bit_for_bit() {
    let room = Room::with_model((16, 64), &[1, 2]);
    // Two clips: the second begins with the fourth of 43 frames.
    video_with_a_hole(&room.path("long.mkv"), 44, 3);
    let arguments = |output| {
        let all = "--model v1 --model-dir model --up-scale 1 --min-height 0 --solver normal --steps 2 --guidance-scale 1";
        let lossless = ["--encoder", "x264enc pass=quant quantizer=0 tune=zerolatency"];
        let all = ["long.mkv", output].into_iter().chain(all.split(' ')).chain(lossless);
        all.map(str::to_owned).collect::<Vec<_>>()
    };
    let run =
        |arguments: &[String]| enhance(&room, &arguments.iter().map(|a| &**a).collect::<Vec<_>>());
    run(&arguments("whole.mkv"));
    let whole = pixels(&room.path("whole.mkv"));
    assert_eq!(whole.len(), (7 + 118) * 32 * 16 * 3);

    // An encoder that holds nothing back. Cut off when it has come so far that not all of the second clip is needed to go on.
    let mut child = program(&room).args(arguments("cut.mkv")).spawn().unwrap();
    let index = room.path("cut.mkv.partial.json");
    let joint = || {
        let text = std::fs::read_to_string(&index).unwrap_or_default();
        let number = |line: &str, name| serde_json::from_str::<Value>(line).ok()?[name].as_u64();
        let mut joints =
            text.lines().filter_map(|line| Some((number(line, "skip")?, number(line, "first")?)));
        joints.next_back().filter(|(_, first)| *first > 0)
    };
    common::wait_for("a joint far enough", || {
        joint().is_some() || child.try_wait().unwrap().is_some()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!room.path("cut.mkv").exists());
    let (skip, first) = joint().unwrap();
    assert_eq!(skip - first, 3);
    run(&[arguments("cut.mkv"), vec!["--resume".into()]].concat());
    let resumed = pixels(&room.path("cut.mkv"));
    assert_eq!(resumed.len(), whole.len());
    assert!(resumed == whole);
}

#[test]
fn the_application_says_what_it_would_do() {
    let room = Room::new();
    let options = "in.mp4 --plan --model v1 --model-dir model --up-scale 3 --min-height 0";
    let plan = enhance(&room, &options.split(' ').collect::<Vec<_>>());
    for part in ["10 frames", "36×24 to 108×72, padded to 128×80", "14 a window", "GiB"] {
        assert!(plan.contains(part), "{part} is not in {plan}");
    }
}
