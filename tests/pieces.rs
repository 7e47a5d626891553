// SPDX-License-Identifier: MIT OR Apache-2.0
//! Videos that are enhanced in pieces have the frames of a whole run.

#[path = "common/application.rs"]
mod application;
mod common;

use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use application::{
    Disk, Scratch, VIDEO, audio, chapters, end, fails, media, pieces, start, text, venhance,
};
use common::{decode, run, wait_for};
use gst::ClockTime;
use serde_json::{Value, json};

/// Lossless, and delays no frames.
const ENCODER: &str = "x264enc pass=quant quantizer=0 tune=zerolatency";

/// Writes three shots of 96×64 pixels at 8 fps, of 20, 26 and 30 frames, with sound and subtitles. At a `variable` rate,
/// four of ten frames are missing.
fn make_input(scratch: &Scratch, name: &str, variable: bool) {
    let subtitles =
        "1\n00:00:00,200 --> 00:00:04,000\nHello\n\n2\n00:00:05,000 --> 00:00:06,000\nBye\n\n";
    std::fs::write(scratch.path("a.srt"), subtitles).unwrap();
    let shots = [("ball", 20), ("smpte75", 26), ("circular", 30)].map(|(pattern, frames)| {
        format!(
            " videotestsrc pattern={pattern} num-buffers={frames} \
             ! video/x-raw,format=I420,width=96,height=64,framerate=8/1 ! c."
        )
    });
    let drop = if variable { "identity drop-probability=0.4 !" } else { "" };
    run(&format!(
        "concat name=c ! {drop} x264enc bframes=0 ! queue ! matroskamux name=m ! filesink location={} \
         audiotestsrc num-buffers=400 samplesperbuffer=1000 ! audio/x-raw,rate=44100,channels=2 \
         ! avenc_aac ! queue ! m. filesrc location={} ! subparse ! text/x-raw,format=utf8 ! queue ! m.{}",
        scratch.path(name).display(),
        scratch.path("a.srt").display(),
        shots.concat()
    ));
}

/// The arguments of a lossless run.
fn arguments<'a>(input: &'a str, output: &'a str, flags: &'a str) -> Vec<&'a str> {
    let flags = flags.split_whitespace();
    [input, output].into_iter().chain(flags).chain(["--encoder", ENCODER]).collect()
}

/// Plans, makes all pieces in one process, and joins them. Returns the pieces.
fn in_pieces(scratch: &Scratch, output: &str, flags: &str, pieces: u64) -> Vec<Value> {
    let count = pieces.to_string();
    let plan = ["-o", "job.json", "--overwrite", "--pieces", &count];
    succeeds(scratch, &[&["plan"][..], &arguments("in.mkv", output, flags), &plan].concat());
    let job: Value =
        serde_json::from_slice(&std::fs::read(scratch.path("job.json")).unwrap()).unwrap();
    let pieces = job["pieces"].as_array().unwrap().clone();
    let last = (pieces.len() - 1).to_string();
    succeeds(scratch, &["piece", "job.json", "--from", "0", "--to", &last]);
    succeeds(scratch, &["join", "job.json"]);
    assert!(folders(scratch, output).is_empty());
    scratch.nothing_left(output);
    pieces
}

/// The folders of pieces for an output.
fn folders(scratch: &Scratch, output: &str) -> Vec<PathBuf> {
    let output = scratch.path(output);
    let begin = format!("{}.", output.file_name().unwrap().to_str().unwrap());
    let entries = output.parent().unwrap().read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = entries
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with(&begin) && name.ends_with(".pieces")
        })
        .collect();
    folders.sort();
    folders
}

fn succeeds(scratch: &Scratch, arguments: &[&str]) -> String {
    let output = scratch.enhance(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    text(&output)
}

fn pixels(file: &Path) -> Vec<u8> {
    common::pixels(file, "videoconvert ! video/x-raw,format=I420")
}

/// The packets of a stream, one after the other.
fn packets(file: &Path, pad: &str) -> Vec<u8> {
    let copy = file.with_extension("packets");
    run(&format!(
        "filesrc location={} ! matroskademux name=d d.{pad} ! queue ! filesink location={}",
        file.display(),
        copy.display()
    ));
    std::fs::read(copy).unwrap()
}

/// The times of the frames, and those of the sound and the subtitles with their durations.
fn times(file: &Path) -> (Vec<ClockTime>, Vec<(ClockTime, ClockTime)>) {
    let mut video = decode(file);
    // They come from several threads.
    video.audio.sort();
    (video.times, video.audio)
}

/// Compares a whole run with runs in pieces.
fn compare(scratch: &Scratch, flags: &str, counts: &[u64]) {
    succeeds(scratch, &[arguments("in.mkv", "whole.mkv", flags), vec!["--overwrite"]].concat());
    let whole = scratch.path("whole.mkv");
    let (video, expected) = (times(&whole), pixels(&whole));
    let others = ["audio_0", "subtitle_0"].map(|pad| packets(&whole, pad));
    assert!(others.iter().all(|packets| !packets.is_empty()));
    for count in counts {
        let pieces = in_pieces(scratch, "out.mkv", flags, *count);
        assert_eq!(pieces.len() as u64, *count);
        let out = scratch.path("out.mkv");
        assert!(times(&out) == video, "{flags}, {count} pieces: other times");
        assert!(pixels(&out) == expected, "{flags}, {count} pieces: other pixels");
        assert!(["audio_0", "subtitle_0"].map(|pad| packets(&out, pad)) == others);
    }
}

/// Takes 10 s: the application runs 24 times.
#[test]
fn pieces_have_the_frames_and_streams_of_a_whole_run() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    let lite = "--model lite --up-scale 2";
    compare(&scratch, lite, &[1, 2, 3, 7]);
    compare(&scratch, &format!("{lite} --target-fps 20 --rate-mode exact"), &[3]);
    compare(&scratch, &format!("{lite} --shot-detection false --duplicates merge"), &[2]);
}

#[test]
fn pieces_of_a_variable_rate_have_the_frames_of_a_whole_run() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", true);
    let lite = "--model lite --up-scale 2";
    compare(&scratch, lite, &[7]);
    compare(&scratch, &format!("{lite} --target-fps 20 --rate-mode exact"), &[7]);
}

#[test]
fn pieces_and_resumed_runs_have_the_chapters_of_the_input() {
    let scratch = Scratch::new();
    std::fs::copy(media("chapters.mkv"), scratch.path("in.mkv")).unwrap();
    let flags = "--model lite --up-scale 1";
    let expected = ["edition", "0-500 ", "500-4748 終わり", "edition", "250-4748 Other edition"];
    in_pieces(&scratch, "out.mkv", flags, 3);
    assert_eq!(chapters(&scratch.path("out.mkv")), expected);

    let slow = format!("identity sleep-time=10000 ! {ENCODER}");
    let run = ["in.mkv", "resumed.mkv", "--model", "lite", "--up-scale", "1", "--encoder", &slow];
    let mut child = start(&scratch, &run);
    let index = scratch.path("resumed.mkv.partial.json");
    wait_for("a resume point", || pieces(&index) >= 3 || child.try_wait().unwrap().is_some());
    child.kill().unwrap();
    end(&mut child);
    // The content of the input counts, not when it was written.
    let input = std::fs::File::options().write(true).open(scratch.path("in.mkv")).unwrap();
    input.set_modified(std::time::UNIX_EPOCH).unwrap();
    let said = succeeds(&scratch, &[&run[..], &["--resume"]].concat());
    assert!(said.contains("resumes at 0:0"), "{said}");
    assert_eq!(chapters(&scratch.path("resumed.mkv")), expected);
}

#[test]
fn pieces_begin_with_shots_where_those_are_near() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    let pieces = in_pieces(&scratch, "out.mkv", "--model lite --up-scale 1", 4);
    let fields =
        |name: &str| pieces.iter().map(|piece| piece[name].as_u64().unwrap()).collect::<Vec<_>>();
    // Of 226 output frames, three for each input frame; the shots begin with 60 and 138.
    assert_eq!(fields("start"), [0, 60, 113, 169]);
    assert_eq!(fields("skip"), [0, 20, 36, 55]);
    assert_eq!(fields("warm_up"), [0, 0, 1, 1]);
}

/// Plans `pieces` pieces of `in.mkv`, and makes the whole run to compare with.
fn plan(scratch: &Scratch, output: &str, encoder: &str, pieces: &str) {
    let flags = "--model lite --up-scale 2";
    succeeds(scratch, &[arguments("in.mkv", "whole.mkv", flags), vec!["--overwrite"]].concat());
    let plan = ["--encoder", encoder, "-o", "job.json", "--pieces", pieces];
    let plan = ["plan", "in.mkv", output].into_iter().chain(flags.split(' ')).chain(plan);
    let said = succeeds(scratch, &plan.collect::<Vec<_>>());
    assert!(said.starts_with("job.json: 226 frames in "), "{said}");
    assert!(said.contains(&format!(" in {pieces} pieces\n")), "{said}");
}

/// Joins the pieces, and compares the output with the whole run.
fn join(scratch: &Scratch, output: &str) {
    succeeds(scratch, &["join", "job.json"]);
    let [whole, out] = ["whole.mkv", output].map(|name| scratch.path(name));
    assert!(times(&out) == times(&whole));
    assert!(pixels(&out) == pixels(&whole));
}

/// The files in the folders of the pieces of an output whose names begin and end like this.
fn piece_files(scratch: &Scratch, output: &str, begin: &str, end: &str) -> Vec<PathBuf> {
    let folders = folders(scratch, output);
    let entries = folders.iter().flat_map(|folder| folder.read_dir().unwrap());
    let paths = entries.map(|entry| entry.unwrap().path()).filter(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(begin) && name.ends_with(end)
    });
    paths.collect()
}

#[test]
fn damaged_and_missing_pieces_are_named_and_only_they_are_made_again() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    plan(&scratch, "out.mkv", ENCODER, "5");
    let job = |arguments: &[&str]| succeeds(&scratch, &[arguments, &["job.json"]].concat());
    assert!(job(&["status"]).contains("waiting"));
    let all = ["piece", "job.json", "--from", "0", "--to", "4"];
    succeeds(&scratch, &all);
    assert!(job(&["status"]).contains("5 pieces: 100% of 226 frames, 0 running"));
    let files = |begin: &str, end: &str| piece_files(&scratch, "out.mkv", begin, end);
    let file = |piece: &str| files(&format!("{piece}-"), ".mkv")[0].clone();
    let before = file("0000").metadata().unwrap().modified().unwrap();
    let mut changed = std::fs::read(file("0001")).unwrap();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(file("0001"), changed).unwrap();
    let refused = |why: &[&str]| {
        let output = scratch.enhance(&["join", "job.json"]);
        for why in why {
            fails(&output, 3, why);
        }
        assert!(!text(&output).contains("piece 0") && !scratch.path("out.mkv").exists());
    };
    refused(&["piece 1 is damaged: 0001-", " has changed; make them with venhance piece"]);
    let truncated = std::fs::File::options().write(true).open(file("0002")).unwrap();
    truncated.set_len(truncated.metadata().unwrap().len() - 1).unwrap();
    std::fs::remove_file(file("0003")).unwrap();
    std::fs::write(&files("0004", ".json")[0], "{\"file\":").unwrap();
    refused(&[
        "piece 2 is damaged: 0002-",
        "piece 3 is damaged: 0003-",
        "piece 4 is without a record",
    ]);
    let said = succeeds(&scratch, &all);
    assert_eq!(said.matches("already finished").count(), 1, "{said}");
    assert_eq!(file("0000").metadata().unwrap().modified().unwrap(), before);
    join(&scratch, "out.mkv");
    // After that, nothing is left to do.
    assert!(job(&["join"]).contains("already finished"));
    let mut task = venhance();
    task.current_dir(scratch.0.path()).args(["piece", "job.json"]);
    fails(&task.output().unwrap(), 2, "give its number, or --from and --to");
    let task = task.env("JOB_COMPLETION_INDEX", "4").output().unwrap();
    assert!(text(&task).contains("piece 4 of") && text(&task).contains("already finished"));
    fails(&scratch.enhance(&["piece", "job.json", "5"]), 2, "has pieces 0 to 4");
}

#[test]
fn pieces_of_another_plan_or_input_are_not_used() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    plan(&scratch, "out.mkv", ENCODER, "2");
    succeeds(&scratch, &["piece", "job.json", "0"]);
    let again = ["plan", "in.mkv", "out.mkv", "--model", "lite", "--pieces", "2", "-o", "job.json"];
    fails(&scratch.enhance(&again), 2, "job.json exists: replace it with --overwrite");
    succeeds(&scratch, &[&again[..], &["--overwrite"]].concat());
    fails(&scratch.enhance(&["join", "job.json"]), 3, "piece 0 is missing, piece 1 is missing");
    // The pieces of the first plan are still there.
    assert_eq!(piece_files(&scratch, "out.mkv", "0000-", ".mkv").len(), 1);

    // The content of the input counts, not when it was written.
    let input = std::fs::File::options().write(true).open(scratch.path("in.mkv")).unwrap();
    input.set_modified(std::time::UNIX_EPOCH).unwrap();
    succeeds(&scratch, &["piece", "job.json", "0"]);
    let mut changed = std::fs::read(scratch.path("in.mkv")).unwrap();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(scratch.path("in.mkv"), changed).unwrap();
    fails(&scratch.enhance(&["piece", "job.json", "1"]), 2, "input digest was");
    std::fs::write(scratch.path("job.json"), "{}").unwrap();
    fails(&scratch.enhance(&["piece", "job.json", "0"]), 3, "make one with venhance plan");
}

/// The arguments of a plan for `job` of two pieces of `in.mkv`.
fn plan_for<'a>(output: &'a str, job: &'a str) -> Vec<&'a str> {
    let flags = "--model lite --up-scale 1 --pieces 2 -o";
    let flags = flags.split(' ').chain([job]);
    ["plan", "in.mkv", output].into_iter().chain(flags).collect()
}

#[test]
fn two_jobs_for_one_output_do_not_touch_each_other() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    succeeds(&scratch, &plan_for("out.mkv", "a.json"));
    succeeds(&scratch, &[&plan_for("out.mkv", "b.json")[..], &["--target-fps", "0/1"]].concat());
    for job in ["a.json", "b.json"] {
        succeeds(&scratch, &["piece", job, "--from", "0", "--to", "1"]);
    }
    let frames = || decode(&scratch.path("out.mkv")).times.len();
    succeeds(&scratch, &["join", "a.json"]);
    assert_eq!(frames(), 226);
    let refused = scratch.enhance(&["join", "b.json"]);
    fails(&refused, 2, "out.mkv exists and is not the output of b.json: move it away");
    assert!(!succeeds(&scratch, &["status", "b.json"]).contains(": finished"));
    assert_eq!(frames(), 226);
    std::fs::remove_file(scratch.path("out.mkv")).unwrap();
    succeeds(&scratch, &["join", "b.json"]);
    assert_eq!(frames(), 76);
    // Now the first job is not finished any more.
    assert!(succeeds(&scratch, &["join", "b.json"]).contains("already finished"));
    assert!(succeeds(&scratch, &["status", "a.json"]).contains("waiting"));
}

#[test]
fn a_file_that_was_there_before_is_not_the_output_of_a_job() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    std::fs::copy(scratch.path("in.mkv"), scratch.path("out.mkv")).unwrap();
    let plan = [&plan_for("out.mkv", "job.json")[..], &["--overwrite"]].concat();
    succeeds(&scratch, &plan);
    let all = ["piece", "job.json", "--from", "0", "--to", "1"];
    succeeds(&scratch, &all);
    for folder in folders(&scratch, "out.mkv") {
        std::fs::remove_dir_all(folder).unwrap();
    }
    assert!(!succeeds(&scratch, &["status", "job.json"]).contains(": finished"));
    fails(&scratch.enhance(&["join", "job.json"]), 3, "piece 0 is missing, piece 1 is missing");
    assert!(!succeeds(&scratch, &all).contains("already finished"));
    succeeds(&scratch, &["join", "job.json"]);
    assert_eq!(decode(&scratch.path("out.mkv")).times.len(), 226);
    assert!(succeeds(&scratch, &["status", "job.json"]).contains("out.mkv: finished"));
    assert!(succeeds(&scratch, &all).contains("already finished"));
    assert!(folders(&scratch, "out.mkv").is_empty());
    std::fs::write(scratch.path("out.mkv"), "other").unwrap();
    assert!(!succeeds(&scratch, &["status", "job.json"]).contains(": finished"));
}

#[test]
fn a_join_leaves_the_partial_file_of_an_interrupted_run() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    std::fs::write(scratch.path("out.mkv.partial.mkv"), "an hour of work").unwrap();
    succeeds(&scratch, &plan_for("out.mkv", "job.json"));
    succeeds(&scratch, &["piece", "job.json", "--from", "0", "--to", "1"]);
    succeeds(&scratch, &["join", "job.json"]);
    let partial = std::fs::read(scratch.path("out.mkv.partial.mkv")).unwrap();
    assert_eq!(partial, b"an hour of work");
}

#[test]
fn a_plan_that_fails_leaves_nothing() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    let files = || scratch.0.path().read_dir().unwrap().count();
    let before = files();
    let refused = scratch.enhance(&plan_for("missing/out.mkv", "job.json"));
    fails(&refused, 4, "cannot write");
    let refused = scratch.enhance(&plan_for("out.mkv", "missing/job.json"));
    fails(&refused, 4, "cannot write");
    std::fs::create_dir(scratch.path("in")).unwrap();
    std::fs::write(scratch.path("in/a.mp4"), "damaged").unwrap();
    let flags = ["--model", "lite", "--pieces", "2", "-o", "jobs"];
    let refused = scratch.enhance(&[&["plan", "in", "out"], &flags[..]].concat());
    fails(&refused, 3, "1 of 1 videos have no job file");
    assert_eq!(files(), before + 1);
}

#[test]
fn names_that_a_job_file_cannot_contain_are_refused_before_the_work() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    let odd = std::ffi::OsStr::from_bytes(b"\xff.mkv");
    std::fs::copy(scratch.path("in.mkv"), scratch.0.path().join(odd)).unwrap();
    for (input, output) in [(odd, "out.mkv".as_ref()), ("in.mkv".as_ref(), odd)] {
        let mut plan = venhance();
        plan.current_dir(scratch.0.path()).arg("plan").args([input, output]);
        plan.args(["--overwrite", "--model", "lite", "--pieces", "2", "-o", "job.json"]);
        fails(&plan.output().unwrap(), 2, "is not in UTF-8, which a job file needs: rename it");
        assert!(!scratch.path("job.json").exists());
    }
}

#[test]
fn a_plan_shows_its_progress() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    let plan = [&plan_for("out.mkv", "job.json")[..], &["--progress", "json"]].concat();
    let output = scratch.enhance(&plan);
    assert!(output.status.success(), "{}", text(&output));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = stdout.lines().collect();
    let [.., progress, said] = &lines[..] else { panic!("{stdout}") };
    assert_eq!(*said, "job.json: 226 frames in 2 pieces");
    let progress: Value = serde_json::from_str(progress).unwrap();
    assert_eq!((&progress["frames"], &progress["fps"]), (&json!(226), &json!(24.0)));
    assert!(progress["position"].as_f64().unwrap() > 9.0, "{progress}");
    assert!(progress["duration"].as_f64().unwrap() > 9.0, "{progress}");
}

#[test]
fn a_job_file_overwrites_no_video() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    let before = std::fs::read(scratch.path("in.mkv")).unwrap();
    for job in ["in.mkv", "out.mkv", "./out.mkv.partial.mkv"] {
        let plan = ["plan", "in.mkv", "out.mkv", "--pieces", "2", "--overwrite", "-o", job];
        fails(&scratch.enhance(&plan), 2, "would overwrite a video");
    }
    assert!(std::fs::read(scratch.path("in.mkv")).unwrap() == before);
}

#[test]
fn pieces_have_a_target_size() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    in_pieces(&scratch, "out.mkv", "--model lite --target-height 96 --target-fps 0/1", 2);
    let video = decode(&scratch.path("out.mkv"));
    assert_eq!((video.info().width(), video.info().height()), (144, 96));
}

#[test]
fn two_processes_on_one_piece_do_no_harm() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    // Slow enough to run beside each other.
    plan(&scratch, "out.mkv", &format!("identity sleep-time=10000 ! {ENCODER}"), "2");
    let mut both = [0, 1].map(|_| start(&scratch, &["piece", "job.json", "0"]));
    let partials = || piece_files(&scratch, "out.mkv", "0000.", "partial.mkv").len();
    wait_for("both to write", || partials() == 2);
    assert!(both.iter_mut().all(|child| end(child).success()));
    assert_eq!(partials(), 0);
    succeeds(&scratch, &["piece", "job.json", "1"]);
    join(&scratch, "out.mkv");
    assert!(folders(&scratch, "out.mkv").is_empty());
}

#[test]
fn two_joins_do_no_harm() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    plan(&scratch, "out.mkv", ENCODER, "2");
    for delay in [0, 60, 120] {
        succeeds(&scratch, &["piece", "job.json", "--from", "0", "--to", "1"]);
        let mut first = start(&scratch, &["join", "job.json"]);
        std::thread::sleep(Duration::from_millis(delay));
        let join_again = ["join", "job.json"];
        let second = venhance().current_dir(scratch.path("")).args(join_again).output().unwrap();
        let succeeded = [end(&mut first).success(), second.status.success()];
        let busy = text(&second).contains("another venhance process is writing");
        assert!(succeeded.contains(&true) && (succeeded[1] || busy), "{}", text(&second));
        join(&scratch, "out.mkv");
        assert!(folders(&scratch, "out.mkv").is_empty());
        std::fs::remove_file(scratch.path("out.mkv")).unwrap();
    }
}

#[test]
fn a_killed_piece_continues() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    plan(&scratch, "out.mkv", &format!("identity sleep-time=10000 ! {ENCODER}"), "2");
    succeeds(&scratch, &["piece", "job.json", "0"]);
    let mut child = start(&scratch, &["piece", "job.json", "1"]);
    let index = folders(&scratch, "out.mkv")[0].join("0001.partial.json");
    wait_for("a resume point", || pieces(&index) >= 3 || child.try_wait().unwrap().is_some());
    let status = || succeeds(&scratch, &["status", "job.json"]);
    let running = status();
    child.kill().unwrap();
    end(&mut child);
    assert!(running.contains(" running, ") && running.contains(", 1 running"), "{running}");
    assert!(status().contains(" stopped at ") && status().contains(", 0 running"), "{}", status());
    let again = succeeds(&scratch, &["piece", "job.json", "1"]);
    assert!(again.contains("continues at 0:0"), "{again}");
    join(&scratch, "out.mkv");
}

#[test]
fn a_piece_continues_after_a_full_disk() {
    let scratch = Scratch::new();
    make_input(&scratch, "in.mkv", false);
    std::fs::create_dir(scratch.path("disk")).unwrap();
    let piece = ["piece", "job.json", "--from", "0", "--to", "1"];
    let Some(disk) = Disk::mount(&scratch.path("disk"), "64k") else {
        // Where mounting is not permitted, a limit for the size of files makes writing fail as well.
        plan(&scratch, "disk/out.mkv", ENCODER, "2");
        let mut limited = Command::new("sh");
        limited.args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""]);
        limited.arg(env!("CARGO_BIN_EXE_venhance")).args(piece).current_dir(scratch.0.path());
        fails(&limited.output().unwrap(), 4, "cannot write");
        succeeds(&scratch, &piece);
        return join(&scratch, "disk/out.mkv");
    };
    plan(&scratch, "disk/out.mkv", ENCODER, "2");
    fails(&scratch.enhance(&piece), 4, "free some space");
    disk.grow();
    succeeds(&scratch, &piece);
    join(&scratch, "disk/out.mkv");
}

#[test]
fn a_folder_becomes_a_folder_of_jobs_which_one_process_makes_with_one_model_load() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path("in")).unwrap();
    let one = scratch.make("one.mp4", VIDEO, "mp4mux", &[audio("avenc_aac")]);
    for name in ["a", "b", "c"] {
        std::fs::copy(&one, scratch.path(&format!("in/{name}.mp4"))).unwrap();
    }
    let plan = ["plan", "in", "out", "--up-scale", "2", "--model", "lite", "-o", "jobs"];
    let said = succeeds(&scratch, &[&plan[..], &["--piece-seconds", "1"]].concat());
    assert!(
        said.contains("jobs/c.mp4.json: 46 frames in 2 pieces\njobs: 6 pieces of 3 videos\n"),
        "{said}"
    );
    let said = succeeds(&scratch, &["piece", "jobs", "--from", "0", "--to", "4"]);
    assert_eq!(said.matches("is loaded").count(), 1, "{said}");
    fails(&scratch.enhance(&["join", "jobs"]), 3, "c.mp4.json: piece 1 is missing");
    assert!(scratch.path("out/b.mp4").exists() && !scratch.path("out/c.mp4").exists());
    succeeds(&scratch, &["piece", "jobs", "5"]);
    succeeds(&scratch, &["join", "jobs"]);
    let status = succeeds(&scratch, &["status", "jobs"]);
    assert_eq!(status.matches(": finished").count(), 3, "{status}");
    for name in ["a", "b", "c"] {
        let video = decode(&scratch.path(&format!("out/{name}.mp4")));
        assert_eq!((video.times.len(), video.audio.is_empty()), (46, false));
    }
}

#[test]
fn a_file_named_like_a_command_is_enhanced() {
    let scratch = Scratch::new();
    scratch.make("plan", VIDEO, "mp4mux", &[]);
    assert_eq!(scratch.result(&["./plan", "out.mp4", "--up-scale", "1"]).times.len(), 46);
}

#[test]
fn a_job_file_that_no_plan_writes_is_refused() {
    let scratch = Scratch::new();
    scratch.make("in.mp4", VIDEO, "mp4mux", &[]);
    let plan = ["plan", "in.mp4", "out.mp4", "--model", "lite", "-o", "job.json", "--pieces", "2"];
    succeeds(&scratch, &plan);
    let job: Value =
        serde_json::from_slice(&std::fs::read(scratch.path("job.json")).unwrap()).unwrap();
    let refused = |change: &dyn Fn(&mut Value), code: i32, why: &str| {
        let mut job = job.clone();
        change(&mut job);
        std::fs::write(scratch.path("job.json"), job.to_string()).unwrap();
        fails(&scratch.enhance(&["piece", "job.json", "0"]), code, why);
    };
    refused(&|job| job["version"] = json!(2), 3, "it has version 2, this program reads 1");
    refused(&|job| job["pieces"] = json!([]), 3, "it has no pieces");
    refused(&|job| job["more"] = json!(1), 3, "make one with venhance plan");
    refused(&|job| job["settings"]["--up-scale"] = json!("99"), 3, "out of range");
    for (name, value) in [
        ("frames", json!(0)),
        ("frames", json!(u64::MAX)),
        ("start", json!(1)),
        ("time", json!(u64::MAX)),
        ("name", json!("../0000")),
        ("name", json!("0001")),
    ] {
        refused(&|job| job["pieces"][0][name] = value.clone(), 3, "is damaged");
    }
    refused(&|job| job["settings"]["encoder"] = json!("x265enc"), 2, "encoder was x265enc");
    // More frames than the video has.
    let mut longer = job.clone();
    longer["pieces"][1]["frames"] = json!(100);
    std::fs::write(scratch.path("job.json"), longer.to_string()).unwrap();
    fails(&scratch.enhance(&["piece", "job.json", "1"]), 3, "planned were 100");
    assert!(piece_files(&scratch, "out.mp4", "0001.partial", "").is_empty());
}
