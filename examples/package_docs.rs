// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes the manual page and the shell completions of the application into a folder, for scripts/package.
//!
//!     cargo run --release --features cli --example package_docs -- DIR

use std::{error::Error, fs::File, path::PathBuf};

use clap_complete::{Shell, generate_to};

#[allow(dead_code, reason = "the application uses the rest")]
#[path = "../src/bin/venhance/args.rs"]
mod args;
#[allow(dead_code, reason = "the application uses the rest")]
#[path = "../src/bin/venhance/properties.rs"]
mod properties;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("which folder?")?);
    std::fs::create_dir_all(&folder)?;
    gst::init()?;
    let mut command = args::command(&properties::settable());
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "venhance", &folder)?;
    }
    // The first paragraph is the line of a manual page's index.
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let line = about.lines().next().unwrap_or_default().trim_end_matches('.').to_owned();
    let command = command.about(line).long_about(about);
    clap_mangen::Man::new(command).render(&mut File::create(folder.join("venhance.1"))?)?;
    Ok(())
}
