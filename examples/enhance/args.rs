// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line: one flag for each property of the element, taken from the element itself, and
//! those of the application.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use gst::{glib, prelude::*};

pub struct Args {
    pub input: PathBuf,
    pub output: PathBuf,
    /// An encoder as in gst-launch, instead of the one that goes with the container.
    pub encoder: Option<String>,
    pub quality: Option<u32>,
    pub resume: bool,
    pub overwrite: bool,
    pub compare: Option<PathBuf>,
    /// Properties of the element that were given, with the text that was given.
    pub properties: Vec<(String, String, glib::Value)>,
    pub prompts: Prompts,
    /// The folder of the output, which is made if there is none.
    pub save_dir: Option<PathBuf>,
    /// Say what would be done, and do nothing.
    pub plan: bool,
}

/// Where a video's prompt comes from.
#[derive(Debug, Clone)]
pub enum Prompts {
    /// It was given, for all videos.
    Given,
    /// From the text file beside the video, of the same name, if there is one.
    Beside,
    /// The video's name.
    FileName,
    /// A line for each video, in the order of their names.
    Lines(PathBuf),
}

/// What the reference's script calls properties of the element.
const REFERENCE: [(&str, &str); 8] = [
    ("model", "version"),
    ("model-dir", "model_path"),
    ("up-scale", "up_scale"),
    ("target-fps", "target_fps"),
    ("noise-aug", "noise_aug"),
    ("solver", "solver_mode"),
    ("guidance-scale", "cfg"),
    ("downscale-cond", "s_cond"),
];

const ABOUT: &str = "Makes video larger, smoother and cleaner; sound, subtitles and tags stay.

IN and OUT are files, or folders: then every video in IN becomes one of the same name in OUT. OUT ends \
in .mp4, .m4v, .mov, .mkv or .webm. While it works, OUT.partial.mkv holds what is done so far; it plays.";

const EXIT_CODES: &str = "Exit codes: 0 done, 2 usage, 3 input, 4 output or disk, 5 missing GStreamer \
plugin, 6 model, 130 cancelled. Ctrl-C ends the file so far, a second one aborts.";

/// Reads the command line; ends the process after --help and on a mistake.
pub fn parse() -> Args {
    let properties = properties();
    let mut matches = command(&properties).get_matches();
    let values = properties.iter().filter_map(|pspec| {
        let text: &String = matches.get_one(pspec.name())?;
        let text = match pspec.name() {
            "model-dir" => folder_of(text),
            _ => text.clone(),
        };
        let value = value(pspec, &text).ok()?;
        Some((pspec.name().to_owned(), text, value))
    });
    let values: Vec<_> = values.filter(|(_, text, _)| !text.is_empty()).collect();
    let mut take = |name| matches.remove_one::<PathBuf>(name);
    let input = take("IN").or_else(|| take("input_path")).unwrap_or_default();
    let (output, save_dir) = (take("OUT"), take("save_dir"));
    let output = output.or_else(|| save_dir.as_ref().map(|folder| saved_as(&input, folder)));
    let (compare, lines) = (take("compare"), take("prompt_path"));
    let flag = |matches: &ArgMatches, name| matches.get_flag(name);
    Args {
        input,
        output: output.unwrap_or_default(),
        save_dir,
        plan: flag(&matches, "plan"),
        prompts: match lines {
            Some(lines) => Prompts::Lines(lines),
            None if flag(&matches, "filename_as_prompt") => Prompts::FileName,
            None if values.iter().any(|(name, ..)| name == "prompt") => Prompts::Given,
            None => Prompts::Beside,
        },
        encoder: matches.remove_one("encoder"),
        quality: matches.remove_one("quality"),
        resume: flag(&matches, "resume"),
        overwrite: flag(&matches, "overwrite"),
        compare,
        properties: values,
    }
}

/// The reference takes the path of one file of weights; the others are beside it.
fn folder_of(weights: &str) -> String {
    let path = Path::new(weights);
    match path.is_file() {
        true => path.parent().unwrap_or(path).display().to_string(),
        false => weights.to_owned(),
    }
}

/// Where the reference's script saves what it makes of `input`.
fn saved_as(input: &Path, folder: &Path) -> PathBuf {
    match input.is_dir() {
        true => folder.to_owned(),
        false => folder.join(input.file_stem().unwrap_or_default()).with_extension("mp4"),
    }
}

/// The element's own properties that can be set.
fn properties() -> Vec<glib::ParamSpec> {
    glib::Class::<gstvenhance::VEnhance>::from_type(gstvenhance::VEnhance::static_type())
        .map(|class| class.list_properties().to_vec())
        .unwrap_or_default()
        .into_iter()
        .filter(|pspec| pspec.owner_type() == gstvenhance::VEnhance::static_type())
        .filter(|pspec| pspec.flags().contains(glib::ParamFlags::WRITABLE))
        // That of a run which goes on.
        .filter(|pspec| pspec.name() != "first-frame")
        .collect()
}

fn command(properties: &[glib::ParamSpec]) -> Command {
    let path = |name: &'static str, help: &'static str| {
        Arg::new(name).help(help).value_parser(value_parser!(PathBuf))
    };
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
    };
    let own = Command::new("enhance")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .after_help(EXIT_CODES)
        // The reference's script has a --version of its own.
        .disable_version_flag(true)
        .arg(
            Arg::new("V").short('V').help("Print version").action(ArgAction::Version),
        )
        .arg(
            path("IN", "The video, or a folder of videos")
                .required_unless_present("input_path"),
        )
        .arg(
            path("OUT", "The enhanced video, or a folder for them")
                .required_unless_present_any(["save_dir", "plan"]),
        )
        .arg(flag("plan", "Say what would be done, without weights, and do nothing"))
        .next_help_heading("Flags of the reference's script, beside those of its properties")
        .arg(path("input_path", "As IN").long("input_path").conflicts_with("IN"))
        .arg(path("save_dir", "The folder of OUT").long("save_dir").conflicts_with("OUT"))
        .arg(
            path("prompt_path", "A file with a prompt a line, for the videos in order of their names")
                .long("prompt_path")
                .conflicts_with("filename_as_prompt"),
        )
        .arg(flag("filename_as_prompt", "The video's name is its prompt"))
        .next_help_heading("Output")
        .arg(Arg::new("encoder").long("encoder").value_name("ELEMENT").help(
            "The video encoder, with properties as in gst-launch: 'x265enc speed-preset=slow' \
             [default: x264enc, 4:2:0 and 8 bits; vp9enc in .webm]",
        ))
        .arg(
            Arg::new("quality")
                .long("quality")
                .value_name("N")
                .value_parser(value_parser!(u32).range(0..=63))
                .help(
                    "Constant quality in the encoder's own scale, lower is better: 0-51 for x264enc \
                     [default: 18] and x265enc [default: 20], 0-63 for vp9enc [default: 24] and \
                     av1enc [default: 24]; other encoders take theirs in --encoder",
                ),
        )
        .arg(flag("resume", "Go on after the last complete piece of an interrupted run"))
        .arg(
            flag("overwrite", "Replace what exists: a finished output, or an interrupted run")
                .conflicts_with("resume"),
        )
        .arg(
            path("compare", "Also write a picture of frames side by side: input, output")
                .long("compare")
                .value_name("PNG"),
        )
        .next_help_heading("Properties of the element venhance");
    properties.iter().fold(own, |command, pspec| {
        let spec = pspec.clone();
        let aliases =
            REFERENCE.iter().filter(|(name, _)| *name == pspec.name()).map(|(_, alias)| *alias);
        command.arg(
            Arg::new(pspec.name().to_owned())
                .visible_aliases(aliases)
                .long(pspec.name().to_owned())
                .value_name(pspec.value_type().name().trim_start_matches("Gst").to_owned())
                .help(help(pspec))
                .allow_hyphen_values(true)
                .value_parser(move |text: &str| value(&spec, text).map(|_| text.to_owned())),
        )
    })
}

/// The property's text, its values if there are only some, and its default.
fn help(pspec: &glib::ParamSpec) -> String {
    let text = pspec.blurb().unwrap_or_default();
    let values = glib::EnumClass::with_type(pspec.value_type()).map_or(String::new(), |class| {
        let nicks: Vec<_> = class.values().iter().map(|value| value.nick()).collect();
        format!(" [{}]", nicks.join(", "))
    });
    let default = pspec.default_value();
    let default = match default.get::<Option<String>>() {
        Ok(text) => text,
        Err(_) => default.serialize().ok().map(String::from),
    };
    format!("{text}{values} [default: {}]", default.as_deref().unwrap_or("none"))
}

/// What a text means for a property, as in gst-launch.
fn value(pspec: &glib::ParamSpec, text: &str) -> Result<glib::Value, String> {
    let value = match pspec.value_type() {
        glib::Type::STRING => text.to_value(),
        _ => glib::Value::deserialize_with_pspec(text, pspec)
            .map_err(|_| format!("this is no {}", pspec.value_type().name()))?,
    };
    match pspec.value_is_valid(&value) {
        true => Ok(value),
        false => Err("this is out of range".into()),
    }
}
