// SPDX-License-Identifier: MIT OR Apache-2.0
//! The networks on the GPU against the numbers of the real implementation.

use std::path::Path;

use candle_core::{Device, Result};
use serde_json::json;

use super::{Args, Findings, golden};

/// Compares the networks of all fixtures in a folder. Those of the sampler are of toys, and are left to the tests.
pub fn run(args: &Args, device: &Device, findings: &mut Findings) -> Result<()> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&args.fixtures)? {
        paths.push(entry?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    paths.sort();
    let mut compared = 0;
    for path in &paths {
        match compare(path, device, findings) {
            Ok(count) => compared += count,
            Err(error) => findings.failed(json!({ "what": "fixture", "case": path }), error),
        }
    }
    if compared == 0 {
        candle_core::bail!("{} holds no fixture of a network", args.fixtures.display());
    }
    Ok(())
}

/// Returns the number of comparisons.
fn compare(path: &Path, device: &Device, findings: &mut Findings) -> golden::Result<usize> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let fixture = golden::Fixture::read(path)?;
    let mut tell = |found: &golden::Comparison| {
        let figure = json!({ "what": "fixture", "case": found.what });
        findings.compare(figure, found.error, found.tolerance);
    };
    let mut report = golden::Report::new(device.clone(), &mut tell);
    golden::network(&name, &fixture, &mut report)?;
    Ok(report.compared)
}
