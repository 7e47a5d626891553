// SPDX-License-Identifier: MIT OR Apache-2.0
//! A prompt as the numbers of CLIP's byte pairs.

use instant_clip_tokenizer as clip;

/// Tokens of a prompt, begin and end included.
pub const CONTEXT: usize = 77;

/// Numbers of a prompt's tokens; 0 after the end.
pub type Tokens = [u32; CONTEXT];

/// CLIP's tokenizer, with the text cleaned first as OpenCLIP does.
pub struct Tokenizer(clip::Tokenizer);

impl Default for Tokenizer {
    fn default() -> Self {
        Self(clip::Tokenizer::new())
    }
}

impl Tokenizer {
    /// The tokens of a text, and the end of it that had no place.
    pub fn encode(&self, text: &str) -> (Tokens, String) {
        let mut found = vec![self.0.start_of_text()];
        self.0.encode(&clean(text), &mut found);
        let left_out = found.drain((CONTEXT - 1).min(found.len())..).collect::<Vec<_>>();
        found.push(self.0.end_of_text());
        let mut tokens = [0; CONTEXT];
        for (slot, token) in tokens.iter_mut().zip(found) {
            *slot = u32::from(token.to_u16());
        }
        (tokens, self.0.decode(left_out).trim_end().to_owned())
    }
}

/// Broken and unusual characters mended, HTML's entities resolved twice, white space collapsed, lower
/// case.
fn clean(text: &str) -> String {
    let text = plsfix::fix_text(text, None);
    let text = htmlize::unescape(htmlize::unescape(text)).into_owned();
    text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}
