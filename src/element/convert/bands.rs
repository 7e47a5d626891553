// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bands of rows, so that a conversion uses all cores, stays in their caches, and can be cancelled.

use std::ops::Range;

use gst_video::{
    VideoConverter, VideoConverterConfig, VideoDitherMethod, VideoFormat, VideoFrameRef, VideoInfo,
};
use parking_lot::Mutex;
use rayon::prelude::*;

use super::{Error, describe};
use crate::engine::{self, Frame};

/// Pixels per band, at least: a megabyte at 16 bits, which takes about a millisecond.
const BAND_PIXELS: usize = 1 << 17;
/// The most bands of a frame: each has a converter, which keeps some lines.
const MAX_BANDS: usize = 64;
/// Bands begin at a multiple of this many rows, which share chroma.
const CHROMA_ROWS: usize = 4;

/// Some rows of a frame, and the converter for them.
pub(super) struct Band {
    pub(super) converter: VideoConverter,
    /// The format of the scratch buffer: the components at 16 bits, [A, c1, c2, c3] a pixel.
    pub(super) scratch: VideoInfo,
    /// The number of rows in the scratch buffer before the first one of the band.
    pub(super) above: usize,
}

/// The bands of a frame of one format, from top to bottom.
pub(super) struct Bands {
    rows: usize,
    bands: Vec<Band>,
    /// Scratch buffers that no thread uses at the moment, each large enough for every band.
    free: Mutex<Vec<gst::Buffer>>,
}

impl Bands {
    /// For conversions from `info` to scratch buffers in bands of `rows`.
    ///
    /// Chroma is upsampled vertically across the border of a band. The converter reads the rows beyond it
    /// but writes them over the outermost rows of its output, so there are rows to spare around the band.
    pub(super) fn unpacking(info: &VideoInfo, rows: usize) -> Result<Self, Error> {
        let spare = match info.format_info().h_sub().iter().max() {
            None | Some(0) => 0,
            Some(shift) => 1 << shift,
        };
        Self::new(info, rows, |rows| {
            let source =
                rows.start.saturating_sub(spare)..(rows.end + spare).min(info.height() as usize);
            let scratch = intermediate(info, source.len())?;
            let mut config = VideoConverterConfig::new();
            config.set_src_y(source.start as i32);
            config.set_src_height(Some(source.len() as i32));
            let converter = converter(info, &scratch, config)?;
            Ok(Band { converter, scratch, above: rows.start - source.start })
        })
    }

    /// For conversions from scratch buffers to `info` in bands of `rows`.
    pub(super) fn packing(info: &VideoInfo, rows: usize) -> Result<Self, Error> {
        Self::new(info, rows, |rows| {
            let scratch = intermediate(info, rows.len())?;
            let mut config = VideoConverterConfig::new();
            config.set_dest_y(rows.start as i32);
            config.set_dest_height(Some(rows.len() as i32));
            config.set_fill_border(false);
            let converter = converter(&scratch, info, config)?;
            Ok(Band { converter, scratch, above: 0 })
        })
    }

    fn new(
        info: &VideoInfo,
        rows: usize,
        band: impl Fn(Range<usize>) -> Result<Band, Error>,
    ) -> Result<Self, Error> {
        let height = info.height() as usize;
        let bands = (0..height).step_by(rows).map(|first| band(first..(first + rows).min(height)));
        Ok(Self { rows, bands: bands.collect::<Result<_, _>>()?, free: Mutex::default() })
    }

    /// Rows per band; the last band may have fewer.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn par_iter(&self) -> rayon::slice::Iter<'_, Band> {
        self.bands.par_iter()
    }

    /// Calls `work` with a scratch buffer of a band, whose contents are undefined.
    pub(super) fn with_scratch<R>(
        &self,
        band: &Band,
        work: impl FnOnce(&mut VideoFrameRef<&mut gst::BufferRef>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let free = self.free.lock().pop();
        let mut buffer = match free {
            Some(buffer) => buffer,
            None => {
                let rows = self.bands.iter().map(|band| band.scratch.height()).max().unwrap_or(0);
                let frame = Frame::new(band.scratch.width() as usize, rows as usize)?;
                gst::Buffer::from_mut_slice(frame)
            }
        };
        let result = VideoFrameRef::from_buffer_ref_writable(buffer.make_mut(), &band.scratch)
            .map_err(|_| map_error(&band.scratch))
            .and_then(|mut scratch| work(&mut scratch));
        self.free.lock().push(buffer);
        result
    }
}

/// Rows per band for frames of a format.
pub(super) fn band_rows(info: &VideoInfo) -> usize {
    let (width, height) = (info.width() as usize, info.height() as usize);
    let rows = BAND_PIXELS.div_ceil(width).max(height.div_ceil(MAX_BANDS));
    rows.next_multiple_of(CHROMA_ROWS)
}

/// What the converter makes of the largest code values of a format, [A, c1, c2, c3]. Of most formats it is
/// 65535, because their bits are repeated; GStreamer 1.22 does not do so for all.
pub(super) fn largest_values(info: &VideoInfo) -> Result<[u16; 4], Error> {
    let build = || {
        let small = VideoInfo::builder(info.format(), 16, 16).colorimetry(&info.colorimetry());
        small.build().map_err(|error| Error::Converter(describe(info), error))
    };
    let info = build()?;
    let bands = Bands::unpacking(&info, 16)?;
    let buffer = gst::Buffer::from_slice(vec![0xff_u8; info.size()]);
    let source =
        VideoFrameRef::from_buffer_ref_readable(&buffer, &info).map_err(|_| map_error(&info))?;
    let band = &bands.bands[0];
    bands.with_scratch(band, |scratch| {
        band.converter.frame_ref(&source, scratch);
        let values = scratch.plane_data(0).map_err(|_| map_error(&band.scratch))?;
        Ok(std::array::from_fn(|i| u16::from_ne_bytes([values[2 * i], values[2 * i + 1]])))
    })
}

/// The format with the components of `info` at 16 bits, for `rows` rows. The colorimetry must be the same, or
/// the converter would convert colours; the rate too, or it would refuse.
fn intermediate(info: &VideoInfo, rows: usize) -> Result<VideoInfo, Error> {
    let format = match info.is_rgb() {
        true => VideoFormat::Argb64,
        false => VideoFormat::Ayuv64,
    };
    VideoInfo::builder(format, info.width(), rows as u32)
        .fps(info.fps())
        .par(info.par())
        .colorimetry(&info.colorimetry())
        .build()
        .map_err(|error| Error::Converter(describe(info), error))
}

fn converter(
    from: &VideoInfo,
    to: &VideoInfo,
    mut config: VideoConverterConfig,
) -> Result<VideoConverter, Error> {
    // `colour` rounds. Dithering would add noise, even to frames that are not changed.
    config.set_dither_method(VideoDitherMethod::None);
    // Each band has a thread of its own.
    config.set_threads(1);
    VideoConverter::new(from, to, Some(config))
        .map_err(|error| Error::Converter(format!("{} to {}", describe(from), describe(to)), error))
}

/// A scratch buffer cannot be mapped.
pub(super) fn map_error(scratch: &VideoInfo) -> Error {
    let what = format!("cannot map a scratch buffer of {}", describe(scratch));
    Error::Frame(engine::Error::Internal { what })
}
