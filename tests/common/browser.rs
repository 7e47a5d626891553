// SPDX-License-Identifier: MIT OR Apache-2.0
//! Chromium without a window, driven by WebDriver: https://www.w3.org/TR/webdriver2/.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    common::TIMEOUT,
    web::{head, request},
};

/// The key under which WebDriver returns an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

pub struct Browser {
    driver: Child,
    address: String,
    session: String,
    _profile: tempfile::TempDir,
    // Its end would be a closed pipe for the driver.
    _stdout: BufReader<ChildStdout>,
}

impl Browser {
    /// Starts Chromium with a window of a size; none if it is not installed.
    pub fn start((width, height): (u32, u32)) -> Option<Self> {
        let driver = Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).spawn();
        let Ok(mut driver) = driver else {
            eprintln!(
                "skipped: Debian's chromium-driver is not installed; scripts/test-browser installs it"
            );
            return None;
        };
        let mut stdout = BufReader::new(driver.stdout.take().unwrap());
        let port = loop {
            let mut line = String::new();
            assert!(stdout.read_line(&mut line).unwrap() > 0, "chromedriver has ended");
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                break port.trim().trim_end_matches('.').to_owned();
            }
        };
        let profile = tempfile::tempdir().unwrap();
        let mut flags = vec![
            "--headless=new".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--autoplay-policy=no-user-gesture-required".to_owned(),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        // SAFETY: it has no conditions.
        if unsafe { libc::geteuid() } == 0 {
            flags.push("--no-sandbox".to_owned());
        }
        let mut browser = Self {
            driver,
            address: format!("127.0.0.1:{port}"),
            session: String::new(),
            _profile: profile,
            _stdout: stdout,
        };
        let chrome = json!({
            "args": flags,
            "mobileEmulation": { "deviceMetrics": { "width": width, "height": height, "pixelRatio": 1.0, "touch": false } },
        });
        let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": chrome } } });
        let session = browser.send("POST", "/session", &wanted);
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        Some(browser)
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let json = [("content-type", "application/json")];
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let reply = request(&self.address, method, path, &json, body.as_bytes());
        assert_eq!(reply.status, 200, "{path} {body}: {}", reply.text());
        reply.json()["value"].clone()
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        self.send(method, &format!("{}/{path}", self.session), body)
    }

    pub fn open(&self, url: &str) {
        self.command("POST", "url", &json!({ "url": url }));
    }

    /// Opens another tab, which becomes the current one.
    pub fn open_tab(&self) {
        let tab = self.command("POST", "window/new", &json!({ "type": "tab" }));
        self.command("POST", "window", &json!({ "handle": tab["handle"] }));
    }

    fn element(&self, selector: &str) -> String {
        let query = json!({ "using": "css selector", "value": selector });
        self.command("POST", "element", &query)[ELEMENT].as_str().unwrap().to_owned()
    }

    pub fn click(&self, selector: &str) {
        self.command("POST", &format!("element/{}/click", self.element(selector)), &json!({}));
    }

    /// Presses keys in an element. In a file chooser, these are the path of a file.
    pub fn press(&self, selector: &str, keys: &str) {
        let path = format!("element/{}/value", self.element(selector));
        self.command("POST", &path, &json!({ "text": keys }));
    }

    /// Presses keys where the focus is.
    pub fn keys(&self, keys: &str) {
        let keys = keys.chars().flat_map(|key| {
            ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))
        });
        let actions =
            json!([{ "type": "key", "id": "keyboard", "actions": keys.collect::<Vec<_>>() }]);
        self.command("POST", "actions", &json!({ "actions": actions }));
    }

    /// Drops files or folders on the middle of an element.
    pub fn drop_files(&self, selector: &str, files: &[&Path]) {
        let center = |from: &str, size: &str| {
            let side = format!("(r => r.{from} + r.{size} / 2)");
            self.eval(&format!(
                "{side}(document.querySelector('{selector}').getBoundingClientRect())"
            ))
        };
        let (x, y) = (center("left", "width"), center("top", "height"));
        let data = json!({ "items": [], "files": files, "dragOperationsMask": 1 });
        for kind in ["dragEnter", "dragOver", "drop"] {
            let event = json!({ "type": kind, "x": x, "y": y, "data": data });
            self.devtools("Input.dispatchDragEvent", event);
        }
    }

    /// Calls a method of the DevTools protocol.
    pub fn devtools(&self, method: &str, parameters: Value) -> Value {
        let body = json!({ "cmd": method, "params": parameters });
        self.command("POST", "goog/cdp/execute", &body)
    }

    /// Agrees to the question that the page asks, and returns its text.
    pub fn agree(&self) -> String {
        let text = self.command("GET", "alert/text", &json!({}));
        self.command("POST", "alert/accept", &json!({}));
        text.as_str().unwrap().to_owned()
    }

    pub fn choose(&self, selector: &str, file: &Path) {
        self.press(selector, file.to_str().unwrap());
    }

    /// The value of an expression. A promise is waited for.
    pub fn eval(&self, expression: &str) -> Value {
        let script = format!("return ({expression})");
        self.command("POST", "execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until an expression is true.
    pub fn wait_for(&self, expression: &str) {
        let began = Instant::now();
        while self.eval(expression) != true {
            let page = || self.eval("document.body.innerText");
            assert!(began.elapsed() < TIMEOUT, "waited in vain for {expression}: {}", page());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends Chromium, also after a failure.
        if let Ok(mut stream) = TcpStream::connect(&self.address) {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
            let _ = stream.write_all(&head(&self.address, "DELETE", &self.session, &[], 0));
            let _ = stream.read(&mut [0; 1024]);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
