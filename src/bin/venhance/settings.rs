// SPDX-License-Identifier: MIT OR Apache-2.0
//! The element's properties in a run: which of them the model uses, the prompt of each video, and what `--resume`
//! compares.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use gst::{glib, prelude::*};
use gstvenhance::Model;
use sha2::{Digest, Sha256};

use crate::{
    args::{Prompts, TARGET_SIZE},
    failure::{Failure, Kind},
    partial::Settings,
    properties,
    session::Session,
    source::Source,
    target::Encoder,
};

/// A text file with prompts has fewer bytes.
const MAX_PROMPTS: u64 = 16 << 20;

impl Session {
    /// Says which of the given flags the model does not use.
    pub fn warn_of_unused_flags(&self) {
        let given = |pspec: &glib::ParamSpec| {
            self.args.properties.iter().any(|property| property.name == pspec.name())
        };
        let mut unused: Vec<_> = properties::settable()
            .iter()
            .filter(|pspec| given(pspec) && !self.uses(pspec))
            .map(|pspec| format!("--{}", pspec.name()))
            .collect();
        if self.model == Model::Lite {
            unused.extend(self.args.prompts.flag().map(str::to_owned));
        }
        if !unused.is_empty() {
            eprintln!("model {} does not use {}", self.model_name(), unused.join(", "));
        }
    }

    /// Whether the output of the model depends on a property.
    fn uses(&self, pspec: &glib::ParamSpec) -> bool {
        self.model != Model::Lite || !properties::is_of_diffusion(pspec)
    }

    /// Whether the output depends on a property.
    fn depends_on(&self, pspec: &glib::ParamSpec) -> bool {
        let has_target = TARGET_SIZE.iter().any(|name| self.enhancer.property::<u32>(name) != 0);
        self.uses(pspec) && !(has_target && pspec.name() == "up-scale")
    }

    /// The model as a value of `--model`.
    pub fn model_name(&self) -> String {
        properties::text(&self.model.to_value())
    }

    /// Sets the prompt of a video.
    pub fn set_prompt(&self, input: &Path, index: usize) -> Result<(), Failure> {
        let read = |path: &Path| {
            let mut text = String::new();
            let file = File::open(path).map(|file| file.take(MAX_PROMPTS));
            let bytes = file.and_then(|mut file| file.read_to_string(&mut text));
            let bytes = bytes.map_err(|error| {
                Failure::input(path, format!("it cannot be read as a prompt: {error}"))
            })?;
            match bytes as u64 == MAX_PROMPTS {
                true => Err(Failure::input(path, "it is too long; use a text file with prompts")),
                false => Ok(text),
            }
        };
        let text_file = input.with_extension("txt");
        let prompt = match &self.args.prompts {
            Prompts::Given => return Ok(()),
            // A video can be called x.txt.
            Prompts::TextFile if !text_file.is_file() || text_file == input => {
                // The previous video may have had one.
                if let Some(pspec) = self.enhancer.find_property("prompt") {
                    self.enhancer.set_property_from_value("prompt", pspec.default_value());
                }
                return Ok(());
            }
            Prompts::TextFile => lines(&read(&text_file)?).next().unwrap_or_default().to_owned(),
            Prompts::FileName => {
                input.file_stem().unwrap_or_default().to_string_lossy().into_owned()
            }
            Prompts::Lines(path) => {
                let text = read(path)?;
                lines(&text).nth(index).map(str::to_owned).ok_or_else(|| {
                    let (path, lines) = (path.display(), lines(&text).count());
                    Failure::new(
                        Kind::Input,
                        format!(
                            "{path} has {lines} lines but there are more videos; add one line for each video"
                        ),
                    )
                })?
            }
        };
        self.enhancer.set_property("prompt", &prompt);
        Ok(())
    }

    /// Everything that the output depends on, for `--resume`.
    pub fn settings(&self, source: &Source, encoder: &Encoder) -> Result<Settings, Failure> {
        let input_digest = digest(&source.path);
        let input_digest = input_digest.map_err(|error| Failure::input(&source.path, error))?;
        let metadata = source.path.metadata().ok();
        let mut settings = Settings::from([
            ("version".into(), env!("CARGO_PKG_VERSION").into()),
            ("input".into(), source.path.display().to_string()),
            ("input size".into(), metadata.map_or(0, |metadata| metadata.len()).to_string()),
            ("input digest".into(), input_digest),
            ("encoder".into(), encoder.description.clone()),
        ]);
        let used = properties::settable().into_iter().filter(|pspec| self.depends_on(pspec));
        settings.extend(used.map(|pspec| {
            let value = self.enhancer.property_value(pspec.name());
            (format!("--{}", pspec.name()), properties::text(&value))
        }));
        // In the place of "auto".
        settings.insert("--model".into(), self.model_name());
        let weights = self.enhancer.property::<Option<String>>("model-dir");
        if let Some(weights) = weights.filter(|_| self.model != Model::Lite) {
            let weights = Path::new(&weights);
            let digest = digests(weights).map_err(|error| {
                Failure::new(Kind::Model, format!("{}: {error}", weights.display()))
            })?;
            settings.insert("weights digest".into(), digest);
        }
        Ok(settings)
    }
}

/// The digest of a file, or of all files of a folder.
fn digests(path: &Path) -> io::Result<String> {
    if !path.is_dir() {
        return digest(path);
    }
    let files: io::Result<Vec<_>> = path.read_dir()?.map(|entry| Ok(entry?.path())).collect();
    let mut files = files?;
    files.retain(|path| path.is_file());
    files.sort();
    let digests: io::Result<Vec<_>> = files.iter().map(|path| digest(path)).collect();
    Ok(hex(&Sha256::digest(digests?.concat())))
}

/// The SHA-256 of the length, the beginning and the end of a file.
pub fn digest(path: &Path) -> io::Result<String> {
    const PART: u64 = 1 << 20;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut hash = Sha256::new_with_prefix(length.to_le_bytes());
    for start in [0, length.saturating_sub(PART)] {
        file.seek(SeekFrom::Start(start))?;
        io::copy(&mut Read::by_ref(&mut file).take(PART), &mut hash)?;
    }
    Ok(hex(&hash.finalize()))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The lines of a text that are not blank.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.trim_start_matches('\u{feff}').lines().map(str::trim).filter(|line| !line.is_empty())
}
