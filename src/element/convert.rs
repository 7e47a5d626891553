// SPDX-License-Identifier: MIT OR Apache-2.0
//! Converts buffers of any format to [`Frame`]s and back.
//!
//! GStreamer's converter only packs and unpacks, to a 16-bit format without chroma subsampling;
//! [`colour`] applies the matrix. Both work on [`bands`] of rows.

mod bands;
mod colour;

use std::sync::Arc;

use gst::glib;
use gst_video::{VideoFrameExt, VideoFrameRef, VideoInfo};
use rayon::prelude::*;

use crate::engine::{self, Cancel, Components, Frame};
use bands::Bands;
use colour::{Affine, Colour};

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
    #[error(
        "cannot write an output buffer as {0}: the buffers of downstream's pool are unsuitable"
    )]
    Output(String),
    #[error("cannot convert {0}: {1}")]
    Converter(String, glib::BoolError),
}

/// Converts buffers of one format to frames.
pub(super) struct Unpacker {
    info: VideoInfo,
    bands: Bands,
    map: Affine,
    components: Components,
    /// Whether frames keep a copy of their buffer.
    keeps_source: bool,
}

impl Unpacker {
    /// With `ycbcr`, the model takes frames of Y'CbCr, and passes frames where it has nothing to change: frames have
    /// the components of the format if they can, and their bytes if `output` is the same.
    pub(super) fn new(info: VideoInfo, output: &VideoInfo, ycbcr: bool) -> Result<Self, Error> {
        let rows = bands::band_rows(&info);
        Self::in_bands(info, output, ycbcr, rows)
    }

    fn in_bands(
        info: VideoInfo,
        output: &VideoInfo,
        ycbcr: bool,
        rows: usize,
    ) -> Result<Self, Error> {
        let colour = Colour::new(&info);
        let largest = bands::largest_values(&info)?;
        let (components, map) = match colour.ycbcr().filter(|_| ycbcr) {
            Some(components) => (components, colour.map_to_ycbcr(largest)),
            None => (Components::Rgb, colour.map_to_rgb(largest)),
        };
        let keeps_source = ycbcr && is_same_picture(&info, output);
        Ok(Self { bands: Bands::unpacking(&info, rows)?, map, components, keeps_source, info })
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
                self.map.apply(&values[band.above * row..][..pixels.len()], pixels);
                Ok(())
            })
        })?;
        frame.set_components(self.components);
        if self.keeps_source {
            frame.set_source(Arc::new(self.copy(&source)?));
        }
        Ok(frame)
    }

    /// The picture of a buffer, with the strides of the caps.
    fn copy(&self, source: &VideoFrameRef<&gst::BufferRef>) -> Result<Vec<u8>, Error> {
        let failed = || {
            let what = format!("cannot copy {}", describe(&self.info));
            Error::Frame(engine::Error::Internal { what })
        };
        let (width, height) = (self.info.width() as usize, self.info.height() as usize);
        let bytes: Vec<u8> = engine::zeroed((self.info.size(), 1), 1)
            .map_err(|_| engine::Error::out_of_memory((width, height), self.info.size() as f64))?;
        let mut buffer = gst::Buffer::from_mut_slice(bytes);
        let target = buffer.get_mut().ok_or_else(failed)?;
        VideoFrameRef::from_buffer_ref_writable(target, &self.info)
            .and_then(|mut target| copy_picture(source, &mut target))
            .map_err(|_| failed())?;
        buffer.try_into_inner().map_err(|_| failed())
    }
}

/// Whether frames of two formats can have the same bytes. Their rates may differ.
fn is_same_picture(a: &VideoInfo, b: &VideoInfo) -> bool {
    let picture = |info: &VideoInfo| {
        (info.format(), info.width(), info.height(), info.colorimetry(), info.interlace_mode())
    };
    // Caps that leave the chroma site out allow any.
    let sites = [a.chroma_site(), b.chroma_site()];
    picture(a) == picture(b) && (sites[0] == sites[1] || sites.iter().any(|site| site.is_empty()))
}

/// Converts frames to buffers of one format.
pub(super) struct Packer {
    info: VideoInfo,
    bands: Bands,
    from_rgb: Affine,
    from_ycbcr: Affine,
}

impl Packer {
    /// For frames of R'G'B', or of the components of the format `input`.
    pub(super) fn new(input: &VideoInfo, info: VideoInfo) -> Result<Self, Error> {
        let rows = bands::band_rows(&info);
        Self::in_bands(input, info, rows)
    }

    fn in_bands(input: &VideoInfo, info: VideoInfo, rows: usize) -> Result<Self, Error> {
        let colour = Colour::new(&info);
        Ok(Self {
            bands: Bands::packing(&info, rows)?,
            from_rgb: colour.map_from_rgb(),
            from_ycbcr: colour.map_from_ycbcr(&Colour::new(input)),
            info,
        })
    }

    pub(super) fn pack(
        &self,
        frame: &Frame,
        buffer: &mut gst::BufferRef,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        let mut target = VideoFrameRef::from_buffer_ref_writable(buffer, &self.info)
            .map_err(|_| Error::Output(describe(&self.info)))?;
        if let Some(source) = frame.source() {
            let source = gst::Buffer::from_slice(Bytes(source.clone()));
            return VideoFrameRef::from_buffer_ref_readable(&source, &self.info)
                .and_then(|source| copy_picture(&source, &mut target))
                .map_err(|_| Error::Output(describe(&self.info)));
        }
        let target = Target(target.as_mut_ptr());
        let map = match frame.components() {
            Components::Rgb => &self.from_rgb,
            Components::Ycbcr { .. } => &self.from_ycbcr,
        };
        let row = frame.width() * Frame::COMPONENTS;
        let bands = frame.pixels().par_chunks(self.bands.rows() * row);
        bands.zip(self.bands.par_iter()).try_for_each(|(pixels, band)| {
            cancel.check()?;
            self.bands.with_scratch(band, |scratch| {
                let values =
                    scratch.plane_data_mut(0).map_err(|_| bands::map_error(&band.scratch))?;
                map.apply(pixels, bytemuck::cast_slice_mut(values));
                // SAFETY: the mapped frame outlives the bands, each of which writes rows of its own.
                let mut target = unsafe { target.share() };
                band.converter.frame_ref(scratch, &mut target);
                Ok(())
            })
        })
    }
}

/// Copies a picture between buffers of one format. Unlike GStreamer's copy, this includes the chroma of the last pixel
/// where packed 4:2:2 has an odd width.
fn copy_picture(
    source: &VideoFrameRef<&gst::BufferRef>,
    target: &mut VideoFrameRef<&mut gst::BufferRef>,
) -> Result<(), glib::BoolError> {
    if source.format_info().is_tiled() {
        return source.copy(target);
    }
    for plane in 0..source.n_planes() {
        let strides = [source.plane_stride(), target.plane_stride()].map(|strides| {
            usize::try_from(strides[plane as usize]).ok().filter(|stride| *stride > 0)
        });
        let [Some(from), Some(to)] = strides else { return source.copy(target) };
        let rows = target.plane_data_mut(plane)?.chunks_mut(to);
        for (to, from) in rows.zip(source.plane_data(plane)?.chunks(from)) {
            let len = to.len().min(from.len());
            to[..len].copy_from_slice(&from[..len]);
        }
    }
    Ok(())
}

/// The bytes of a picture, for a buffer.
struct Bytes(Arc<Vec<u8>>);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
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
