// SPDX-License-Identifier: MIT OR Apache-2.0
//! Buffers of any format to [`Frame`]s and back.

mod colour;

use std::sync::{Mutex, PoisonError};

use gst::glib;
use gst_video::{
    VideoConverter, VideoConverterConfig, VideoDitherMethod, VideoFormat, VideoFrame,
    VideoFrameRef, VideoInfo, video_frame::Writable,
};

use crate::engine::{self, Frame};
use colour::Colour;

/// Why a buffer could not be converted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Frame(#[from] engine::Error),
    #[error("a buffer cannot be mapped as {0}: it is smaller than its caps say")]
    Map(String),
    #[error("no conversion from {0}: {1}")]
    Converter(String, glib::BoolError),
}

/// Reads buffers of one format.
pub(super) struct Unpacker {
    info: VideoInfo,
    wide: VideoInfo,
    converter: VideoConverter,
    colour: Colour,
}

impl Unpacker {
    pub(super) fn new(info: VideoInfo) -> Result<Self, Error> {
        let wide = wide(&info)?;
        let converter = converter(&info, &wide)?;
        Ok(Self { colour: Colour::new(&info), info, wide, converter })
    }

    pub(super) fn unpack(&self, buffer: &gst::BufferRef) -> Result<Frame, Error> {
        let source = VideoFrameRef::from_buffer_ref_readable(buffer, &self.info)
            .map_err(|_| map_error(&self.info))?;
        let frame = Frame::new(self.wide.width() as usize, self.wide.height() as usize)?;
        let target = gst::Buffer::from_mut_slice(frame);
        let mut target = VideoFrame::from_buffer_writable(target, &self.wide)
            .map_err(|_| map_error(&self.wide))?;
        self.converter.frame_ref(&source, &mut target.as_mut_video_frame_ref());

        // The buffer must be gone for the frame to be had back.
        let memory = target.into_buffer().memory(0).ok_or_else(|| map_error(&self.wide))?;
        let mut frame: Frame = memory.try_into_inner().map_err(|_| map_error(&self.wide))?;
        self.colour.unpack(frame.pixels_mut());
        Ok(frame)
    }
}

/// Writes buffers of one format.
pub(super) struct Packer {
    info: VideoInfo,
    wide: VideoInfo,
    converter: VideoConverter,
    colour: Colour,
    /// The frame at 16 bits in the format's colours, kept for its memory.
    scratch: Mutex<VideoFrame<Writable>>,
}

impl Packer {
    pub(super) fn new(info: VideoInfo) -> Result<Self, Error> {
        let wide = wide(&info)?;
        let converter = converter(&wide, &info)?;
        let scratch = Frame::new(info.width() as usize, info.height() as usize)?;
        let scratch = VideoFrame::from_buffer_writable(gst::Buffer::from_mut_slice(scratch), &wide)
            .map_err(|_| map_error(&wide))?;
        Ok(Self { colour: Colour::new(&info), info, wide, converter, scratch: Mutex::new(scratch) })
    }

    pub(super) fn pack(&self, frame: &Frame, buffer: &mut gst::BufferRef) -> Result<(), Error> {
        let mut target = VideoFrameRef::from_buffer_ref_writable(buffer, &self.info)
            .map_err(|_| map_error(&self.info))?;
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let pixels = scratch.plane_data_mut(0).map_err(|_| map_error(&self.wide))?;
        let pixels = bytemuck::try_cast_slice_mut(pixels).map_err(|_| map_error(&self.wide))?;
        self.colour.pack(frame.pixels(), pixels);
        self.converter.frame_ref(&scratch.as_video_frame_ref(), &mut target);
        Ok(())
    }
}

/// A format's components at 16 bits, [A, c1, c2, c3] a pixel. Colorimetry must agree, or there would
/// be a conversion; rates must, or there would be no converter.
fn wide(info: &VideoInfo) -> Result<VideoInfo, Error> {
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
    // Packing rounds already; dithering would add noise to frames that nothing was done to.
    config.set_dither_method(VideoDitherMethod::None);
    // All cores.
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
