// SPDX-License-Identifier: MIT OR Apache-2.0
//! A running `venhance serve`, and a client that sends what browsers would not.
#![allow(dead_code, reason = "every test file uses a part of this")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{application::venhance, common::TIMEOUT};

/// A response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.0 == name).map(|header| header.1.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.text()))
    }
}

/// Sends a request; a header of the caller replaces the usual one.
pub fn request(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut stream = connect(address);
    stream.write_all(&head(address, method, path, headers, body.len())).unwrap();
    // A server that refuses need not read all of it.
    let _ = stream.write_all(body);
    reply(stream)
}

pub fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

pub fn head(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    length: usize,
) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    let length = length.to_string();
    let usual = [("host", address), ("content-length", &length), ("connection", "close")];
    let usual = usual.iter().filter(|(name, _)| headers.iter().all(|header| header.0 != *name));
    // An empty value leaves the header out.
    for (name, value) in usual.chain(headers).filter(|header| !header.1.is_empty()) {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    (text + "\r\n").into_bytes()
}

pub fn reply(stream: TcpStream) -> Reply {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let status = lines.first().expect("the server has closed the connection without a response");
    let status = status.split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines[1..].iter().map(|line| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_lowercase(), value.trim().to_owned())
    });
    let mut reply = Reply { status, headers: headers.collect(), body: Vec::new() };
    match reply.header("content-length").map(|length| length.parse().unwrap()) {
        Some(length) => {
            reply.body.resize(length, 0);
            reader.read_exact(&mut reply.body).unwrap();
        }
        None => drop(reader.read_to_end(&mut reply.body).unwrap()),
    }
    reply
}

/// A server on a port of its own.
pub struct Server {
    pub child: Child,
    pub address: String,
    pub folder: PathBuf,
    // Its end would be a closed pipe for the server.
    pub stdout: BufReader<ChildStdout>,
}

impl Server {
    pub fn start(folder: &Path, flags: &[&str]) -> Self {
        let mut command = venhance();
        command.args(["serve", "--folder"]).arg(folder);
        if !flags.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut child = command.args(flags).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.strip_prefix("Open http://").and_then(|line| line.split_once('/'));
        let address = address.unwrap_or_else(|| panic!("no address: {line}")).0.to_owned();
        Self { child, address, folder: folder.to_owned(), stdout }
    }

    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        request(&self.address, method, path, &[], body)
    }

    /// Uploads a video; returns its number.
    pub fn upload(&self, name: &str, file: &Path) -> u64 {
        let video = std::fs::read(file).unwrap();
        let reply = self.request("POST", &format!("/api/videos?name={name}"), &video);
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.json()["id"].as_u64().unwrap()
    }

    pub fn start_video(&self, id: u64, settings: Value) {
        let settings = settings.to_string();
        let reply = self.request("POST", &format!("/api/videos/{id}/start"), settings.as_bytes());
        assert_eq!(reply.status, 204, "{}", reply.text());
    }

    pub fn entry(&self, id: u64) -> Value {
        let entries = self.request("GET", "/api/videos", b"").json();
        let entries = entries.as_array().unwrap();
        entries.iter().find(|entry| entry["id"] == id).cloned().unwrap_or_default()
    }

    /// Waits for a state of a entry, and returns the entry.
    pub fn wait(&self, id: u64, state: &str) -> Value {
        self.wait_for(id, state, |entry| entry["state"] == state)
    }

    pub fn wait_for(&self, id: u64, what: &str, done: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let entry = self.entry(id);
            if done(&entry) {
                return entry;
            }
            let waits =
                ["ready", "queued", "running", "stopping"].iter().any(|s| entry["state"] == *s);
            assert!(waits && began.elapsed() < TIMEOUT, "waited in vain for {what}: {entry}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
