// SPDX-License-Identifier: MIT OR Apache-2.0
//! Timecodes (SMPTE 12M) at the output rate.

use super::schedule::OutputRate;
use gst_video::{ValidVideoTimeCode, VideoTimeCode, VideoTimeCodeFlags, VideoTimeCodeMeta};

/// The timecodes that a buffer carries.
pub(super) fn of_buffer(buffer: &gst::BufferRef) -> Vec<ValidVideoTimeCode> {
    buffer
        .iter_meta::<VideoTimeCodeMeta>()
        // An invalid one cannot be converted to another rate.
        .filter_map(|meta| VideoTimeCode::from(meta.tc()).try_into().ok())
        .collect()
}

/// The timecode at the output rate for an output frame that is `later` than the input frame with the timecode `input`,
/// by less than an output frame. A rate that timecodes do not support is rounded to the nearest integer; `None` if they
/// do not support that either.
pub(super) fn output(
    input: &ValidVideoTimeCode,
    rate: OutputRate,
    later: f64,
) -> Option<ValidVideoTimeCode> {
    let fps = input.fps();
    let (numer, denom) = match rate {
        OutputRate::Multiple(interpolated) => {
            let parts = i32::try_from(interpolated + 1).ok()?;
            (fps.numer().checked_mul(parts)?, fps.denom())
        }
        OutputRate::Exact((numer, denom)) => (numer.try_into().ok()?, denom.try_into().ok()?),
    };
    let exact = gst::Fraction::new(numer, denom);
    let nearest = gst::Fraction::new(numer.checked_add(denom / 2)? / denom, 1);
    let ratio =
        f64::from(numer) * f64::from(fps.denom()) / (f64::from(denom) * f64::from(fps.numer()));
    let frames = f64::from(input.frames()) * ratio;
    let at = |fps, flags| {
        ValidVideoTimeCode::new(
            fps,
            input.latest_daily_jam().as_ref(),
            flags,
            input.hours(),
            input.minutes(),
            input.seconds(),
            frames as u32,
            input.field_count(),
        )
    };
    // Frame numbers are dropped at exact rates only.
    let flags = input.flags() - VideoTimeCodeFlags::DROP_FRAME;
    let mut output = at(exact, input.flags()).or_else(|_| at(nearest, flags)).ok()?;
    output.add_frames((frames + later).round() as i64 - frames as i64);
    Some(output)
}

/// Whether timecodes are those of the frame after one with the timecodes `before`.
pub(super) fn follow(before: &[ValidVideoTimeCode], timecodes: &[ValidVideoTimeCode]) -> bool {
    let follows = |(before, timecode): (&ValidVideoTimeCode, &ValidVideoTimeCode)| {
        let mut next = before.clone();
        next.increment_frame();
        next == *timecode
    };
    before.len() == timecodes.len() && before.iter().zip(timecodes).all(follows)
}
