// SPDX-License-Identifier: MIT OR Apache-2.0
//! `venhance serve`: a web page that enhances videos with this program, each in a process of its own.
//!
//! ```text
//! guard     which requests are answered: Host, Origin, token
//! routes    the page and its API
//!   ├─► uploads   a video from the browser to the disk
//!   ├─► settings  the properties and presets that the page offers
//!   └─► queue      the videos and what is done with each, on disk
//!         ▲
//!       runner    runs this program for one video after the other
//! ```
//!
//! The files of the page are in `../page`. `../README.md` describes the API.

mod guard;
mod queue;
mod routes;
mod runner;
mod settings;
mod uploads;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::{
    args::ServeArgs,
    failure::{Failure, Kind},
};
use guard::Guard;
use queue::Queue;
use runner::Program;

/// Shorter ones can be guessed.
const MIN_TOKEN: usize = 16;

/// Serves the page until a signal comes.
pub fn run(options: ServeArgs) -> Result<(), Failure> {
    let addresses = resolve(&options.listen)?;
    check_token(&options, &addresses)?;
    let folder = options.folder.clone().or_else(|| Some(dirs::data_dir()?.join("venhance")));
    let folder = folder.ok_or_else(|| {
        Failure::usage("there is no data folder for this user: name a folder with --folder")
    })?;
    let queue = Arc::new(Queue::open(&folder)?);
    let program = std::env::current_exe().map_err(|error| cannot("find this program", &error))?;
    let program = Arc::new(Program::new(program));
    // With one thread, children die with it, see `Program`.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| cannot("start the server", &error))?;
    let served = runtime.block_on(serve(&options, &addresses, queue, program));
    // A read of a file that hangs does not keep the process.
    runtime.shutdown_background();
    served
}

async fn serve(
    options: &ServeArgs,
    addresses: &[SocketAddr],
    queue: Arc<Queue>,
    program: Arc<Program>,
) -> Result<(), Failure> {
    let listen = &options.listen;
    let failed = |error| {
        Failure::new(
            Kind::Output,
            format!("cannot listen on {listen}: {error}; use another address with --listen"),
        )
    };
    let listener = TcpListener::bind(addresses).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [mut interrupt, mut terminate, mut hangup] = signals.map(signal);
    let mut stop = async || match (&mut interrupt, &mut terminate, &mut hangup) {
        (Ok(interrupt), Ok(terminate), Ok(hangup)) => tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        },
        // The default action of a signal ends the process.
        _ => std::future::pending().await,
    };

    let mut runner = tokio::spawn(runner::run(queue.clone(), program.clone()));
    let guard = Guard::new(options.token.clone(), listen);
    let page = routes::router(queue.clone(), program, options.upload_limit << 20, guard);
    let server = tokio::spawn(async { axum::serve(listener, page).await });
    let here = from_here(address);
    println!(
        "Open http://{here}/ in a browser. Ctrl-C stops the server; the videos in {} stay.",
        queue.folder().display()
    );
    if here != address {
        println!(
            "On other computers, open http://NAME:{}/, where NAME is the name or an address of this one.",
            here.port()
        );
    }

    stop().await;
    server.abort();
    queue.close();
    // A second signal ends the running process at once.
    tokio::select! {
        _ = &mut runner => {}
        () = stop() => {}
    }
    Ok(())
}

/// The addresses of `--listen`; the server uses the first one that it can.
fn resolve(listen: &str) -> Result<Vec<SocketAddr>, Failure> {
    let addresses = listen.to_socket_addrs().map_err(|error| {
        Failure::usage(format!(
            "--listen {listen}: {error}; use an address or a name, and a port, such as localhost:8423"
        ))
    })?;
    Ok(addresses.collect())
}

/// The address at which this computer reaches the server: a server can listen on all addresses of the computer.
fn from_here(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn check_token(options: &ServeArgs, addresses: &[SocketAddr]) -> Result<(), Failure> {
    match &options.token {
        None if addresses.iter().all(|address| is_local(address.ip())) => Ok(()),
        None => Err(Failure::usage(format!(
            "--listen {}: other computers reach this address; set a password with --token",
            options.listen
        ))),
        Some(token) => {
            let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            match token.len() >= MIN_TOKEN && token.chars().all(allowed) {
                true => Ok(()),
                false => Err(Failure::usage(format!(
                    "--token: use {MIN_TOKEN} or more letters, digits, - or _, such as the output of: openssl rand \
                     -hex 16"
                ))),
            }
        }
    }
}

/// Whether only this computer reaches an address.
fn is_local(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn cannot(what: &str, error: &io::Error) -> Failure {
    Failure::new(Kind::Output, format!("cannot {what}: {error}"))
}
