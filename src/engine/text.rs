// SPDX-License-Identifier: MIT OR Apache-2.0
//! Text from files and servers in messages for users.

/// Number of characters that [`printable`] keeps.
const LONGEST: usize = 200;

/// Text from a file or a server for a message: escapes control characters, which a terminal would obey, and keeps
/// 200 characters.
pub fn printable(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => escaped(&text[..end]) + "…",
        None => escaped(text),
    }
}

/// A number and a noun: "1 frame", "2 frames".
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// Escapes control characters and those that reverse the direction of text.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => escaped.extend(c.escape_unicode()),
            c if c.is_control() => escaped.extend(c.escape_default()),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_long_text_is_cut() {
        assert_eq!(printable("unet.größe"), "unet.größe");
        assert_eq!(printable("a\u{1b}[31m\n\u{9b}\u{202e}b"), "a\\u{1b}[31m\\n\\u{9b}\\u{202e}b");
        assert_eq!(printable(&"é".repeat(1 << 22)), "é".repeat(200) + "…");
    }
}
