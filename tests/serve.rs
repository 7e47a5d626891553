// SPDX-License-Identifier: MIT OR Apache-2.0
//! `venhance serve` over HTTP: what its page does, and what a hostile page or computer tries.

#[path = "common/application.rs"]
mod application;
mod common;
#[path = "common/web.rs"]
mod web;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::Path,
};

use application::{Scratch, VIDEO, fails, pieces, text};
use common::{decode, wait_for};
use serde_json::{Value, json};
use web::{Server, connect, head, reply, request};

const TOKEN: &str = "0123456789abcdef";

/// Long enough to be interrupted: 8 s, four pieces.
const LONG: &str = "videotestsrc pattern=ball num-buffers=80 \
    ! video/x-raw,format=I420,width=96,height=64,framerate=10/1 ! x264enc ! queue";

fn larger() -> Value {
    json!({ "model": "lite", "up-scale": "2", "target-fps": "24" })
}

/// Much work for each frame.
fn slow() -> Value {
    json!({ "model": "lite", "up-scale": "4", "target-fps": "30" })
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path.display().to_string()),
        }
    }
    found
}

#[test]
fn a_video_is_planned_enhanced_and_downloaded() {
    let scratch = Scratch::new();
    let video = scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let server = Server::start(&scratch.path("data"), &[]);
    let id = server.upload("holiday.mp4", &video);
    assert_eq!(server.entry(id)["state"], "ready");

    let settings = larger().to_string();
    let plan = server.request("POST", &format!("/api/videos/{id}/plan"), settings.as_bytes());
    let plan = plan.json()["plan"].as_str().unwrap().to_owned();
    assert!(plan.contains("resolution: 96x64 to 192x128"), "{plan}");
    assert!(plan.contains("\ntime: about ") && plan.contains(" MiB, measured on"), "{plan}");

    server.start_video(id, larger());
    let entry = server.wait(id, "done");
    assert_eq!(entry["fps"], 24.0, "{entry}");
    assert_eq!(entry["output_name"], "holiday-enhanced.mp4");
    assert!(
        entry["message"].as_str().unwrap().starts_with("holiday-enhanced.mp4: 46 frames"),
        "{entry}"
    );

    let whole = server.request("GET", &format!("/api/videos/{id}/output"), b"");
    assert_eq!(whole.header("content-type"), Some("video/mp4"));
    let path = scratch.path("downloaded.mp4");
    fs::write(&path, &whole.body).unwrap();
    let decoded = decode(&path);
    assert_eq!((decoded.info().width(), decoded.info().height()), (192, 128));
    assert_eq!(decoded.times.len(), 46);
    // Players seek with these.
    let path = format!("/api/videos/{id}/output");
    let part = request(&server.address, "GET", &path, &[("range", "bytes=10-19")], b"");
    assert_eq!((part.status, &part.body[..]), (206, &whole.body[10..20]));
    let input = server.request("GET", &format!("/api/videos/{id}/input"), b"");
    assert_eq!(input.body, fs::read(video).unwrap());

    assert_eq!(server.request("DELETE", &format!("/api/videos/{id}"), b"").status, 204);
    assert_eq!(files(&server.folder), [server.folder.join("lock").display().to_string()]);
}

#[test]
fn the_page_gets_every_property_with_its_description() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.path("data"), &[]);
    let page = server.request("GET", "/", b"");
    assert!(page.text().contains("<title>venhance</title>"));
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    let settings = server.request("GET", "/api/settings", b"").json();
    let fields = settings["fields"].as_array().unwrap();
    let field = |name: &str| fields.iter().find(|field| field["name"] == name).unwrap();
    assert_eq!(field("model")["values"], json!(["auto", "v1", "v2", "lite"]));
    assert_eq!(field("noise-aug")["range"], json!([0.0, 300.0]));
    assert_eq!(field("shot-detection")["values"], json!(["true", "false"]));
    assert!(fields.iter().all(|field| field["help"].as_str().is_some_and(|help| !help.is_empty())));
    assert!(fields.iter().all(|field| field["name"] != "skip-frames"));
    // Words for those who write pipelines or know the reference.
    for word in ["message", "event", "buffer", "caps", "reference", "classifier"] {
        assert!(
            fields.iter().all(|field| !field["help"].as_str().unwrap().contains(word)),
            "{word}"
        );
    }

    // The presets are possible values.
    let video = scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let id = server.upload("in.mp4", &video);
    for preset in settings["presets"].as_array().unwrap() {
        let body = preset["settings"].to_string();
        let plan = server.request("POST", &format!("/api/videos/{id}/plan"), body.as_bytes());
        assert_eq!(plan.status, 200, "{preset}: {}", plan.text());
    }
}

#[test]
fn settings_that_cannot_be_used_are_refused() {
    let scratch = Scratch::new();
    let video = scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let server = Server::start(&scratch.path("data"), &[]);
    let id = server.upload("in.mp4", &video);
    server.start_video(id, larger());
    server.wait(id, "done");
    let output = || server.request("GET", &format!("/api/videos/{id}/output"), b"").body;
    let finished = output();
    for (settings, why) in [
        (json!({ "up-scale": "9" }), "out of range: use 1 to 8"),
        (json!({ "model": "v3" }), "use one of auto, v1, v2, lite"),
        (json!({ "format": "../../x" }), "use one of mp4, webm, mkv, mov"),
        (json!({ "overwrite": "true" }), "there is no such setting"),
        (json!({ "encoder": "filesink location=/tmp/x" }), "there is no such setting"),
        (json!({ "format": "mp4", "quality": "60" }), "--quality 60: x264enc takes 0 to 51"),
        (json!({ "format": "webm", "quality": "70" }), "use a whole number from 0 to 63"),
        (json!({ "model": "lite", "device": "cuda:0" }), "model lite runs on the CPU only"),
        (json!({ "model": "v1", "device": "foo" }), "unknown device “foo”"),
    ] {
        for action in ["plan", "start"] {
            let path = format!("/api/videos/{id}/{action}");
            let reply = server.request("POST", &path, settings.to_string().as_bytes());
            assert_eq!(reply.status, 422, "{settings}");
            assert!(reply.text().contains(why), "{settings}: {}", reply.text());
        }
    }
    assert_eq!(server.entry(id)["state"], "done");
    assert_eq!(output(), finished);
}

#[test]
fn a_file_that_is_no_video_fails_as_on_the_command_line() {
    let scratch = Scratch::new();
    let file = scratch.path("notes.mp4");
    fs::write(&file, "This is not a video.\n").unwrap();
    let why = "notes.mp4: it is text, and what a playlist refers to is not opened";
    fails(&scratch.enhance(&["notes.mp4", "out.mp4"]), 3, why);

    let server = Server::start(&scratch.path("data"), &[]);
    let id = server.upload("notes.mp4", &file);
    let plan = server.request("POST", &format!("/api/videos/{id}/plan"), b"{}");
    assert_eq!(plan.status, 422);
    assert!(plan.json()["error"].as_str().unwrap().starts_with(why), "{}", plan.text());
    server.start_video(id, larger());
    let entry = server.wait(id, "failed");
    assert!(entry["message"].as_str().unwrap().starts_with(why), "{entry}");
    // It would fail again.
    assert_eq!((&entry["exit_code"], &entry["can_resume"]), (&json!(3), &json!(false)));
    assert_eq!(server.request("POST", &format!("/api/videos/{id}/resume"), b"").status, 409);
}

#[test]
fn other_sites_and_unknown_hosts_are_refused() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.path("data"), &[]);
    let port = server.address.rsplit_once(':').unwrap().1;
    let own = format!("http://{}", server.address);
    let by_name = format!("localhost:{port}");
    let status = |headers: &[(&str, &str)]| {
        request(&server.address, "POST", "/api/videos?name=a.mp4", headers, b"video").status
    };
    assert_eq!(status(&[]), 201);
    assert_eq!(status(&[("origin", &own)]), 201);
    assert_eq!(status(&[("host", &by_name), ("origin", &format!("http://{by_name}"))]), 201);
    // A page of another site, of another port, and one without an origin.
    assert_eq!(status(&[("origin", "http://example.org")]), 403);
    assert_eq!(status(&[("origin", "http://127.0.0.1:1")]), 403);
    assert_eq!(status(&[("origin", "null")]), 403);
    // A site that gives its own name the address of the server.
    assert_eq!(status(&[("host", "example.org")]), 421);
    assert_eq!(status(&[("host", "example.org"), ("origin", "http://example.org")]), 421);
    assert_eq!(status(&[("host", "127.0.0.1.example.org")]), 421);
    assert_eq!(server.request("GET", "/api/videos", b"").json().as_array().unwrap().len(), 3);
    for path in ["/", "/api/videos", "/api/events", "/api/videos/1/input"] {
        let reply = request(&server.address, "GET", path, &[("host", "example.org")], b"");
        assert_eq!(reply.status, 421, "{path}");
    }
}

#[test]
fn an_address_that_others_reach_needs_a_token() {
    let scratch = Scratch::new();
    let refused = scratch.enhance(&["serve", "--listen", "0.0.0.0:0", "--folder", "data"]);
    fails(&refused, 2, "set a password with --token");
    let weak = scratch.enhance(&["serve", "--token", "secret", "--folder", "data"]);
    fails(&weak, 2, "use 16 or more");
    assert!(!scratch.path("data").exists());

    let flags = ["--listen", "0.0.0.0:0", "--token", TOKEN];
    let mut server = Server::start(&scratch.path("data"), &flags);
    // What is printed can be opened.
    assert!(server.address.starts_with("127.0.0.1:"), "{}", server.address);
    let mut others = String::new();
    server.stdout.read_line(&mut others).unwrap();
    assert!(others.starts_with("On other computers, open http://NAME:"), "{others}");
    let get =
        |path: &str, headers: &[(&str, &str)]| request(&server.address, "GET", path, headers, b"");
    for path in ["/api/videos", "/api/events", "/api/settings", "/app.js", "/api/videos?token=0"] {
        assert_eq!(get(path, &[]).status, 401, "{path}");
    }
    let form = get("/", &[]);
    assert_eq!(form.status, 401);
    assert!(form.text().contains("name=\"token\"") && !form.text().contains("wrong"));
    let upload = server.request("POST", "/api/videos?name=a.mp4", b"video");
    assert_eq!((upload.status, &*upload.text()), (401, "the token is missing\n"));
    for wrong in ["0123456789abcdeg", "0123456789abcde", "", "0123456789abcdef0"] {
        let form = get(&format!("/?token={wrong}"), &[]);
        assert_eq!(form.status, 401, "{wrong}");
        assert!(form.text().contains("The token is wrong"), "{}", form.text());
        let why = match wrong {
            "" => "the token is missing\n",
            _ => "the token is wrong\n",
        };
        let cookie = format!("venhance-token={wrong}");
        for header in [("authorization", &*format!("Bearer {wrong}")), ("cookie", &*cookie)] {
            let refused = get("/api/videos", &[header]);
            assert_eq!((refused.status, &*refused.text()), (401, why), "{header:?}");
        }
    }
    let bearer = format!("Bearer {TOKEN}");
    assert_eq!(get("/api/videos", &[("authorization", &bearer)]).status, 200);

    let login = get(&format!("/?token={TOKEN}"), &[]);
    assert_eq!((login.status, login.header("location")), (303, Some("/")));
    let cookie = login.header("set-cookie").unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    assert_eq!(get("/", &[("cookie", cookie)]).status, 200);
    assert_eq!(get("/api/videos", &[("cookie", cookie)]).status, 200);
    // The token does not help another site.
    let foreign = [("cookie", cookie), ("origin", "http://example.org")];
    assert_eq!(get("/api/videos", &foreign).status, 403);
}

#[test]
fn a_name_can_be_listened_on() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.path("data"), &["--listen", "localhost:0"]);
    assert_eq!(server.request("GET", "/", b"").status, 200);
    for wrong in ["nowhere.invalid:8423", "localhost", "8423"] {
        let refused = scratch.enhance(&["serve", "--listen", wrong, "--folder", "other"]);
        fails(&refused, 2, "use an address or a name, and a port, such as localhost:8423");
    }
}

#[test]
fn names_do_not_leave_the_folder() {
    let scratch = Scratch::new();
    let folder = scratch.path("data");
    let server = Server::start(&folder, &[]);
    fs::write(scratch.path("secret.mp4"), "secret").unwrap();
    for (name, shown) in [
        ("..%2F..%2Fsecret.mp4", "secret.mp4"),
        ("%2Fetc%2Fpasswd", "passwd"),
        ("..%5C..%5Csecret.mp4", "secret.mp4"),
        ("..", "video"),
        ("a%00b%0A.mp4", "ab.mp4"),
        ("%3Cimg%20src%3Dx%3E.mp4", "<img src=x>.mp4"),
        ("entry.json", "entry.json"),
        ("--overwrite", "--overwrite"),
    ] {
        let reply = server.request("POST", &format!("/api/videos?name={name}"), b"video");
        assert_eq!(reply.json()["name"], shown);
        let id = reply.json()["id"].as_u64().unwrap();
        let mut names: Vec<_> = files(&folder.join(id.to_string()));
        names.sort();
        let input = reply.json()["input"].as_str().unwrap().to_owned();
        assert!(input == "input" || input == "input.mp4", "{input}");
        let folder = folder.join(id.to_string());
        let expected = [folder.join("entry.json"), folder.join(input)];
        assert_eq!(names, expected.map(|path| path.display().to_string()));
    }
    assert_eq!(fs::read_to_string(scratch.path("secret.mp4")).unwrap(), "secret");
    for path in [
        "/../secret.mp4",
        "/api/videos/..%2F..%2Fsecret.mp4/input",
        "/api/videos/1/..%2Fentry.json",
        "/api/videos/1/input/../entry.json",
        "/api/videos/1/entry.json",
        "/api/videos/01/../../lock",
        "/api/videos/99/input",
        "/api/videos/-1/input",
    ] {
        let reply = server.request("GET", path, b"");
        assert!([400, 404].contains(&reply.status), "{path}: {}", reply.status);
    }
}

#[test]
fn an_upload_without_a_name_is_refused() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.path("data"), &[]);
    assert_eq!(server.request("POST", "/api/videos", b"video").status, 400);
    let refused = server.request("POST", "/api/videos?name=", b"video");
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["error"], "the name is empty: use ?name=NAME");
    assert_eq!(files(&server.folder).len(), 1, "{:?}", files(&server.folder));
}

#[test]
fn an_upload_has_a_limit() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.path("data"), &["--upload-limit", "1"]);
    let limit = 1 << 20;
    let whole = server.request("POST", "/api/videos?name=a.mp4", &vec![1; limit]);
    assert_eq!(whole.status, 201);

    // It says how long it is, and no byte is read.
    let path = "/api/videos?name=b.mp4";
    let mut stream = connect(&server.address);
    stream.write_all(&head(&server.address, "POST", path, &[], limit + 1)).unwrap();
    let refused = reply(stream);
    assert_eq!(refused.status, 413);
    assert_eq!(refused.json()["error"], "b.mp4 is larger than 1 MiB: see venhance serve --help");

    // It does not say how long it is.
    let mut stream = connect(&server.address);
    let chunked = [("transfer-encoding", "chunked"), ("content-length", "")];
    stream.write_all(&head(&server.address, "POST", path, &chunked, 0)).unwrap();
    stream.write_all(format!("{:x}\r\n", limit + 1).as_bytes()).unwrap();
    stream.write_all(&vec![1; limit + 1]).unwrap();
    stream.write_all(b"\r\n0\r\n\r\n").unwrap();
    assert_eq!(reply(stream).status, 413);

    // Nothing is left of them.
    assert_eq!(files(&server.folder).len(), 3, "{:?}", files(&server.folder));
}

#[test]
fn an_empty_upload_is_refused() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.path("data"), &[]);
    let refused = server.request("POST", "/api/videos?name=a.mp4", b"");
    assert_eq!(refused.status, 422);
    assert_eq!(refused.json()["error"], "a.mp4 is empty: choose a file with a video");
    assert_eq!(server.request("GET", "/api/videos", b"").json(), json!([]));
    assert!(!server.folder.join("1").exists());
}

#[test]
fn an_upload_larger_than_the_disk_is_refused() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.path("data"), &["--upload-limit", "1000000000000"]);
    let mut stream = connect(&server.address);
    let petabyte = 1 << 50;
    stream.write_all(&head(&server.address, "POST", "/api/videos?name=b", &[], petabyte)).unwrap();
    let refused = reply(stream);
    assert_eq!(refused.status, 507, "{}", refused.text());
    assert!(refused.text().contains("is full: remove videos from the list"));
}

#[test]
fn nothing_is_left_of_an_upload_whose_connection_ends() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.path("data"), &[]);
    let mut stream = connect(&server.address);
    stream.write_all(&head(&server.address, "POST", "/api/videos?name=b", &[], 1000)).unwrap();
    stream.write_all(&[1; 500]).unwrap();
    let begun = server.folder.join("1/input");
    wait_for("the upload", || begun.exists());
    drop(stream);
    wait_for("the end of the upload", || !begun.exists());
    assert_eq!(server.request("GET", "/api/videos", b"").json(), json!([]));
}

#[test]
fn nothing_is_left_of_an_upload_after_a_restart() {
    let scratch = Scratch::new();
    let mut server = Server::start(&scratch.path("data"), &[]);
    let mut stream = connect(&server.address);
    stream.write_all(&head(&server.address, "POST", "/api/videos?name=b", &[], 1000)).unwrap();
    stream.write_all(&[1; 500]).unwrap();
    wait_for("the upload", || server.folder.join("1/input").exists());
    server.kill();
    let server = Server::start(&server.folder, &[]);
    assert_eq!(server.request("GET", "/api/videos", b"").json(), json!([]));
    assert!(!server.folder.join("1").exists());
}

/// Waits until something is in the partial file that can be resumed.
fn wait_for_a_piece(server: &Server, id: u64) {
    let index = server.folder.join(format!("{id}/run/output.mp4.partial.json"));
    server.wait_for(id, "a piece", |_| pieces(&index) >= 3);
}

/// The frames of the long video, made without an interruption.
const LONG_FRAMES: usize = 238;

fn assert_whole(server: &Server, id: u64) {
    let video = decode(&server.folder.join(format!("{id}/output.mp4")));
    assert_eq!(video.times.len(), LONG_FRAMES);
    assert_eq!((video.info().width(), video.info().height()), (384, 256));
}

#[test]
fn the_queue_goes_on_after_the_server_is_killed() {
    let scratch = Scratch::new();
    let long = scratch.make("long.mp4", LONG, "mp4mux", &[]);
    let short = scratch.make("short.mp4", VIDEO, "mp4mux", &[]);
    let mut server = Server::start(&scratch.path("data"), &[]);
    let (first, second) = (server.upload("long.mp4", &long), server.upload("short.mp4", &short));
    let third = server.upload("not-started.mp4", &short);
    server.start_video(first, slow());
    server.start_video(second, larger());
    wait_for_a_piece(&server, first);
    assert_eq!(server.entry(second)["state"], "queued");
    let entry = server
        .wait_for(first, "progress", |entry| entry["progress"]["position"].as_f64() > Some(1.0));
    assert_eq!(entry["progress"]["duration"], 8.0, "{entry}");
    let worker = children(server.child.id())[0];
    server.kill();
    // It would hold the files that the next server resumes.
    wait_for("the end of the worker", || !Path::new(&format!("/proc/{worker}")).exists());

    let server = Server::start(&server.folder, &[]);
    let entry = server.wait(first, "done");
    let resumed = entry["notes"].to_string();
    assert!(resumed.contains("long-enhanced.mp4: resumes at 0:"), "{entry}");
    assert_whole(&server, first);
    server.wait(second, "done");
    assert_eq!(server.entry(third)["state"], "ready");
}

#[test]
fn a_server_that_is_stopped_stops_its_run_and_keeps_what_is_done() {
    let scratch = Scratch::new();
    let long = scratch.make("long.mp4", LONG, "mp4mux", &[]);
    let mut server = Server::start(&scratch.path("data"), &[]);
    let id = server.upload("long.mp4", &long);
    server.start_video(id, slow());
    wait_for_a_piece(&server, id);
    let worker = children(server.child.id())[0];
    // SAFETY: the process is ours and has not been waited for.
    unsafe { libc::kill(server.child.id() as i32, libc::SIGTERM) };
    assert!(application::end(&mut server.child).success());
    assert!(!Path::new(&format!("/proc/{worker}")).exists());
    assert!(server.folder.join(format!("{id}/run/output.mp4.partial.mkv")).exists());
    let server = Server::start(&server.folder, &[]);
    server.wait_for(id, "running", |entry| entry["state"] == "running");
}

/// The processes that a process has started.
fn children(process: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
    list.split_whitespace().map(|id| id.parse().unwrap()).collect()
}

#[test]
fn a_cancelled_run_is_resumed() {
    let scratch = Scratch::new();
    let long = scratch.make("long.mp4", LONG, "mp4mux", &[]);
    let server = Server::start(&scratch.path("data"), &[]);
    let id = server.upload("long.mp4", &long);
    let post = |action: &str| server.request("POST", &format!("/api/videos/{id}/{action}"), b"{}");
    assert_eq!(post("resume").status, 409);
    assert_eq!(post("cancel").status, 409);
    server.start_video(id, slow());
    wait_for_a_piece(&server, id);
    assert_eq!(server.request("DELETE", &format!("/api/videos/{id}"), b"").status, 409);
    assert_eq!(post("cancel").status, 204);
    let entry = server.wait(id, "cancelled");
    assert!(entry["message"].as_str().unwrap().contains("contains the video up to"), "{entry}");
    assert_eq!(entry["can_resume"], true);
    assert_eq!(post("resume").status, 204);
    let entry = server.wait(id, "done");
    assert!(entry["notes"].to_string().contains("resumes at"), "{entry}");
    assert_whole(&server, id);
}

#[test]
fn a_run_that_crashes_leaves_the_server_and_can_be_resumed() {
    let scratch = Scratch::new();
    let long = scratch.make("long.mp4", LONG, "mp4mux", &[]);
    let server = Server::start(&scratch.path("data"), &[]);
    let id = server.upload("long.mp4", &long);
    server.start_video(id, slow());
    wait_for_a_piece(&server, id);
    let worker = children(server.child.id())[0];
    // SAFETY: the server has not waited for the process, which works.
    unsafe { libc::kill(worker as i32, libc::SIGKILL) };
    let entry = server.wait(id, "failed");
    assert!(
        entry["message"].as_str().unwrap().contains("ended unexpectedly (signal: 9"),
        "{entry}"
    );
    assert_eq!(server.request("POST", &format!("/api/videos/{id}/resume"), b"").status, 204);
    server.wait(id, "done");
    assert_whole(&server, id);
}

#[test]
fn a_video_starts_over_with_other_settings() {
    let scratch = Scratch::new();
    let video = scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let server = Server::start(&scratch.path("data"), &[]);
    let id = server.upload("in.mp4", &video);
    server.start_video(id, larger());
    server.wait(id, "done");
    server.start_video(id, json!({ "model": "lite", "up-scale": "3", "format": "webm" }));
    let entry = server.wait(id, "done");
    assert_eq!(entry["output_name"], "in-enhanced.webm");
    let folder = server.folder.join(id.to_string());
    assert!(!folder.join("output.mp4").exists() && !folder.join("run").exists());
    assert_eq!(decode(&folder.join("output.webm")).info().width(), 288);
}

/// Takes as long as a run that can be interrupted.
#[test]
fn a_finished_output_is_planned_again_and_stays_until_another_one_is_finished() {
    let scratch = Scratch::new();
    let video = scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let server = Server::start(&scratch.path("data"), &[]);
    let id = server.upload("in.mp4", &video);
    let output = || server.request("GET", &format!("/api/videos/{id}/output"), b"");
    assert_eq!(output().status, 404);
    server.start_video(id, larger());
    let first = server.wait(id, "done");
    assert!(!first["notes"].to_string().contains("resume"), "{first}");
    let finished = output().body;

    let plan = format!("/api/videos/{id}/plan");
    let plan = server.request("POST", &plan, larger().to_string().as_bytes());
    assert_eq!(plan.status, 200, "{}", plan.text());

    // The input is damaged on the disk, which shows only in the run.
    let input = server.folder.join(format!("{id}/input.mp4"));
    fs::write(&input, "This is not a video.\n").unwrap();
    for format in ["mp4", "webm"] {
        server.start_video(id, json!({ "model": "lite", "format": format }));
        let entry = server.wait(id, "failed");
        assert_eq!(entry["output_name"], "in-enhanced.mp4");
        assert_eq!(output().body, finished, "{format}");
    }

    // Interrupted, it is resumed although there is an output.
    fs::copy(scratch.make("long.mp4", LONG, "mp4mux", &[]), &input).unwrap();
    server.start_video(id, slow());
    wait_for_a_piece(&server, id);
    assert_eq!(server.request("POST", &format!("/api/videos/{id}/cancel"), b"").status, 204);
    server.wait(id, "cancelled");
    assert_eq!(output().body, finished);
    assert_eq!(server.request("POST", &format!("/api/videos/{id}/resume"), b"").status, 204);
    let entry = server.wait(id, "done");
    assert!(entry["notes"].to_string().contains("in-enhanced.mp4: resumes at"), "{entry}");
    assert_whole(&server, id);
}

/// The next list of entries from a stream of events.
fn event(events: &mut impl BufRead) -> Value {
    loop {
        let mut line = String::new();
        assert!(events.read_line(&mut line).unwrap() > 0, "the stream has ended");
        if let Some(data) = line.strip_prefix("data:") {
            return serde_json::from_str(data).unwrap();
        }
    }
}

#[test]
fn two_clients_see_the_same_and_one_of_them_starts() {
    let scratch = Scratch::new();
    let video = scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let server = Server::start(&scratch.path("data"), &[]);
    let listen = || {
        let mut stream = connect(&server.address);
        stream.write_all(&head(&server.address, "GET", "/api/events", &[], 0)).unwrap();
        BufReader::new(stream)
    };
    let mut clients: [BufReader<TcpStream>; 2] = [listen(), listen()];
    for client in &mut clients {
        assert_eq!(event(client), json!([]));
    }
    let id = server.upload("in.mp4", &video);
    let path = format!("/api/videos/{id}/start");
    let body = larger().to_string();
    let statuses = std::thread::scope(|scope| {
        let start = || server.request("POST", &path, body.as_bytes()).status;
        let starts = [scope.spawn(start), scope.spawn(start)];
        let mut statuses = starts.map(|start| start.join().unwrap());
        statuses.sort();
        statuses
    });
    assert_eq!(statuses, [204, 409]);
    for client in &mut clients {
        let mut states = Vec::new();
        while states.last().is_none_or(|state| state != "done") {
            states.extend(event(client)[0]["state"].as_str().map(str::to_owned));
            assert_ne!(states.last().unwrap(), "failed");
        }
        assert!(states.contains(&"running".to_owned()), "{states:?}");
    }
}

/// Method, path and status on success of every request that the README lists.
fn documented() -> Vec<(&'static str, &'static str, &'static str)> {
    let lines = include_str!("../src/bin/venhance/README.md").lines();
    let row = |line: &'static str| {
        let (request, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        let (method, path) = request.split_once(' ')?;
        let (status, _) = rest.split_once(" |")?;
        path.starts_with("/api/").then_some((method, path, status))
    };
    lines.filter_map(row).collect()
}

#[test]
fn every_documented_request_works_and_every_route_is_documented() {
    let routes = include_str!("../src/bin/venhance/serve/routes.rs").lines();
    let routes = routes.filter_map(|line| line.trim().strip_prefix(".route(\"")?.split('"').next());
    for route in routes {
        assert!(
            documented().iter().any(|(_, path, _)| path.split('?').next() == Some(route)),
            "{route}"
        );
    }

    let scratch = Scratch::new();
    let video = fs::read(scratch.make("in.mp4", VIDEO, "mp4mux", &[])).unwrap();
    let server = Server::start(&scratch.path("data"), &[]);
    // In this order, a video goes from its upload to its end.
    for (method, path, status) in documented() {
        let path = path.replace("{id}", "1").replace("NAME", "in.mp4");
        let body =
            if path.contains('?') { video.clone() } else { larger().to_string().into_bytes() };
        let mut stream = connect(&server.address);
        stream.write_all(&head(&server.address, method, &path, &[], body.len())).unwrap();
        stream.write_all(&body).unwrap();
        // Events have no end.
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert_eq!(line.split(' ').nth(1), Some(status), "{method} {path}");
        match path.rsplit('/').next() {
            Some("cancel") => drop(server.wait(1, "cancelled")),
            Some("resume") => drop(server.wait(1, "done")),
            _ => {}
        }
    }
}

#[test]
fn one_server_uses_a_folder() {
    let scratch = Scratch::new();
    let server = Server::start(&scratch.path("data"), &[]);
    let second = scratch.enhance(&["serve", "--folder", "data", "--listen", "127.0.0.1:0"]);
    fails(&second, 4, "another venhance serve uses");
    let third = scratch.enhance(&["serve", "--folder", "other", "--listen", &server.address]);
    fails(&third, 4, "use another address with --listen");
    assert!(!text(&third).contains("panicked"));
}
