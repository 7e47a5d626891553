// SPDX-License-Identifier: MIT OR Apache-2.0
//! Computes the requested output size, because a user can name a factor, or a size that the output must fit into.

use std::fmt;

use super::{Error, rules::scaled_side};

/// The largest factor between a side of the input and of the output.
pub const MAX_SCALE: usize = 8;

/// What the user requests the output size with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sizing {
    /// A factor for both sides, 1 to 8: the property `up-scale`.
    Scale(f64),
    /// Limits of the output's width and height in pixels: the properties `target-width` and `target-height`.
    /// 0 means no limit. The output is the largest that both allow.
    Fit(u32, u32),
}

impl Sizing {
    /// Returns the requested output size (w, h) for input of size `input`.
    ///
    /// Both sides are scaled by the same factor. A scale rounds them down to even numbers. Of a limited size, the side
    /// whose limit decides is rounded down, the other one to the nearest even number. Factor 1 keeps odd sides.
    ///
    /// # Errors
    /// [`Error::Setting`] if the input does not fit into the limits, or would be scaled by more than 8.
    pub fn size(self, input: (usize, usize)) -> Result<(usize, usize), Error> {
        match self {
            Self::Scale(scale) => Ok((scaled_side(input.0, scale), scaled_side(input.1, scale))),
            Self::Fit(width, height) => fit(input, (width, height)),
        }
    }
}

impl fmt::Display for Sizing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Scale(scale) => write!(f, "up-scale={scale}"),
            Self::Fit(width, 0) => write!(f, "target-width={width}"),
            Self::Fit(0, height) => write!(f, "target-height={height}"),
            Self::Fit(width, height) => write!(f, "target-width={width} target-height={height}"),
        }
    }
}

/// Returns the largest size with the aspect ratio of `input` within the limits `most` (w, h), of which one is not 0.
fn fit((width, height): (usize, usize), most: (u32, u32)) -> Result<(usize, usize), Error> {
    let by_width = Limit { setting: "target-width", direction: "wide", most: most.0, side: width };
    let by_height =
        Limit { setting: "target-height", direction: "high", most: most.1, side: height };
    if most.1 == 0 || most.0 > 0 && by_width.is_narrower_than(&by_height) {
        by_width.check()?;
        Ok((by_width.scaled(), by_width.scale(height)))
    } else {
        by_height.check()?;
        Ok((by_height.scale(width), by_height.scaled()))
    }
}

/// A limit of one side of the output. It sets a factor: the fraction of [`scaled`](Self::scaled) and `side`.
struct Limit {
    setting: &'static str,
    /// "wide" or "high".
    direction: &'static str,
    most: u32,
    /// The side of the input.
    side: usize,
}

impl Limit {
    /// The longest length within the limit: even, or that of the input.
    fn scaled(&self) -> usize {
        let most = self.most as usize;
        if most == self.side { most } else { most / 2 * 2 }
    }

    /// Whether the factor is smaller than that of another limit.
    fn is_narrower_than(&self, other: &Self) -> bool {
        let product = |a: usize, b: usize| a as u128 * b as u128;
        product(self.scaled(), other.side) < product(other.scaled(), self.side)
    }

    /// Scales the other side to the nearest even length. That is within its limit too, because all limits are even
    /// or the input's length.
    fn scale(&self, other: usize) -> usize {
        if self.scaled() == self.side {
            return other;
        }
        let (scaled, side) = (self.scaled() as u128, self.side as u128);
        let half = (other as u128 * scaled + side) / (2 * side);
        usize::try_from(2 * half).unwrap_or(usize::MAX)
    }

    /// Checks the factor.
    ///
    /// # Errors
    /// [`Error::Setting`] if it is not 1 to [`MAX_SCALE`].
    fn check(&self) -> Result<(), Error> {
        let Self { setting, direction, most, side } = *self;
        let largest = side.saturating_mul(MAX_SCALE);
        let (why, instead) = if self.scaled() < side {
            (
                "frames cannot be made smaller".to_owned(),
                format!("use {setting}={side} or more, or scale the input down first"),
            )
        } else if self.scaled() > largest {
            (
                format!("frames are made up to {MAX_SCALE} times larger"),
                format!("use {setting}={largest} or less"),
            )
        } else {
            return Ok(());
        };
        let why = format!("the input is {side} pixels {direction}, and {why}");
        Err(Error::Setting { setting, value: most.to_string(), why, instead })
    }
}
