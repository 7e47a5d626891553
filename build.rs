// SPDX-License-Identifier: MIT OR Apache-2.0
//! Passes the commit to the plugin's version and, with the feature `cuda`, compiles the kernels.

use std::{path::Path, process::Command};

#[path = "src/ops/cuda/architectures.rs"]
mod architectures;
#[path = "build/kernels.rs"]
mod kernels;

fn main() {
    gst_plugin_version_helper::info();
    watch();
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some()
        && let Err(error) = kernels::compile()
    {
        println!("cargo::error={}", error.replace('\n', " "));
    }
}

/// Cargo reruns this script when a listed file changes. Without this list, any file of the package would trigger it.
fn watch() {
    let files = ["build.rs", "build", "Cargo.toml", "Cargo.lock", "src"].map(String::from);
    let git = ["HEAD", "logs/HEAD"].map(|file| git_path(file).unwrap_or_default());
    // A file that does not exist counts as changed.
    for path in files.iter().chain(&git).filter(|path| Path::new(path).exists()) {
        println!("cargo::rerun-if-changed={path}");
    }
}

/// Path of a file in the git folder, also in a worktree. `None` outside of a repository.
fn git_path(file: &str) -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "--git-path", file]).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| path.trim_end().into())
}
