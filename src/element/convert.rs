// SPDX-License-Identifier: MIT OR Apache-2.0
//! Converts buffers of any format to [`Frame`]s and back.
//!
//! GStreamer's converter packs and unpacks; the steps between a format's colours and R'G'B' are
//! [`colour`]'s. Between them lies a format with the same components at 16 bits, without chroma
//! subsampling.

mod colour;

use gst::glib;
use gst_video::{
    VideoConverter, VideoConverterConfig, VideoDitherMethod, VideoFormat, VideoFrame,
    VideoFrameRef, VideoInfo, video_frame::Writable,
};

use crate::engine::{self, Frame};
use colour::Colour;

/// Why a buffer cannot be converted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Frame(#[from] engine::Error),
    #[error("cannot map a buffer as {0}: it is smaller than its caps say")]
    Map(String),
    #[error("cannot convert {0}: {1}")]
    Converter(String, glib::BoolError),
}

/// Converts buffers of one format to frames.
pub(super) struct Unpacker {
    info: VideoInfo,
    intermediate: VideoInfo,
    converter: VideoConverter,
    colour: Colour,
}

impl Unpacker {
    pub(super) fn new(info: VideoInfo) -> Result<Self, Error> {
        let intermediate = intermediate(&info)?;
        let converter = converter(&info, &intermediate)?;
        Ok(Self { colour: Colour::new(&info), info, intermediate, converter })
    }

    pub(super) fn unpack(&self, buffer: &gst::BufferRef) -> Result<Frame, Error> {
        let source = VideoFrameRef::from_buffer_ref_readable(buffer, &self.info)
            .map_err(|_| map_error(&self.info))?;
        let frame =
            Frame::new(self.intermediate.width() as usize, self.intermediate.height() as usize)?;
        let target = gst::Buffer::from_mut_slice(frame);
        let mut target = VideoFrame::from_buffer_writable(target, &self.intermediate)
            .map_err(|_| map_error(&self.intermediate))?;
        self.converter.frame_ref(&source, &mut target.as_mut_video_frame_ref());

        // The frame can be taken out of the memory once the buffer is dropped.
        let memory = target.into_buffer().memory(0).ok_or_else(|| map_error(&self.intermediate))?;
        let mut frame: Frame =
            memory.try_into_inner().map_err(|_| map_error(&self.intermediate))?;
        self.colour.unpack(frame.pixels_mut());
        Ok(frame)
    }
}

/// Converts frames to buffers of one format.
pub(super) struct Packer {
    info: VideoInfo,
    intermediate: VideoInfo,
    converter: VideoConverter,
    colour: Colour,
    /// The frame in the intermediate format. Kept, so that its memory is allocated once.
    scratch: VideoFrame<Writable>,
}

impl Packer {
    pub(super) fn new(info: VideoInfo) -> Result<Self, Error> {
        let intermediate = intermediate(&info)?;
        let converter = converter(&intermediate, &info)?;
        let scratch = Frame::new(info.width() as usize, info.height() as usize)?;
        let scratch =
            VideoFrame::from_buffer_writable(gst::Buffer::from_mut_slice(scratch), &intermediate)
                .map_err(|_| map_error(&intermediate))?;
        Ok(Self { colour: Colour::new(&info), info, intermediate, converter, scratch })
    }

    pub(super) fn pack(&mut self, frame: &Frame, buffer: &mut gst::BufferRef) -> Result<(), Error> {
        let mut target = VideoFrameRef::from_buffer_ref_writable(buffer, &self.info)
            .map_err(|_| map_error(&self.info))?;
        let pixels = self.scratch.plane_data_mut(0).map_err(|_| map_error(&self.intermediate))?;
        let pixels =
            bytemuck::try_cast_slice_mut(pixels).map_err(|_| map_error(&self.intermediate))?;
        self.colour.pack(frame.pixels(), pixels);
        self.converter.frame_ref(&self.scratch.as_video_frame_ref(), &mut target);
        Ok(())
    }
}

/// The format with the components of `info` at 16 bits, [A, c1, c2, c3] a pixel. The colorimetry must be
/// the same, or the converter would convert colours; the rate too, or it would refuse.
fn intermediate(info: &VideoInfo) -> Result<VideoInfo, Error> {
    let format = match info.is_rgb() {
        true => VideoFormat::Argb64,
        false => VideoFormat::Ayuv64,
    };
    VideoInfo::builder(format, info.width(), info.height())
        .fps(info.fps())
        .par(info.par())
        .colorimetry(&info.colorimetry())
        .build()
        .map_err(|error| Error::Converter(describe(info), error))
}

fn converter(from: &VideoInfo, to: &VideoInfo) -> Result<VideoConverter, Error> {
    let mut config = VideoConverterConfig::new();
    // `colour` rounds. Dithering would add noise, even to frames that are not changed.
    config.set_dither_method(VideoDitherMethod::None);
    // 0: one for each core.
    config.set_threads(0);
    VideoConverter::new(from, to, Some(config))
        .map_err(|error| Error::Converter(format!("{} to {}", describe(from), describe(to)), error))
}

fn map_error(info: &VideoInfo) -> Error {
    Error::Map(describe(info))
}

fn describe(info: &VideoInfo) -> String {
    format!("{} {}×{}", info.format(), info.width(), info.height())
}
