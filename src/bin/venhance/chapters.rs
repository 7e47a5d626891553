// SPDX-License-Identifier: MIT OR Apache-2.0
//! Chapters of the input, which the output keeps.
//!
//! GStreamer reads and writes those of Matroska and WebM as a table of contents. Those of MP4 and QuickTime, which
//! GStreamer 1.22 does not know, are in the box moov/udta/chpl, as Nero has defined it and ffmpeg writes and reads it.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use gst::ClockTime;

use crate::boxes::{find, find_in_file, read_moov};

/// Maximum number of chapters in a box chpl, and maximum length of a title in bytes.
const MAX: usize = 255;

/// The box counts in 100 ns.
const UNIT: u64 = 100;

/// The chapters of a file.
#[derive(Debug, Clone, Default)]
pub struct Chapters {
    /// Alternatives, none of them empty.
    editions: Vec<Vec<Chapter>>,
    /// Whether their times count as those of packets do; otherwise from where a player begins.
    as_packets: bool,
}

#[derive(Debug, Clone)]
struct Chapter {
    /// In nanoseconds.
    start: u64,
    /// Not before `start`.
    stop: u64,
    /// One in each language.
    titles: Vec<String>,
    within: Vec<Self>,
}

impl Chapters {
    /// Reads those of a demuxer, or else of an MP4 file.
    pub fn read(path: &Path, toc: Option<gst::Toc>, duration: Option<ClockTime>) -> Self {
        let Some(toc) = toc else {
            let end = duration.unwrap_or_default().nseconds();
            let mut chapters = read_box(path).unwrap_or_default();
            chapters.retain(|(start, _)| *start < end || duration.is_none());
            return Self { editions: editions([with_stops(chapters, end)]), as_packets: false };
        };
        let (alternatives, others): (Vec<_>, Vec<_>) = toc
            .entries()
            .into_iter()
            .partition(|entry| entry.entry_type() == gst::TocEntryType::Edition);
        let alternatives = alternatives.iter().map(|edition| edition.sub_entries());
        let all = alternatives.chain([others]).map(|entries| Chapter::of_entries(&entries));
        Self { editions: editions(all), as_packets: true }
    }

    /// Whether times must be counted from where the first packet begins.
    pub fn count_as_packets(&self) -> bool {
        self.as_packets && !self.editions.is_empty()
    }

    /// Counts times from `start`, where a player begins.
    pub fn count_from(&mut self, start: ClockTime) {
        let all = std::mem::take(&mut self.editions).into_iter();
        self.editions = editions(all.map(|edition| Chapter::after(edition, start.nseconds())));
        self.as_packets = false;
    }

    /// What a muxer takes.
    pub fn toc(&self) -> Option<gst::Toc> {
        let mut toc = gst::Toc::new(gst::TocScope::Global);
        let mut count = 0;
        for chapters in &self.editions {
            count += 1;
            let mut edition =
                gst::TocEntry::new(gst::TocEntryType::Edition, &format!("edition {count}"));
            for chapter in chapters {
                edition.get_mut()?.append_sub_entry(chapter.entry(&mut count)?);
            }
            toc.get_mut()?.append_entry(edition);
        }
        (count > 0).then_some(toc)
    }

    /// The chapters that the box chpl can contain.
    fn in_box(&self) -> &[Chapter] {
        let first = self.editions.first().map_or(&[][..], Vec::as_slice);
        &first[..first.len().min(MAX)]
    }

    /// Number of all chapters, and of those that an MP4 file can contain.
    pub fn counts(&self) -> (usize, usize) {
        (self.editions.iter().map(|edition| Chapter::count(edition)).sum(), self.in_box().len())
    }

    /// Writes them into an MP4 file.
    pub fn write_box(&self, mut file: &File) -> io::Result<()> {
        let chapters = self.in_box();
        if chapters.is_empty() {
            return Ok(());
        }
        let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why);
        let (position, mut moov) = read_moov(file)?;
        // What follows the box moves. Packets may not: their positions are in the box.
        let mut rest = Vec::new();
        file.seek(SeekFrom::Start(position.end))?;
        file.read_to_end(&mut rest)?;
        if find(&rest, &(0..rest.len()), &[b"mdat"]).is_some() {
            return Err(invalid("its moov box comes before the packets"));
        }
        let within = 0..moov.len();
        match find(&moov, &within, &[b"udta"]) {
            Some(udta) => {
                moov.splice(udta.end..udta.end, content(chapters));
                let size = u32::try_from(udta.len() + 8 + content(chapters).len());
                let size = size.map_err(io::Error::other)?;
                moov[udta.start - 8..udta.start - 4].copy_from_slice(&size.to_be_bytes());
            }
            None => moov.extend(boxed(b"udta", &content(chapters))),
        }
        let size = u32::try_from(moov.len() + 8).map_err(io::Error::other)?;
        let header = position.start - 8;
        let mut name = [0; 4];
        file.seek(SeekFrom::Start(header + 4))?;
        file.read_exact(&mut name)?;
        if &name != b"moov" {
            return Err(invalid("its moov box has a size of 64 bits"));
        }
        file.seek(SeekFrom::Start(position.start))?;
        file.write_all(&moov)?;
        file.write_all(&rest)?;
        file.seek(SeekFrom::Start(header))?;
        file.write_all(&size.to_be_bytes())
    }
}

/// Without those that are empty.
fn editions(all: impl IntoIterator<Item = Vec<Chapter>>) -> Vec<Vec<Chapter>> {
    all.into_iter().filter(|edition| !edition.is_empty()).collect()
}

impl Chapter {
    fn of_entries(entries: &[gst::TocEntry]) -> Vec<Self> {
        let of = |entry: &gst::TocEntry| {
            let (start, stop) = entry.start_stop_times()?;
            let start = u64::try_from(start).ok()?;
            let tags = entry.tags();
            let titles = tags.iter().flat_map(|tags| tags.iter_tag::<gst::tags::Title>());
            Some(Self {
                start,
                stop: u64::try_from(stop).unwrap_or(start).max(start),
                titles: titles.map(|title| title.get().to_owned()).collect(),
                within: Self::of_entries(&entry.sub_entries()),
            })
        };
        entries.iter().filter_map(of).collect()
    }

    /// Counts times from `start`, and leaves out what comes before it.
    fn after(chapters: Vec<Self>, start: u64) -> Vec<Self> {
        let kept =
            chapters.into_iter().filter(|chapter| chapter.start >= start || chapter.stop > start);
        let counted = kept.map(|chapter| Self {
            start: chapter.start.saturating_sub(start),
            stop: chapter.stop.saturating_sub(start),
            within: Self::after(chapter.within, start),
            ..chapter
        });
        counted.collect()
    }

    /// Those within others too.
    fn count(chapters: &[Self]) -> usize {
        chapters.iter().map(|chapter| 1 + Self::count(&chapter.within)).sum()
    }

    /// `count` makes names.
    fn entry(&self, count: &mut u64) -> Option<gst::TocEntry> {
        *count += 1;
        let mut entry = gst::TocEntry::new(gst::TocEntryType::Chapter, &format!("chapter {count}"));
        let mut tags = gst::TagList::new();
        for title in &self.titles {
            tags.get_mut()?.add::<gst::tags::Title>(&title.as_str(), gst::TagMergeMode::Append);
        }
        let target = entry.get_mut()?;
        target.set_start_stop_times(self.start.try_into().ok()?, self.stop.try_into().ok()?);
        target.set_tags(tags);
        for chapter in &self.within {
            target.append_sub_entry(chapter.entry(count)?);
        }
        Some(entry)
    }
}

/// Reads a box chpl: starts and titles.
fn read_box(path: &Path) -> io::Result<Vec<(u64, String)>> {
    let mut file = File::open(path)?;
    let mut begin = [0; 8];
    file.read_exact(&mut begin)?;
    let is_mp4 = [b"ftyp", b"moov", b"mdat", b"wide", b"free"]
        .contains(&&[begin[4], begin[5], begin[6], begin[7]]);
    let chpl = if is_mp4 { find_in_file(&file, &[b"moov", b"udta", b"chpl"])? } else { None };
    let Some(chpl) = chpl else { return Ok(Vec::new()) };
    file.seek(SeekFrom::Start(chpl.start))?;
    let mut file = file.take(chpl.end - chpl.start);
    let mut bytes = |length: usize| {
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes).map(|()| bytes)
    };
    // Version and flags; in version 1, four unused bytes.
    if bytes(4)?[0] > 0 {
        bytes(4)?;
    }
    let count = bytes(1)?[0];
    let mut chapter = || {
        let start = bytes(8)?.iter().fold(0, |start: u64, byte| start << 8 | u64::from(*byte));
        let length = bytes(1)?[0];
        let title = String::from_utf8_lossy(&bytes(length.into())?).into_owned();
        Ok::<_, io::Error>((start.saturating_mul(UNIT), title))
    };
    // A damaged box ends early.
    let mut chapters: Vec<_> = (0..count).map_while(|_| chapter().ok()).collect();
    chapters.sort();
    Ok(chapters)
}

/// Each chapter stops where the next one starts, the last one at `end`.
fn with_stops(chapters: Vec<(u64, String)>, end: u64) -> Vec<Chapter> {
    let starts: Vec<_> = chapters.iter().map(|(start, _)| *start).collect();
    let stops = starts.into_iter().skip(1).chain([end]);
    let all = chapters.into_iter().zip(stops).map(|((start, title), stop)| Chapter {
        start,
        stop: stop.max(start),
        titles: if title.is_empty() { Vec::new() } else { vec![title] },
        within: Vec::new(),
    });
    all.collect()
}

/// A box chpl of version 1.
fn content(chapters: &[Chapter]) -> Vec<u8> {
    let mut bytes = vec![1, 0, 0, 0, 0, 0, 0, 0, chapters.len() as u8];
    for Chapter { start, titles, .. } in chapters {
        let title = titles.first().map(String::as_str).unwrap_or_default();
        let title = &title[..title.floor_char_boundary(MAX)];
        bytes.extend((start / UNIT).to_be_bytes());
        bytes.push(title.len() as u8);
        bytes.extend(title.as_bytes());
    }
    boxed(b"chpl", &bytes)
}

/// A box. Its content is smaller than 4 GiB.
fn boxed(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let size = content.len() as u32 + 8;
    [&size.to_be_bytes(), &name[..], content].concat()
}
