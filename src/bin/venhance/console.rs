// SPDX-License-Identifier: MIT OR Apache-2.0
//! `println!` and `eprintln!` for this program. Those of the standard library panic where the reader has gone
//! (`| head`) or the disk is full; the work goes on without these lines.

macro_rules! println {
    ($($arg:tt)*) => {{
        let _ = std::io::Write::write_fmt(
            &mut std::io::stdout(),
            format_args!("{}\n", format_args!($($arg)*)),
        );
    }};
}

macro_rules! eprintln {
    ($($arg:tt)*) => {{
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("{}\n", format_args!($($arg)*)),
        );
    }};
}
