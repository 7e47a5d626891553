// SPDX-License-Identifier: MIT OR Apache-2.0
//! The element's properties as command-line flags: names, texts, ranges and defaults all come from the
//! element.

use gst::{glib, prelude::*};
use gstvenhance::VEnhance;

/// A property that is given on the command line.
pub struct Property {
    pub name: String,
    pub value: glib::Value,
}

/// The properties that a user can set.
pub fn settable() -> Vec<glib::ParamSpec> {
    let own = VEnhance::static_type();
    let Some(class) = glib::Class::<VEnhance>::from_type(own) else { return Vec::new() };
    class
        .list_properties()
        .iter()
        .filter(|pspec| pspec.owner_type() == own)
        .filter(|pspec| pspec.flags().contains(glib::ParamFlags::WRITABLE))
        // `--resume` sets it.
        .filter(|pspec| pspec.name() != "skip-frames")
        .cloned()
        .collect()
}

/// Whether only the diffusion models use a property, as its description says.
pub fn is_of_diffusion(pspec: &glib::ParamSpec) -> bool {
    pspec.blurb().is_some_and(|blurb| blurb.contains("(v1, v2)"))
}

/// A message of the element with flags in the place of properties: `--device cpu` for `device=cpu`, `--up-scale` for
/// `up-scale`.
pub fn with_flags(message: &str) -> String {
    let mut text = message.to_owned();
    for pspec in settable() {
        let name = pspec.name();
        let mut from = 0;
        while let Some(at) = text[from..].find(name).map(|at| from + at) {
            let end = at + name.len();
            from = end;
            // Not a part of a path or of another word.
            let begins = text[..at].chars().next_back().is_none_or(|c| " (\n".contains(c));
            let mut after = text[end..].chars();
            let flag = match after.next() {
                Some('=') => {
                    after.next().is_some_and(|c| !c.is_whitespace()).then(|| format!("--{name} "))
                }
                // Other names are words as well.
                next if name.contains('-') && next.is_none_or(|c| " ,;:)\n".contains(c)) => {
                    Some(format!("--{name}"))
                }
                _ => None,
            };
            if let Some(flag) = flag.filter(|_| begins) {
                let end = end + usize::from(flag.ends_with(' '));
                text.replace_range(at..end, &flag);
                from = at + flag.len();
            }
        }
    }
    text
}

/// What `--help` calls the value of a flag.
pub fn value_name(pspec: &glib::ParamSpec) -> String {
    match pspec.name() {
        "target-fps" => "FPS".into(),
        "model-dir" => "DIR".into(),
        name if nicks(pspec).is_some() || name == "device" => name.to_uppercase(),
        _ if pspec.value_type() == glib::Type::STRING => "TEXT".into(),
        _ if pspec.value_type() == glib::Type::BOOL => "BOOL".into(),
        _ => "N".into(),
    }
}

/// The property's blurb, then its values or range, and its default.
pub fn help(pspec: &glib::ParamSpec) -> String {
    let blurb = with_flags(pspec.blurb().unwrap_or_default());
    let values = match (nicks(pspec), range(pspec)) {
        (Some(nicks), _) => format!(" [{}]", nicks.join(", ")),
        (None, Some((low, high))) => format!(" [{low} to {high}]"),
        (None, None) => String::new(),
    };
    let default = default(pspec).map_or(String::new(), |default| format!(" [default: {default}]"));
    format!("{}{values}{default}", blurb.trim_end_matches('.'))
}

/// The value that a text stands for, in gst-launch syntax. As in VEnhancer's script, an integer can have
/// decimals that are zero, the downscale condition need not be whole (here, the decimals are dropped), and the versions
/// of its model are 1 and 2.
///
/// # Errors
/// If the text is not a value of the property; the message says what is.
pub fn parse(pspec: &glib::ParamSpec, text: &str) -> Result<glib::Value, String> {
    if pspec.value_type() == glib::Type::STRING {
        return Ok(text.to_value());
    }
    let integer = pspec.value_type() == glib::Type::I32;
    let given: Option<f64> = text.parse().ok().filter(|_| integer);
    let whole = match pspec.name() {
        "downscale-cond" => given.map(f64::trunc),
        _ => given.filter(|number| number.fract() == 0.0),
    };
    let text = whole.map_or_else(|| text.to_owned(), |number| number.to_string());
    if let Some(nicks) = nicks(pspec) {
        let is_version = pspec.name() == "model" && ["1", "2"].contains(&&*text);
        // Other numbers are those of the enumeration, which nobody knows.
        if !is_version && !nicks.contains(&text) {
            return Err(format!("use one of {}", nicks.join(", ")));
        }
    }
    let value = glib::Value::deserialize_with_pspec(&text, pspec).map_err(|_| {
        match pspec.value_type() {
            rate if rate == gst::Fraction::static_type() => {
                "use a number such as 24, or a fraction such as 24000/1001".to_owned()
            }
            glib::Type::BOOL => "use true or false".to_owned(),
            _ if integer => "use a whole number".to_owned(),
            _ => "use a number".to_owned(),
        }
    })?;
    match (range(pspec), number(&value)) {
        (Some((low, high)), Some(number)) if !(low..=high).contains(&number) => {
            Err(format!("out of range: use {low} to {high}"))
        }
        _ if value.get::<gst::Fraction>().is_ok_and(|rate| rate.numer() < 0) => {
            Err("out of range: a frame rate cannot be negative".into())
        }
        // GStreamer takes −1 for the greatest number.
        _ if matches!(pspec.value_type(), glib::Type::U32 | glib::Type::U64)
            && text.trim_start().starts_with('-') =>
        {
            Err("out of range: it cannot be negative".into())
        }
        _ => Ok(value),
    }
}

/// The texts of an enumeration's values.
pub fn nicks(pspec: &glib::ParamSpec) -> Option<Vec<String>> {
    let class = glib::EnumClass::with_type(pspec.value_type())?;
    Some(class.values().iter().map(|value| value.nick().to_owned()).collect())
}

/// The range of a number that its type does not give already.
pub fn range(pspec: &glib::ParamSpec) -> Option<(f64, f64)> {
    if let Some(pspec) = pspec.downcast_ref::<glib::ParamSpecInt>() {
        return Some((pspec.minimum().into(), pspec.maximum().into()));
    }
    let pspec = pspec.downcast_ref::<glib::ParamSpecDouble>()?;
    Some((pspec.minimum(), pspec.maximum()))
}

fn number(value: &glib::Value) -> Option<f64> {
    value.get::<f64>().ok().or_else(|| value.get::<i32>().ok().map(f64::from))
}

/// The default as a user would write it; `None` if there is none.
pub fn default(pspec: &glib::ParamSpec) -> Option<String> {
    Some(text(pspec.default_value())).filter(|text| !text.is_empty())
}

/// A value as a user would write it: the same text for equal values. Empty for no string.
pub fn text(value: &glib::Value) -> String {
    if let Ok(text) = value.get::<Option<String>>() {
        return text.unwrap_or_default();
    }
    match value.get::<gst::Fraction>() {
        Ok(rate) if rate.denom() == 1 => rate.numer().to_string(),
        _ => value.serialize().map_or_else(|_| format!("{value:?}"), String::from),
    }
}
