/* SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * Enhances the frames of a program and gives them back to it, as embed.rs does. GST_PLUGIN_PATH says where the
 * plugin is, if it is not installed.
 *
 *     cc examples/embed.c -o embed $(pkg-config --cflags --libs gstreamer-app-1.0 gstreamer-video-1.0)
 *     ./embed [MODEL]
 */
#include <gst/app/app.h>
#include <gst/video/video.h>

enum { FRAMES = 24, RATE = 12, WIDTH = 320, HEIGHT = 180, SIZE = GST_ROUND_UP_4(WIDTH * 3) * HEIGHT };

/* Pushes frames that become brighter. gst_app_src_push_buffer waits while two frames are queued. */
static gpointer feed(gpointer source) {
  for (guint64 n = 0; n < FRAMES; n++) {
    GstBuffer *buffer = gst_buffer_new_allocate(NULL, SIZE, NULL);
    gst_buffer_memset(buffer, 0, n * 10, SIZE);
    GST_BUFFER_PTS(buffer) = n * GST_SECOND / RATE;
    GST_BUFFER_DURATION(buffer) = GST_SECOND / RATE;
    if (gst_app_src_push_buffer(source, buffer) != GST_FLOW_OK)
      return NULL;
  }
  gst_app_src_end_of_stream(source);
  return NULL;
}

/* Prints a frame's time, size and first value. */
static GstFlowReturn show(GstAppSink *sink, gpointer data) {
  (void)data;
  GstSample *sample = gst_app_sink_pull_sample(sink);
  GstVideoInfo info;
  guint8 value = 0;
  if (!sample)
    return GST_FLOW_EOS;
  GstBuffer *buffer = gst_sample_get_buffer(sample);
  if (gst_video_info_from_caps(&info, gst_sample_get_caps(sample)) &&
      gst_buffer_extract(buffer, 0, &value, 1) == 1)
    g_print("%.3f %dx%d %d\n", GST_BUFFER_PTS(buffer) / (double)GST_SECOND, info.width, info.height, value);
  gst_sample_unref(sample);
  return GST_FLOW_OK;
}

/* Prints the element's messages until the end of the stream or an error. Returns the exit code. */
static int wait(GstElement *pipeline) {
  GstBus *bus = gst_element_get_bus(pipeline);
  int code = -1;
  while (code < 0) {
    GstMessage *message = gst_bus_timed_pop(bus, GST_CLOCK_TIME_NONE);
    GError *error = NULL;
    if (GST_MESSAGE_TYPE(message) == GST_MESSAGE_EOS) {
      code = 0;
    } else if (GST_MESSAGE_TYPE(message) == GST_MESSAGE_ERROR) {
      gst_message_parse_error(message, &error, NULL);
      code = 1;
    } else if (GST_MESSAGE_TYPE(message) == GST_MESSAGE_WARNING) {
      gst_message_parse_warning(message, &error, NULL);
    } else if (GST_MESSAGE_TYPE(message) == GST_MESSAGE_ELEMENT) {
      /* venhance-progress, venhance-model, venhance-shot, … */
      g_printerr("%s\n", gst_structure_get_name(gst_message_get_structure(message)));
    }
    if (error)
      g_printerr("%s\n", error->message);
    g_clear_error(&error);
    gst_message_unref(message);
  }
  gst_object_unref(bus);
  return code;
}

int main(int argc, char **argv) {
  gst_init(&argc, &argv);
  GError *error = NULL;
  char *description = g_strdup_printf(
      "appsrc name=source format=time block=true max-buffers=2 "
      "caps=video/x-raw,format=RGB,width=%d,height=%d,framerate=%d/1 ! venhance model=%s up-scale=2 target-fps=24 "
      "! appsink name=sink caps=video/x-raw,format=RGB sync=false max-buffers=2",
      WIDTH, HEIGHT, RATE, argc > 1 ? argv[1] : "lite");
  GstElement *pipeline = gst_parse_launch(description, &error);
  g_free(description);
  if (error) {
    g_printerr("%s\n", error->message);
    return 1;
  }
  GstElement *source = gst_bin_get_by_name(GST_BIN(pipeline), "source");
  GstElement *sink = gst_bin_get_by_name(GST_BIN(pipeline), "sink");
  GstAppSinkCallbacks callbacks = {.new_sample = show};
  gst_app_sink_set_callbacks(GST_APP_SINK(sink), &callbacks, NULL, NULL);
  gst_element_set_state(pipeline, GST_STATE_PLAYING);
  GThread *feeder = g_thread_new("feeder", feed, source);
  int code = wait(pipeline);
  /* Stops the computation; the push in the other thread then fails, which ends that thread. */
  gst_element_set_state(pipeline, GST_STATE_NULL);
  g_thread_join(feeder);
  gst_object_unref(source);
  gst_object_unref(sink);
  gst_object_unref(pipeline);
  return code;
}
