// SPDX-License-Identifier: MIT OR Apache-2.0
//! Random and damaged files and texts: whatever they are, the result is an error that can be printed or a correct
//! result, soon and with little memory.
//!
//! The tests run few cases. More of one of them, for ten minutes:
//!
//! ```text
//! PROPTEST_CASES=100000000 timeout 600 cargo test --release --features cli --test untrusted pytorch
//! ```

#[path = "../common/mod.rs"]
mod common;
mod config;
mod mutation;
mod properties;
mod pytorch;
mod resume;
mod safetensors;
#[path = "../common/tiny_model.rs"]
mod tiny_model;
#[path = "../common/torch.rs"]
mod torch;

use peak_alloc::PeakAlloc;
use proptest::prelude::ProptestConfig;
use rustix::time::{ClockId, clock_gettime};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Memory that a file may take beyond the file itself.
const MAX_MEMORY: usize = 256 << 20;

/// Processor time that a file may take, in seconds, beside what else the process does.
const MAX_SECONDS: i64 = 20;

/// As many cases as PROPTEST_CASES says, else `quick`.
fn cases(quick: u32) -> ProptestConfig {
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => default,
        None => ProptestConfig { cases: quick, ..default },
    }
}

/// Runs `work` and checks the memory and the time that it takes.
fn bounded<T>(work: impl FnOnce() -> T) -> T {
    MEMORY.reset_peak_usage();
    let seconds = || clock_gettime(ClockId::ProcessCPUTime).tv_sec;
    let (before, start) = (MEMORY.current_usage(), seconds());
    let result = work();
    let (peak, took) = (MEMORY.peak_usage().saturating_sub(before), seconds() - start);
    assert!(peak < MAX_MEMORY, "{} MiB", peak >> 20);
    assert!(took < MAX_SECONDS, "{took} s");
    result
}

/// Checks that an error is a text of a few lines without control characters.
fn assert_printable(error: &str) {
    let bad = error.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(bad, None, "{error:?}");
    assert!(error.len() < 10_000, "{} bytes: {}", error.len(), &error[..1000]);
}
