// SPDX-License-Identifier: MIT OR Apache-2.0
//! All formats that GStreamer has, so that new ones are tested as well.

use std::str::FromStr;

use gst_video::{VideoColorimetry, VideoFormat};

use super::*;

fn info(format: VideoFormat, width: u32, height: u32) -> VideoInfo {
    gst::init().unwrap();
    VideoInfo::builder(format, width, height).build().unwrap()
}

fn formats() -> impl Iterator<Item = VideoFormat> {
    gst::init().unwrap();
    VideoFormat::iter_raw()
}

/// Values without a pattern.
fn noise(length: usize) -> impl Iterator<Item = u16> {
    let mut state = 1_u32;
    (0..length).map(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as u16
    })
}

/// To frames of R'G'B'.
fn unpacker(info: &VideoInfo) -> Unpacker {
    Unpacker::new(info.clone(), info, false).unwrap()
}

fn packer(info: &VideoInfo) -> Packer {
    Packer::new(info, info.clone()).unwrap()
}

fn pack(packer: &Packer, frame: &Frame) -> gst::Buffer {
    let mut buffer = gst::Buffer::from_mut_slice(vec![0_u8; packer.info.size()]);
    packer.pack(frame, buffer.make_mut(), &Cancel::default()).unwrap();
    buffer
}

fn bytes(buffer: &gst::BufferRef) -> Vec<u8> {
    buffer.map_readable().unwrap().to_vec()
}

#[test]
fn bands_give_what_the_whole_frame_gives_in_every_format() {
    for format in formats() {
        for (width, height) in [(33, 21), (32, 20), (5, 3)] {
            let info = info(format, width, height);
            // GStreamer 1.22 reads beyond the end of NV16_10LE32 of an odd width.
            let input = noise(info.size() + 64).map(|value| value as u8).collect::<Vec<_>>();
            let input = gst::Buffer::from_mut_slice(input);
            let unpacked = |rows| {
                let unpacker = Unpacker::in_bands(info.clone(), &info, false, rows).unwrap();
                unpacker.unpack(&input, &Cancel::default()).unwrap()
            };
            let frame = unpacked(height as usize);
            for rows in [4, 8] {
                let worst = difference(unpacked(rows).pixels(), frame.pixels());
                assert_eq!(worst, [0; 4], "{format} {width}×{height}, {rows} rows");
            }
            let mut frame = frame;
            let values = noise(frame.pixels().len());
            frame.pixels_mut().iter_mut().zip(values).for_each(|(pixel, value)| *pixel = value);
            let packed =
                |rows| bytes(&pack(&Packer::in_bands(&info, info.clone(), rows).unwrap(), &frame));
            let whole = packed(height as usize);
            for rows in [4, 8] {
                assert!(packed(rows) == whole, "{format} {width}×{height}, {rows} rows");
            }
        }
    }
}

#[test]
fn bands_cover_frames_of_any_size_and_begin_where_chroma_does() {
    for (width, height) in [(1, 1), (1, 32768), (32768, 1), (640, 360), (7680, 4320), (123, 457)] {
        let info = info(VideoFormat::I420, width, height);
        let rows = bands::band_rows(&info);
        assert!(rows.is_multiple_of(4) && rows * 64 >= height as usize);
        let bands = Bands::packing(&info, rows).unwrap();
        let covered: u32 = bands.par_iter().map(|band| band.scratch.height()).sum();
        assert_eq!(covered, height);
    }
}

/// The largest difference of each component of a pixel.
fn difference(a: &[u16], b: &[u16]) -> [u16; 4] {
    let mut worst = [0; 4];
    for (n, (a, b)) in a.iter().zip(b).enumerate() {
        worst[n % 4] = worst[n % 4].max(a.abs_diff(*b));
    }
    worst
}

#[test]
fn a_colour_comes_back_as_exactly_as_the_depth_of_every_format_allows() {
    let colours: [[u16; 4]; 6] = [
        [0, 0, 0, 65535],
        [65535, 65535, 65535, 65535],
        [65535, 0, 0, 65535],
        [12_345, 45_678, 34_567, 65535],
        [60_000, 5_000, 30_000, 21_845],
        [7_000, 52_000, 61_000, 0],
    ];
    for format in formats() {
        let info = info(format, 16, 8);
        let format_info = info.format_info();
        let (packer, unpacker) = (packer(&info), unpacker(&info));
        for colour in colours {
            if format_info.has_palette() && colour[3] < 0x8000 {
                // There is one transparent entry.
                continue;
            }
            let grey = [colour[1], colour[1], colour[1], colour[3]];
            let colour = if format_info.is_gray() { grey } else { colour };
            let mut frame = Frame::new(16, 8).unwrap();
            frame.pixels_mut().as_chunks_mut().0.fill(colour);
            let out = unpacker.unpack(&pack(&packer, &frame), &Cancel::default()).unwrap();

            // A palette holds 6 values of each component.
            let codes = |i: usize| match format_info.has_palette() {
                true => 5.0,
                false => f64::from((1 << format_info.depth()[i].min(16)) - 1),
            };
            let has_alpha = crate::element::caps::has_alpha(format_info);
            let mut expected = colour;
            if !has_alpha {
                expected[3] = 65535;
            }
            let worst = difference(out.pixels(), &expected.repeat(16 * 8));
            // Half a code value of each component, through the matrix; limited range has fewer.
            let colour_error = if format_info.is_rgb() { 1.0 } else { 1.9 };
            let least = (0..format_info.depth().len().min(3)).map(codes).fold(65535.0, f64::min);
            let allowed = (65535.0 / least * colour_error + 1.0) as u16;
            assert!(
                worst[..3].iter().all(|error| *error <= allowed),
                "{format} {colour:?}: {worst:?}"
            );
            let alpha = if has_alpha && !format_info.has_palette() {
                0.51 * 65535.0 / codes(3)
            } else {
                32768.0
            };
            assert!(f64::from(worst[3]) <= alpha + 1.0, "{format} {colour:?}: {worst:?}");
        }
    }
}

/// Converts a buffer with GStreamer's converter alone.
fn gstreamer(from: &VideoInfo, to: &VideoInfo, buffer: gst::Buffer) -> Vec<u8> {
    let converter = gst_video::VideoConverter::new(from, to, None).unwrap();
    let source = gst_video::VideoFrame::from_buffer_readable(buffer, from).unwrap();
    let target = gst::Buffer::from_mut_slice(vec![0_u8; to.size()]);
    let mut target = gst_video::VideoFrame::from_buffer_writable(target, to).unwrap();
    converter.frame(&source, &mut target);
    bytes(&target.into_buffer())
}

#[test]
fn what_is_packed_means_the_same_to_gstreamer_in_every_format() {
    for format in formats() {
        let info = info(format, 16, 8);
        let format_info = info.format_info();
        for colour in [[0xc0c0_u16, 0x4040, 0x8080, 0xffff], [0x2020, 0xb0b0, 0x9090, 0xffff]] {
            let mut frame = Frame::new(16, 8).unwrap();
            frame.pixels_mut().as_chunks_mut().0.fill(colour);
            let buffer = pack(&packer(&info), &frame);
            let rgba = VideoInfo::builder(VideoFormat::Rgba, 16, 8)
                .colorimetry(&VideoColorimetry::from_str("sRGB").unwrap())
                .build()
                .unwrap();
            let pixel = gstreamer(&info, &rgba, buffer)[..3].to_vec();
            let luma = |[r, g, b]: [f64; 3]| {
                let (kr, kb) = info.colorimetry().matrix().kr_kb().unwrap_or((0.2126, 0.0722));
                kr * r + (1.0 - kr - kb) * g + kb * b
            };
            let expected = colour.map(|value| f64::from(value) / 257.0);
            let expected = [expected[0], expected[1], expected[2]];
            let expected = if format_info.is_gray() { [luma(expected); 3] } else { expected };
            let allowed = match (format_info.has_palette(), format_info.depth()[0]) {
                (true, _) => 47.0,
                _ => 5.0,
            };
            for (value, expected) in pixel.iter().zip(expected) {
                let error = (f64::from(*value) - expected).abs();
                assert!(error <= allowed, "{format}: {pixel:?}, not {expected:?}");
            }
        }
    }
}

/// A buffer with every code value, also beyond the nominal range.
fn noise_buffer(info: &VideoInfo) -> gst::Buffer {
    // GStreamer 1.22 reads beyond the end of NV16_10LE32 of an odd width.
    gst::Buffer::from_mut_slice(
        noise(info.size() + 64).map(|value| value as u8).collect::<Vec<_>>(),
    )
}

#[test]
fn a_frame_that_is_not_changed_is_written_with_the_bytes_it_was_read_from() {
    for format in formats() {
        let info = info(format, 33, 21);
        let input = noise_buffer(&info);
        let unpacker = Unpacker::new(info.clone(), &info, true).unwrap();
        let frame = unpacker.unpack(&input, &Cancel::default()).unwrap();
        let output = bytes(&pack(&packer(&info), &frame));
        // Padding at the end of a row need not be copied.
        let unpacked = |picture: &[u8]| {
            let padded = [&picture[..info.size()], &bytes(&input)[info.size()..]].concat();
            let buffer = gst::Buffer::from_mut_slice(padded);
            unpacker.unpack(&buffer, &Cancel::default()).unwrap().pixels().to_vec()
        };
        assert!(unpacked(&output) == unpacked(&bytes(&input)), "{format}");
    }
}

#[test]
fn every_code_value_of_ycbcr_comes_back_exactly() {
    let mut tested = 0;
    for format in formats() {
        let info = info(format, 32, 20);
        let full_chroma = |shifts: &[u32]| shifts.iter().all(|shift| *shift == 0);
        let unpacker = Unpacker::new(info.clone(), &info, true).unwrap();
        let of = |buffer: &gst::BufferRef| unpacker.unpack(buffer, &Cancel::default()).unwrap();
        let mut frame = of(&noise_buffer(&info));
        let format_info = info.format_info();
        if frame.components() == Components::Rgb
            || !full_chroma(format_info.w_sub())
            || !full_chroma(format_info.h_sub())
        {
            continue;
        }
        // Writing drops the source.
        frame.pixels_mut();
        let packed = pack(&packer(&info), &frame);
        assert!(of(&packed).pixels() == frame.pixels(), "{format}");
        tested += 1;
    }
    assert!(tested >= 8, "{tested} formats");
}

#[test]
fn frames_of_ycbcr_become_the_same_in_other_formats_as_frames_of_rgb() {
    let input = info(VideoFormat::Y444, 16, 8);
    // A colour that R'G'B' can show.
    let mut buffer = gst::Buffer::from_mut_slice(vec![0_u8; input.size()]);
    {
        let mut map = buffer.get_mut().unwrap().map_writable().unwrap();
        for (plane, value) in map.chunks_exact_mut(16 * 8).zip([100, 90, 150]) {
            plane.fill(value);
        }
    }
    for format in formats() {
        let output = info(format, 16, 8);
        let packer = Packer::new(&input, output.clone()).unwrap();
        let [rgb, ycbcr] = [false, true].map(|ycbcr| {
            let unpacker = Unpacker::new(input.clone(), &output, ycbcr).unwrap();
            let mut frame = unpacker.unpack(&buffer, &Cancel::default()).unwrap();
            frame.pixels_mut();
            let packed = pack(&packer, &frame);
            self::unpacker(&output).unpack(&packed, &Cancel::default()).unwrap()
        });
        // Rounding to 16 bits in between may change a code value by one.
        let depth = output.format_info().depth()[0].min(16);
        let step = if output.format_info().has_palette() { 13_107 } else { 65535 >> depth.min(8) };
        let worst = difference(rgb.pixels(), ycbcr.pixels());
        assert!(worst.iter().all(|error| *error <= 2 * step as u16), "{format}: {worst:?}");
    }
}

#[test]
fn a_cancelled_conversion_ends_with_that() {
    let info = info(VideoFormat::I420, 64, 64);
    let cancel = Cancel::default();
    cancel.cancel();
    let frame = Frame::new(64, 64).unwrap();
    let mut buffer = pack(&packer(&info), &frame);
    let unpacked = unpacker(&info).unpack(&buffer, &cancel);
    assert!(matches!(unpacked, Err(Error::Frame(engine::Error::Cancelled))));
    let packed = packer(&info).pack(&frame, buffer.make_mut(), &cancel);
    assert!(matches!(packed, Err(Error::Frame(engine::Error::Cancelled))));
}

#[test]
fn buffers_that_are_too_small_are_blamed_on_the_side_that_they_come_from() {
    let info = info(VideoFormat::I420, 64, 64);
    let mut buffer = gst::Buffer::with_size(100).unwrap();
    let unpacked = unpacker(&info).unpack(&buffer, &Cancel::default());
    let text = unpacked.unwrap_err().to_string();
    assert!(text.contains("input buffer as I420 64×64: it is smaller than its caps say"), "{text}");
    let frame = Frame::new(64, 64).unwrap();
    let packer = packer(&info);
    let packed = packer.pack(&frame, buffer.make_mut(), &Cancel::default());
    let text = packed.unwrap_err().to_string();
    assert!(text.contains("output buffer as I420 64×64: the buffers of downstream"), "{text}");
}
