#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Measures what pieces cost over one run: benches/pieces.py plan | run MODEL | clips COUNT. Needs the built program;
MODEL is the folder that `cargo run --release --features cli --example make_model -- MODEL` makes.

plan   frames that are computed, and input frames that are decoded, more than once: from the plans of long videos
run    the same for short videos, compared with the CPU time of runs, and for v1 with the number of evaluations
clips  CPU time of short clips: a process for each, and one process for all
"""

import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import time

PROGRAM = pathlib.Path(__file__).resolve().parent.parent / "target/release/venhance"
FPS = 8


def cpu():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def call(*arguments, **variables):
    """Runs the program. Returns what it says, and its CPU time in seconds."""
    before = cpu()
    done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **variables})
    if done.returncode != 0:
        sys.exit(f"{arguments}: {done.stderr}")
    return done.stderr, cpu() - before


def make(path, seconds, size, shot_seconds):
    """A video with a hard cut after each `shot_seconds`, or without cuts."""
    caps = f"video/x-raw,format=I420,width={size[0]},height={size[1]},framerate={FPS}/1"
    if shot_seconds is None:
        source = f"videotestsrc pattern=ball num-buffers={seconds * FPS} ! {caps} ! queue"
    else:
        patterns = ["ball", "smpte75", "circular", "gradient"]
        count = seconds // shot_seconds
        shots = [
            f"videotestsrc pattern={patterns[n % 4]} num-buffers={shot_seconds * FPS} ! {caps} ! c." for n in range(count)
        ]
        source = "concat name=c ! queue"
    command = f"{source} ! x264enc speed-preset=ultrafast ! matroskamux ! filesink location={path}"
    command += "" if shot_seconds is None else " " + " ".join(shots)
    subprocess.run(["gst-launch-1.0", "-q", *command.split()], check=True)


def plan(folder, video, pieces, flags):
    job = folder / "job.json"
    call("plan", video, folder / "out.mkv", "--overwrite", "--pieces", pieces, "-o", job, *flags)
    return json.loads(job.read_text())["pieces"]


def overhead(pieces):
    """Frames that are computed, and input frames that are decoded, more than once: parts of all."""
    frames = sum(piece["frames"] for piece in pieces)
    inputs = frames / 3
    again = sum(piece["cost"] - piece["frames"] for piece in pieces)
    return again / frames, sum(piece["skip"] + piece["warm_up"] for piece in pieces) / inputs


def long_plans(folder):
    print("| minutes | cuts | model | pieces | frames computed again | input decoded again | CPU s of the plan |")
    print("|---|---|---|---|---|---|---|")
    for minutes in [1, 10, 120]:
        for shot in [None, 5]:
            video = folder / "in.mkv"
            # GStreamer is slow with thousands of sources: a long video repeats one of two minutes, which makes a cut.
            part = min(minutes, 2)
            make(video, part * 60, (64, 36), shot)
            if part < minutes:
                repeat(folder, video, minutes // part)
            for model in ["lite", "v1"]:
                # What lite computes again does not depend on the length of the video.
                for count in [2, 8, 64] if (minutes, model) != (120, "lite") else []:
                    before = cpu()
                    again, decoded = overhead(plan(folder, video, count, ["--model", model]))
                    cuts = f"each {shot} s" if shot else "none" if minutes < 2 else "each 2 min"
                    print(
                        f"| {minutes} | {cuts} | {model} | {count} | {again:.2%} | {decoded:.1f} × | {cpu() - before:.1f} |",
                        flush=True,
                    )


def repeat(folder, video, times):
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    for n in range(times):
        link = parts / f"{n:03}.mkv"
        link.unlink(missing_ok=True)
        link.symlink_to(video.rename(folder / "part.mkv") if n == 0 else folder / "part.mkv")
    command = f"splitmuxsrc location={parts}/*.mkv ! h264parse ! matroskamux ! filesink location={video}"
    subprocess.run(["gst-launch-1.0", "-q", *command.split()], check=True)


def short_runs(folder, model):
    print("| seconds | cuts | model | pieces | computed again, planned | more CPU time, measured | more evaluations | join, CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    lite = ["--model", "lite", "--up-scale", 2]
    tiny = ["--model", "v1", "--model-dir", model, "--up-scale", 1, "--min-height", 0, "--solver", "normal", "--steps", 3]
    for seconds, size, shot, flags in [
        (20, (160, 90), None, lite),
        (60, (32, 16), None, tiny),
        (60, (32, 16), 5, tiny),
    ]:
        video = folder / "in.mkv"
        make(video, seconds, size, shot)
        log = {"GST_DEBUG": "venhance:6", "GST_DEBUG_NO_COLOR": "1"}
        evaluations = lambda said: len(re.findall(r"Finished window", said))
        said, whole = call(video, folder / "whole.mkv", "--overwrite", *flags, **log)
        counted = evaluations(said)
        for count in [2, 8]:
            pieces = plan(folder, video, count, flags)
            again, _ = overhead(pieces)
            said, took = call("piece", folder / "job.json", "--from", 0, "--to", len(pieces) - 1, **log)
            more = f"{evaluations(said) / counted - 1:.1%}" if counted else "–"
            _, join = call("join", folder / "job.json")
            cuts = "none" if shot is None else f"each {shot} s"
            print(
                f"| {seconds} | {cuts} | {flags[1]} | {len(pieces)} | {again:.1%} | {took / whole - 1:.1%} | {more} | {join:.2f} |",
                flush=True,
            )


def short_clips(folder, count):
    make(folder / "one.mkv", 1, (160, 90), None)
    flags = ["--model", "lite", "--up-scale", 2]

    def planned(name, count):
        """Plans so many clips. Returns the folder of job files."""
        clips, jobs = folder / name, folder / f"{name}.jobs"
        clips.mkdir()
        for n in range(count):
            (clips / f"{n:04}.mkv").write_bytes((folder / "one.mkv").read_bytes())
        call("plan", clips, folder / f"{name}.out", "--pieces", 1, "-o", jobs, *flags)
        return jobs

    def measured(what, count, work):
        before, began = cpu(), time.monotonic()
        result = work()
        used, took = (cpu() - before) / count * 1000, (time.monotonic() - began) / count * 1000
        print(f"| {what} | {count} | {used:.0f} | {took:.0f} |", flush=True)
        return result

    print("| clips of 8 frames of 160×90 | clips | CPU ms | wall ms |")
    print("|---|---|---|---|")
    jobs = measured("plan, one process for all", count, lambda: planned("all", count))
    measured("piece, one process for all", count, lambda: call("piece", jobs, "--from", 0, "--to", count - 1))
    measured("join, one process for all", count, lambda: call("join", jobs))
    some = max(count // 10, 1)
    jobs = planned("some", some)
    each = lambda: [call("piece", jobs, n) for n in range(some)]
    measured("piece, a process for each", some, each)


with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    match sys.argv[1:]:
        case ["plan"]:
            long_plans(scratch)
        case ["run", model]:
            short_runs(scratch, pathlib.Path(model).resolve())
        case ["clips", count]:
            short_clips(scratch, int(count))
        case _:
            sys.exit(__doc__)
