// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares networks and sampler with the output of the reference implementation.
//!
//! Reads every file in `$VENHANCE_FIXTURES` (default: `tests/fixtures`, see the README there). The metadata of
//! a file selects the comparison.

mod golden;
mod sampling;

use std::{
    collections::BTreeSet,
    io::Write,
    path::{Path, PathBuf},
};

use candle_core::Device;
use golden::{Comparison, Fixture, Report, Result, usizes_of};
use gstvenhance::{
    networks::{
        text::{self, TextEncoder, Tokenizer},
        unet::{self, UNet},
        vae::{self, Vae},
    },
    weights::keys::{self, Keys},
};
use serde_json::Value;

/// The beginnings of the names of all fixtures that are compared here.
const KINDS: [&str; 10] = [
    "blending",
    "clip_text",
    "diffusion",
    "geometry",
    "pipeline",
    "schedules",
    "tiled_decode",
    "tokenizer",
    "unet",
    "vae",
];

/// Prints to standard error without the capture of the test runner.
fn print(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn tokenizer(name: &str, path: &Path, report: &mut Report) -> Result<()> {
    let cases: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let tokenizer = Tokenizer::default();
    for case in cases.as_array().ok_or("no cases")? {
        let text = case["text"].as_str().ok_or("no text")?;
        let expected = usizes_of(&case["tokens"])?;
        let actual: Vec<_> = tokenizer.encode(text).0.map(|token| token as usize).into();
        let what = format!("{name} {:?}", text.chars().take(24).collect::<String>());
        report.error(&what, if actual == expected { 0.0 } else { 1.0 }, 0.0);
    }
    Ok(())
}

/// The full-size networks use the tensor names and shapes of the published files. Allocates no weights.
#[test]
fn full_size_networks_have_the_tensors_of_the_published_files() {
    let published = |name: &str| -> Keys {
        let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let denoiser = keys::keys(|vb| UNet::new(&unet::Config::full(), vb)).unwrap();
    keys::check(&denoiser, &published("venhancer_keys.json")).unwrap();
    assert_eq!(denoiser.len(), 2180);
    let vae = keys::keys(|vb| Vae::new(&vae::Config::full(), vb)).unwrap();
    keys::check(&vae, &published("svd_vae_keys.json")).unwrap();
    assert_eq!(vae.len(), 374);
    // There is no published list for the text encoder: these numbers follow from its architecture.
    let text = keys::keys(|vb| TextEncoder::new(&text::Config::full(), vb)).unwrap();
    assert_eq!(text.len(), 23 * 12 + 4);
    assert_eq!(text["transformer.resblocks.22.attn.in_proj_weight"], [3072, 1024]);
}

fn check(name: &str, path: &Path, report: &mut Report) -> Result<()> {
    let fixture = Fixture::read(path)?;
    if golden::network(name, &fixture, report)? {
        return Ok(());
    }
    match fixture.text("kind")? {
        "diffusion" => sampling::diffusion(name, &fixture, report),
        "blending" => sampling::blending(name, &fixture, report),
        "tiled_decode" => sampling::tiled_decode(name, &fixture, report),
        "pipeline" => sampling::pipeline(name, &fixture, report),
        kind => Err(format!("{name}: unknown kind {kind}").into()),
    }
}

/// Returns the paths of all fixtures in order.
fn fixtures() -> Vec<PathBuf> {
    let folder = std::env::var("VENHANCE_FIXTURES");
    let folder =
        folder.unwrap_or_else(|_| format!("{}/tests/fixtures", env!("CARGO_MANIFEST_DIR")));
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{folder}: {error}"))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
}

/// Keeps freed memory in the process: otherwise page faults take a third of the time.
fn keep_freed_memory() {
    // SAFETY: sets parameters of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
    }
}

/// Takes more than a minute of processor time, half of it for the decoder at 1408×800, where tiles begin.
#[test]
fn networks_and_sampler_match_every_fixture() {
    keep_freed_memory();
    let mut failed = 0;
    let mut print_result = |Comparison { what, error, tolerance }: &Comparison| {
        // False if the error is NaN.
        let passed = error <= tolerance;
        failed += usize::from(!passed);
        let verdict = if passed { "ok" } else { "FAILED" };
        print(&format!("{what}: error {error:.2e}, tolerance {tolerance:.0e}: {verdict}"));
    };
    let mut report = Report::new(Device::Cpu, &mut print_result);
    let mut kinds = BTreeSet::<&str>::new();
    for path in fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        kinds.extend(KINDS.into_iter().filter(|kind| name.starts_with(*kind)));
        let done = if name.ends_with(".safetensors") {
            check(&name, &path, &mut report)
        } else if name.starts_with("tokenizer") && name.ends_with(".json") {
            tokenizer(&name, &path, &mut report)
        } else if name.starts_with("schedules") && name.ends_with(".json") {
            sampling::schedules(&name, &path, &mut report)
        } else if name.starts_with("geometry") && name.ends_with(".json") {
            sampling::geometry(&name, &path, &mut report)
        } else {
            Ok(())
        };
        done.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let compared = report.compared;
    if std::env::var_os("VENHANCE_FIXTURES").is_none() {
        let missing: Vec<_> = KINDS.iter().filter(|kind| !kinds.contains(*kind)).collect();
        assert!(missing.is_empty(), "no fixtures of {missing:?}");
    }
    assert_eq!(failed, 0, "failed of {compared} comparisons");
}
