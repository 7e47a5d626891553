// SPDX-License-Identifier: MIT OR Apache-2.0
//! Converts a prompt to token ids of CLIP's byte pair encoding.

use instant_clip_tokenizer as clip;

/// Context length: tokens per prompt, start and end tokens included.
pub const CONTEXT: usize = 77;

/// Token ids of a prompt, padded with 0 after the end token.
pub type Tokens = [u32; CONTEXT];

/// CLIP's tokenizer, with the text cleaned as OpenCLIP does.
pub struct Tokenizer(clip::Tokenizer);

impl Default for Tokenizer {
    fn default() -> Self {
        Self(clip::Tokenizer::new())
    }
}

impl Tokenizer {
    /// Encodes a text. Returns the token ids and the part of the text that exceeds the context
    /// length.
    pub fn encode(&self, text: &str) -> (Tokens, String) {
        let mut ids = vec![self.0.start_of_text()];
        self.0.encode(&clean(text), &mut ids);
        let truncated = ids.drain((CONTEXT - 1).min(ids.len())..).collect::<Vec<_>>();
        ids.push(self.0.end_of_text());
        let mut tokens = [0; CONTEXT];
        for (slot, token) in tokens.iter_mut().zip(ids) {
            *slot = u32::from(token.to_u16());
        }
        (tokens, self.0.decode(truncated).trim_end().to_owned())
    }
}

/// Normalises a text as OpenCLIP does: fixes broken Unicode (ftfy), unescapes HTML entities twice,
/// collapses white space and converts to lower case.
fn clean(text: &str) -> String {
    let text = plsfix::fix_text(text, None);
    let text = htmlize::unescape(htmlize::unescape(text)).into_owned();
    text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}
