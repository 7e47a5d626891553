// SPDX-License-Identifier: MIT OR Apache-2.0
//! Matrix products on the CPU.

use gemm::Parallelism;

/// A strided view of a matrix: its values, and the strides between rows and between columns.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub values: &'a [f32],
    pub row: usize,
    pub column: usize,
}

/// Number of threads that a product may use.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Threads {
    One,
    All,
}

/// `out ← out + a·b`: see [`add_scaled_product`].
pub(super) fn add_product(
    out: &mut [f32],
    out_row: usize,
    size: [usize; 3],
    a: Matrix,
    b: Matrix,
    threads: Threads,
) {
    add_scaled_product(out, out_row, size, a, b, 1.0, threads);
}

/// `out ← out + scale·a·b`. a is [m, k], b is [k, n], and `out` is [m, n] with row stride
/// `out_row`.
///
/// # Panics
/// If a matrix has fewer values.
pub(super) fn add_scaled_product(
    out: &mut [f32],
    out_row: usize,
    [m, n, k]: [usize; 3],
    a: Matrix,
    b: Matrix,
    scale: f32,
    threads: Threads,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let last = |row: usize, column: usize, rows: usize, columns: usize| {
        (rows - 1) * row + (columns - 1) * column
    };
    assert!(last(a.row, a.column, m, k) < a.values.len(), "a is too short");
    assert!(last(b.row, b.column, k, n) < b.values.len(), "b is too short");
    assert!(n <= out_row && last(out_row, 1, m, n) < out.len(), "out is too short");
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(0),
    };
    let stride = |distance: usize| distance as isize;
    // SAFETY: the assertions keep every element inside its slice. `out` is borrowed mutably, and
    // its rows do not overlap.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride(out_row),
            true,
            a.values.as_ptr(),
            stride(a.column),
            stride(a.row),
            b.values.as_ptr(),
            stride(b.column),
            stride(b.row),
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
