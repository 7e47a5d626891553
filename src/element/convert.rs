// SPDX-License-Identifier: MIT OR Apache-2.0
//! Converts buffers of any format to [`Frame`]s and back.
//!
//! GStreamer's converter only packs and unpacks, to a 16-bit format without chroma subsampling;
//! [`colour`] applies the matrix. Both work on [`bands`] of rows.

mod bands;
mod colour;

use gst::glib;
use gst_video::{VideoFrameRef, VideoInfo};
use rayon::prelude::*;

use crate::engine::{self, Cancel, Frame};
use bands::Bands;
use colour::Colour;

/// Why a buffer cannot be converted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Also [`engine::Error::Cancelled`].
    #[error(transparent)]
    Frame(#[from] engine::Error),
    #[error(
        "cannot read an input buffer as {0}: it is smaller than its caps say; fix the element before \
         venhance"
    )]
    Input(String),
    #[error("cannot write an output buffer as {0}: downstream's pool gives unsuitable buffers")]
    Output(String),
    #[error("cannot convert {0}: {1}")]
    Converter(String, glib::BoolError),
}

/// Converts buffers of one format to frames.
pub(super) struct Unpacker {
    info: VideoInfo,
    bands: Bands,
    colour: Colour,
}

impl Unpacker {
    pub(super) fn new(info: VideoInfo) -> Result<Self, Error> {
        let rows = bands::band_rows(&info);
        Self::in_bands(info, rows)
    }

    fn in_bands(info: VideoInfo, rows: usize) -> Result<Self, Error> {
        let colour = Colour::new(&info, bands::largest_values(&info)?);
        Ok(Self { bands: Bands::unpacking(&info, rows)?, colour, info })
    }

    pub(super) fn unpack(&self, buffer: &gst::BufferRef, cancel: &Cancel) -> Result<Frame, Error> {
        let source = VideoFrameRef::from_buffer_ref_readable(buffer, &self.info)
            .map_err(|_| Error::Input(describe(&self.info)))?;
        let mut frame = Frame::new(self.info.width() as usize, self.info.height() as usize)?;
        let row = frame.width() * Frame::COMPONENTS;
        let bands = frame.pixels_mut().par_chunks_mut(self.bands.rows() * row);
        bands.zip(self.bands.par_iter()).try_for_each(|(pixels, band)| {
            cancel.check()?;
            self.bands.with_scratch(band, |scratch| {
                band.converter.frame_ref(&source, scratch);
                let values = scratch.plane_data(0).map_err(|_| bands::map_error(&band.scratch))?;
                let values: &[u16] = bytemuck::cast_slice(values);
                self.colour.unpack(&values[band.above * row..][..pixels.len()], pixels);
                Ok(())
            })
        })?;
        Ok(frame)
    }
}

/// Converts frames to buffers of one format.
pub(super) struct Packer {
    info: VideoInfo,
    bands: Bands,
    colour: Colour,
}

impl Packer {
    pub(super) fn new(info: VideoInfo) -> Result<Self, Error> {
        let rows = bands::band_rows(&info);
        Self::in_bands(info, rows)
    }

    fn in_bands(info: VideoInfo, rows: usize) -> Result<Self, Error> {
        let colour = Colour::new(&info, bands::largest_values(&info)?);
        Ok(Self { bands: Bands::packing(&info, rows)?, colour, info })
    }

    pub(super) fn pack(
        &self,
        frame: &Frame,
        buffer: &mut gst::BufferRef,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let mut target = VideoFrameRef::from_buffer_ref_writable(buffer, &self.info)
            .map_err(|_| Error::Output(describe(&self.info)))?;
        let target = Target(target.as_mut_ptr());
        let row = frame.width() * Frame::COMPONENTS;
        let bands = frame.pixels().par_chunks(self.bands.rows() * row);
        bands.zip(self.bands.par_iter()).try_for_each(|(pixels, band)| {
            cancel.check()?;
            self.bands.with_scratch(band, |scratch| {
                let values =
                    scratch.plane_data_mut(0).map_err(|_| bands::map_error(&band.scratch))?;
                self.colour.pack(pixels, bytemuck::cast_slice_mut(values));
                // SAFETY: the mapped frame outlives the bands, each of which writes rows of its own.
                let mut target = unsafe { target.share() };
                band.converter.frame_ref(scratch, &mut target);
                Ok(())
            })
        })
    }
}

/// A mapped output buffer that the converters of all bands write at the same time.
struct Target(*mut gst_video::ffi::GstVideoFrame);

// SAFETY: it is only read, to copy it.
unsafe impl Sync for Target {}

impl Target {
    /// A copy of the frame that maps the same memory, and does not unmap it.
    ///
    /// # Safety
    /// The frame must stay mapped, and no other copy may access the same rows.
    unsafe fn share<'a>(&self) -> VideoFrameRef<&'a mut gst::BufferRef> {
        // SAFETY: the pointer is that of a mapped frame, as the caller guarantees.
        unsafe { VideoFrameRef::from_glib_borrow_mut(self.0) }
    }
}

fn describe(info: &VideoInfo) -> String {
    format!("{} {}×{}", info.format(), info.width(), info.height())
}

#[cfg(test)]
mod tests;
