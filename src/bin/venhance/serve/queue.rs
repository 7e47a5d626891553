// SPDX-License-Identifier: MIT OR Apache-2.0
//! The videos and what is done with each. An entry is a folder, whose name is a number, with the video, its finished
//! output, `entry.json`, and the folder `run` with the files of a run that has not succeeded. A folder without
//! `entry.json` is an upload that has not ended.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    runner::Progress,
    settings::{self, Settings},
};
use crate::failure::{Failure, Kind};

pub type Id = u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Uploaded; waits for the user.
    Ready,
    Queued,
    Running,
    /// A stop signal was sent to the process.
    Stopping,
    Done,
    Failed,
    Cancelled,
}

impl State {
    /// Whether the files of the entry are in use, or will be soon.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Queued | Self::Running | Self::Stopping)
    }
}

#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Entry {
    pub id: Id,
    /// What the user calls the video. Never a part of a path.
    pub name: String,
    /// The file of the video in the entry's folder.
    pub input: String,
    pub bytes: u64,
    /// Those of the last start.
    pub settings: Settings,
    /// The file of the finished output in the entry's folder. It stays until another run has succeeded.
    pub output: Option<String>,
    pub state: State,
    /// Exit code of the last run; `None` if it has not ended or was killed.
    pub exit_code: Option<i32>,
    /// How it ended.
    pub message: String,
    /// What the program said on the way.
    pub notes: Vec<String>,
    /// Of the output of the last start, once it is known.
    pub fps: Option<f64>,
    #[serde(skip_deserializing)]
    pub progress: Option<Progress>,
}

impl Entry {
    /// Whether to go on after the finished part: not where the run would fail in the same way again.
    pub fn can_resume(&self) -> bool {
        let hopeless = [Kind::Usage, Kind::Input].map(|kind| Some(kind as i32));
        match self.state {
            State::Cancelled => true,
            State::Failed => !hopeless.contains(&self.exit_code),
            _ => false,
        }
    }
}

pub struct Queue {
    /// Absolute, without links.
    folder: PathBuf,
    state: Mutex<Inner>,
    /// Told of every change.
    changed: watch::Sender<()>,
    /// Keeps other processes out.
    _lock: File,
}

struct Inner {
    entries: BTreeMap<Id, Entry>,
    /// The number of the next entry.
    next: Id,
    /// Set when the server stops: no run starts, and the one in progress is interrupted.
    closed: bool,
}

impl Queue {
    /// Reads the entries of a folder, which is created if it does not exist. What was running is in the queue again.
    pub fn open(folder: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::output(folder, &error);
        fs::create_dir_all(folder).map_err(failed)?;
        let folder = folder.canonicalize().map_err(failed)?;
        let lock = File::create(folder.join("lock")).map_err(failed)?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            let folder = folder.display();
            return Err(Failure::new(
                Kind::Output,
                format!("another venhance serve uses {folder}: stop it, or use another --folder"),
            ));
        }
        let (mut entries, mut next) = (BTreeMap::new(), 1);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_str();
            let Some(id) = name.and_then(|name| name.parse::<Id>().ok()) else { continue };
            next = next.max(id + 1);
            match read_job(&path, id)? {
                Some(entry) => drop(entries.insert(id, entry)),
                None => fs::remove_dir_all(&path).map_err(failed)?,
            }
        }
        let state = Mutex::new(Inner { entries, next, closed: false });
        Ok(Self { folder, state, changed: watch::Sender::new(()), _lock: lock })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn folder_of(&self, id: Id) -> PathBuf {
        self.folder.join(id.to_string())
    }

    /// The folder for the files of an entry's run.
    pub fn run_folder_of(&self, id: Id) -> PathBuf {
        self.folder_of(id).join("run")
    }

    /// Removes the files of an entry's run.
    pub fn clear_run(&self, id: Id) -> io::Result<()> {
        match fs::remove_dir_all(self.run_folder_of(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes the folder of a new entry.
    pub fn reserve(&self) -> io::Result<Id> {
        let id = {
            let state = &mut *self.state.lock();
            state.next += 1;
            state.next - 1
        };
        fs::create_dir(self.folder_of(id))?;
        Ok(id)
    }

    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub fn all(&self) -> Vec<Entry> {
        self.state.lock().entries.values().cloned().collect()
    }

    pub fn get(&self, id: Id) -> Option<Entry> {
        self.state.lock().entries.get(&id).cloned()
    }

    /// Adds an entry, also to the disk.
    pub fn add(&self, entry: Entry) -> io::Result<()> {
        self.write(&entry)?;
        self.state.lock().entries.insert(entry.id, entry);
        self.changed.send_replace(());
        Ok(())
    }

    /// Changes an entry if `change` agrees, also on disk. Returns whether it did. After an error, only the disk has the
    /// old state.
    pub fn change(&self, id: Id, change: impl FnOnce(&mut Entry) -> bool) -> io::Result<bool> {
        let state = &mut *self.state.lock();
        let Some(entry) = state.entries.get_mut(&id) else { return Ok(false) };
        let mut changed = entry.clone();
        if !change(&mut changed) {
            return Ok(false);
        }
        *entry = changed.clone();
        self.changed.send_replace(());
        self.write(&changed).map(|()| true)
    }

    /// Sets the progress, which is not written to the disk.
    pub fn set_progress(&self, id: Id, progress: Progress) {
        if let Some(entry) = self.state.lock().entries.get_mut(&id) {
            entry.fps = progress.fps.or(entry.fps);
            entry.progress = Some(progress);
        }
        self.changed.send_replace(());
    }

    /// Removes an entry and its files, unless it is active. Returns whether it did.
    pub fn remove(&self, id: Id) -> io::Result<bool> {
        let state = &mut *self.state.lock();
        if state.entries.get(&id).is_none_or(|entry| entry.state.is_active()) {
            return Ok(false);
        }
        fs::remove_dir_all(self.folder_of(id))?;
        state.entries.remove(&id);
        self.changed.send_replace(());
        Ok(true)
    }

    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.send_replace(());
    }

    pub fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// The next entry of the queue, once there is one; none if the server stops.
    pub async fn next(&self) -> Option<Entry> {
        let mut changes = self.subscribe();
        loop {
            {
                let state = self.state.lock();
                if state.closed {
                    return None;
                }
                let next = state.entries.values().find(|entry| entry.state == State::Queued);
                if let Some(entry) = next {
                    return Some(entry.clone());
                }
            }
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    /// Replaces `entry.json` at once, so that a crash leaves the old or the new one.
    fn write(&self, entry: &Entry) -> io::Result<()> {
        let folder = self.folder_of(entry.id);
        let (new, path) = (folder.join("entry.json.new"), folder.join("entry.json"));
        let stored = Entry { progress: None, ..entry.clone() };
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(&stored)?)?;
        file.sync_all()?;
        fs::rename(new, path)
    }
}

/// Reads the entry of a folder; none if its upload has not ended.
fn read_job(folder: &Path, id: Id) -> Result<Option<Entry>, Failure> {
    let path = folder.join("entry.json");
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| Failure::input(&path, error))?,
    };
    let entry = serde_json::from_slice::<Entry>(&text).ok().filter(|entry| entry.id == id);
    // These are joined to the folder.
    let mut entry = entry.filter(|entry| {
        let output = entry.output.as_deref().is_none_or(is_name);
        is_name(&entry.input) && output && is_name(&settings::output(&entry.settings))
    });
    if let Some(entry) = entry.as_mut().filter(|entry| entry.state == State::Running) {
        entry.state = State::Queued;
    }
    if let Some(entry) = entry.as_mut().filter(|entry| entry.state == State::Stopping) {
        entry.state = State::Cancelled;
    }
    entry.map(Some).ok_or_else(|| {
        let why = "it is damaged, or of another version; move its folder away";
        Failure::input(&path, why)
    })
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && !name.starts_with('.')
}
