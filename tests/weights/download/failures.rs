// SPDX-License-Identifier: MIT OR Apache-2.0
//! Servers that fail, send something wrong, or are slow.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use gstvenhance::weights::Hub;

use super::{Cache, assert_complete, assert_refused, fetch, published_part};
use crate::{
    ADVICE,
    hub::{self, Answer, Server, UNET},
};

/// What to do after a failure that a new start may get past.
const RESUMES: &str = "check the network connection and start again: the download resumes";

#[test]
fn a_gated_repository_fails_before_any_download() {
    for status in [401, 403] {
        let (cache, published) = (Cache::new(), hub::Files::new());
        let server = Server::start(move |request| match request.path.contains("stabilityai") {
            true => Answer::status(status, "Access to this model is restricted"),
            false => published.answer(request),
        });
        assert_refused(&cache, &server, &ADVICE);
        assert_refused(&cache, &server, &[&status.to_string(), "diffusion_pytorch_model"]);
        assert!(server.requests().iter().all(|request| request.method == "HEAD"));
    }
}

#[test]
fn error_responses_are_not_saved_as_files() {
    for status in [401, 403, 404] {
        let (cache, published) = (Cache::new(), hub::Files::new());
        let server = Server::start(move |request| match request.path.starts_with("/cdn/") {
            true => Answer::status(status, "<html>no</html>"),
            false => published.answer(request),
        });
        assert_refused(
            &cache,
            &server,
            &["downloading", "venhancer_paper.pt", &status.to_string()],
        );
        assert_eq!(
            server.gets("venhancer_paper.pt").len(),
            1,
            "permanent failures are not retried"
        );
    }
}

#[test]
fn a_file_missing_on_the_hub_is_named() {
    let (cache, mut published) = (Cache::new(), hub::Files::new());
    published.0.remove(UNET);
    let server = Server::start(move |request| published.answer(request));
    assert_refused(&cache, &server, &["venhancer_paper.pt", "404", "model-dir"]);
}

#[test]
fn server_errors_are_retried_a_limited_number_of_times() {
    for (failures, fine) in [(2, true), (usize::MAX, false)] {
        let (cache, published) = (Cache::new(), hub::Files::new());
        let answers = published.clone();
        let server = Server::start(move |request| match request.before < failures {
            true => Answer::status(500 + (request.before % 4) as u16, "later"),
            false => answers.answer(request),
        });
        match fine {
            true => assert_complete(&fetch(cache.hub(&server.endpoint())).unwrap(), &published),
            false => {
                let error = fetch(cache.hub(&server.endpoint())).unwrap_err().to_string();
                assert!(error.contains("502") && error.contains(RESUMES), "{error}");
                assert!(!error.contains("HF_TOKEN"), "{error}");
                assert_eq!(server.requests().len(), 3);
            }
        }
    }
}

#[test]
fn truncated_oversized_and_corrupt_downloads_are_refused() {
    type Spoil = fn(&mut Answer);
    let spoils: [(Spoil, &str); 3] = [
        (|answer| answer.body.truncate(123_456), "answered with 123456 bytes instead of 700000"),
        (
            |answer| {
                answer.body.extend([0; 100_000]);
                answer.without_length = true;
            },
            "more than its 700000 bytes",
        ),
        (|answer| answer.body[1000] ^= 1, "its SHA-256 is"),
    ];
    for (spoil, text) in spoils {
        let (cache, published) = (Cache::new(), hub::Files::new());
        let answers = published.clone();
        let server = Server::start(move |request| {
            let mut answer = answers.answer(request);
            if request.gets(UNET) && request.path.starts_with("/cdn/") {
                spoil(&mut answer);
            }
            answer
        });
        assert_refused(&cache, &server, &["downloading", text, "HF_ENDPOINT"]);
        assert_eq!(server.gets("venhancer_paper.pt").len(), 1);
        // The failed download does not block the next one.
        let answers = published.clone();
        let server = Server::start(move |request| answers.answer(request));
        assert_complete(&fetch(cache.hub(&server.endpoint())).unwrap(), &published);
    }
}

#[test]
fn a_response_without_a_checksum_is_refused() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let server = Server::start(move |request| {
        let mut answer = published.answer(request);
        answer.headers.retain(|(name, _)| *name != "X-Linked-ETag");
        answer
    });
    assert_refused(&cache, &server, &["SHA-256"]);
}

#[test]
fn a_refused_connection_fails_soon() {
    let cache = Cache::new();
    let closed = Server::start(|_| Answer::default()).endpoint();
    let start = Instant::now();
    let error = fetch(cache.hub(&closed)).unwrap_err().to_string();
    assert!(error.contains(RESUMES), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(cache.complete_files(), Vec::<PathBuf>::new());
}

#[test]
fn retries_end_when_a_server_never_gets_further() {
    type Spoil = fn(Answer) -> Answer;
    let spoils: [(bool, Spoil); 3] = [
        // The first bytes again and again.
        (true, |answer| answer.cut(50_000)),
        (true, |answer| Answer { without_length: true, ..answer.cut(50_000) }),
        // One more byte each time.
        (false, |answer| answer.cut(1)),
    ];
    for (ignores_range, spoil) in spoils {
        let (cache, published) = (Cache::new(), hub::Files::new());
        let server = Server::start(move |request| {
            let mut asked = request.clone();
            asked.from = asked.from.filter(|_| !ignores_range);
            let answer = published.answer(&asked);
            match request.gets(UNET) && request.path.starts_with("/cdn/") {
                true => spoil(answer),
                false => answer,
            }
        });
        assert_refused(&cache, &server, &["venhancer_paper.pt failed", RESUMES]);
        let gets = server.gets("venhancer_paper.pt").len();
        // The first restart from 0 is the first request.
        assert!((6..=7).contains(&gets), "{gets}");
    }
}

#[test]
fn a_login_page_does_not_replace_what_is_downloaded() {
    let (cache, published) = (Cache::new(), hub::Files::new());
    let answers = published.clone();
    let server = Server::start(move |request| match request.path.starts_with("/cdn/") {
        true => Answer::status(200, "<html>log in</html>"),
        false => answers.answer(request),
    });
    let blob = cache.blob(UNET, &published.0[UNET]);
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    let incomplete = blob.with_extension("incomplete");
    fs::write(&incomplete, published_part(UNET, 400_000)).unwrap();
    assert_refused(&cache, &server, &["answered with 19 bytes instead of 700000", "HF_ENDPOINT"]);
    assert_eq!(server.gets("venhancer_paper.pt").len(), 1);
    assert!(fs::read(incomplete).unwrap() == published_part(UNET, 400_000));
}

#[test]
fn a_server_that_trickles_is_given_up() {
    for only_bodies in [false, true] {
        let (cache, published) = (Cache::new(), hub::Files::new());
        let server = Server::start(move |request| {
            let mut answer = published.answer(request);
            if !only_bodies {
                answer.slow = Some(Duration::from_millis(40));
            } else if request.path.starts_with("/cdn/") {
                // A header is sent within the limit.
                answer.slow = Some(Duration::from_micros(500));
            }
            answer
        });
        let read_timeout = Duration::from_millis(300);
        let hub = Hub { read_timeout, ..cache.hub(&server.endpoint()) };
        let start = Instant::now();
        let error = fetch(hub).unwrap_err().to_string();
        assert!(error.contains(RESUMES), "{error}");
        assert_eq!(error.contains("fewer than 16384 bytes in 0.3 s"), only_bodies, "{error}");
        // At most six attempts.
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    }
}

#[test]
fn redirects_that_never_end_or_lead_nowhere_are_errors() {
    for (location, text) in [
        ("/loop", "redirects more than 5 times"),
        ("ftp://example.com/", "is not a URL"),
        ("file:///etc/passwd", "is not a URL"),
        ("//", "is not a URL"),
    ] {
        let cache = Cache::new();
        let server = Server::start(move |_| Answer {
            status: 302,
            headers: vec![("Location", location.into())],
            ..Answer::default()
        });
        assert_refused(&cache, &server, &[text, "HF_ENDPOINT"]);
    }
}
