// SPDX-License-Identifier: MIT OR Apache-2.0
//! The page of `venhance serve`, and that of `--compare`, in Chromium. Skipped where Chromium is not installed.

#[path = "common/application.rs"]
mod application;
#[path = "common/browser.rs"]
mod browser;
mod common;
#[path = "common/web.rs"]
mod web;

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
};

use application::{Scratch, VIDEO, audio, text};
use browser::Browser;
use common::run;
use serde_json::json;
use web::Server;

const DESKTOP: (u32, u32) = (1280, 900);
const PHONE: (u32, u32) = (375, 700);

const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
const ESCAPE: &str = "\u{e00c}";
const LEFT: &str = "\u{e012}";
const RIGHT: &str = "\u{e014}";

/// Opens the page of a server, at a path, and waits until it has its settings.
fn open(browser: &Browser, server: &Server, path: &str) {
    browser.open(&format!("http://{}{path}", server.address));
    browser.wait_for("document.querySelectorAll('#presets input').length === 4");
}

/// A browser with the page of a server, and a video; none where Chromium is not installed.
fn start() -> Option<(Browser, Scratch, PathBuf, Server)> {
    let browser = Browser::start(DESKTOP)?;
    let scratch = Scratch::new();
    let video = scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let server = Server::start(&scratch.path("data"), &[]);
    open(&browser, &server, "/");
    Some((browser, scratch, video, server))
}

/// Uploads a video through the file chooser, with a preset, and waits for it.
fn upload(browser: &Browser, server: &Server, video: &Path) {
    open(browser, server, "/");
    browser.click("input[value='Larger only']");
    browser.choose("#files", video);
    browser.wait_for("document.querySelector('#list li[data-state=ready]') !== null");
}

/// Clicks the button of the only video.
fn press_button(browser: &Browser, name: &str) {
    browser.click(&format!("#list button[aria-label^='{name}']"));
}

/// Both videos show a frame, at the same time.
const READY: &str = "[...document.querySelectorAll('#slider video')].length === 2 \
    && [...document.querySelectorAll('#slider video')].every(video => video.readyState >= 2 && !video.seeking)";
const TIMES: &str =
    "[...document.querySelectorAll('#slider video')].map(video => video.currentTime)";

/// Steps, moves the divider and plays.
fn use_slider(browser: &Browser, fps: f64) {
    browser.wait_for(READY);
    for n in 1..=2 {
        browser.click("#slider button[aria-label^='Next frame']");
        browser.wait_for(READY);
        let expected = (f64::from(n) + 0.5) / fps;
        let near = format!("{TIMES}.every(time => Math.abs(time - {expected}) < 0.002)");
        browser.wait_for(&near);
    }
    browser.press("#slider .split", &LEFT.repeat(10));
    let split = "getComputedStyle(document.querySelector('#slider')).getPropertyValue('--split')";
    assert_eq!(browser.eval(split), "40%");
    let clip = browser.eval("getComputedStyle(document.querySelector('#slider .before')).clipPath");
    assert!(clip.as_str().unwrap().starts_with("inset(0"), "{clip}");
    browser.click("#slider button[aria-label='Play']");
    // On a busy machine, frames are late; the first video catches up.
    browser.wait_for(&format!("{TIMES}[0] > 0.5 && Math.abs({TIMES}[0] - {TIMES}[1]) < 0.1"));
    browser.click("#slider button[aria-label='Pause']");
    browser.wait_for(&format!("{READY} && Math.abs({TIMES}[0] - {TIMES}[1]) < 0.5 / {fps}"));
}

#[test]
fn a_video_goes_in_by_the_file_chooser_and_comes_out_through_the_slider() {
    let Some(browser) = Browser::start(DESKTOP) else { return };
    let scratch = Scratch::new();
    let video = scratch.make("in.mp4", VIDEO, "mp4mux", &[audio("avenc_aac")]);
    let server = Server::start(&scratch.path("data"), &[]);
    upload(&browser, &server, &video);
    browser.wait_for(
        "document.querySelector('#list pre').textContent.includes('resolution: 96x64 to 192x128')",
    );
    press_button(&browser, "Start");
    browser.wait_for("document.querySelector('#list li[data-state=done]') !== null");
    let link = browser.eval("document.querySelector('#list a').download");
    assert_eq!(link, "in-enhanced.mp4");
    press_button(&browser, "Compare");
    browser.wait_for(READY);
    let widths = browser.eval(
        "['before', 'after'].map(name => document.querySelector('#slider .' + name).videoWidth)",
    );
    assert_eq!(widths, json!([96, 192]));
    use_slider(&browser, 8.0);
    browser.click("#close");
    browser.wait_for("document.querySelector('#slider').childElementCount === 0");
    press_button(&browser, "Remove");
    assert_eq!(browser.agree(), "Remove in.mp4? Its output is deleted.");
    browser.wait_for("document.querySelectorAll('#list li').length === 0");
    // The button that had the focus is gone.
    browser.wait_for("document.activeElement.textContent === 'Videos'");
}

/// The accessible name of the focused element, whose outline must be visible.
fn focus(browser: &Browser) -> String {
    let outline =
        "(e => getComputedStyle(e.classList.contains('hidden') ? e.labels[0] : e).outlineStyle)";
    assert_ne!(browser.eval(&format!("{outline}(document.activeElement)")), "none");
    let name =
        "(e => e.ariaLabel ?? e.labels?.[0]?.innerText ?? e.innerText)(document.activeElement)";
    browser.eval(name).as_str().unwrap().to_owned()
}

/// Presses Tab until something has the focus whose name begins with `name`.
fn tab_to(browser: &Browser, name: &str) {
    let mut passed = Vec::new();
    while passed.last().is_none_or(|last: &String| !last.starts_with(name)) {
        browser.keys(TAB);
        passed.push(focus(browser));
        assert!(passed.len() < 50, "no {name} among {passed:?}");
    }
}

#[test]
fn everything_can_be_done_by_keyboard() {
    let Some((browser, _scratch, video, _server)) = start() else { return };
    // Tab stops at the chosen preset only; the arrow keys choose.
    tab_to(&browser, "Choose videos");
    browser.choose("#files", &video);
    browser.wait_for("document.querySelector('#list li[data-state=ready]') !== null");
    tab_to(&browser, "Choose a folder");
    tab_to(&browser, "AI clip");
    browser.keys(&RIGHT.repeat(2));
    assert!(focus(&browser).starts_with("Larger only"));
    tab_to(&browser, "More");
    browser.keys(" ");
    tab_to(&browser, "up-scale");
    browser.keys("3");
    tab_to(&browser, "Start: in.mp4");
    browser.keys(ENTER);
    // The button disappears; from the name, Tab goes to the next one.
    browser.wait_for("document.querySelector('#list li[data-state=done]') !== null");
    assert_eq!(focus(&browser), "in.mp4");
    tab_to(&browser, "Compare: in.mp4");
    browser.keys(ENTER);
    browser.wait_for(READY);
    assert_eq!(browser.eval("document.querySelector('#slider .after').videoWidth"), 288);
    assert_eq!(browser.eval("document.querySelector('#slider .seek').value"), "0");
    tab_to(&browser, "Divider");
    browser.keys(&LEFT.repeat(10));
    let split = "getComputedStyle(document.querySelector('#slider')).getPropertyValue('--split')";
    assert_eq!(browser.eval(split), "40%");
    tab_to(&browser, "Next frame");
    browser.keys(ENTER);
    browser.wait_for(&format!("{READY} && Math.abs({TIMES}[1] - 1.5 / 8) < 0.002"));
    tab_to(&browser, "Position");
    browser.keys(&RIGHT.repeat(5));
    browser.wait_for(&format!("{READY} && {TIMES}[1] > 0.2"));
    browser.keys("f");
    browser.wait_for("document.fullscreenElement !== null");
    let colours = "(style => [style.color, style.backgroundColor])(getComputedStyle(document.querySelector('#slider button')))";
    let colours = browser.eval(colours);
    assert_ne!(colours[0], colours[1]);
    browser.keys("f");
    browser.wait_for("document.fullscreenElement === null");
    browser.keys(ESCAPE);
    browser.wait_for("document.activeElement?.ariaLabel?.startsWith('Compare') ?? false");
    tab_to(&browser, "Download");
    tab_to(&browser, "Enhance again");
    tab_to(&browser, "Remove");
}

#[test]
fn files_and_folders_are_dropped() {
    let Some((browser, scratch, video, _server)) = start() else { return };
    let deep = scratch.path("folder/deep");
    fs::create_dir_all(&deep).unwrap();
    fs::copy(&video, deep.join("b.mp4")).unwrap();
    fs::copy(&video, scratch.path("folder/a.mp4")).unwrap();
    fs::write(scratch.path("folder/notes.txt"), "not a video").unwrap();
    for n in 1..=2 {
        browser.drop_files("#drop", &[&video]);
        let ready = "document.querySelectorAll('#list li[data-state=ready]').length";
        browser.wait_for(&format!("{ready} === {n}"));
    }
    // Anywhere on the page.
    browser.drop_files("h1", &[&scratch.path("folder")]);
    browser.wait_for("document.querySelectorAll('#list li[data-state=ready]').length === 4");
    let names =
        browser.eval("[...document.querySelectorAll('#list h3')].map(h => h.textContent).sort()");
    assert_eq!(names, json!(["a.mp4", "b.mp4", "in.mp4", "in.mp4"]));
    let said = browser.eval("document.querySelector('#status').textContent");
    assert_eq!(said, "1 of 3 files are not videos: skipped");
}

#[test]
fn many_videos_that_wait_for_their_plans_hold_up_nothing_else() {
    let Some((browser, _scratch, video, _server)) = start() else { return };
    browser.drop_files("#drop", &[video.as_path(); 30]);
    browser.wait_for("document.querySelectorAll('#list li[data-state=ready]').length === 30");
    browser.click("#list li:last-child button[aria-label^=Start]");
    browser.wait_for("document.querySelector('#list li:last-child').dataset.state !== 'ready'");
    let planning = "[...document.querySelectorAll('#list pre')].filter(pre => pre.textContent.startsWith('Planning')).length";
    let planning = browser.eval(planning).as_u64().unwrap();
    assert!(planning > 15, "{planning} videos wait");
}

#[test]
fn an_upload_that_fails_without_a_server_is_tried_again() {
    let Some(browser) = Browser::start(DESKTOP) else { return };
    let scratch = Scratch::new();
    let video = scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let flags = |token| ["--token", token];
    let mut server = Server::start(&scratch.path("data"), &flags("0123456789abcdef"));
    open(&browser, &server, "/?token=0123456789abcdef");
    server.kill();
    browser.choose("#files", &video);
    browser.wait_for("document.querySelector('#list .bad') !== null");
    let listen = ["--listen", &server.address.clone()];
    let mut server =
        Server::start(&scratch.path("data"), &[listen, flags("0123456789abcdef")].concat());
    press_button(&browser, "Try again");
    browser.wait_for("document.querySelector('#list li[data-state=ready]') !== null");
    assert_eq!(browser.eval("document.querySelectorAll('#list li').length"), 1);
    // A server with another token: the page asks for it.
    server.kill();
    let _server =
        Server::start(&scratch.path("data"), &[listen, flags("fedcba9876543210")].concat());
    browser.wait_for("document.querySelector('input[name=token]') !== null");
}

#[test]
fn an_empty_file_is_refused() {
    let Some((browser, scratch, _video, _server)) = start() else { return };
    let empty = scratch.path("empty.mp4");
    fs::write(&empty, "").unwrap();
    browser.choose("#files", &empty);
    browser.wait_for("document.querySelector('#list .bad')?.textContent.startsWith('empty.mp4 is empty') ?? false");
}

#[test]
fn a_hostile_name_is_only_text_and_a_wrong_file_is_an_error() {
    let Some(browser) = Browser::start(DESKTOP) else { return };
    let scratch = Scratch::new();
    let name = "<img src=x onerror=\"document.title='owned'\">.mp4";
    let file = scratch.path(name);
    fs::write(&file, "This is not a video.\n").unwrap();
    let server = Server::start(&scratch.path("data"), &[]);
    upload(&browser, &server, &file);
    browser.wait_for(
        "document.querySelector('#list pre.bad')?.textContent.includes('it is text') ?? false",
    );
    press_button(&browser, "Start");
    browser.wait_for("document.querySelector('#list li[data-state=failed]') !== null");
    // To resume would fail in the same way.
    let buttons = "[...document.querySelectorAll('#list li button')].filter(b => !b.hidden).map(b => b.textContent)";
    assert_eq!(browser.eval(buttons), json!(["Enhance again", "Remove"]));
    assert_eq!(browser.eval("document.querySelector('#list h3').textContent"), name);
    assert_eq!(browser.eval("document.title"), "venhance");
    assert_eq!(browser.eval("document.querySelectorAll('img').length"), 0);
}

#[test]
fn many_tabs_show_the_same_also_after_a_restart_of_the_server() {
    let Some(browser) = Browser::start(DESKTOP) else { return };
    let scratch = Scratch::new();
    let video = scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let mut server = Server::start(&scratch.path("data"), &[]);
    upload(&browser, &server, &video);
    // More than a browser has connections to one server.
    for _ in 0..7 {
        browser.open_tab();
        browser.open(&format!("http://{}/", server.address));
        browser.wait_for("document.querySelector('#list li[data-state=ready]') !== null");
    }
    server.kill();
    browser.wait_for("document.querySelector('#status').textContent.includes('is lost')");
    let address = server.address.clone();
    let server = Server::start(&scratch.path("data"), &["--listen", &address]);
    browser.wait_for("document.querySelector('#status').textContent === ''");
    server.start_video(1, json!({ "model": "lite", "up-scale": "2" }));
    browser.wait_for("document.querySelector('#list li[data-state=done]') !== null");
}

#[test]
fn a_page_of_another_site_can_do_nothing() {
    let Some(browser) = Browser::start(DESKTOP) else { return };
    let scratch = Scratch::new();
    let server = Server::start(&scratch.path("data"), &[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let page = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi";
            let _ = stream.write_all(page.as_bytes());
        }
    });
    browser.open(&format!("http://{address}/"));
    let fetch = |path: &str, options: &str| {
        let url = format!("http://{}{path}", server.address);
        browser.eval(&format!("fetch('{url}', {options}).then(r => r.text(), () => 'refused')"))
    };
    assert_eq!(fetch("/api/videos", "{}"), "refused");
    assert_eq!(fetch("/api/videos?name=a.mp4", "{ method: 'POST', body: 'video' }"), "refused");
    // The browser sends this one, but does not tell what comes back.
    fetch("/api/videos?name=a.mp4", "{ method: 'POST', body: 'video', mode: 'no-cors' }");
    assert_eq!(server.request("GET", "/api/videos", b"").json(), json!([]));
    // Neither can it show the page in a frame.
    let frame = format!(
        "(() => {{ const f = document.createElement('iframe'); f.src = 'http://{}/'; \
        document.body.append(f); return new Promise(done => f.onload = () => done(f.contentDocument === null)) }})()",
        server.address
    );
    assert_eq!(browser.eval(&frame), true);
}

/// The roles of controls that have no name for a screen reader.
fn unnamed(browser: &Browser) -> Vec<String> {
    let tree = browser.devtools("Accessibility.getFullAXTree", json!({}));
    let nodes = tree["nodes"].as_array().unwrap();
    let controls = nodes.iter().filter(|node| {
        let properties = node["properties"].as_array();
        let is = |name: &str| {
            let mut all = properties.into_iter().flatten();
            all.any(|property| property["name"] == name && property["value"]["value"] == true)
        };
        node["ignored"] == false && (is("focusable") || node["role"]["value"] == "progressbar")
    });
    let controls: Vec<_> = controls.collect();
    assert!(controls.len() > 5, "{controls:?}");
    let unnamed = controls.iter().filter(|node| node["name"]["value"].as_str() == Some(""));
    unnamed.map(|node| node.to_string()).collect()
}

#[test]
fn the_page_fits_a_phone_and_everything_has_a_name() {
    let Some(browser) = Browser::start(PHONE) else { return };
    let scratch = Scratch::new();
    let video = scratch.make(
        "a-name-without-any-space-that-is-longer-than-the-screen-of-a-phone.mp4",
        VIDEO,
        "mp4mux",
        &[],
    );
    let server = Server::start(&scratch.path("data"), &[]);
    upload(&browser, &server, &video);
    browser.click("summary");
    let overflow = "document.documentElement.scrollWidth > innerWidth";
    assert_eq!(browser.eval("innerWidth"), PHONE.0);
    assert_eq!(browser.eval(overflow), false);
    assert_eq!(unnamed(&browser), [""; 0]);
    press_button(&browser, "Start");
    browser.wait_for("document.querySelector('#list li[data-state=done]') !== null");
    press_button(&browser, "Compare");
    browser.wait_for(READY);
    assert_eq!(unnamed(&browser), [""; 0]);
    assert_eq!(browser.eval("document.querySelector('dialog').scrollWidth > document.querySelector('dialog').clientWidth"), false);
    // The dialog ends with the Escape key, and the focus is where it was.
    browser.press("#close", ESCAPE);
    browser.wait_for("document.activeElement?.ariaLabel?.startsWith('Compare') ?? false");
}

#[test]
fn the_page_of_compare_plays_from_a_file_alone() {
    let Some(browser) = Browser::start(DESKTOP) else { return };
    let scratch = Scratch::new();
    scratch.make("in.mp4", VIDEO, "mp4mux", &[audio("avenc_aac")]);
    // No browser plays this.
    let old = "videotestsrc pattern=ball num-buffers=16 ! video/x-raw,width=97,height=65,framerate=8/1 ! avenc_mpeg4";
    run(&format!("{old} ! avimux ! filesink location={}", scratch.path("old.avi").display()));
    for (input, output) in [("in.mp4", "new.mp4"), ("old.avi", "old.mkv")] {
        let page = format!("{input}.html");
        let enhanced = scratch.enhance(&[
            input,
            output,
            "--up-scale",
            "2",
            "--target-fps",
            "24",
            "--compare",
            &page,
        ]);
        assert!(enhanced.status.success(), "{}", text(&enhanced));
        // Nothing but the page is needed.
        let alone = tempfile::tempdir().unwrap();
        let path = alone.path().join("page.html");
        fs::rename(scratch.path(&page), &path).unwrap();
        browser.open(&format!("file://{}", path.display()));
        use_slider(&browser, 24.0);
        assert_eq!(browser.eval("document.querySelector('.problem').textContent"), "");
    }
}
