// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which requests are answered. Other web pages in the user's browser, and other computers, can send requests too.

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

const COOKIE: &str = "venhance-token";

/// Nothing comes from elsewhere, and no page of another site shows this one in a frame.
const CONTENT_SECURITY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
media-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub struct Guard {
    token: Option<String>,
    /// The names of this computer, and that of `--listen`.
    names: Vec<String>,
}

impl Guard {
    pub fn new(token: Option<String>, listen: &str) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.trim().to_lowercase();
        let listen = without_port(listen).to_lowercase();
        let mut names = vec!["localhost".to_owned(), listen];
        if !host.is_empty() {
            names.extend([format!("{host}.local"), host]);
        }
        Self { token, names }
    }

    /// Whether the Host header can be that of this server. A site can give its own name the address of this
    /// server, so a name must be known; an address cannot be faked.
    fn knows(&self, host: &str) -> bool {
        let name = without_port(host).to_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']');
        self.names.contains(&name) || address.parse::<IpAddr>().is_ok()
    }

    fn refusal(&self, request: &Request) -> Option<Response> {
        let headers = request.headers();
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let Some(host) = text(header::HOST).filter(|host| self.knows(host)) else {
            let why = "unknown host: open the page by the address that venhance serve prints\n";
            return Some((StatusCode::MISDIRECTED_REQUEST, why).into_response());
        };
        if headers.contains_key(header::ORIGIN) {
            let origin = text(header::ORIGIN).and_then(|origin| origin.split_once("://"));
            if origin.is_none_or(|(_, origin)| !origin.eq_ignore_ascii_case(host)) {
                let why = "requests of other sites are refused\n";
                return Some((StatusCode::FORBIDDEN, why).into_response());
            }
        }
        let token = self.token.as_deref()?;
        let cookies = text(header::COOKIE).unwrap_or_default().split("; ");
        let cookie = cookies.filter_map(|cookie| cookie.split_once('=')).find(|c| c.0 == COOKIE);
        let bearer = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        let sent = [cookie.map(|(_, value)| value), bearer].into_iter().flatten();
        let mut sent = sent.filter(|sent| !sent.is_empty()).peekable();
        let is_missing = sent.peek().is_none();
        if sent.any(|sent| same(sent, token)) {
            return None;
        }
        if request.uri().path() != "/" {
            let why = if is_missing { "the token is missing\n" } else { "the token is wrong\n" };
            return Some((StatusCode::UNAUTHORIZED, why).into_response());
        }
        let query = request.uri().query().unwrap_or_default();
        let given = query.split('&').find_map(|pair| pair.strip_prefix("token="));
        Some(match given.is_some_and(|given| same(given, token)) {
            // So that the address bar does not keep the token.
            true => logged_in(token),
            false => ask_for_token(given.is_some()),
        })
    }
}

/// Refuses a request or forwards it, and adds the security headers to every response.
pub async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let mut response = match guard.refusal(&request) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn logged_in(token: &str) -> Response {
    let cookie = format!("{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict");
    let mut headers = HeaderMap::new();
    headers.insert(header::LOCATION, HeaderValue::from_static("/"));
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        headers.insert(header::SET_COOKIE, cookie);
    }
    (StatusCode::SEE_OTHER, headers, Body::empty()).into_response()
}

fn ask_for_token(was_wrong: bool) -> Response {
    let problem = if was_wrong { "<p role=\"alert\">The token is wrong.</p>\n" } else { "" };
    let page = include_str!("../page/token.html").replace("{{problem}}", problem);
    let html = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    (StatusCode::UNAUTHORIZED, html, page).into_response()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Compares in a time that does not depend on where the texts differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}
