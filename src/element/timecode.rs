// SPDX-License-Identifier: MIT OR Apache-2.0
//! Timecodes (SMPTE 12M) at the output rate.

use gst_video::{ValidVideoTimeCode, VideoTimeCode, VideoTimeCodeFlags, VideoTimeCodeMeta};

/// The timecodes that a buffer carries.
pub(super) fn of_buffer(buffer: &gst::BufferRef) -> Vec<ValidVideoTimeCode> {
    buffer
        .iter_meta::<VideoTimeCodeMeta>()
        // An invalid one cannot be converted to another rate.
        .filter_map(|meta| VideoTimeCode::from(meta.tc()).try_into().ok())
        .collect()
}

/// The timecode of the output frame `part` frames after the input frame with the timecode `input`, at
/// `parts` times the input's rate, or at the nearest integer where timecodes do not support that rate.
/// `None` if they support neither.
pub(super) fn output(
    input: &ValidVideoTimeCode,
    parts: u64,
    part: u64,
) -> Option<ValidVideoTimeCode> {
    let parts = i32::try_from(parts).ok()?;
    let (numer, denom) = (input.fps().numer().checked_mul(parts)?, input.fps().denom());
    let exact = gst::Fraction::new(numer, denom);
    let nearest = gst::Fraction::new(numer.checked_add(denom / 2)? / denom, 1);
    let at = |fps, flags| {
        ValidVideoTimeCode::new(
            fps,
            input.latest_daily_jam().as_ref(),
            flags,
            input.hours(),
            input.minutes(),
            input.seconds(),
            input.frames() * parts as u32,
            input.field_count(),
        )
    };
    // Frame numbers are dropped at exact rates only.
    let flags = input.flags() - VideoTimeCodeFlags::DROP_FRAME;
    let mut output = at(exact, input.flags()).or_else(|_| at(nearest, flags)).ok()?;
    output.add_frames(part as i64);
    Some(output)
}
