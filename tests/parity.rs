// SPDX-License-Identifier: MIT OR Apache-2.0
//! Networks and sampler against numbers that the real implementation has produced: every file in
//! `$VENHANCE_FIXTURES` (default `tests/fixtures`, whose README says what is in them), whatever its
//! name, by its metadata.

mod golden;
mod sampling;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use candle_core::Device;
use golden::{Comparison, Fixture, Report, Result, usizes_of};
use gstvenhance::{
    networks::{
        text::{self, TextEncoder, Tokenizer},
        unet::{self, Denoiser},
        vae::{self, Vae},
    },
    weights::keys::{self, Keys},
};
use serde_json::Value;

/// Prints past the test runner's capture.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn tokenizer(name: &str, path: &Path, report: &mut Report) -> Result<()> {
    let cases: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let tokenizer = Tokenizer::default();
    for case in cases.as_array().ok_or("no cases")? {
        let text = case["text"].as_str().ok_or("no text")?;
        let theirs = usizes_of(&case["tokens"])?;
        let ours: Vec<_> = tokenizer.encode(text).0.map(|token| token as usize).into();
        let what = format!("{name} {:?}", text.chars().take(24).collect::<String>());
        report.error(&what, if ours == theirs { 0.0 } else { 1.0 }, 0.0);
    }
    Ok(())
}

/// The full-size networks ask for the tensors of the published files, with their shapes; no weight is
/// made.
#[test]
fn full_size_networks_have_the_published_keys() {
    let published = |name: &str| -> Keys {
        let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let denoiser = keys::keys(|vb| Denoiser::new(&unet::Config::full(), vb)).unwrap();
    keys::check(&denoiser, &published("venhancer_keys.json")).unwrap();
    assert_eq!(denoiser.len(), 2180);
    let vae = keys::keys(|vb| Vae::new(&vae::Config::full(), vb)).unwrap();
    keys::check(&vae, &published("svd_vae_keys.json")).unwrap();
    assert_eq!(vae.len(), 374);
    // Nobody has published a list for the text encoder: by its description.
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

/// The files of fixtures, in order.
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

#[test]
fn every_fixture_is_met() {
    let mut failed = 0;
    let mut tell = |Comparison { what, error, tolerance }: &Comparison| {
        // NaN does not hold.
        let holds = error <= tolerance;
        failed += usize::from(!holds);
        let verdict = if holds { "ok" } else { "FAILED" };
        say(&format!("{what}: {error:.2e} of {tolerance:.0e} {verdict}"));
    };
    let mut report = Report::new(Device::Cpu, &mut tell);
    for path in fixtures() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
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
    assert!(compared > 0, "there are no fixtures");
    assert_eq!(failed, 0, "of {compared} comparisons");
}
