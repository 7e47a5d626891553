// SPDX-License-Identifier: MIT OR Apache-2.0
//! A video from the browser to the disk, as it comes.

use std::{io, path::PathBuf};

use axum::{body::Body, http::StatusCode};
use futures_util::StreamExt;
use gstvenhance::weights::free_space;
use tokio::{fs::File, io::AsyncWriteExt};

use super::{
    queue::{Entry, Queue, State},
    routes::Refusal,
    settings::Settings,
};
use crate::folder::VIDEO_EXTENSIONS;

/// What an upload leaves free on the disk.
const RESERVE: u64 = 512 << 20;
/// Bytes between two checks of the free space.
const CHECK_EVERY: u64 = 64 << 20;
/// Longer names are cut.
const MAX_NAME: usize = 200;

/// Writes a request's body into the folder of a new entry. `length` is how long it says it is, `limit` how long it
/// may be.
pub async fn receive(
    queue: &Queue,
    name: &str,
    length: Option<u64>,
    limit: u64,
    body: Body,
) -> Result<Entry, Refusal> {
    let name = display_name(name);
    let too_large = || {
        let text = format!("{name} is larger than {} MiB: see venhance serve --help", limit >> 20);
        Refusal(StatusCode::PAYLOAD_TOO_LARGE, text)
    };
    if length.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    check_space(queue, length.unwrap_or(0))?;
    let id = queue.reserve()?;
    let unfinished = Unfinished(Some(queue.folder_of(id)));
    let input = file_name(&name);
    let mut file = File::create_new(queue.folder_of(id).join(&input)).await?;
    let mut stream = body.into_data_stream();
    let (mut bytes, mut checked) = (0, 0);
    while let Some(part) = stream.next().await {
        let part = part.map_err(|error| {
            Refusal(StatusCode::BAD_REQUEST, format!("{name}: the upload has ended early: {error}"))
        })?;
        bytes += part.len() as u64;
        if bytes > limit {
            return Err(too_large());
        }
        if bytes - checked > CHECK_EVERY {
            checked = bytes;
            check_space(queue, 0)?;
        }
        file.write_all(&part).await?;
    }
    if bytes == 0 {
        let text = format!("{name} is empty: choose a file with a video");
        return Err(Refusal(StatusCode::UNPROCESSABLE_ENTITY, text));
    }
    file.sync_all().await?;
    let entry = Entry {
        id,
        name,
        input,
        bytes,
        settings: Settings::new(),
        output: None,
        state: State::Ready,
        exit_code: None,
        message: String::new(),
        notes: Vec::new(),
        fps: None,
        progress: None,
    };
    queue.add(entry.clone())?;
    unfinished.keep();
    Ok(entry)
}

fn check_space(queue: &Queue, more: u64) -> Result<(), Refusal> {
    match free_space(queue.folder())? >= more.saturating_add(RESERVE) {
        true => Ok(()),
        false => Err(Refusal(
            StatusCode::INSUFFICIENT_STORAGE,
            format!(
                "the disk of {} is full: remove videos from the list",
                queue.folder().display()
            ),
        )),
    }
}

/// The last part of a path, without control characters.
fn display_name(name: &str) -> String {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let name: String = last.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect();
    match name.trim() {
        "" | "." | ".." => "video".to_owned(),
        name => name.to_owned(),
    }
}

/// The file for a video: of its name, only a known extension is kept.
fn file_name(name: &str) -> String {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_lowercase());
    match extension.filter(|extension| VIDEO_EXTENSIONS.contains(&extension.as_str())) {
        Some(extension) => format!("input.{extension}"),
        None => "input".to_owned(),
    }
}

/// Removes the folder of an upload that fails, or whose connection ends.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(folder) = &self.0 {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        let status = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, format!("cannot write to the folder of the videos: {error}"))
    }
}
