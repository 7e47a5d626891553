#!/usr/bin/python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Enhances the frames of a program and gives them back to it, as embed.rs does.

Needs python3-gi and gir1.2-gst-plugins-base-1.0, and GST_PLUGIN_PATH where the plugin is not installed.

    examples/embed.py [MODEL]
"""

import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstApp", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import GLib, Gst, GstApp, GstVideo  # noqa: E402, F401

FRAMES = 24
RATE = 12
WIDTH, HEIGHT = 320, 180
# Rows of RGB are padded to 4 bytes.
SIZE = (WIDTH * 3 + 3) // 4 * 4 * HEIGHT


def feed(source):
    """Pushes frames that become brighter. push_buffer waits while two frames are queued."""
    for n in range(FRAMES):
        buffer = Gst.Buffer.new_wrapped(bytes([n * 10]) * SIZE)
        buffer.pts = Gst.SECOND * n // RATE
        buffer.duration = Gst.SECOND // RATE
        if source.push_buffer(buffer) != Gst.FlowReturn.OK:
            return
    source.end_of_stream()


def show(sink):
    """Prints a frame's time, size and first value."""
    sample = sink.pull_sample()
    info = GstVideo.VideoInfo.new_from_caps(sample.get_caps())
    buffer = sample.get_buffer()
    value = buffer.extract_dup(0, 1)[0]
    print(f"{buffer.pts / Gst.SECOND:.3f} {info.width}x{info.height} {value}", flush=True)
    return Gst.FlowReturn.OK


def wait(pipeline):
    """Prints the element's messages until the end of the stream or an error, which it returns."""
    kinds = Gst.MessageType.EOS | Gst.MessageType.ERROR | Gst.MessageType.WARNING | Gst.MessageType.ELEMENT
    while True:
        # A limit, so that Ctrl-C is seen.
        message = pipeline.get_bus().timed_pop_filtered(100 * Gst.MSECOND, kinds)
        if message is None:
            continue
        if message.type == Gst.MessageType.EOS:
            return None
        if message.type == Gst.MessageType.ERROR:
            return message.parse_error().gerror.message
        if message.type == Gst.MessageType.WARNING:
            print(message.parse_warning().gerror.message, file=sys.stderr)
        else:
            # venhance-progress, venhance-model, venhance-shot, …
            print(message.get_structure().to_string(), file=sys.stderr)


def main():
    Gst.init(None)
    model = sys.argv[1] if len(sys.argv) > 1 else "lite"
    pipeline = Gst.parse_launch(
        "appsrc name=source format=time block=true max-buffers=2 "
        f"caps=video/x-raw,format=RGB,width={WIDTH},height={HEIGHT},framerate={RATE}/1 "
        f"! venhance model={model} up-scale=2 target-fps=24 "
        "! appsink name=sink caps=video/x-raw,format=RGB sync=false max-buffers=2 emit-signals=true"
    )
    pipeline.get_by_name("sink").connect("new-sample", show)
    feeder = threading.Thread(target=feed, args=[pipeline.get_by_name("source")])
    pipeline.set_state(Gst.State.PLAYING)
    feeder.start()
    try:
        return wait(pipeline)
    finally:
        # Stops the computation; push_buffer in the other thread then fails, which ends that thread.
        pipeline.set_state(Gst.State.NULL)
        feeder.join()


try:
    sys.exit(main())
except GLib.Error as error:
    sys.exit(error.message)
