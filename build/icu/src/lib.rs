// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of ICU's interface that plsfix uses, implemented with unicode-normalization.

pub mod normalizer {
    use unicode_normalization::UnicodeNormalization;

    pub struct ComposingNormalizer(fn(&str) -> String);

    impl ComposingNormalizer {
        pub fn new_nfc() -> Self {
            Self(|text| text.nfc().collect())
        }

        pub fn new_nfkc() -> Self {
            Self(|text| text.nfkc().collect())
        }

        pub fn normalize(&self, text: &str) -> String {
            (self.0)(text)
        }
    }

    pub struct DecomposingNormalizer(fn(&str) -> String);

    impl DecomposingNormalizer {
        pub fn new_nfd() -> Self {
            Self(|text| text.nfd().collect())
        }

        pub fn new_nfkd() -> Self {
            Self(|text| text.nfkd().collect())
        }

        pub fn normalize(&self, text: &str) -> String {
            (self.0)(text)
        }
    }
}
