// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tensors and kernel arguments of a matrix product, for all implementations of products.

use candle_core::{Result, Tensor};
use cudarc::driver::DeviceRepr;

use super::{
    launch::{Address, int},
    record::Work,
};

/// Kernel arguments; the layout matches product.cu.
#[repr(C)]
pub(super) struct Product {
    pub(super) parts: [Address; 2],
    pub(super) before: Address,
    pub(super) after: Address,
    pub(super) weight: Address,
    pub(super) bias: Address,
    pub(super) add: Address,
    pub(super) out: Address,
    pub(super) channels: [i32; 2],
    pub(super) frames: i32,
    pub(super) height: i32,
    pub(super) width: i32,
    pub(super) out_height: i32,
    pub(super) out_width: i32,
    pub(super) outputs: i32,
    pub(super) taps: i32,
    pub(super) stride: i32,
    pub(super) top: i32,
    pub(super) left: i32,
    pub(super) times: i32,
    pub(super) crop: i32,
    pub(super) source_height: i32,
    pub(super) source_width: i32,
    pub(super) bias_frames: i32,
    pub(super) scale: f32,
}

// SAFETY: plain values in the order of the kernels' struct.
unsafe impl DeviceRepr for Product {}

impl Product {
    /// A linear layer; sizes and addresses are filled in later.
    pub(super) const ROWS: Self = Self {
        parts: [Address::NULL; 2],
        before: Address::NULL,
        after: Address::NULL,
        weight: Address::NULL,
        bias: Address::NULL,
        add: Address::NULL,
        out: Address::NULL,
        channels: [0; 2],
        frames: 1,
        height: 1,
        width: 1,
        out_height: 1,
        out_width: 1,
        outputs: 0,
        taps: 1,
        stride: 1,
        top: 0,
        left: 0,
        times: 1,
        crop: 0,
        source_height: 1,
        source_width: 1,
        bias_frames: 1,
        scale: 1.0,
    };

    /// A linear layer over rows.
    pub(super) fn of_rows(rows: usize) -> Result<Self> {
        let width = int(rows)?;
        Ok(Self { width, out_width: width, source_width: width, ..Self::ROWS })
    }

    /// Whether output pixels correspond to input pixels: stride 1, no upsampling, no cropping,
    /// symmetric padding.
    pub(super) fn is_of_same_size(&self) -> bool {
        let (zeros, sizes) = ((self.top, self.left), (self.height, self.width));
        (self.stride, self.times, self.crop) == (1, 1, 0)
            && sizes == (self.out_height, self.out_width)
            && zeros == if self.taps == 9 { (1, 1) } else { (0, 0) }
    }
}

/// Operands of a product. `weight` is [out, taps, in], `bias` [1 or frames, out], `add` has the
/// shape of the output.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) kind: &'static str,
    pub(super) parts: &'a [&'a Tensor],
    pub(super) weight: &'a Tensor,
    pub(super) bias: Option<&'a Tensor>,
    pub(super) add: Option<&'a Tensor>,
}

impl Operands<'_> {
    /// Work of multiplying every pixel with all weights.
    pub(super) fn work(&self, product: &Product) -> Work {
        let pixels =
            product.frames as usize * product.out_height as usize * product.out_width as usize;
        Work::product(self.kind, 2 * pixels * self.weight.elem_count())
    }
}
