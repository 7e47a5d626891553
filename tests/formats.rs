// SPDX-License-Identifier: MIT OR Apache-2.0
//! Formats and colours: what goes in, what comes out, and what a frame loses on the way.

mod common;

use std::path::Path;

use common::{Rig, caps, frames, record};
use gst::prelude::*;
use gst_video::{VideoFormat, VideoFormatInfo, VideoInfo};

/// All formats that GStreamer has, so that new ones are tested as well.
fn formats() -> impl Iterator<Item = (&'static str, VideoFormatInfo)> {
    common::init();
    VideoFormat::iter_raw()
        .map(|format| (format.to_str().as_str(), VideoFormatInfo::from_format(format)))
}

/// The bytes of every buffer that reaches the element called "sink", and its caps.
fn collect(pipeline: &str) -> (gst::Caps, Vec<Vec<u8>>) {
    common::init();
    let text = pipeline;
    let pipeline = gst::parse::launch(text).unwrap().downcast::<gst::Pipeline>().unwrap();
    let recorded = record(&pipeline.by_name("sink").unwrap().static_pad("sink").unwrap());
    pipeline.set_state(gst::State::Playing).unwrap();
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let end = pipeline
        .bus()
        .unwrap()
        .timed_pop_filtered(gst::ClockTime::from_seconds(30), &ends)
        .expect("the pipeline hangs");
    pipeline.set_state(gst::State::Null).unwrap();
    assert_eq!(end.type_(), gst::MessageType::Eos, "{text}: {end:?}");
    let recorded = std::mem::take(&mut *recorded.lock().unwrap());
    let bytes = recorded.buffers.iter().map(|buffer| buffer.map_readable().unwrap().to_vec());
    (recorded.caps.unwrap(), bytes.collect())
}

/// GStreamer's converter without anything that changes values, to a format of 16 bits: unpacks.
const UNPACK: &str =
    "videoconvert dither=none chroma-mode=none matrix-mode=none primaries-mode=none";

/// The 16-bit values of every frame, unpacked, as the elements after `source` leave them.
fn values(source: &str, elements: &str, format: VideoFormatInfo) -> Vec<u16> {
    let wide = if format.is_rgb() { "ARGB64" } else { "AYUV64" };
    let (_, frames) = collect(&format!(
        "{source} ! {elements} ! {UNPACK} ! video/x-raw,format={wide} ! fakesink name=sink"
    ));
    let bytes = frames.concat();
    let values = bytes.as_chunks().0.iter().map(|bytes| u16::from_ne_bytes(*bytes));
    // What GStreamer unpacks as alpha may be padding.
    let has_alpha = format.has_palette() || format.depth().get(3).is_some_and(|&depth| depth > 0);
    values.enumerate().map(|(n, value)| if n % 4 > 0 || has_alpha { value } else { 0 }).collect()
}

fn worst(a: &[u16], b: &[u16]) -> u16 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

fn mean_square(a: &[u16], b: &[u16]) -> f64 {
    assert_eq!(a.len(), b.len());
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    squares.sum::<f64>() / a.len() as f64
}

/// A colourful picture with alpha that RGB can show, so that nothing is clipped on the way.
struct Picture(tempfile::NamedTempFile);

impl Picture {
    const SIZE: (i32, i32) = (96, 64);

    fn new() -> Self {
        Self::with_alpha(true)
    }

    /// The same without transparency.
    fn opaque() -> Self {
        Self::with_alpha(false)
    }

    fn with_alpha(alpha: bool) -> Self {
        common::init();
        let wave = |x: f64| (127.0 + 80.0 * x.sin()) as u8;
        let (width, height) = Self::SIZE;
        let pixels: Vec<u8> = (0..width * height)
            .flat_map(|i| {
                let (x, y) = (f64::from(i % width), f64::from(i / width));
                [
                    wave(x / 5.0 + y / 40.0),
                    wave(y / 7.0 - x / 30.0),
                    wave((x + y) / 9.0),
                    if alpha { wave((x - y) / 12.0) } else { 255 },
                ]
            })
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pixels).unwrap();
        Self(file)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Elements that give one frame of this format.
    fn source(&self, format: &str) -> String {
        let (width, height) = Self::SIZE;
        format!(
            "filesrc location={} \
             ! rawvideoparse format=rgba width={width} height={height} framerate=10/1 \
             ! videoconvert dither=none ! video/x-raw,format={format}",
            self.path().display()
        )
    }
}

/// Whether chroma has the size of luma.
fn has_full_chroma(format: VideoFormatInfo) -> bool {
    format.w_sub().iter().chain(format.h_sub()).all(|shift| *shift == 0)
}

#[test]
fn every_format_goes_in_and_comes_out_as_itself_at_any_size() {
    for (format, _) in formats() {
        let (caps, frames) = collect(&format!(
            "videotestsrc num-buffers=2 ! video/x-raw,format={format},width=33,height=21,framerate=10/1 \
             ! venhance up-scale=2 target-fps=20 ! video/x-raw,format={format} ! fakesink name=sink"
        ));
        let info = VideoInfo::from_caps(&caps).unwrap();
        assert_eq!(
            (info.format().to_str().as_str(), info.width(), info.height()),
            (format, 66, 42)
        );
        assert_eq!(frames.len(), 3, "{format}");
    }
}

#[test]
fn the_output_has_the_format_of_the_input_unless_that_has_a_palette() {
    for (format, info) in formats() {
        let (caps, _) = collect(&format!(
            "videotestsrc num-buffers=1 ! video/x-raw,format={format},width=16,height=16 \
             ! venhance up-scale=2 ! fakesink name=sink"
        ));
        let output = VideoInfo::from_caps(&caps).unwrap().format();
        match info.has_palette() {
            false => assert_eq!(output, info.format()),
            true => assert!(!VideoFormatInfo::from_format(output).has_palette()),
        }
    }
}

#[test]
fn without_enlarging_a_frame_of_full_chroma_stays_within_one_code_value() {
    let picture = Picture::new();
    for (name, format) in formats().filter(|(_, format)| has_full_chroma(*format)) {
        let through = |elements: &str| values(&picture.source(name), elements, format);
        let input = through("identity");
        let output =
            through(&format!("venhance up-scale=1 target-fps=0/1 ! video/x-raw,format={name}"));
        // Entries of a palette are 51 apart.
        let steps = match format.has_palette() {
            true => 5,
            false => (1 << format.depth().iter().min().unwrap().min(&16)) - 1,
        };
        let step = (65535 / steps) as u16;
        let step = step.max(3);
        assert!(worst(&input, &output) <= step, "{name}: {}", worst(&input, &output));
    }
}

#[test]
fn without_enlarging_a_frame_of_less_chroma_loses_no_more_than_through_videoconvert() {
    let picture = Picture::new();
    for (name, format) in formats().filter(|(_, format)| !has_full_chroma(*format)) {
        let through = |elements: &str| values(&picture.source(name), elements, format);
        let input = through("identity");
        let loss = |elements: &str| mean_square(&input, &through(elements));
        let ours = loss(&format!("venhance up-scale=1 target-fps=0/1 ! video/x-raw,format={name}"));
        let theirs = loss(&format!(
            "videoconvert n-threads=1 dither=none ! video/x-raw,format=ARGB64 \
             ! videoconvert n-threads=1 dither=none ! video/x-raw,format={name}"
        ));
        assert!(ours <= theirs, "{name}: mean square {ours}, videoconvert {theirs}");
    }
}

/// Luma from 1 to 254 and chroma that R'G'B' cannot show, in smooth waves that move by 2 pixels a frame: 96×64 I420.
fn beyond_the_nominal_range(n: usize) -> Vec<u8> {
    let wave = |x: usize, y: usize, most: f64| {
        let (x, y) = ((x + 2 * n) as f64, y as f64);
        (127.5 + most * (0.1 * x + 0.07 * y).sin() * (0.13 * y).cos()) as u8
    };
    let luma = (0..96 * 64).map(|i| wave(i % 96, i / 96, 126.0));
    let chroma = (0..2 * 48 * 32).map(|i| wave(2 * (i % 48), 2 * (i / 48), 110.0));
    luma.chain(chroma).collect()
}

/// The output of these properties for four frames beyond the nominal range.
fn beyond_the_nominal_range_through(properties: &str) -> Vec<Vec<u8>> {
    let properties = format!("model=lite {properties}");
    let mut rig = Rig::with(&properties, &caps("I420", 96, 64, (10, 1)));
    for n in 0..4 {
        let mut frame = rig.frame();
        frame.make_mut().map_writable().unwrap().copy_from_slice(&beyond_the_nominal_range(n));
        rig.harness.push(frame).unwrap();
    }
    let output = frames(&rig.finish());
    output.iter().map(|buffer| buffer.map_readable().unwrap().to_vec()).collect()
}

#[test]
fn at_up_scale_1_input_frames_are_bit_equal() {
    for (properties, step) in [("up-scale=1 target-fps=0/1", 1), ("up-scale=1 target-fps=20/1", 2)]
    {
        let output = beyond_the_nominal_range_through(properties);
        for (n, frame) in output.iter().step_by(step).enumerate() {
            assert!(*frame == beyond_the_nominal_range(n), "{properties}, frame {n}");
        }
    }
}

#[test]
fn luma_and_chroma_beyond_the_nominal_range_survive_resize_and_interpolation() {
    let mean_square = |a: &[u8], b: &[u8]| {
        let squares = a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
        squares.sum::<f64>() / a.len() as f64
    };
    // Interpolated: the frame between two of them, which has moved by one pixel.
    let output = beyond_the_nominal_range_through("up-scale=1 target-fps=20/1");
    for (n, frame) in output.iter().enumerate().skip(1).step_by(2) {
        let (before, after) =
            (beyond_the_nominal_range(n / 2), beyond_the_nominal_range(n / 2 + 1));
        let between: Vec<u8> = before.iter().zip(&after).map(|(a, b)| a.midpoint(*b)).collect();
        let error = mean_square(frame, &between);
        assert!(error < 6.0, "interpolated frame {n}: {error:.2}");
        assert!(frame[..96 * 64].iter().any(|luma| *luma > 250));
        assert!(frame[..96 * 64].iter().any(|luma| *luma < 5));
    }
    // Resized: the mean of 2×2 pixels is the input's.
    for (n, frame) in
        beyond_the_nominal_range_through("up-scale=2 target-fps=0/1").iter().enumerate()
    {
        let input = beyond_the_nominal_range(n);
        let at = |x: usize, y: usize| u32::from(frame[y * 192 + x]);
        let small: Vec<u8> = (0..96 * 64)
            .map(|i| (2 * (i % 96), 2 * (i / 96)))
            .map(|(x, y)| {
                ((at(x, y) + at(x + 1, y) + at(x, y + 1) + at(x + 1, y + 1) + 2) / 4) as u8
            })
            .collect();
        let error = mean_square(&small, &input[..96 * 64]);
        assert!(error < 1.5, "frame {n}, twice as large: {error:.2}");
        let small_chroma: Vec<u8> = (0..48 * 32)
            .map(|i| 192 * 128 + 2 * (i / 48) * 96 + 2 * (i % 48))
            .map(|at| {
                [0, 1, 96, 97].map(|d| u32::from(frame[at + d])).iter().sum::<u32>().div_ceil(4)
                    as u8
            })
            .collect();
        let error = mean_square(&small_chroma, &input[96 * 64..96 * 64 + 48 * 32]);
        assert!(error < 6.0, "frame {n}, chroma twice as large: {error:.2}");
    }
}

/// The picture, enlarged in a format, in 16-bit RGB with alpha.
fn enlarged(picture: &Picture, format: &str) -> Vec<u16> {
    let rgb = VideoFormatInfo::from_format(VideoFormat::Argb64);
    let elements = format!(
        "venhance model=lite up-scale=2 target-fps=0/1 ! video/x-raw,format={format} \
         ! videoconvert dither=none ! video/x-raw,format=ARGB64"
    );
    values(&picture.source(format), &elements, rgb)
}

#[test]
fn lite_makes_the_same_picture_of_every_format() {
    let picture = Picture::opaque();
    let reference = enlarged(&picture, "ARGB64");
    for (name, format) in formats() {
        let output = enlarged(&picture, name);
        // Of [A, R, G, B]; grey formats keep the luma, of BT.601 by GStreamer's default.
        let luma = |r: u16, g: u16, b: u16| {
            0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b)
        };
        let colours = |values: &[u16]| -> Vec<u16> {
            let pixels = values.as_chunks::<4>().0.iter();
            match format.is_gray() {
                true => pixels.map(|&[_, r, g, b]| luma(r, g, b) as u16).collect(),
                false => pixels.flat_map(|[_, colours @ ..]| *colours).collect(),
            }
        };
        let error = mean_square(&colours(&output), &colours(&reference)).sqrt() / 257.0;
        // Two roundings to the depth of the format, videoconvert's of the input and ours; and videoconvert's
        // matrix, which has 8 bits.
        let depth = format.depth().iter().take(3).filter(|depth| **depth <= 16).min().unwrap();
        let rounding = 0.6 * f64::from(256 >> depth.min(&8));
        let shifts = [format.w_sub(), format.h_sub()];
        let chroma: u32 = shifts.iter().map(|shifts| shifts.iter().max().unwrap()).sum();
        let palette = if format.has_palette() { 30.0 } else { 0.0 };
        let allowed = 0.5 + rounding + 1.5 * f64::from(chroma) + palette;
        assert!(error <= allowed, "{name}: {error:.2}, allowed {allowed:.2}");
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
    for (input, offered, output) in [
        ("I420", "RGB,RGBA,GRAY8", "RGB"),
        ("RGBA", "RGB,I420,BGRA", "BGRA"),
        // Alpha, then depth, then family, then chroma.
        ("A420", "I420,RGB,ARGB64,AYUV", "AYUV"),
        ("GBRA_12LE", "GBR_12LE,ARGB", "ARGB"),
        ("Y444_10LE", "Y444,I420_10LE", "I420_10LE"),
        ("I420_10LE", "NV12,GBR_10LE", "GBR_10LE"),
        ("I420", "RGB,I420_10LE", "I420_10LE"),
        ("I420", "Y444,I420_10LE", "Y444"),
        ("P016_LE", "I420,I420_12LE,I420_10LE", "I420_12LE"),
        ("P012_LE", "P016_LE,I420_10LE,Y444_16LE", "P016_LE"),
        ("v210", "Y444_10LE,I420_10LE,I422_10LE", "I422_10LE"),
        ("Y41B", "I420,Y444,Y42B", "Y42B"),
        ("YUV9", "Y444,Y42B,I420", "I420"),
        ("YUY2", "UYVY,NV16,Y42B", "Y42B"),
        ("RGB", "Y444,NV12", "NV12"),
        ("RGB16", "RGB15,RGB", "RGB"),
        ("RGB15", "RGB16,RGB", "RGB16"),
        ("GRAY8", "RGB,I420,GRAY16_LE", "I420"),
        ("GRAY16_LE", "I420,GRAY8,GRAY10_LE32,I420_10LE", "GRAY10_LE32"),
        ("Y410", "Y444_10LE,AYUV,A444_10LE", "A444_10LE"),
        ("RGB8P", "RGB8P,RGB,I420", "RGB"),
        ("RGB", "RGB8P,RGB16", "RGB16"),
    ] {
        let output = VideoFormat::from_string(output);
        assert_eq!(chosen(input, offered), output, "{input} to {offered}");
    }
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
    for (plane, ideal) in frames[0].chunks(64 * 64).zip([63u8, 102, 240]) {
        assert!(plane[2000].abs_diff(ideal) <= 1, "{} {ideal}", plane[2000]);
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
fn alpha_is_kept_in_every_format_that_has_it() {
    let picture = Picture::new();
    let rgb = VideoFormatInfo::from_format(VideoFormat::Argb64);
    for (name, format) in formats() {
        let depth = format.depth().get(3).copied().unwrap_or(0);
        if depth == 0 {
            continue;
        }
        let elements = "venhance model=lite up-scale=2 target-fps=0/1";
        let rgba = |middle: &str| {
            let elements = format!("{middle} ! venhance up-scale=1 ! video/x-raw,format=ARGB64");
            values(&picture.source(name), &elements, rgb)
        };
        let output = rgba(&format!("{elements} ! video/x-raw,format={name}"));
        let reference =
            rgba(&format!("venhance up-scale=1 ! video/x-raw,format=ARGB64 ! {elements}"));
        let off = output.iter().zip(&reference).step_by(4).map(|(a, b)| a.abs_diff(*b)).max();
        // Half a code value, rounded once.
        let step = (65_535 / ((1_u32 << depth.min(16)) - 1)) as u16;
        assert!(off.unwrap() <= step / 2 + 2, "{name}: {off:?}, a code value is {step}");
        assert!(reference.iter().step_by(4).any(|alpha| *alpha < 30_000));
    }
}

#[test]
fn frames_that_cannot_be_read_are_refused_with_their_name_and_what_to_do() {
    for (caps, name, remedy) in [
        ("video/x-raw(memory:GLMemory),format=RGBA", "memory:GLMemory", "gldownload"),
        ("video/x-raw(memory:DMABuf),format=NV12", "memory:DMABuf", "system memory"),
        ("video/x-raw,format=DMA_DRM", "DMA_DRM", "before venhance"),
        ("video/x-raw,format=ENCODED", "ENCODED", "before venhance"),
        ("video/x-h264,stream-format=byte-stream", "video/x-h264", "decoder"),
    ] {
        let mut rig = Rig::without_caps("");
        let caps = format!("{caps},width=16,height=16,framerate=10/1").parse().unwrap();
        rig.harness.push_event(gst::event::StreamStart::new("x"));
        rig.harness.push_event(gst::event::Caps::new(&caps));
        let error = rig.error().unwrap();
        assert!(error.contains(name) && error.contains(remedy), "{caps}: {error}");
    }
}

#[test]
fn a_buffer_smaller_than_its_caps_is_an_error_that_says_so() {
    let mut rig = Rig::new();
    let mut buffer = gst::Buffer::with_size(5).unwrap();
    buffer.get_mut().unwrap().set_pts(gst::ClockTime::ZERO);
    assert_eq!(rig.harness.push(buffer), Err(gst::FlowError::Error));
    assert!(rig.error().unwrap().contains("smaller than its caps"));
}
