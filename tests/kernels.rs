// SPDX-License-Identifier: MIT OR Apache-2.0
//! The CUDA kernels compute what they should: from their own source, on the CPU (tests/kernels/emulator.h).

use std::{path::Path, process::Command};

/// Compiles and runs the test of a file of kernels.
fn passes(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let source =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels").join(format!("{name}.cpp"));
    let program = dir.path().join(name);
    let mut compiler = Command::new("g++");
    compiler.args(["-O2", "-std=c++17", "-o"]).args([&program, &source]);
    for command in [&mut compiler, &mut Command::new(&program)] {
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(
            output.status.success(),
            "{command:?}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn attention_is_softmax_written_out_for_any_tokens_and_keys() {
    passes("attention");
}

#[test]
fn attention_for_hopper_is_softmax_written_out_for_any_tokens_and_keys() {
    passes("attention_hopper");
}

#[test]
fn gates_are_exact_for_any_width() {
    passes("gate");
}

#[test]
fn norms_measure_and_change_any_channels() {
    passes("norm");
}

#[test]
fn pixels_are_copied_run_by_run() {
    passes("pixels");
}

#[test]
fn products_are_sums_written_out_for_any_sizes() {
    passes("product");
}

#[test]
fn products_for_hopper_are_sums_written_out_for_any_sizes() {
    passes("product_hopper");
}
