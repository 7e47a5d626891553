// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs `model=v1` and `model=v2` through the element, with a tiny model in a folder.

mod common;
#[path = "common/sink.rs"]
mod sink;
#[path = "common/tiny_model.rs"]
mod tiny_model;
#[path = "common/torch.rs"]
mod torch;

use std::{path::Path, sync::Arc};

use common::{TIMEOUT, decode, run, try_run};
use gst::prelude::*;
use gstvenhance::{
    engine::{Cancel, Format, Frame, Model, Options, Version, multiple_times},
    models,
};
use sink::Record;
use tiny_model::TinyModel;

#[test]
fn a_gst_launch_line_upscales_and_interpolates_a_video() {
    let folder = TinyModel::new();
    let (input, out) = (folder.source(), folder.path("out.mp4"));
    let element = folder.element("v2", "up-scale=3 min-height=0 target-fps=24");
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

/// Reads a file of RGB frames of 8 bits, [n, h, w, 3].
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

/// From 8 to 12 fps the model makes 16, of which every fourth third lies on an output frame.
#[test]
fn at_an_exact_rate_frames_are_interpolated_between_those_of_the_model() {
    let folder = TinyModel::new();
    let frames = |name: &str, properties: &str| {
        let raw = folder.path(name);
        let properties =
            format!("up-scale=3 min-height=0 solver=normal steps=2 seed=7 {properties}");
        run(&format!(
            "{} ! {} ! video/x-raw,format=RGB ! filesink location={}",
            folder.source(),
            folder.element("v2", &properties),
            raw.display()
        ));
        frames(&raw, (108, 72))
    };
    let multiple = frames("multiple.raw", "target-fps=16");
    let exact = frames("exact.raw", "target-fps=12 rate-mode=exact");
    // Four frames last 0.5 s.
    assert_eq!((multiple.len(), exact.len()), (7, 6));
    for (n, model) in [(0, 0), (3, 4)] {
        assert!(exact[n] == multiple[model], "frame {n}");
    }
    // At 4 thirds of an interval of the model's frames; past the last frame.
    assert!(exact[1] != multiple[1] && exact[1] != multiple[2]);
    assert!(exact[5] == multiple[6] && exact[4] != exact[5]);
    let upwards = frames("upwards.raw", "target-fps=24 rate-mode=exact");
    assert_eq!(upwards.len(), 12);
    let multiple = frames("multiple.raw", "target-fps=24");
    assert!(upwards[..10] == multiple[..], "bit-equal where the times agree");
    assert!(upwards[10] == upwards[9] && upwards[11] == upwards[9], "the last frame is repeated");
}

#[test]
fn the_element_and_the_library_produce_the_same_frames() {
    let folder = TinyModel::new();
    let (input, raw) = (folder.path("in.raw"), folder.path("out.raw"));
    let (input, raw) = (input.display(), raw.display());
    let rgb = "video/x-raw,format=RGB";
    run(&format!(
        "{} ! videoconvert ! {rgb} ! tee name=t ! queue ! filesink location={input} t. ! queue ! {} ! {rgb} \
         ! filesink location={raw}",
        folder.source(),
        folder
            .element("v1", "up-scale=3 min-height=0 seed=7 solver=normal steps=3 prompt=a\\ ball")
    ));
    let options = Options {
        model: Some(Model::Diffusion(Version::V1)),
        model_dir: Some(folder.path("model")),
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
    let format =
        Format { input: (36, 24), output: (108, 72), interpolated: 2, exact: false, alpha: false };
    loaded.enhancer.start(format, sink::clip(&sink)).unwrap();
    for (n, frame) in (0..).zip(frames(&folder.path("in.raw"), (36, 24))) {
        let (time, outputs) = multiple_times(n, n == 0, format.interpolated);
        loaded.enhancer.push(frame, time, &outputs).unwrap();
    }
    loaded.enhancer.finish(&[]).unwrap();
    let (library, element) = (sink.take(), frames(&folder.path("out.raw"), (108, 72)));
    assert_eq!((library.len(), element.len()), (10, 10));
    for (library, element) in library.iter().zip(&element) {
        let pixels = library.pixels().iter().zip(element.pixels());
        let error = pixels.map(|(a, b)| a.abs_diff(*b)).max();
        // One step of 8 bits, because the file holds rounded values.
        assert!(error <= Some(257), "{error:?}");
    }
}

/// Runs a pipeline to its end and returns the text of its warnings, without the one about the CPU.
fn warnings(pipeline: &str) -> String {
    common::init();
    let pipeline = gst::parse::launch(pipeline).unwrap();
    let bus = pipeline.bus().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut text = String::new();
    loop {
        let timeout = gst::ClockTime::try_from(TIMEOUT).unwrap();
        let message = bus
            .timed_pop(timeout)
            .unwrap_or_else(|| panic!("no message on the bus: the pipeline hangs"));
        match message.view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(error) => panic!("{error:?}"),
            gst::MessageView::Warning(warning) => text += &warning.error().to_string(),
            _ => {}
        }
    }
    pipeline.set_state(gst::State::Null).unwrap();
    let cpu = "model v2 runs on the CPU (";
    assert!(text.starts_with(cpu), "{text}");
    text.split_once("use a GPU, or model=lite").unwrap().1.to_owned()
}

#[test]
fn a_changed_output_size_and_a_truncated_prompt_post_warnings() {
    let folder = TinyModel::new();
    let source = folder.source();
    let warnings_with = |properties: &str| {
        let element = folder.element("v2", &format!("solver=normal steps=1 {properties}"));
        warnings(&format!("{source} ! {element} ! fakesink"))
    };
    assert_eq!(warnings_with("up-scale=3 min-height=72"), "");
    let text = warnings_with("up-scale=1 min-height=72");
    assert!(
        text.contains("the output is 72 pixels high") && text.contains("min-height=0"),
        "{text}"
    );
    assert_eq!(warnings_with("target-height=72 min-height=72"), "");
    let text = warnings_with("target-height=48 min-height=72");
    assert!(text.contains("not 48 as target-height=48 asks, because of min-height"), "{text}");
    let text = warnings_with("up-scale=4 min-height=0 max-pixels=3500");
    assert!(
        text.contains("48 pixels high, not 96") && text.contains("because of max-pixels"),
        "{text}"
    );
    let text = warnings_with(&format!(
        "min-height=0 negative-prompt=\"{}the end\"",
        "no cats, ".repeat(40)
    ));
    assert!(
        text.contains("negative-prompt exceeds 77 tokens") && text.contains("the end"),
        "{text}"
    );
}

/// Replaces a safetensors file by a PyTorch file with the same tensors.
fn convert_to_torch_file(path: &Path) {
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
fn a_pytorch_file_is_converted_once_with_progress_on_the_bus() {
    let folder = TinyModel::with_model((16, 64), &[1, 2]);
    convert_to_torch_file(&folder.path("model/text.safetensors"));
    let copy = folder.path("model/text.safetensors.f32.safetensors");
    let pipeline = format!(
        "videotestsrc num-buffers=2 ! video/x-raw,width=32,height=16,framerate=8/1 ! {} ! fakesink",
        folder.element("v1", "up-scale=1 min-height=0 solver=normal steps=1")
    );
    let copies = || {
        let messages =
            run(&pipeline).into_iter().filter(|message| message.has_name("venhance-conversion"));
        messages.collect::<Vec<_>>()
    };
    let messages = copies();
    let last = messages.last().unwrap();
    assert_eq!(last.get::<String>("file").unwrap(), copy.display().to_string());
    let bytes: u64 = last.get("bytes").unwrap();
    assert_eq!(bytes, last.get::<u64>("total-bytes").unwrap());
    assert!((1..=copy.metadata().unwrap().len()).contains(&bytes));
    assert!(copies().is_empty());
}

#[test]
fn missing_weights_are_an_error_that_says_how_to_get_them() {
    let folder = TinyModel::new();
    let empty = folder.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let (_, error) = try_run(&format!(
        "videotestsrc num-buffers=3 ! venhance model=v1 model-dir={} ! fakesink",
        empty.display()
    ));
    let error = error.unwrap();
    let licence = "https://huggingface.co/stabilityai/stable-video-diffusion-img2vid";
    for part in ["venhancer_paper.pt", licence, "HF_TOKEN", "model-dir", "model=lite"] {
        assert!(error.contains(part), "{error}");
    }
}
