// SPDX-License-Identifier: MIT OR Apache-2.0
//! Formats and colours: what goes in, what comes out, and what a frame loses on the way.

mod common;

use std::sync::{Arc, Mutex};

use common::{Rig, caps, frames};
use gst::prelude::*;
use gst_video::{VideoFormat, VideoInfo};

const FORMATS: [&str; 22] = [
    "I420",
    "YV12",
    "NV12",
    "Y42B",
    "Y444",
    "GRAY8",
    "RGB",
    "BGR",
    "RGBx",
    "BGRx",
    "xRGB",
    "xBGR",
    "RGBA",
    "BGRA",
    "ARGB",
    "ABGR",
    "GBR",
    "I420_10LE",
    "P010_10LE",
    "I422_10LE",
    "Y444_10LE",
    "GBR_10LE",
];

/// The bytes of every buffer that reaches the element called "sink", and its caps.
fn collect(pipeline: &str) -> (gst::Caps, Vec<Vec<u8>>) {
    common::init();
    let pipeline = gst::parse::launch(pipeline).unwrap().downcast::<gst::Pipeline>().unwrap();
    let seen = Arc::new(Mutex::new((None, Vec::new())));
    let log = seen.clone();
    let pad = pipeline.by_name("sink").unwrap().static_pad("sink").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        if let Some(gst::PadProbeData::Buffer(buffer)) = &info.data {
            let mut log = log.lock().unwrap();
            log.0 = pad.current_caps();
            log.1.push(buffer.map_readable().unwrap().to_vec());
        }
        gst::PadProbeReturn::Ok
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let end = pipeline
        .bus()
        .unwrap()
        .timed_pop_filtered(gst::ClockTime::from_seconds(30), &ends)
        .expect("the pipeline hangs");
    pipeline.set_state(gst::State::Null).unwrap();
    assert_eq!(end.type_(), gst::MessageType::Eos, "{end:?}");
    let (caps, frames) = std::mem::take(&mut *seen.lock().unwrap());
    (caps.unwrap(), frames)
}

/// The components of a frame, one after the other, row by row without padding.
fn components(caps: &gst::Caps, bytes: &[u8]) -> Vec<Vec<u32>> {
    let info = VideoInfo::from_caps(caps).unwrap();
    let buffer = gst::Buffer::from_slice(bytes.to_vec());
    let frame = gst_video::VideoFrame::from_buffer_readable(buffer, &info).unwrap();
    let format = info.format_info();
    (0..format.n_components() as usize)
        .map(|component| {
            let plane = format.plane()[component];
            let data = frame.plane_data(plane).unwrap();
            let stride = info.stride()[plane as usize] as usize;
            let step = format.pixel_stride()[component] as usize;
            // GStreamer gives 1 for the second chroma of P010, which is at 2.
            let bytes = usize::from(format.depth()[component] > 8) + 1;
            let offset = (format.poffset()[component] as usize).next_multiple_of(bytes);
            let width = info.comp_width(component as u8) as usize;
            let height = info.comp_height(component as u8) as usize;
            (0..width * height)
                .map(|i| {
                    let at = i / width * stride + i % width * step + offset;
                    match format.depth()[component] > 8 {
                        true => u32::from(
                            u16::from_le_bytes([data[at], data[at + 1]])
                                >> format.shift()[component],
                        ),
                        false => u32::from(data[at]),
                    }
                })
                .collect()
        })
        .collect()
}

fn worst(a: &[Vec<u32>], b: &[Vec<u32>]) -> u32 {
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

fn mean_square(a: &[Vec<u32>], b: &[Vec<u32>]) -> f64 {
    let squares: f64 = a
        .iter()
        .flatten()
        .zip(b.iter().flatten())
        .map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2))
        .sum();
    squares / a.iter().map(Vec::len).sum::<usize>() as f64
}

/// A colourful picture, in a format, that RGB can show, so that nothing is clipped on the way.
struct Picture(tempfile::NamedTempFile);

impl Picture {
    fn new() -> Self {
        let wave = |x: f64| (127.0 + 80.0 * x.sin()) as u8;
        let pixels: Vec<u8> = (0..96 * 64)
            .flat_map(|i| {
                let (x, y) = (f64::from(i % 96), f64::from(i / 96));
                [wave(x / 5.0 + y / 40.0), wave(y / 7.0 - x / 30.0), wave((x + y) / 9.0)]
            })
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pixels).unwrap();
        Self(file)
    }

    fn through(&self, format: &str, elements: &str) -> (gst::Caps, Vec<Vec<u32>>) {
        let (caps, frames) = collect(&format!(
            "filesrc location={} ! rawvideoparse format=rgb width=96 height=64 framerate=10/1 \
             ! videoconvert dither=none ! video/x-raw,format={format} ! {elements} ! fakesink name=sink",
            self.0.path().display()
        ));
        let components = components(&caps, &frames[0]);
        (caps, components)
    }
}

#[test]
fn every_format_goes_in_and_comes_out_as_itself_at_any_size() {
    for format in FORMATS {
        let (caps, frames) = collect(&format!(
            "videotestsrc num-buffers=2 ! video/x-raw,format={format},width=33,height=21,framerate=10/1 \
             ! venhance up-scale=2 target-fps=20 ! fakesink name=sink"
        ));
        let info = VideoInfo::from_caps(&caps).unwrap();
        assert_eq!(
            (info.format().to_str().as_str(), info.width(), info.height()),
            (format, 66, 42)
        );
        assert_eq!(frames.len(), 3);
    }
}

#[test]
fn without_enlarging_a_frame_of_full_chroma_stays_within_one_code_value() {
    let picture = Picture::new();
    for format in ["Y444", "Y444_10LE", "RGB", "BGRx", "ARGB", "GBR", "GBR_10LE", "GRAY8"] {
        let (before, input) = picture.through(format, "identity");
        let (after, output) = picture.through(format, "venhance up-scale=1 target-fps=0/1");
        assert_eq!(VideoInfo::from_caps(&before).unwrap(), VideoInfo::from_caps(&after).unwrap());
        assert!(worst(&input, &output) <= 1, "{format}: {}", worst(&input, &output));
    }
}

#[test]
fn without_enlarging_a_frame_of_less_chroma_loses_no_more_than_through_videoconvert() {
    let picture = Picture::new();
    for format in ["I420", "YV12", "NV12", "Y42B", "I420_10LE", "P010_10LE", "I422_10LE"] {
        let (_, input) = picture.through(format, "identity");
        let loss = |elements: &str| mean_square(&input, &picture.through(format, elements).1);
        let ours = loss("venhance up-scale=1 target-fps=0/1");
        let theirs = loss(&format!(
            "videoconvert ! video/x-raw,format=ARGB64 ! videoconvert ! video/x-raw,format={format}"
        ));
        assert!(ours <= theirs, "{format}: mean square {ours}, videoconvert {theirs}");
    }
}

#[test]
fn alpha_is_enlarged_with_the_picture() {
    let mut rig = Rig::with("up-scale=2 target-fps=0/1", &caps("BGRA", 16, 16, (10, 1)));
    let mut frame = rig.frame();
    for (i, pixel) in
        frame.get_mut().unwrap().map_writable().unwrap().chunks_exact_mut(4).enumerate()
    {
        pixel.copy_from_slice(&[10, 120, 200, if i % 16 < 8 { 255 } else { 0 }]);
    }
    rig.harness.push(frame).unwrap();
    let frames = frames(&rig.finish());
    let out = frames[0].map_readable().unwrap();
    let pixel = |x: usize, y: usize| &out[(y * 32 + x) * 4..][..4];
    assert_eq!(pixel(3, 20), [10, 120, 200, 255]);
    assert_eq!(pixel(28, 20)[3], 0);
    assert!((1..255).contains(&pixel(15, 20)[3]) || (1..255).contains(&pixel(16, 20)[3]));
}

/// The output format for an input format when downstream can take `offered`.
fn chosen(input: &str, offered: &str) -> VideoFormat {
    let (caps, _) = collect(&format!(
        "videotestsrc num-buffers=1 ! video/x-raw,format={input},width=32,height=32 \
         ! venhance up-scale=2 ! capsfilter caps=\"video/x-raw,format={{{offered}}}\" ! fakesink name=sink"
    ));
    VideoInfo::from_caps(&caps).unwrap().format()
}

#[test]
fn the_output_format_is_the_nearest_that_downstream_takes() {
    // What x264enc says, in its order.
    let x264 = "Y444,Y42B,I420,YV12,NV12,Y444_10LE,I422_10LE,I420_10LE";
    for (input, output) in [
        ("I420", VideoFormat::I420),
        ("NV12", VideoFormat::Nv12),
        ("YV12", VideoFormat::Yv12),
        ("Y42B", VideoFormat::Y42b),
        ("Y444", VideoFormat::Y444),
        ("I420_10LE", VideoFormat::I42010le),
        ("P010_10LE", VideoFormat::I42010le),
        ("I422_10LE", VideoFormat::I42210le),
        ("GBR_10LE", VideoFormat::I42010le),
        ("RGB", VideoFormat::I420),
        ("BGRA", VideoFormat::I420),
        ("GRAY8", VideoFormat::I420),
    ] {
        assert_eq!(chosen(input, x264), output, "{input}");
    }
    assert_eq!(chosen("I420", "RGB,RGBA,GRAY8"), VideoFormat::Rgb);
    assert_eq!(chosen("RGBA", "RGB,I420,BGRA"), VideoFormat::Bgra);
    assert_eq!(chosen("Y444_10LE", "Y444,I420_10LE"), VideoFormat::I42010le, "depth before chroma");
}

/// The output's caps for the input's.
fn out_caps(input: &str, downstream: &str) -> gst::Structure {
    common::init();
    let caps: gst::Caps = input.parse().unwrap();
    let format = caps.structure(0).unwrap().get::<String>("format").unwrap();
    let (caps, _) = collect(&format!(
        "videotestsrc num-buffers=1 ! video/x-raw,format={format},width=64,height=48,framerate=10/1 \
         ! capssetter caps=\"{input}\" ! venhance up-scale=4 target-fps=20 ! {downstream} ! fakesink name=sink"
    ));
    caps.structure(0).unwrap().to_owned()
}

#[test]
fn colour_aspect_and_mastering_data_are_those_of_the_input() {
    let out = out_caps(
        "video/x-raw,format=I420_10LE,colorimetry=bt2100-pq,chroma-site=mpeg2,pixel-aspect-ratio=4/3,\
         mastering-display-info=(string)17000:8500:13250:34500:7500:3000:15635:16450:10000000:1,\
         content-light-level=(string)1000:400",
        "identity",
    );
    assert_eq!(out.get::<&str>("colorimetry"), Ok("bt2100-pq"));
    assert_eq!(out.get::<&str>("chroma-site"), Ok("mpeg2"));
    assert_eq!(out.get::<gst::Fraction>("pixel-aspect-ratio"), Ok(gst::Fraction::new(4, 3)));
    assert_eq!(out.get::<&str>("content-light-level"), Ok("1000:400"));
    assert!(out.has_field("mastering-display-info"));
    assert_eq!((out.get::<i32>("width"), out.get::<i32>("height")), (Ok(256), Ok(192)));
}

#[test]
fn the_matrix_of_small_video_stays_when_it_becomes_large() {
    // Without a word in the caps, small video is BT.601 and large video would be read as BT.709.
    let (caps, _) = collect(
        "videotestsrc num-buffers=1 ! video/x-raw,format=I420,width=320,height=240 ! venhance up-scale=4 \
         ! fakesink name=sink",
    );
    assert_eq!(caps.structure(0).unwrap().get::<&str>("colorimetry"), Ok("bt601"));
    assert_eq!(VideoInfo::from_caps(&caps).unwrap().height(), 960);
}

#[test]
fn rgb_and_yuv_keep_transfer_and_primaries_of_each_other() {
    let rgb = out_caps(
        "video/x-raw,format=I420,colorimetry=bt2020",
        "capsfilter caps=video/x-raw,format=RGB",
    );
    let rgb = VideoInfo::from_caps(&gst::Caps::builder_full().structure(rgb).build()).unwrap();
    assert_eq!(rgb.colorimetry().range(), gst_video::VideoColorRange::Range0_255);
    assert_eq!(rgb.colorimetry().primaries(), gst_video::VideoColorPrimaries::Bt2020);
    assert_eq!(rgb.colorimetry().transfer(), gst_video::VideoTransferFunction::Bt202012);
    let yuv = out_caps(
        "video/x-raw,format=RGB,colorimetry=sRGB",
        "capsfilter caps=video/x-raw,format=I420",
    );
    let yuv = VideoInfo::from_caps(&gst::Caps::builder_full().structure(yuv).build()).unwrap();
    assert_eq!(yuv.colorimetry().range(), gst_video::VideoColorRange::Range16_235);
    assert_eq!(yuv.colorimetry().transfer(), gst_video::VideoTransferFunction::Srgb);
}

#[test]
fn a_matrix_that_downstream_insists_on_is_converted_to() {
    let (caps, frames) = collect(
        "videotestsrc num-buffers=1 pattern=red ! video/x-raw,format=Y444,width=32,height=32,colorimetry=bt601 \
         ! venhance up-scale=2 ! capsfilter caps=video/x-raw,colorimetry=bt709 ! fakesink name=sink",
    );
    assert_eq!(caps.structure(0).unwrap().get::<&str>("colorimetry"), Ok("bt709"));
    // ITU-R BT.709: red is (63, 102, 240), and (81, 90, 240) in BT.601.
    let components = components(&caps, &frames[0]);
    for (component, ideal) in components.iter().zip([63u32, 102, 240]) {
        assert!(component[2000].abs_diff(ideal) <= 1, "{} {ideal}", component[2000]);
    }
}

#[test]
fn alpha_that_is_thrown_away_does_not_touch_the_colours() {
    let mut rig = Rig::without_caps("up-scale=2 target-fps=0/1");
    rig.harness.set_sink_caps("video/x-raw,format=BGR".parse().unwrap());
    rig.set_caps(&caps("BGRA", 16, 16, (10, 1)));
    let mut frame = rig.frame();
    for pixel in frame.get_mut().unwrap().map_writable().unwrap().chunks_exact_mut(4) {
        pixel.copy_from_slice(&[200, 150, 100, 0]);
    }
    rig.harness.push(frame).unwrap();
    let frames = frames(&rig.finish());
    assert_eq!(frames[0].map_readable().unwrap()[300..303], [200, 150, 100]);
}

#[test]
fn pixels_stay_square_where_the_input_does_not_say_and_downstream_takes_any() {
    let (caps, _) = collect(
        "videotestsrc num-buffers=1 ! video/x-raw,format=I420,width=32,height=32 \
         ! capssetter replace=true caps=video/x-raw,format=I420,width=32,height=32,framerate=30/1 \
         ! venhance up-scale=2 ! videoscale ! video/x-raw,pixel-aspect-ratio=1/1,width=64,height=64 ! fakesink name=sink",
    );
    assert_eq!(VideoInfo::from_caps(&caps).unwrap().par(), gst::Fraction::new(1, 1));
}

#[test]
fn a_buffer_smaller_than_its_caps_is_an_error_that_says_so() {
    let mut rig = Rig::new();
    let mut buffer = gst::Buffer::with_size(5).unwrap();
    buffer.get_mut().unwrap().set_pts(gst::ClockTime::ZERO);
    assert_eq!(rig.harness.push(buffer), Err(gst::FlowError::Error));
    assert!(rig.error().unwrap().contains("smaller than its caps"));
}
