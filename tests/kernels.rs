// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests the CUDA kernels on the CPU: compiles their sources against an emulator
//! (tests/kernels/emulator.h).

use std::{path::Path, process::Command};

/// Compiles and runs the test of a file of kernels.
fn run_kernel_test(name: &str) {
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
fn attention_matches_the_reference_for_any_number_of_tokens_and_keys() {
    run_kernel_test("attention");
}

#[test]
fn hopper_attention_matches_the_reference_for_any_number_of_tokens_and_keys() {
    run_kernel_test("attention_hopper");
}

#[test]
fn geglu_matches_the_reference_for_any_width() {
    run_kernel_test("gate");
}

#[test]
fn norms_match_the_reference_for_any_number_of_channels() {
    run_kernel_test("norm");
}

#[test]
fn pixels_are_copied_for_any_length_and_alignment() {
    run_kernel_test("pixels");
}

/// Takes more than 10 s: an emulated GPU computes every kernel variant.
#[test]
fn products_match_the_reference_for_any_size() {
    run_kernel_test("product");
}

/// Takes more than 10 s: an emulated GPU computes every kernel variant.
#[test]
fn hopper_products_match_the_reference_for_any_size() {
    run_kernel_test("product_hopper");
}
