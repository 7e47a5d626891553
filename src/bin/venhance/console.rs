// SPDX-License-Identifier: MIT OR Apache-2.0
//! `println!` and `eprintln!` for this program. Those of the standard library panic on a closed pipe (`| head`) or a full
//! disk; here, the work continues without these lines. Control characters in names and messages are escaped, so that
//! they do not reach the terminal.

use std::io::{self, Write};

macro_rules! println {
    ($($arg:tt)*) => {{
        let _ = $crate::console::write(&mut std::io::stdout(), &format!($($arg)*));
    }};
}

macro_rules! eprintln {
    ($($arg:tt)*) => {{
        let _ = $crate::console::write(&mut std::io::stderr(), &format!($($arg)*));
    }};
}

/// Writes a text and a line break.
pub fn write(to: &mut impl Write, text: &str) -> io::Result<()> {
    let mut line = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        match c.is_control() && c != '\n' {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line.push('\n');
    to.write_all(line.as_bytes())
}
