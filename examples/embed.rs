// SPDX-License-Identifier: MIT OR Apache-2.0
//! Enhances the frames of a program and gives them back to it. The same in Python and in C: `embed.py` and `embed.c`.
//!
//!     cargo run --release --features cli --example embed -- [MODEL]

use std::{error::Error, thread};

use gst::prelude::*;
use gst_video::prelude::*;

const FRAMES: u64 = 24;
const RATE: u64 = 12;

fn main() -> Result<(), Box<dyn Error>> {
    gst::init()?;
    // The plugin is part of this program. Without this line, GStreamer looks for it in GST_PLUGIN_PATH.
    gstvenhance::plugin_register_static()?;

    let input = gst_video::VideoInfo::builder(gst_video::VideoFormat::Rgb, 320, 180)
        .fps((RATE as i32, 1))
        .build()?;
    let source = gst_app::AppSrc::builder()
        .caps(&input.to_caps()?)
        .format(gst::Format::Time)
        // push_buffer waits while two frames are queued.
        .max_buffers(2)
        .block(true)
        .build();
    let model = std::env::args().nth(1).unwrap_or("lite".into());
    let enhancer = gst::parse::launch(&format!("venhance model={model} up-scale=2 target-fps=24"))?;
    let format = gst::Caps::builder("video/x-raw").field("format", "RGB").build();
    let sink = gst_app::AppSink::builder().caps(&format).sync(false).max_buffers(2).build();
    sink.set_callbacks(
        gst_app::AppSinkCallbacks::builder()
            .new_sample(|sink| {
                let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
                show(&sample).ok_or(gst::FlowError::NotNegotiated)?;
                Ok(gst::FlowSuccess::Ok)
            })
            .build(),
    );

    let pipeline = gst::Pipeline::new();
    pipeline.add_many([source.upcast_ref(), &enhancer, sink.upcast_ref()])?;
    gst::Element::link_many([source.upcast_ref(), &enhancer, sink.upcast_ref()])?;
    // The bus tells why it failed.
    let _ = pipeline.set_state(gst::State::Playing);
    let feeder = thread::spawn(move || feed(&source, input.size()));
    let result = wait(&pipeline);
    // Stops the computation; push_buffer in the other thread then fails, which ends that thread.
    pipeline.set_state(gst::State::Null)?;
    let _ = feeder.join();
    result
}

/// Pushes frames that become brighter.
fn feed(source: &gst_app::AppSrc, size: usize) -> Result<(), gst::FlowError> {
    for n in 0..FRAMES {
        let mut buffer = gst::Buffer::from_mut_slice(vec![(n * 10) as u8; size]);
        let buffer_ref = buffer.make_mut();
        buffer_ref.set_pts(gst::ClockTime::SECOND * n / RATE);
        buffer_ref.set_duration(gst::ClockTime::SECOND / RATE);
        source.push_buffer(buffer)?;
    }
    source.end_of_stream().map(|_| ())
}

/// Prints a frame's time, size and first value.
fn show(sample: &gst::Sample) -> Option<()> {
    let info = gst_video::VideoInfo::from_caps(sample.caps()?).ok()?;
    let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(sample.buffer()?, &info).ok()?;
    let value = frame.plane_data(0).ok()?.first()?;
    println!("{} {}x{} {value}", frame.buffer().pts()?, info.width(), info.height());
    Some(())
}

/// Prints the element's messages until the end of the stream or an error.
fn wait(pipeline: &gst::Pipeline) -> Result<(), Box<dyn Error>> {
    for message in pipeline.bus().ok_or("no bus")?.iter_timed(None) {
        match message.view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Error(error) => return Err(error.error().into()),
            gst::MessageView::Warning(warning) => eprintln!("{}", warning.error()),
            gst::MessageView::Element(element) => {
                // venhance-progress, venhance-model, venhance-shot, …
                element.structure().iter().for_each(|structure| eprintln!("{structure}"));
            }
            _ => {}
        }
    }
    Ok(())
}
