// SPDX-License-Identifier: MIT OR Apache-2.0
//! Buffers of any format to [`Frame`]s and back.

use std::sync::Arc;

use gst::glib;
use gst_video::{
    VideoColorMatrix, VideoColorRange, VideoColorimetry, VideoConverter, VideoConverterConfig,
    VideoFormat, VideoFrame, VideoFrameRef, VideoInfo,
};

use crate::engine::{self, Frame};

/// Why a buffer could not be converted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Frame(#[from] engine::Error),
    #[error("a buffer cannot be mapped as {0}: it is smaller than its caps say")]
    Map(String),
    #[error("no conversion between {0} and 16-bit RGBA: {1}")]
    Converter(String, glib::BoolError),
}

/// Reads buffers of one format.
pub(super) struct Unpacker {
    info: VideoInfo,
    rgba: VideoInfo,
    converter: VideoConverter,
}

impl Unpacker {
    pub(super) fn new(info: VideoInfo) -> Result<Self, Error> {
        let rgba = rgba(&info)?;
        let converter = converter(&info, &info, &rgba)?;
        Ok(Self {
            info,
            rgba,
            converter,
        })
    }

    pub(super) fn unpack(&self, buffer: &gst::BufferRef) -> Result<Frame, Error> {
        let map_error = || Error::Map(describe(&self.info));
        let source =
            VideoFrameRef::from_buffer_ref_readable(buffer, &self.info).map_err(|_| map_error())?;
        let frame = Frame::new(self.rgba.width() as usize, self.rgba.height() as usize)?;
        let target = gst::Buffer::from_mut_slice(frame);
        let mut target =
            VideoFrame::from_buffer_writable(target, &self.rgba).map_err(|_| map_error())?;
        self.converter
            .frame_ref(&source, &mut target.as_mut_video_frame_ref());

        // The buffer must be gone for the frame to be had back.
        let memory = target.into_buffer().memory(0).ok_or_else(map_error)?;
        memory.try_into_inner().map_err(|_| map_error())
    }
}

/// Writes buffers of one format.
pub(super) struct Packer {
    info: VideoInfo,
    rgba: VideoInfo,
    converter: VideoConverter,
}

impl Packer {
    pub(super) fn new(info: VideoInfo) -> Result<Self, Error> {
        let rgba = rgba(&info)?;
        let converter = converter(&info, &rgba, &info)?;
        Ok(Self {
            info,
            rgba,
            converter,
        })
    }

    pub(super) fn pack(&self, frame: Arc<Frame>, buffer: &mut gst::BufferRef) -> Result<(), Error> {
        let map_error = || Error::Map(describe(&self.info));
        let source = gst::Buffer::from_slice(Pixels(frame));
        let source =
            VideoFrame::from_buffer_readable(source, &self.rgba).map_err(|_| map_error())?;
        let mut target =
            VideoFrameRef::from_buffer_ref_writable(buffer, &self.info).map_err(|_| map_error())?;
        self.converter
            .frame_ref(&source.as_video_frame_ref(), &mut target);
        Ok(())
    }
}

/// The pixels of a shared frame, for a buffer to read.
struct Pixels(Arc<Frame>);

impl AsRef<[u8]> for Pixels {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

/// How a [`Frame`] of the same picture looks to GStreamer. Rates must agree or there is no
/// converter; transfer and primaries must, or colours would be converted.
fn rgba(info: &VideoInfo) -> Result<VideoInfo, Error> {
    let format = match cfg!(target_endian = "little") {
        true => VideoFormat::Rgba64Le,
        false => VideoFormat::Rgba64Be,
    };
    let colour = info.colorimetry();
    VideoInfo::builder(format, info.width(), info.height())
        .fps(info.fps())
        .par(info.par())
        .colorimetry(&VideoColorimetry::new(
            VideoColorRange::Range0_255,
            VideoColorMatrix::Rgb,
            colour.transfer(),
            colour.primaries(),
        ))
        .build()
        .map_err(|e| Error::Converter(describe(info), e))
}

fn converter(
    format: &VideoInfo,
    from: &VideoInfo,
    to: &VideoInfo,
) -> Result<VideoConverter, Error> {
    let mut config = VideoConverterConfig::new();
    // Dithering would add noise to every frame, also to those that nothing was done to.
    config.set_dither_method(gst_video::VideoDitherMethod::None);
    // All cores.
    config.set_threads(0);
    VideoConverter::new(from, to, Some(config)).map_err(|e| Error::Converter(describe(format), e))
}

fn describe(info: &VideoInfo) -> String {
    format!("{} {}×{}", info.format(), info.width(), info.height())
}
