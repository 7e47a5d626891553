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
};

use application::{Scratch, VIDEO, audio, text};
use browser::Browser;
use common::run;
use serde_json::json;
use web::Server;

const DESKTOP: (u32, u32) = (1280, 900);
const PHONE: (u32, u32) = (375, 700);

const LEFT: &str = "\u{e012}";

/// Uploads a video through the file chooser, with a preset, and waits for it.
fn upload(browser: &Browser, server: &Server, video: &std::path::Path) {
    browser.open(&format!("http://{}/", server.address));
    browser.wait_for("document.querySelectorAll('#presets input').length === 4");
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
    browser.wait_for("document.querySelectorAll('#list li').length === 0");
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
    assert_eq!(browser.eval("document.querySelector('#list h3').textContent"), name);
    assert_eq!(browser.eval("document.title"), "venhance");
    assert_eq!(browser.eval("document.querySelectorAll('img').length"), 0);
}

#[test]
fn two_tabs_show_the_same_also_after_a_restart_of_the_server() {
    let Some(browser) = Browser::start(DESKTOP) else { return };
    let scratch = Scratch::new();
    let video = scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let mut server = Server::start(&scratch.path("data"), &[]);
    upload(&browser, &server, &video);
    browser.open_tab();
    browser.open(&format!("http://{}/", server.address));
    browser.wait_for("document.querySelector('#list li[data-state=ready]') !== null");
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

/// What can be used has a name for those who do not see it.
const UNNAMED: &str = "[...document.querySelectorAll('button, a, input, select, progress')].filter(element => \
    element.offsetParent && !element.labels?.length && !element.ariaLabel && !element.textContent.trim()) \
    .map(element => element.outerHTML)";

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
    assert_eq!(browser.eval(UNNAMED), json!([]));
    press_button(&browser, "Start");
    browser.wait_for("document.querySelector('#list li[data-state=done]') !== null");
    press_button(&browser, "Compare");
    browser.wait_for(READY);
    assert_eq!(browser.eval(UNNAMED), json!([]));
    assert_eq!(browser.eval("document.querySelector('dialog').scrollWidth > document.querySelector('dialog').clientWidth"), false);
    // The dialog ends with the Escape key, and the focus is where it was.
    browser.press("#close", "\u{e00c}");
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
