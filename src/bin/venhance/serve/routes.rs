// SPDX-License-Identifier: MIT OR Apache-2.0
//! The page and its API. Everything that changes something is a POST or DELETE, which browsers send with an Origin.

use std::{convert::Infallible, path::Path as FilePath, sync::Arc};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Path, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::{get, post},
};
use futures_util::{Stream, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower_http::services::ServeFile;

use super::{
    guard::{self, Guard},
    queue::{self, Entry, Id, Queue},
    runner::{Program, output_name},
    settings::{self, Settings},
    uploads,
};

/// Settings are shorter.
const MAX_SETTINGS: usize = 1 << 16;

/// Why a request fails: the status and a text for the user.
#[derive(Debug)]
pub struct Refusal(pub StatusCode, pub String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, json(&json!({ "error": self.1 }))).into_response()
    }
}

#[derive(Clone)]
struct Server {
    queue: Arc<Queue>,
    program: Arc<Program>,
    upload_limit: u64,
}

/// All routes, behind the guard.
pub fn router(queue: Arc<Queue>, program: Arc<Program>, upload_limit: u64, guard: Guard) -> Router {
    let mut router = Router::new();
    for (path, kind, text) in [
        ("/", "text/html", include_str!("../page/index.html")),
        ("/style.css", "text/css", include_str!("../page/style.css")),
        ("/slider.css", "text/css", include_str!("../page/slider.css")),
        ("/app.js", "text/javascript", include_str!("../page/app.js")),
        ("/slider.js", "text/javascript", include_str!("../page/slider.js")),
    ] {
        let kind = format!("{kind}; charset=utf-8");
        router = router.route(path, get(async move || ([(header::CONTENT_TYPE, kind)], text)));
    }
    router
        .route("/api/settings", get(async move || json(&settings::description(upload_limit))))
        .route("/api/events", get(events))
        .route("/api/videos", get(list).post(upload))
        .route("/api/videos/{id}", axum::routing::delete(remove))
        .route("/api/videos/{id}/plan", post(plan))
        .route("/api/videos/{id}/start", post(start))
        .route("/api/videos/{id}/resume", post(resume))
        .route("/api/videos/{id}/cancel", post(cancel))
        .route("/api/videos/{id}/input", get(input))
        .route("/api/videos/{id}/output", get(output))
        // An upload is read as a stream, which has its own limit.
        .layer(DefaultBodyLimit::max(MAX_SETTINGS))
        .layer(middleware::from_fn_with_state(Arc::new(guard), guard::check))
        .with_state(Server { queue, program, upload_limit })
}

fn json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// An entry, what the user calls its output (or that of the last start, if none is finished), and whether it can be
/// resumed.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    entry: Entry,
    output_name: String,
    can_resume: bool,
}

impl From<Entry> for Shown {
    fn from(entry: Entry) -> Self {
        let output = entry.output.clone().unwrap_or_else(|| settings::output(&entry.settings));
        let output_name = output_name(&entry, FilePath::new(&output));
        Self { output_name, can_resume: entry.can_resume(), entry }
    }
}

fn all(queue: &Queue) -> Value {
    json!(queue.all().into_iter().map(Shown::from).collect::<Vec<_>>())
}

async fn list(State(server): State<Server>) -> Response {
    json(&all(&server.queue))
}

/// All entries, now and after each change. A slow client skips states, but gets the last one.
async fn events(
    State(server): State<Server>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let mut changes = server.queue.subscribe();
    changes.mark_changed();
    let events = stream::unfold((changes, server.queue), async |(mut changes, queue)| {
        changes.changed().await.ok()?;
        let event = Event::default().data(all(&queue).to_string());
        Some((Ok(event), (changes, queue)))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

async fn upload(
    State(server): State<Server>,
    Query(Named { name }): Query<Named>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    if name.is_empty() {
        let why = "the name is empty: use ?name=NAME".to_owned();
        return Err(Refusal(StatusCode::BAD_REQUEST, why));
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let length = length.and_then(|length| length.parse().ok());
    let entry = uploads::receive(&server.queue, &name, length, server.upload_limit, body).await?;
    Ok((StatusCode::CREATED, json(&json!(Shown::from(entry)))).into_response())
}

async fn plan(
    State(server): State<Server>,
    Path(id): Path<Id>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let entry = find(&server.queue, id)?;
    let settings = parse(&body)?;
    let plan = server.program.plan(&server.queue, &entry, &settings).await?;
    Ok(json(&json!({ "plan": plan })))
}

/// Puts an entry into the queue, to start at the beginning of the video. A finished output stays.
async fn start(
    State(server): State<Server>,
    Path(id): Path<Id>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let entry = find(&server.queue, id)?;
    let settings = parse(&body)?;
    server.program.check(&server.queue, &entry, &settings).await?;
    let mut cleared = Ok(());
    let started = server.queue.change(id, |entry| {
        if entry.state.is_active() {
            return false;
        }
        cleared = server.queue.clear_run(id);
        (entry.settings, entry.fps) = (settings, None);
        enqueue(entry);
        cleared.is_ok()
    })?;
    cleared?;
    done(started, "this video is already in the queue")
}

/// Puts an entry into the queue, to go on after the finished part.
async fn resume(State(server): State<Server>, Path(id): Path<Id>) -> Result<Response, Refusal> {
    find(&server.queue, id)?;
    let resumed = server.queue.change(id, |entry| {
        let can_resume = entry.can_resume();
        enqueue(entry);
        can_resume
    })?;
    done(resumed, "this video cannot be resumed")
}

fn enqueue(entry: &mut Entry) {
    entry.state = queue::State::Queued;
    entry.exit_code = None;
    (entry.message, entry.notes) = (String::new(), Vec::new());
}

async fn cancel(State(server): State<Server>, Path(id): Path<Id>) -> Result<Response, Refusal> {
    find(&server.queue, id)?;
    let cancelled = server.queue.change(id, |entry| {
        entry.state = match entry.state {
            queue::State::Queued => queue::State::Cancelled,
            queue::State::Running => queue::State::Stopping,
            _ => return false,
        };
        true
    })?;
    done(cancelled, "this video is not in the queue")
}

async fn remove(State(server): State<Server>, Path(id): Path<Id>) -> Result<Response, Refusal> {
    find(&server.queue, id)?;
    done(server.queue.remove(id)?, "cancel it first")
}

async fn input(
    State(server): State<Server>,
    Path(id): Path<Id>,
    request: Request,
) -> Result<Response, Refusal> {
    let entry = find(&server.queue, id)?;
    file(&server.queue, id, &entry.input, request).await
}

async fn output(
    State(server): State<Server>,
    Path(id): Path<Id>,
    request: Request,
) -> Result<Response, Refusal> {
    let entry = find(&server.queue, id)?;
    let output = entry.output.ok_or_else(|| {
        Refusal(StatusCode::NOT_FOUND, "this video has no finished output".to_owned())
    })?;
    file(&server.queue, id, &output, request).await
}

/// Sends a file, or the range of it that a player asks for. Its type follows from its extension, which is never
/// that of a page.
async fn file(queue: &Queue, id: Id, name: &str, request: Request) -> Result<Response, Refusal> {
    let response = ServeFile::new(queue.folder_of(id).join(name)).try_call(request).await?;
    Ok(response.map(Body::new))
}

fn find(queue: &Queue, id: Id) -> Result<Entry, Refusal> {
    queue.get(id).ok_or_else(|| Refusal(StatusCode::NOT_FOUND, "there is no such video".to_owned()))
}

fn parse(body: &[u8]) -> Result<Settings, Refusal> {
    let settings: Settings = serde_json::from_slice(body)
        .map_err(|error| Refusal(StatusCode::BAD_REQUEST, format!("settings: {error}")))?;
    settings::check(&settings).map_err(|why| Refusal(StatusCode::UNPROCESSABLE_ENTITY, why))?;
    Ok(settings)
}

fn done(done: bool, why_not: &str) -> Result<Response, Refusal> {
    match done {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(Refusal(StatusCode::CONFLICT, why_not.to_owned())),
    }
}
