// SPDX-License-Identifier: MIT OR Apache-2.0
//! The command line: the application's own flags, and one flag for each property of the element.

use std::path::{Path, PathBuf};

use clap::{
    Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand,
    error::{ContextKind, ContextValue},
};
use gst::{ClockTime, glib, prelude::*};

use crate::properties::{self, Property};

pub struct Args {
    pub input: PathBuf,
    pub output: PathBuf,
    /// An encoder in gst-launch syntax, instead of the container's default.
    pub encoder: Option<String>,
    pub quality: Option<u32>,
    pub resume: bool,
    pub overwrite: bool,
    pub compare: Option<PathBuf>,
    /// The element's properties that are given on the command line.
    pub properties: Vec<Property>,
    pub prompts: Prompts,
    /// The folder of the output if a flag names it.
    pub save_dir: Option<PathBuf>,
    /// Print what would be done, without doing it.
    pub plan: bool,
    /// Estimate time and memory for the plan.
    pub measure: bool,
    /// Print the progress as JSON.
    pub json_progress: bool,
}

impl Args {
    /// The output folder, created if it does not exist.
    pub fn folder(&self) -> Option<&Path> {
        let folder = self.save_dir.as_deref();
        folder.or_else(|| self.input.is_dir().then_some(&self.output))
    }
}

/// Where the prompt of a video comes from.
#[derive(Debug, Clone)]
pub enum Prompts {
    /// `--prompt`, the same for all videos.
    Given,
    /// The text file next to the video, with the same name, if there is one.
    TextFile,
    /// The name of the video file.
    FileName,
    /// One line of a file for each video, in the order of their names.
    Lines(PathBuf),
}

impl Prompts {
    /// The flag that asks for it, other than `--prompt`.
    pub fn flag(&self) -> Option<&'static str> {
        match self {
            Self::Given | Self::TextFile => None,
            Self::FileName => Some("--filename_as_prompt"),
            Self::Lines(_) => Some("--prompt_path"),
        }
    }
}

/// Flags of VEnhancer's own script that set a property of the element.
const REFERENCE_FLAGS: [(&str, &str); 7] = [
    ("model", "version"),
    ("model-dir", "model_path"),
    ("up-scale", "up_scale"),
    ("target-fps", "target_fps"),
    ("solver", "solver_mode"),
    ("guidance-scale", "cfg"),
    ("downscale-cond", "s_cond"),
];

/// The properties that set the size of the output instead of up-scale.
pub const TARGET_SIZE: [&str; 2] = ["target-width", "target-height"];

const ABOUT: &str = "Makes video larger, smoother and cleaner. Sound, subtitles and tags are kept.

IN and OUT are files or folders. For a folder, each video in IN becomes a video of the same name in OUT; \
pictures, subfolders and other files in IN are skipped. If only OUT is a folder, the output gets the name of IN there. \
An output file ends in .mp4, .m4v, .mov, .mkv or .webm. During the run, OUT.partial.mkv holds the finished part; it \
can be played.";

const PLAN_NOTES: &str = "Writes a job file and prints the number of pieces. The video is decoded once; no weights and no \
GPU are needed: name the model with --model.

";

const PIECE_NOTES: &str = "A finished piece stays, an interrupted one continues.

";

const JOIN_NOTES: &str = "Sound, subtitles, chapters and tags are those of the input. The video is not encoded again. The pieces are \
removed.

";

#[cfg(feature = "serve")]
const SERVE_NOTES: &str =
    "The videos and the queue are kept in a folder; after a restart, the work goes on.

";

const EXIT_CODES: &str = "Exit codes: 0 success, 2 usage (also settings or an input that have changed since the \
interrupted run or the plan), 3 input (also one that ends early: OUT has what could be read), 4 output or disk, 5 missing GStreamer plugin, 6 model, 130 cancelled. Ctrl-C stops and keeps the finished part; a second Ctrl-C aborts.";

/// The application's own flags.
#[derive(Parser)]
#[command(name = "venhance", version, about = ABOUT, after_help = EXIT_CODES)]
// VEnhancer's script has another --version.
#[command(disable_version_flag = true, disable_help_subcommand = true)]
// A file with the name of a command is ./plan.
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct OwnArgs {
    #[command(subcommand)]
    command: Option<JobCommand>,
    #[command(flatten)]
    video: VideoArgs,
    /// Print what would be done and exit; needs no weights
    #[arg(long)]
    plan: bool,
    /// With --plan: enhance for two seconds and estimate the time and the memory (lite)
    #[arg(long, requires = "plan")]
    measure: bool,
    /// Continue an interrupted run after its last complete piece; a finished output stays, whatever its settings are
    #[arg(long, help_heading = "Output", conflicts_with = "overwrite")]
    resume: bool,
    /// Also write a comparison of input and output: a .png with frames side by side, or an .html page with both
    /// videos under a divider
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    compare: Option<PathBuf>,

    /// Print version, as --version does on its own
    #[arg(short = 'V', action = ArgAction::Version)]
    version: (),
}

/// The commands for many machines, and the web page.
#[derive(Subcommand)]
enum JobCommand {
    /// Divide a video into pieces that many machines can make
    #[command(after_help = PLAN_NOTES.to_owned() + EXIT_CODES)]
    Plan(PlanArgs),
    /// Make a piece, or several
    #[command(after_help = PIECE_NOTES.to_owned() + EXIT_CODES)]
    Piece(PieceArgs),
    /// Make the output of all pieces
    #[command(after_help = JOIN_NOTES.to_owned() + EXIT_CODES)]
    Join(JobArgs),
    /// Show which pieces are finished and, while pieces run, the time left
    Status(JobArgs),
    /// Serve a web page that enhances videos
    #[cfg(feature = "serve")]
    #[command(after_help = SERVE_NOTES.to_owned() + EXIT_CODES)]
    Serve(ServeArgs),
}

#[derive(clap::Args)]
struct PlanArgs {
    #[command(flatten)]
    video: VideoArgs,
    /// Job file to write; for a folder of videos, a folder of job files
    #[arg(short = 'o', long = "job", value_name = "JOB")]
    job: PathBuf,
    /// Number of pieces; a short video can have fewer
    #[arg(long, value_name = "N", conflicts_with = "piece_seconds")]
    #[arg(required_unless_present = "piece_seconds")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pieces: Option<u64>,
    /// Length of a piece in seconds
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    piece_seconds: Option<u64>,
}

#[derive(clap::Args)]
struct PieceArgs {
    /// Job file, or folder of job files, whose pieces are numbered consecutively
    #[arg(value_name = "JOB")]
    job: PathBuf,
    /// Number of the piece, from 0 [default: SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX]
    #[arg(value_name = "I", conflicts_with_all = ["from", "to"])]
    piece: Option<usize>,
    /// Make the pieces FIRST to LAST, both included, with one model load
    #[arg(long, value_name = "FIRST", requires = "to")]
    from: Option<usize>,
    /// See --from
    #[arg(long, value_name = "LAST", requires = "from")]
    to: Option<usize>,
}

#[derive(clap::Args)]
struct JobArgs {
    /// Job file, or folder of job files
    #[arg(value_name = "JOB")]
    job: PathBuf,
}

#[cfg(feature = "serve")]
#[derive(clap::Args)]
pub struct ServeArgs {
    /// Address, or name, and port to listen on; an address that other computers reach needs --token
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8423")]
    pub listen: String,
    /// Password that the page asks for: 16 or more letters, digits, - or _
    #[arg(long)]
    pub token: Option<String>,
    /// Folder of the videos and the queue [default: venhance in the user's data folder]
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// Largest video that is accepted, in MiB
    #[arg(long, value_name = "N", default_value_t = 16384)]
    pub upload_limit: u64,
}

#[derive(clap::Args)]
struct VideoArgs {
    /// Video file, or folder of videos
    #[arg(value_name = "IN", required_unless_present = "input_path")]
    input: Option<PathBuf>,
    /// Output file, or output folder
    #[arg(value_name = "OUT", required_unless_present = "save_dir")]
    output: Option<PathBuf>,

    /// Print the progress to standard output, one JSON object a line
    #[arg(long, value_name = "FORMAT", value_parser = ["json"])]
    progress: Option<String>,

    /// Video encoder with properties in gst-launch syntax, such as 'x265enc speed-preset=slow'
    /// [default: x264enc with 4:2:0 and 8 bits; vp9enc for .webm]
    #[arg(long, value_name = "ELEMENT", help_heading = "Output")]
    encoder: Option<String>,
    /// Constant quality on the encoder's scale, lower is better: 0-51 for x264enc [default: 18] and
    /// x265enc [default: 20], 0-63 for vp9enc and av1enc [default: 24]; for other encoders, set their
    /// property with --encoder
    #[arg(long, value_name = "N", help_heading = "Output")]
    #[arg(value_parser = quality)]
    quality: Option<u32>,
    /// Replace an existing output or the files of an interrupted run
    #[arg(long, help_heading = "Output")]
    overwrite: bool,

    /// Same as IN
    #[arg(long = "input_path", value_name = "FILE", help_heading = REFERENCE_HEADING)]
    #[arg(conflicts_with = "input")]
    input_path: Option<PathBuf>,
    /// Folder of the output, instead of OUT
    #[arg(long = "save_dir", value_name = "DIR", help_heading = REFERENCE_HEADING)]
    #[arg(conflicts_with = "output")]
    save_dir: Option<PathBuf>,
    /// Same as --noise-aug, limited to 0 to 300
    #[arg(long = "noise_aug", value_name = "N", help_heading = REFERENCE_HEADING)]
    #[arg(allow_negative_numbers = true)]
    #[arg(conflicts_with = "noise-aug")]
    noise_aug: Option<f64>,
    /// Text file with one prompt a line, for the videos in the order of their names
    #[arg(long = "prompt_path", value_name = "FILE", help_heading = REFERENCE_HEADING)]
    #[arg(conflicts_with = "filename_as_prompt")]
    prompt_path: Option<PathBuf>,
    /// Use the name of each video as its prompt
    #[arg(long = "filename_as_prompt", help_heading = REFERENCE_HEADING)]
    filename_as_prompt: bool,
}

const REFERENCE_HEADING: &str = "Flags of VEnhancer's script";
const PROPERTIES_HEADING: &str = "Enhancement (the properties of the element venhance)";

/// What the program is asked to do.
pub enum Command {
    Enhance(Args),
    /// Write a job file.
    Plan(Args, Division, PathBuf),
    /// Make pieces of a job.
    Piece(PathBuf, Selection),
    Join(PathBuf),
    Status(PathBuf),
    #[cfg(feature = "serve")]
    Serve(ServeArgs),
}

/// How many pieces a video has.
#[derive(Debug, Clone, Copy)]
pub enum Division {
    Pieces(u64),
    /// As many as have about this length.
    Length(ClockTime),
}

/// Which pieces to make. Those of several jobs are numbered one after the other.
#[derive(Debug, Clone, Copy)]
pub enum Selection {
    One(usize),
    /// From one to another one, both included.
    Range(usize, usize),
    /// The one that the scheduler's variable says, if there is one: a short video has fewer than were asked for.
    OfTask,
}

/// The command line, with a flag for each of the properties.
pub fn command(pspecs: &[glib::ParamSpec]) -> clap::Command {
    let with_properties = |command: clap::Command| {
        pspecs.iter().fold(command, |command, pspec| command.arg(property_arg(pspec)))
    };
    with_properties(OwnArgs::command())
        .mut_arg("output", |output| output.required_unless_present("plan"))
        .mut_subcommand("plan", with_properties)
}

/// Reads the command line; exits on `--help` and on a mistake.
pub fn parse() -> Command {
    let pspecs = properties::settable();
    let mut arguments: Vec<_> = std::env::args_os().collect();
    // With a value it is VEnhancer's.
    if arguments.len() == 2 && arguments[1] == "--version" {
        arguments[1] = "-V".into();
    }
    let matches = command(&pspecs).try_get_matches_from(arguments);
    let mut matches = matches.unwrap_or_else(|error| with_own_suggestion(error).exit());
    let properties = properties_of(&pspecs, matches.subcommand_matches("plan").unwrap_or(&matches));
    let own = OwnArgs::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.exit());
    match own.command {
        None => {
            let OwnArgs { video, plan, measure, resume, compare, .. } = own;
            let args = video.args(properties);
            Command::Enhance(Args { plan, measure, resume, compare, ..args })
        }
        Some(JobCommand::Plan(PlanArgs { video, job, pieces, piece_seconds })) => {
            let division = match (pieces, piece_seconds) {
                (None, Some(seconds)) => Division::Length(ClockTime::from_seconds(seconds)),
                (pieces, _) => Division::Pieces(pieces.unwrap_or(1)),
            };
            Command::Plan(video.args(properties), division, job)
        }
        Some(JobCommand::Piece(PieceArgs { job, piece, from, to })) => {
            let selection = match (piece, from.zip(to)) {
                (Some(piece), _) => Selection::One(piece),
                (None, Some((from, to))) => Selection::Range(from, to),
                (None, None) => Selection::OfTask,
            };
            Command::Piece(job, selection)
        }
        Some(JobCommand::Join(JobArgs { job })) => Command::Join(job),
        Some(JobCommand::Status(JobArgs { job })) => Command::Status(job),
        #[cfg(feature = "serve")]
        Some(JobCommand::Serve(options)) => Command::Serve(options),
    }
}

impl VideoArgs {
    fn args(self, mut properties: Vec<Property>) -> Args {
        properties.extend(self.noise_aug.and_then(noise_aug));
        let input = self.input.or(self.input_path).unwrap_or_default();
        let saved = self.save_dir.as_ref().map(|folder| saved_as(&input, folder));
        let output = self.output.or(saved).unwrap_or_default();
        let prompts = match self.prompt_path {
            Some(lines) => Prompts::Lines(lines),
            None if self.filename_as_prompt => Prompts::FileName,
            None if properties.iter().any(|property| property.name == "prompt") => Prompts::Given,
            None => Prompts::TextFile,
        };
        Args {
            input,
            output,
            encoder: self.encoder,
            quality: self.quality,
            resume: false,
            overwrite: self.overwrite,
            compare: None,
            properties,
            prompts,
            save_dir: self.save_dir,
            plan: false,
            measure: false,
            json_progress: self.progress.is_some(),
        }
    }
}

/// The property for the noise augmentation of VEnhancer's flag, which its script limits to the range.
fn noise_aug(given: f64) -> Option<Property> {
    let pspec = properties::settable().into_iter().find(|pspec| pspec.name() == "noise-aug")?;
    let (low, high) = properties::range(&pspec)?;
    let used = given.clamp(low, high).trunc();
    if used != given {
        eprintln!("--noise_aug {given} is not supported: using {used}");
    }
    Some(Property { name: pspec.name().to_owned(), value: (used as i32).to_value() })
}

/// Suggests the application's own spelling of a flag instead of that of VEnhancer's script.
fn with_own_suggestion(mut error: clap::Error) -> clap::Error {
    if let Some(ContextValue::String(flag)) = error.get(ContextKind::SuggestedArg)
        && let Some((own, _)) = REFERENCE_FLAGS.iter().find(|(_, alias)| flag[2..] == **alias)
    {
        error.insert(ContextKind::SuggestedArg, ContextValue::String(format!("--{own}")));
    }
    error
}

/// The value of `--quality`.
pub fn quality(text: &str) -> Result<u32, String> {
    let quality = text.parse().ok().filter(|quality| *quality <= 63);
    quality.ok_or_else(|| "use a whole number from 0 to 63; fewer with some encoders".into())
}

fn property_arg(pspec: &glib::ParamSpec) -> Arg {
    let name = pspec.name();
    let aliases = REFERENCE_FLAGS.iter().filter(|(property, _)| *property == name);
    let parser = pspec.clone();
    Arg::new(name.to_owned())
        .long(name.to_owned())
        .visible_aliases(aliases.map(|(_, alias)| *alias))
        .value_name(properties::value_name(pspec))
        .conflicts_with_all(if name == "up-scale" { &TARGET_SIZE[..] } else { &[] })
        .help(properties::help(pspec))
        .help_heading(PROPERTIES_HEADING)
        .allow_hyphen_values(true)
        // Only the text is kept: clap wants values that threads can share, which GLib's cannot.
        .value_parser(move |text: &str| properties::parse(&parser, text).map(|_| text.to_owned()))
}

/// The properties that are given. VEnhancer's script takes an empty path for none; an empty prompt is one.
fn properties_of(pspecs: &[glib::ParamSpec], matches: &ArgMatches) -> Vec<Property> {
    let mut given = Vec::new();
    for pspec in pspecs {
        let Some(text) = matches.get_one::<String>(pspec.name()) else { continue };
        if text.is_empty() && !pspec.name().ends_with("prompt") {
            continue;
        }
        if let Ok(value) = properties::parse(pspec, text) {
            if let Ok(used) = value.get::<i32>()
                && text.parse() != Ok(f64::from(used))
            {
                eprintln!("--{} {text} is not supported: using {used}", pspec.name());
            }
            given.push(Property { name: pspec.name().to_owned(), value });
        }
    }
    given
}

/// The output path that VEnhancer's script uses for `input`.
fn saved_as(input: &Path, folder: &Path) -> PathBuf {
    match input.is_dir() {
        true => folder.to_owned(),
        false => folder.join(input.file_stem().unwrap_or_default()).with_extension("mp4"),
    }
}
