// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real encoders, through GStreamer: what training images look like after H.264 or JPEG.

use candle_core::{Error, Result};
use gst_check::Harness;
use gst_video::{VideoFormat, VideoFrameExt, VideoFrameRef, VideoInfo};

use super::image::Plane;

/// The artifacts of an encoder.
#[derive(Debug, Clone, Copy)]
pub enum Codec {
    /// H.264 by x264 at a constant rate factor.
    H264 {
        crf: u32,
    },
    Jpeg {
        quality: u32,
    },
}

impl Codec {
    /// Encodes and decodes a clip of planes of one size, which becomes 8-bit luma of the limited range.
    ///
    /// # Errors
    /// If an element is missing, or frames are.
    pub fn transcode(self, clip: &[Plane]) -> Result<Vec<Plane>> {
        let pipeline = match self {
            // One thread, or the result would depend on the number of cores.
            Self::H264 { crf } => format!(
                "x264enc pass=qual quantizer={crf} bframes=3 threads=1 ! h264parse ! avdec_h264 max-threads=1"
            ),
            Self::Jpeg { quality } => format!("jpegenc quality={quality} ! jpegdec"),
        };
        transcode(&pipeline, clip).map_err(|why| {
            Error::msg(format!("transcoding images with “{pipeline}” failed: {why}"))
        })
    }
}

type Outcome<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn transcode(pipeline: &str, clip: &[Plane]) -> Outcome<Vec<Plane>> {
    let (width, height) = (clip[0].width, clip[0].height);
    let info = VideoInfo::builder(VideoFormat::I420, u32::try_from(width)?, u32::try_from(height)?)
        .fps(gst::Fraction::new(25, 1))
        .build()?;
    let mut harness = Harness::new_parse(pipeline);
    harness.set_src_caps(info.to_caps()?);
    for (n, plane) in (0..).zip(clip) {
        let mut buffer = gst::Buffer::with_size(info.size())?;
        let target = buffer.get_mut().ok_or("the buffer is shared")?;
        target.set_pts(n * gst::ClockTime::from_mseconds(40));
        write(plane, &info, target)?;
        harness.push(buffer)?;
    }
    harness.push_event(gst::event::Eos::new());
    let mut planes = Vec::new();
    while let Some(buffer) = harness.pull_until_eos()? {
        planes.push(read(&buffer, &info)?);
    }
    match planes.len() == clip.len() {
        true => Ok(planes),
        false => Err(format!("{} of {} frames came back", planes.len(), clip.len()).into()),
    }
}

/// Luma of the limited range: black and white.
const BLACK: f32 = 16.0;
const WHITE: f32 = 235.0;

/// Writes a plane as I420 without colour.
fn write(plane: &Plane, info: &VideoInfo, buffer: &mut gst::BufferRef) -> Outcome<()> {
    buffer.map_writable()?.fill(128);
    let mut frame = VideoFrameRef::from_buffer_ref_writable(buffer, info)?;
    let stride = frame.plane_stride()[0] as usize;
    let rows = frame.plane_data_mut(0)?.chunks_mut(stride);
    for (row, values) in rows.zip(plane.values.chunks_exact(plane.width)) {
        for (byte, value) in row.iter_mut().zip(values) {
            *byte = (BLACK + (WHITE - BLACK) * value).round() as u8;
        }
    }
    Ok(())
}

/// Reads the luma of an I420 buffer.
fn read(buffer: &gst::Buffer, info: &VideoInfo) -> Outcome<Plane> {
    let frame = VideoFrameRef::from_buffer_ref_readable(buffer, info)?;
    let mut plane = Plane::new(info.width() as usize, info.height() as usize);
    let rows = frame.plane_data(0)?.chunks(frame.plane_stride()[0] as usize);
    for (row, values) in rows.zip(plane.values.chunks_exact_mut(info.width() as usize)) {
        for (byte, value) in row.iter().zip(values) {
            *value = (f32::from(*byte) - BLACK) / (WHITE - BLACK);
        }
    }
    Ok(plane)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stronger_compression_loses_more() -> Result<()> {
        gst::init().map_err(Error::wrap)?;
        let frame = |shift: usize| {
            let mut plane = Plane::new(60, 80);
            let values = plane.values.iter_mut().enumerate();
            values.for_each(|(n, x)| *x = ((n + shift) * 7919 % 1009) as f32 / 1009.0);
            plane
        };
        let clip: Vec<_> = (0..5).map(frame).collect();
        let error = |codec: Codec| {
            let planes = codec.transcode(&clip)?;
            let pairs = planes.iter().zip(&clip).flat_map(|(a, b)| a.values.iter().zip(&b.values));
            Ok::<_, Error>(pairs.map(|(a, b)| (a - b).powi(2)).sum::<f32>() / (5.0 * 60.0 * 80.0))
        };
        let errors = [18, 28, 38].map(|crf| error(Codec::H264 { crf }));
        let [weak, medium, strong] = errors.map(|error| error.unwrap());
        assert!(weak > 1e-6 && medium > 1.5 * weak && strong > 1.5 * medium);
        let [good, bad] = [95, 40].map(|quality| error(Codec::Jpeg { quality }).unwrap());
        assert!(good > 1e-6 && good < 1e-2 && bad > 2.0 * good, "{good}, {bad}");
        Ok(())
    }
}
