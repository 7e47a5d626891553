// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs this program for one video after the other. One at a time: a run uses all processors, or all GPUs that
//! `device` lists. A run that crashes or is out of memory ends its process only.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use axum::http::StatusCode;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::{AcquireError, Semaphore},
    time::timeout,
};

use super::{
    queue::{Entry, Id, Queue, State},
    routes::Refusal,
    settings::{self, Settings},
};
use crate::failure::Kind;

/// Longest time for a plan.
const PLAN_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time to check the settings of a start.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a process to end after the stop signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(45);
/// Of the lines that a process prints, the last ones are kept.
const MOST_NOTES: usize = 40;
/// What the program prints before a failure.
const FAILURE: &str = "venhance: ";

/// A line that the program prints with `--progress json`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Progress {
    /// In the output, in seconds.
    position: f64,
    duration: Option<f64>,
    frames: u64,
    pub fps: Option<f64>,
    seconds_left: Option<u64>,
    /// What the model is doing.
    unit: String,
    /// A download, in place of the above.
    text: String,
}

/// This program, to be run again.
pub struct Program {
    path: PathBuf,
    /// A plan reads the video.
    planning: Semaphore,
    /// A start does not wait for plans.
    checking: Semaphore,
}

/// What a process that plans a video has printed.
struct Planned {
    exit_code: Option<i32>,
    plan: String,
    failure: String,
}

impl Program {
    pub fn new(path: PathBuf) -> Self {
        Self { path, planning: Semaphore::new(1), checking: Semaphore::new(1) }
    }

    fn command<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(&self.path);
        command.args(arguments).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C in the terminal is for the server, which interrupts the run.
        command.process_group(0);
        // SAFETY: the closure makes a system call and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                // If the server is killed, a run that went on would hold the files that the next server resumes.
                set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)
            });
        }
        command
    }

    /// What would be done with a video, as `--plan` prints it.
    pub async fn plan(
        &self,
        queue: &Queue,
        entry: &Entry,
        settings: &Settings,
    ) -> Result<String, Refusal> {
        let _turn = self.planning.acquire().await.map_err(stopping)?;
        let planned = timeout(PLAN_TIMEOUT, self.run_plan(queue, entry, settings, true));
        let Planned { exit_code, plan, failure } = planned.await.map_err(|_| {
            let text = format!("{}: it takes more than a minute to read", entry.name);
            Refusal(StatusCode::UNPROCESSABLE_ENTITY, text)
        })??;
        match exit_code {
            Some(0) => Ok(plan),
            _ => Err(Refusal(StatusCode::UNPROCESSABLE_ENTITY, failure)),
        }
    }

    /// Refuses settings that this program cannot use for a video.
    pub async fn check(
        &self,
        queue: &Queue,
        entry: &Entry,
        settings: &Settings,
    ) -> Result<(), Refusal> {
        let _turn = self.checking.acquire().await.map_err(stopping)?;
        // The search for shots would decode the whole video.
        let mut settings = settings.clone();
        settings.insert("shot-detection".to_owned(), "false".to_owned());
        let planned = self.run_plan(queue, entry, &settings, false);
        // What takes longer, or fails for another reason, is left to the run: there are videos that can be enhanced but
        // not planned.
        let Ok(planned) = timeout(CHECK_TIMEOUT, planned).await else { return Ok(()) };
        let Planned { exit_code, failure, .. } = planned?;
        let refused = [Kind::Usage, Kind::Plugin, Kind::Model].map(|kind| Some(kind as i32));
        match refused.contains(&exit_code) {
            true => Err(Refusal(StatusCode::UNPROCESSABLE_ENTITY, failure)),
            false => Ok(()),
        }
    }

    async fn run_plan(
        &self,
        queue: &Queue,
        entry: &Entry,
        settings: &Settings,
        measure: bool,
    ) -> io::Result<Planned> {
        let folder = queue.folder_of(entry.id);
        let output_path = folder.join(settings::output(settings));
        let mut command = self.command([&folder.join(&entry.input), &output_path]);
        // As a start does, which replaces an earlier output.
        command.args(["--plan", "--overwrite"]).args(measure.then_some("--measure"));
        let output = command.args(settings::flags(settings)).output().await?;
        let text = |bytes: &[u8]| {
            for_user(queue, entry, &output_path, String::from_utf8_lossy(bytes).trim())
        };
        let (_, failure) = split_failure(text(&output.stderr).lines().map(str::to_owned).collect());
        Ok(Planned { exit_code: output.status.code(), plan: text(&output.stdout), failure })
    }
}

fn stopping(_: AcquireError) -> Refusal {
    Refusal(StatusCode::SERVICE_UNAVAILABLE, "the server stops".to_owned())
}

/// Runs the videos of the queue until the server stops.
pub async fn run(queue: Arc<Queue>, program: Arc<Program>) {
    while let Some(entry) = queue.next().await {
        let id = entry.id;
        let started = queue.change(id, |entry| {
            let queued = entry.state == State::Queued;
            entry.state = State::Running;
            entry.progress = None;
            queued
        });
        let ended = match started {
            Ok(true) => work(&queue, &program, &entry).await,
            // It has been cancelled.
            Ok(false) => continue,
            Err(error) => Err(error),
        };
        let ended = ended.unwrap_or_else(|error| {
            let message = error.to_string();
            Some(End { state: State::Failed, exit_code: None, message, notes: Vec::new() })
        });
        let Some(end) = ended else { return };
        let stored = queue.change(id, |entry| {
            (entry.state, entry.exit_code) = (end.state, end.exit_code);
            (entry.message, entry.notes) = (end.message, end.notes);
            entry.progress = None;
            true
        });
        if let Err(error) = stored {
            let path = queue.folder_of(id).join("entry.json");
            eprintln!("venhance: cannot write {}: {error}; free some space", path.display());
        }
    }
}

/// How a run has ended.
struct End {
    state: State,
    exit_code: Option<i32>,
    message: String,
    notes: Vec<String>,
}

/// Enhances the video of an entry, and replaces its earlier output if that succeeds. None if the server stops: the entry
/// is in the queue again after a restart.
async fn work(queue: &Queue, program: &Program, entry: &Entry) -> io::Result<Option<End>> {
    let run_folder = queue.run_folder_of(entry.id);
    let output = run_folder.join(settings::output(&entry.settings));
    let resumes = run_folder.exists();
    fs::create_dir_all(&run_folder)?;
    let mut command = program.command([&queue.folder_of(entry.id).join(&entry.input), &output]);
    command.args(resumes.then_some("--resume")).args(["--progress", "json"]);
    command.args(settings::flags(&entry.settings));
    let mut child = command.spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let reading = async { tokio::join!(read_output(queue, entry.id, stdout), read_notes(stderr)) };
    tokio::pin!(reading);
    let (summary, notes) = tokio::select! {
        read = &mut reading => read,
        () = asked_to_stop(queue, entry.id) => {
            interrupt(&child);
            match timeout(STOP_TIMEOUT, &mut reading).await {
                Ok(read) => read,
                Err(_) => {
                    child.start_kill()?;
                    reading.await
                }
            }
        }
    };
    let status = child.wait().await?;
    let cancelled = queue.get(entry.id).is_some_and(|entry| entry.state == State::Stopping);
    if queue.is_closed() && !cancelled && !status.success() {
        return Ok(None);
    }
    let (notes, failure) = split_failure(notes);
    let for_user = |text: &str| for_user(queue, entry, &output, text);
    let (summary, failure) = (for_user(&summary), for_user(&failure));
    let notes = notes.iter().map(|note| for_user(note)).collect();
    let exit_code = status.code();
    let end = |state, message| Ok(Some(End { state, exit_code, message, notes }));
    match exit_code {
        Some(0) => {
            publish(queue, entry, &output)?;
            end(State::Done, summary)
        }
        // Of a damaged video, what could be read is there.
        Some(code) if code == Kind::Input as i32 && output.is_file() => {
            publish(queue, entry, &output)?;
            end(State::Done, format!("{summary}\n{failure}"))
        }
        _ if cancelled => end(State::Cancelled, failure),
        Some(_) => end(State::Failed, failure),
        None => end(State::Failed, crashed(status, &failure)),
    }
}

/// Puts the output of a run in the place of the earlier one.
fn publish(queue: &Queue, entry: &Entry, output: &Path) -> io::Result<()> {
    let (folder, name) = (queue.folder_of(entry.id), settings::output(&entry.settings));
    fs::rename(output, folder.join(&name))?;
    queue.change(entry.id, |entry| {
        entry.output = Some(name.clone());
        true
    })?;
    if let Some(earlier) = entry.output.as_ref().filter(|earlier| **earlier != name) {
        fs::remove_file(folder.join(earlier))?;
    }
    queue.clear_run(entry.id)
}

fn crashed(status: ExitStatus, failure: &str) -> String {
    format!("the process has ended unexpectedly ({status}); Resume continues after the finished part\n{failure}")
        .trim_end()
        .to_owned()
}

/// Waits until the user cancels the entry or the server stops.
async fn asked_to_stop(queue: &Queue, id: Id) {
    let mut changes = queue.subscribe();
    while !queue.is_closed() && queue.get(id).is_some_and(|entry| entry.state != State::Stopping) {
        let _ = changes.changed().await;
    }
}

/// Tells a process to stop, as Ctrl-C does.
fn interrupt(child: &Child) {
    // Until it has been waited for, no other process has its number.
    let pid = child.id().and_then(|id| Pid::from_raw(id as i32));
    if let Some(pid) = pid {
        let _ = kill_process(pid, Signal::INT);
    }
}

/// Takes the progress, and returns what else the program prints: its summary.
async fn read_output(queue: &Queue, id: Id, stdout: Option<impl AsyncRead + Unpin>) -> String {
    let mut summary = String::new();
    let Some(stdout) = stdout else { return summary };
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(progress) => queue.set_progress(id, progress),
            Err(_) => summary = line,
        }
    }
    summary
}

/// Returns the last lines that the program prints to standard error.
async fn read_notes(stderr: Option<impl AsyncRead + Unpin>) -> Vec<String> {
    let mut notes = Vec::new();
    let Some(stderr) = stderr else { return notes };
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        notes.push(line);
        if notes.len() > MOST_NOTES {
            notes.remove(0);
        }
    }
    notes
}

/// Separates the failure, which comes last and can have several lines, from what comes before it.
fn split_failure(mut lines: Vec<String>) -> (Vec<String>, String) {
    // On a mistake in the flags, clap says "error: ".
    let begins = |line: &String| line.starts_with(FAILURE) || line.starts_with("error: ");
    let failure = match lines.iter().rposition(begins) {
        Some(at) => lines.split_off(at).join("\n"),
        None => String::new(),
    };
    (lines, failure.trim_start_matches(FAILURE).to_owned())
}

/// A text of the program with the user's names for the files.
fn for_user(queue: &Queue, entry: &Entry, output: &Path, text: &str) -> String {
    let input = queue.folder_of(entry.id).join(&entry.input);
    text.replace(&input.display().to_string(), &entry.name)
        .replace(&output.display().to_string(), &output_name(entry, output))
}

/// What the user calls an output.
pub fn output_name(entry: &Entry, output: &Path) -> String {
    let stem = Path::new(&entry.name).file_stem().unwrap_or_default().to_string_lossy();
    let extension = output.extension().unwrap_or_default().to_string_lossy();
    format!("{stem}-enhanced.{extension}")
}
