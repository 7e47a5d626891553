// SPDX-License-Identifier: MIT OR Apache-2.0
//! Caps: formats, sizes, frame rates and colorimetry of input and output.

use std::ops::RangeInclusive;

use gst::{glib, prelude::*};
use gst_video::{
    VideoColorMatrix, VideoColorRange, VideoColorimetry, VideoFormat, VideoFormatInfo,
};
use once_cell::sync::Lazy;

use super::{RateMode, properties::Properties};
use crate::engine::{
    MAX_INTERPOLATED_FRAMES, MAX_SCALE, Model, Sizing, interpolated_frames, scaled_side,
    unscaled_sides,
};

/// The formats that encoders take, most common first.
const ENCODED_FORMATS: [VideoFormat; 9] = [
    VideoFormat::I420,
    VideoFormat::Nv12,
    VideoFormat::Yv12,
    VideoFormat::Y42b,
    VideoFormat::Y444,
    VideoFormat::I42010le,
    VideoFormat::P01010le,
    VideoFormat::I42210le,
    VideoFormat::Y44410le,
];

/// All formats of both pads: those that encoders take, then all others that GStreamer's converter reads and
/// writes, in its order.
static FORMATS: Lazy<Vec<VideoFormat>> = Lazy::new(|| {
    let others = VideoFormat::iter_raw().filter(|format| !ENCODED_FORMATS.contains(format));
    ENCODED_FORMATS.into_iter().chain(others).collect()
});

static FORMAT_LIST: Lazy<gst::List> =
    Lazy::new(|| gst::List::new(FORMATS.iter().map(|format| format.to_str().as_str())));

/// The caps of both pad templates.
pub(super) fn template() -> gst::Caps {
    gst_video::VideoCapsBuilder::new().format_list(FORMATS.iter().copied()).build()
}

/// Why caps are refused, and what to do; `None` if they are accepted.
pub(super) fn refusal(caps: &gst::CapsRef) -> Option<String> {
    let (structure, features) = (caps.structure(0)?, caps.features(0)?);
    if structure.name() != "video/x-raw" {
        let name = structure.name();
        return Some(format!("{name} is not raw video: put a decoder before venhance"));
    }
    if !is_system_memory(features) {
        return Some(format!(
            "frames with {features} cannot be read: put an element before venhance that copies them to \
             system memory, such as gldownload, cudadownload, d3d11download or vapostproc"
        ));
    }
    let field = |name| structure.get::<&str>(name).ok();
    if let Some(format) = field("format")
        && !FORMATS.contains(&VideoFormat::from_string(format))
    {
        return Some(format!(
            "the format {format} is not supported by GStreamer's converter: put an element that decodes or \
             converts it before venhance, or set another format at its source"
        ));
    }
    if field("interlace-mode").is_some_and(|mode| mode != "progressive") {
        return Some("interlaced video is not supported: put deinterlace before venhance".into());
    }
    let multiview = field("multiview-mode").is_some_and(|mode| mode != "mono")
        || structure.get::<i32>("views").is_ok_and(|views| views > 1);
    multiview.then(|| {
        "multiview video is not supported: split it into its views before venhance, and use one \
         venhance for each"
            .into()
    })
}

/// Whether frames are in system memory, which is all that the converter reads and writes.
fn is_system_memory(features: &gst::CapsFeaturesRef) -> bool {
    features.is_equal(gst::CapsFeatures::new_empty().as_ref())
        || features.is_equal(gst::CAPS_FEATURES_MEMORY_SYSTEM_MEMORY.as_ref())
}

/// Whether pixels of a format have alpha. GStreamer does not say so of Y410, Y412 and AV12.
pub(super) fn has_alpha(format: VideoFormatInfo) -> bool {
    format.has_alpha() || format.depth().get(3).is_some_and(|&depth| depth > 0)
}

/// The frame rate (numerator, denominator) in the engine's type.
pub(super) fn rate(fps: gst::Fraction) -> (u32, u32) {
    (fps.numer().max(0) as u32, fps.denom().max(1) as u32)
}

/// The caps that the other pad can have, if the pad of `direction` has `caps`.
pub(super) fn transform(
    properties: &Properties,
    model: Model,
    direction: gst::PadDirection,
    caps: &gst::CapsRef,
) -> gst::Caps {
    let mut out = gst::Caps::new_empty();
    for (structure, features) in caps.iter_with_features() {
        if !is_system_memory(features) {
            continue;
        }
        if let Some(structure) = transform_structure(properties, model, direction, structure) {
            out.merge_structure(structure);
        }
    }
    out
}

fn transform_structure(
    properties: &Properties,
    model: Model,
    direction: gst::PadDirection,
    structure: &gst::StructureRef,
) -> Option<gst::Structure> {
    let mut out = structure.to_owned();
    match (model, properties.sizing()) {
        (Model::Lite, Sizing::Scale(scale)) => map_sides(&mut out, scale, direction)?,
        _ => map_size(&mut out, properties, model, direction)?,
    }
    if properties.rate_mode == RateMode::Exact && properties.target_fps.numer() > 0 {
        let target = properties.target_fps.to_send_value();
        let fits = structure.value("framerate").map_or(true, |rates| rates.can_intersect(&target));
        match direction {
            gst::PadDirection::Sink => out.set_value("framerate", target),
            _ if fits => out.remove_field("framerate"),
            _ => return None,
        }
    } else if let Ok(value) = structure.value("framerate")
        && properties.rate_mode == RateMode::Multiple
    {
        let value = match direction {
            gst::PadDirection::Sink => {
                map_rates(value, properties, &|fps| vec![output_rate(properties, fps)])
            }
            _ => map_rates(value, properties, &|fps| input_rates(properties, fps)),
        };
        out.set_value("framerate", value?);
    }
    // The format and what describes its colours can change. All other fields stay, such as mastering
    // display data.
    out.set_value("format", FORMAT_LIST.to_send_value());
    out.remove_fields(["colorimetry", "chroma-site", "max-framerate"]);
    Some(out)
}

/// Scales width and height independently; `None` if no value is left.
fn map_sides(
    structure: &mut gst::StructureRef,
    scale: f64,
    direction: gst::PadDirection,
) -> Option<()> {
    for field in ["width", "height"] {
        if let Ok(value) = structure.value(field) {
            let value = match direction {
                gst::PadDirection::Sink => map_ints(value, &|sides| {
                    Some(scaled_side(*sides.start(), scale)..=scaled_side(*sides.end(), scale))
                }),
                _ => map_ints(value, &|sides| unscaled_sides(sides, scale)),
            };
            structure.set_value(field, value?);
        }
    }
    Some(())
}

/// Scales width and height where one depends on the other. A fixed input size gives the output size; a side of `lite`'s
/// output gives a range of input sides; otherwise any size is possible. That includes refused sizes, because the element
/// can post the reason when caps arrive, but not when pads are linked.
fn map_size(
    structure: &mut gst::StructureRef,
    properties: &Properties,
    model: Model,
    direction: gst::PadDirection,
) -> Option<()> {
    let output = fixed_size(structure)
        .filter(|_| direction == gst::PadDirection::Sink)
        .and_then(|input| properties.options.output_size(model, input, properties.sizing()).ok());
    for (field, output) in
        [("width", output.map(|size| size.0)), ("height", output.map(|size| size.1))]
    {
        let Ok(value) = structure.value(field) else { continue };
        let value = map_ints(value, &|sides| {
            Some(match (output, model, direction) {
                (Some(side), ..) => side..=side,
                (None, Model::Lite, gst::PadDirection::Src) => {
                    sides.start().div_ceil(MAX_SCALE)..=*sides.end()
                }
                _ => 1..=usize::MAX,
            })
        });
        structure.set_value(field, value?);
    }
    Some(())
}

/// The size (w, h), if both sides are fixed.
pub(super) fn fixed_size(structure: &gst::StructureRef) -> Option<(usize, usize)> {
    let side = |field| structure.get::<i32>(field).ok().map(|side| side.max(1) as usize);
    side("width").zip(side("height"))
}

/// The number of frames to interpolate between two at an input rate, limited so that the output rate is
/// a valid fraction.
pub(super) fn interpolated(target_fps: gst::Fraction, fps: gst::Fraction) -> usize {
    let most = i32::MAX / fps.numer().max(1) - 1;
    interpolated_frames(rate(target_fps), rate(fps)).min(most as usize)
}

/// The output rate for an input rate; 0/1 (variable) stays.
fn output_rate(properties: &Properties, fps: gst::Fraction) -> gst::Fraction {
    let parts = interpolated(properties.target_fps, fps) as i32 + 1;
    gst::Fraction::new(fps.numer() * parts, fps.denom())
}

/// The input rates for which [`output_rate`] is `fps`.
fn input_rates(properties: &Properties, fps: gst::Fraction) -> Vec<gst::Fraction> {
    let mut rates: Vec<_> = (1..=MAX_INTERPOLATED_FRAMES as i32 + 1)
        .filter_map(|parts| Some(gst::Fraction::new(fps.numer(), fps.denom().checked_mul(parts)?)))
        .filter(|&input| output_rate(properties, input) == fps)
        .collect();
    rates.dedup();
    rates
}

/// Maps an int, a range or a list of ints; `None` if no value is left.
fn map_ints(
    value: &glib::SendValue,
    map: &dyn Fn(RangeInclusive<usize>) -> Option<RangeInclusive<usize>>,
) -> Option<glib::SendValue> {
    let map = |low: i32, high: i32| {
        let sides = map(low.max(1) as usize..=high.max(1) as usize)?;
        let clamp = |side: usize| i32::try_from(side).unwrap_or(i32::MAX);
        let (low, high) = (clamp(*sides.start()), clamp(*sides.end()));
        Some(match low == high {
            true => low.to_send_value(),
            false => gst::IntRange::new(low, high).to_send_value(),
        })
    };
    if let Ok(side) = value.get::<i32>() {
        map(side, side)
    } else if let Ok(range) = value.get::<gst::IntRange<i32>>() {
        map(range.min(), range.max())
    } else {
        let list = value.get::<gst::List>().ok()?;
        let sides: Vec<i32> = list.iter().filter_map(|side| side.get().ok()).collect();
        one_or_list(sides.into_iter().filter_map(|side| map(side, side)).collect())
    }
}

/// Maps a fraction, a range or a list of fractions; `None` if no value is left.
fn map_rates(
    value: &glib::SendValue,
    properties: &Properties,
    map: &dyn Fn(gst::Fraction) -> Vec<gst::Fraction>,
) -> Option<glib::SendValue> {
    let values = |rates: Vec<gst::Fraction>| {
        one_or_list(rates.into_iter().map(|rate| rate.to_send_value()).collect())
    };
    if let Ok(fps) = value.get::<gst::Fraction>() {
        values(map(fps))
    } else if value.is::<gst::FractionRange>() {
        let any =
            gst::FractionRange::new(gst::Fraction::new(0, 1), gst::Fraction::new(i32::MAX, 1));
        Some(match properties.target_fps.numer() {
            0 => value.clone(),
            _ => any.to_send_value(),
        })
    } else {
        let list = value.get::<gst::List>().ok()?;
        values(list.iter().filter_map(|rate| rate.get().ok()).flat_map(map).collect())
    }
}

fn one_or_list(mut values: Vec<glib::SendValue>) -> Option<glib::SendValue> {
    match values.len() {
        0 => None,
        1 => values.pop(),
        _ => Some(gst::List::new(values).to_send_value()),
    }
}

/// Picks from `candidates` the caps that lose the least of the input's.
pub(super) fn fixate(input: &gst::CapsRef, candidates: &gst::CapsRef) -> gst::Caps {
    let picked = || {
        let info = gst_video::VideoInfo::from_caps(input).ok()?;
        let (structure, format) = candidates
            .iter()
            .flat_map(|structure| {
                formats(structure).into_iter().map(move |format| (structure, format))
            })
            .min_by_key(|(_, to)| loss(info.format_info(), VideoFormatInfo::from_format(*to)))?;
        let mut out = structure.to_owned();
        out.set("format", format.to_str().as_str());
        if out.has_field("pixel-aspect-ratio") {
            out.fixate_field_nearest_fraction("pixel-aspect-ratio", info.par());
        }
        out.fixate();
        let height = out.get::<i32>("height").ok()? as u32;
        set_unless_fixed(&mut out, structure, "colorimetry", colorimetry(&info, format, height));

        // The chroma site has the same meaning with the same subsampling only.
        let (from, to) = (info.format_info(), VideoFormatInfo::from_format(format));
        if (from.is_yuv(), from.w_sub(), from.h_sub()) == (to.is_yuv(), to.w_sub(), to.h_sub()) {
            let chroma_site = input.structure(0)?.get::<String>("chroma-site").ok();
            set_unless_fixed(&mut out, structure, "chroma-site", chroma_site);
        }
        Some(gst::Caps::builder_full().structure(out).build())
    };
    picked().unwrap_or_else(gst::Caps::new_empty)
}

/// Sets a field to the wanted value, if downstream has no such field or lists the value.
fn set_unless_fixed(
    out: &mut gst::Structure,
    candidates: &gst::StructureRef,
    field: &str,
    wanted: Option<String>,
) {
    let Some(wanted) = wanted else { return };
    let open = match candidates.value(field) {
        Err(_) => true,
        Ok(value) => value
            .get::<gst::List>()
            .is_ok_and(|list| list.iter().any(|value| value.get::<&str>() == Ok(&wanted))),
    };
    if open {
        out.set(field, wanted);
    }
}

fn formats(structure: &gst::StructureRef) -> Vec<VideoFormat> {
    let Ok(value) = structure.value("format") else {
        return Vec::new();
    };
    let names: Vec<String> = match value.get::<String>() {
        Ok(name) => vec![name],
        Err(_) => value
            .get::<gst::List>()
            .map(|list| list.iter().filter_map(|name| name.get().ok()).collect())
            .unwrap_or_default(),
    };
    names
        .into_iter()
        .map(|name| VideoFormat::from_string(&name))
        .filter(|format| FORMATS.contains(format))
        .collect()
}

/// Orders output formats for an input format. The best one is the input's, else the one that, in this order,
///
/// 1. keeps colour,
/// 2. has no palette: GStreamer writes one of fixed colours, even for input with a palette,
/// 3. keeps alpha,
/// 4. loses the fewest bits of depth,
/// 5. is of the same family: RGB, or YUV and grey,
/// 6. adds the fewest bits of depth,
/// 7. loses the least chroma,
/// 8. adds the least chroma,
/// 9. has no alpha that the input does not have,
/// 10. is grey if the input is,
/// 11. comes first in [`FORMATS`]: encoders take it.
fn loss(from: VideoFormatInfo, to: VideoFormatInfo) -> impl Ord {
    let same = from.format() == to.format() && !to.has_palette();
    let (from_depth, to_depth) = (depth(from), depth(to));
    let (wanted, chroma) = (wanted_chroma(from, to), chroma_shifts(to));
    let beyond = |a: [u32; 2], b: [u32; 2]| -> u32 {
        a.into_iter().zip(b).map(|(a, b)| a.saturating_sub(b)).sum()
    };
    let alpha = (has_alpha(from), has_alpha(to));
    (
        !same,
        to.is_gray() && !from.is_gray(),
        to.has_palette(),
        alpha == (true, false),
        from_depth.saturating_sub(to_depth),
        from.is_rgb() != to.is_rgb(),
        to_depth.saturating_sub(from_depth),
        beyond(chroma, wanted),
        beyond(wanted, chroma),
        alpha == (false, true),
        from.is_gray() != to.is_gray(),
        FORMATS.iter().position(|format| *format == to.format()),
    )
}

/// Bits of the three colour components of a pixel.
fn depth(format: VideoFormatInfo) -> u32 {
    let depth = format.depth();
    match format.is_gray() || format.has_palette() {
        true => 3 * depth[0],
        false => depth[..3].iter().sum(),
    }
}

/// The horizontal and vertical subsampling of chroma, as powers of two.
fn chroma_shifts(format: VideoFormatInfo) -> [u32; 2] {
    match format.is_yuv() {
        true => [format.w_sub()[1], format.h_sub()[1]],
        false => [0, 0],
    }
}

/// The subsampling of chroma that suits an input format best. From RGB or grey to YUV it is that of 4:2:0,
/// because few players can play High 4:4:4.
fn wanted_chroma(from: VideoFormatInfo, to: VideoFormatInfo) -> [u32; 2] {
    match from.is_yuv() || !to.is_yuv() {
        true => chroma_shifts(from),
        false => [1, 1],
    }
}

/// The output's colorimetry: the input's, as far as the output format can have it; `None` if it is
/// unknown.
fn colorimetry(input: &gst_video::VideoInfo, format: VideoFormat, height: u32) -> Option<String> {
    let colour = input.colorimetry();
    let to = VideoFormatInfo::from_format(format);
    let colour = match (input.format_info().is_rgb(), to.is_rgb()) {
        (true, true) | (false, false) => colour,
        (false, true) => VideoColorimetry::new(
            VideoColorRange::Range0_255,
            VideoColorMatrix::Rgb,
            colour.transfer(),
            colour.primaries(),
        ),
        (true, false) => {
            let default =
                gst_video::VideoInfo::builder(format, 16, height).build().ok()?.colorimetry();
            VideoColorimetry::new(
                default.range(),
                default.matrix(),
                colour.transfer(),
                colour.primaries(),
            )
        }
    };
    let known = colour.range() != VideoColorRange::Unknown
        || colour.matrix() != VideoColorMatrix::Unknown
        || colour.transfer() != gst_video::VideoTransferFunction::Unknown
        || colour.primaries() != gst_video::VideoColorPrimaries::Unknown;
    known.then(|| colour.to_string())
}
