// SPDX-License-Identifier: MIT OR Apache-2.0
"use strict";

const byId = (id) => document.getElementById(id);
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// Milliseconds for which a text is shown.
const SHOWN = 8000;
let hiding;

/// Shows a text, and tells it to screen readers.
function say(text, stays = false) {
  byId("status").textContent = text;
  clearTimeout(hiding);
  if (!stays) hiding = setTimeout(() => { byId("status").textContent = ""; }, SHOWN);
}

/// Calls the API. The server's own words are in the error.
async function call(method, path, body, signal) {
  let response;
  try {
    response = await fetch(path, { method, body: body && JSON.stringify(body), signal });
  } catch {
    throw new Error("the server does not answer: start venhance serve again");
  }
  if (response.status === 401) location.reload();
  const text = await response.text();
  if (!response.ok) throw new Error(parsed(text).error ?? text);
  return parsed(text);
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}

const attempt = (action) => action().catch((error) => say(error.message));

// ---- Settings ----

let fields = [];
let presets = [];
let uploadLimit;

async function loadSettings() {
  ({ fields, presets, upload_limit: uploadLimit } = await call("GET", "api/settings"));
  for (const preset of presets) {
    const radio = make("input", { type: "radio", name: "preset", value: preset.name });
    radio.onchange = () => apply(preset);
    byId("presets").append(make("label", {}, radio, preset.name, make("span", { textContent: preset.about })));
  }
  byId("fields").append(...fields.map(fieldFor));
  byId("presets").querySelector("input").checked = true;
  apply(presets[0]);
}

function fieldFor(field) {
  field.input = field.values
    ? make("select", {}, ...field.values.map((value) => new Option(value, value)))
    : make("input", { type: field.type, placeholder: field.default });
  if (field.range) {
    [field.input.min, field.input.max] = field.range;
    field.input.step = field.whole ? 1 : "any";
  }
  const help = make("p", { id: `help-${field.name}`, textContent: field.help });
  field.input.id = `field-${field.name}`;
  field.input.setAttribute("aria-describedby", help.id);
  const label = make("label", { htmlFor: field.input.id, textContent: field.name });
  return make("div", {}, label, field.input, help);
}

function apply(preset) {
  for (const field of fields) {
    const unset = field.values ? field.default : "";
    field.input.value = preset.settings[field.name] ?? unset;
  }
  planAll();
}

/// The settings that are not the defaults.
function settings() {
  const set = fields.filter(({ input, ...field }) => input.value !== "" && input.value !== field.default);
  return Object.fromEntries(set.map((field) => [field.name, field.input.value]));
}

// ---- Uploads ----

const EXTENSIONS = /\.(3gp|asf|avi|flv|gif|m2ts|m2v|m4v|mkv|mov|mp4|mpe?g|mts|mxf|og[mv]|qt|ts|vob|webm|wmv|y4m|yuv)$/i;
let uploads = Promise.resolve();
let unfinished = 0;

function add(files) {
  const videos = files.filter((file) => EXTENSIONS.test(file.name) || file.type.startsWith("video/"));
  const others = files.length - videos.length;
  say(others ? `${others} of ${files.length} files are not videos: skipped` : "");
  for (const file of videos) addUpload(file);
}

/// Uploads a file after those before it.
function addUpload(file) {
  const button = (textContent, label, onclick) => {
    const element = make("button", { type: "button", textContent, onclick });
    element.setAttribute("aria-label", `${label} ${file.name}`);
    return element;
  };
  const bar = make("progress", { max: 1, value: 0 });
  bar.setAttribute("aria-label", `Upload of ${file.name}`);
  const request = new XMLHttpRequest();
  let wanted = true;
  const cancel = button("Cancel", "Cancel the upload of", () => { wanted = false; request.abort(); removeItem(item); });
  const name = heading(file.name);
  const item = make("li", {}, name, "Uploading", bar, make("div", { className: "actions" }, cancel));
  byId("list").append(item);
  unfinished += 1;
  uploads = uploads.then(() => wanted && upload(request, file, bar)).then(() => removeItem(item), (error) => {
    const again = button("Try again", "Try again to upload", () => { removeItem(item); addUpload(file); });
    const remove = button("Remove", "Remove the failed upload of", () => removeItem(item));
    if (document.activeElement === cancel) name.focus();
    item.replaceChildren(name, make("p", { className: "bad", textContent: error.message }),
      make("div", { className: "actions" }, again, remove));
    say(error.message);
  }).then(() => { unfinished -= 1; });
}

window.onbeforeunload = (event) => { if (unfinished) event.preventDefault(); };

function upload(request, file, bar) {
  return new Promise((resolve, reject) => {
    request.upload.onprogress = (event) => { bar.value = event.loaded / (event.total || 1); };
    if (file.size > uploadLimit) throw new Error(`${file.name} is larger than ${Math.floor(uploadLimit / 2 ** 20)} MiB, the limit of this server`);
    request.onload = () => {
      if (request.status === 201) resolve();
      else reject(new Error(parsed(request.responseText).error ?? request.responseText));
    };
    request.onerror = () => reject(new Error(`${file.name}: the upload has failed; is the server running?`));
    request.onabort = resolve;
    request.open("POST", `api/videos?name=${encodeURIComponent(file.name)}`);
    request.send(file);
  });
}

/// The files of a dropped file or folder.
async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const files = [];
  for (;;) {
    // A part of the folder at a time.
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (entries.length === 0) return files;
    for (const inner of entries) files.push(...await filesOf(inner));
  }
}

function acceptFiles() {
  for (const id of ["files", "folder"]) {
    byId(id).onchange = () => {
      add([...byId(id).files]);
      byId(id).value = "";
    };
  }
  const drop = byId("drop");
  document.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
  document.ondragleave = (event) => { if (!event.relatedTarget) drop.classList.remove("over"); };
  document.ondrop = (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    if (entries.length === 0) say("Only files and folders can be dropped here.");
    else attempt(async () => add((await Promise.all(entries.map(filesOf))).flat()));
  };
}

// ---- Videos ----

/// The name of an item of the list. It takes the focus when the button that had it disappears.
const heading = (textContent) => make("h3", { textContent, tabIndex: -1 });

/// Removes an item of the list. Its neighbour takes the focus.
function removeItem(item) {
  if (item.contains(document.activeElement)) {
    const neighbour = item.nextElementSibling ?? item.previousElementSibling;
    (neighbour?.querySelector("h3") ?? byId("videos")).focus();
  }
  item.remove();
}

const STATES = {
  ready: "Ready to start", queued: "In the queue", running: "Running", stopping: "Stopping", done: "Done",
  failed: "Failed", cancelled: "Cancelled",
};
const cards = new Map();

/// One video of the list. Its elements stay, so that the focus does.
class Card {
  constructor(entry) {
    this.name = heading(entry.name);
    this.state = make("p", { className: "quiet" });
    this.bar = make("progress", { max: 1 });
    this.bar.setAttribute("aria-label", `Progress of ${entry.name}`);
    this.plan = make("pre", {});
    this.message = make("pre", {});
    this.notes = make("pre", {});
    this.more = make("details", {}, make("summary", { textContent: "Messages" }), this.notes);
    const path = `api/videos/${entry.id}`;
    const post = (action, body) => () => attempt(() => call("POST", `${path}/${action}`, body?.()));
    // The rate is known as soon as there is some output.
    const mayLose = (what) => (this.entry.fps === null && this.entry.output === null) || confirm(what);
    this.start = this.button("Start", post("start", settings), "main");
    this.resume = this.button("Resume", post("resume"), "main");
    this.compare = this.button("Compare", () => compare(this.entry, this.compare), "main");
    this.download = make("a", { className: "button", textContent: "Download", href: `${path}/output` });
    this.cancel = this.button("Cancel", post("cancel"));
    this.again = this.button("Enhance again", () => mayLose(`Enhance ${entry.name} again? The new output replaces the present one.`) && post("start", settings)());
    this.remove = this.button("Remove", () => mayLose(`Remove ${entry.name}? Its output is deleted.`) && attempt(() => call("DELETE", path)));
    this.buttons = [this.start, this.resume, this.compare, this.download, this.cancel, this.again, this.remove];
    for (const button of this.buttons.filter((button) => button.tagName === "BUTTON")) {
      button.setAttribute("aria-label", `${button.textContent}: ${entry.name}`);
    }
    this.element = make("li", {}, this.name, this.state, this.bar, this.plan, this.message, this.more,
      make("div", { className: "actions" }, ...this.buttons));
    this.element.dataset.id = entry.id;
  }

  button(textContent, onclick, className = "") {
    return make("button", { type: "button", textContent, onclick, className });
  }

  update(entry) {
    const before = this.entry?.state;
    this.entry = entry;
    this.element.dataset.state = entry.state;
    this.state.textContent = `${STATES[entry.state]}${progressText(entry)}`;
    const { position, duration } = entry.progress ?? {};
    this.bar.hidden = !["running", "stopping"].includes(entry.state);
    if (duration) this.bar.value = Math.min(1, position / duration);
    else this.bar.removeAttribute("value");
    this.message.textContent = entry.message;
    this.message.className = entry.state === "failed" ? "bad" : "";
    this.notes.textContent = entry.notes.join("\n");
    this.download.download = entry.output_name;
    this.download.setAttribute("aria-label", `Download ${entry.output_name}`);
    this.plan.hidden = entry.state !== "ready";
    this.message.hidden = entry.message === "";
    this.more.hidden = entry.notes.length === 0;
    // The output of an earlier run stays.
    const earlier = entry.output === null ? [] : [this.download];
    const shown = {
      ready: [this.start, this.remove],
      queued: [this.cancel],
      running: [this.cancel],
      stopping: [],
      done: [this.compare, this.download, this.again, this.remove],
      failed: [...earlier, this.again, this.remove],
      cancelled: [...earlier, this.again, this.remove],
    }[entry.state];
    if (entry.can_resume) shown.unshift(this.resume);
    const focused = this.buttons.find((button) => button === document.activeElement);
    for (const button of this.buttons) button.hidden = !shown.includes(button);
    if (focused?.hidden) this.name.focus();
    if (before && before !== entry.state) byId("changes").textContent = `${entry.name}: ${STATES[entry.state]}`;
    if (!before) plan(this);
  }

  async showPlan(signal) {
    if (this.entry.state !== "ready" || !this.element.isConnected) return;
    try {
      this.plan.textContent = (await call("POST", `api/videos/${this.entry.id}/plan`, settings(), signal)).plan;
    } catch (error) {
      if (signal.aborted) return;
      this.plan.className = "bad";
      this.plan.textContent = error.message;
    }
  }
}

const clock = (seconds) => {
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return (parts[0] ? parts : parts.slice(1)).map((part, index) => (index ? String(part).padStart(2, "0") : part)).join(":");
};

function progressText({ progress }) {
  if (!progress) return "";
  if (progress.text) return `, ${progress.text}`;
  const percent = progress.duration ? `, ${Math.min(100, Math.floor(100 * progress.position / progress.duration))}%` : "";
  const unit = progress.unit && progress.unit !== "frame" ? `, ${progress.unit}` : "";
  const left = progress.seconds_left === null ? "" : `, ${clock(progress.seconds_left)} left`;
  const frames = progress.frames === 1 ? "1 frame" : `${progress.frames} frames`;
  return `${percent}, ${frames}${unit}${left}`;
}

function show(entries) {
  const ids = new Set(entries.map((entry) => entry.id));
  for (const [id, card] of cards) {
    if (ids.has(id)) continue;
    removeItem(card.element);
    cards.delete(id);
  }
  for (const entry of entries) {
    if (!cards.has(entry.id)) {
      cards.set(entry.id, new Card(entry));
      byId("list").append(cards.get(entry.id).element);
    }
    cards.get(entry.id).update(entry);
  }
  const startAll = byId("start-all");
  const few = entries.filter((entry) => entry.state === "ready").length < 2;
  if (few && document.activeElement === startAll) byId("videos").focus();
  startAll.hidden = few;
}

// ---- Plans ----

// Milliseconds without a change to the settings before the videos are planned.
const PAUSE = 500;
let plans = Promise.resolve();
let planning = new AbortController();
let pause;

/// Plans a video after those before it: a browser has few connections to a server, and a plan takes seconds.
function plan(card) {
  card.plan.className = "";
  card.plan.textContent = "Planning …";
  // All are planned after the pause.
  if (pause) return;
  const { signal } = planning;
  plans = plans.then(() => signal.aborted || card.showPlan(signal));
}

function planAll() {
  planning.abort();
  planning = new AbortController();
  clearTimeout(pause);
  pause = setTimeout(() => {
    pause = undefined;
    for (const card of cards.values()) plan(card);
  }, PAUSE);
}

// ---- Events ----

// Milliseconds before another connection after a refused one.
const RETRY = 3000;
let events;
let lost = false;

/// Follows the list while the page can be seen: each connection is one of the few that all tabs share.
function watch() {
  events?.close();
  if (document.hidden) return;
  events = new EventSource("api/events");
  events.onmessage = (event) => show(JSON.parse(event.data));
  events.onopen = () => {
    if (!lost) return;
    lost = false;
    say("");
    planAll();
  };
  events.onerror = async () => {
    lost = true;
    say("The connection to the server is lost.", true);
    // The browser connects again by itself, except after a refusal. If the token is refused, `call` asks for it.
    if (events.readyState !== EventSource.CLOSED) return;
    await call("GET", "api/videos").catch(() => {});
    setTimeout(watch, RETRY);
  };
}
document.onvisibilitychange = watch;

// ---- Comparison ----

function compare(entry, opener) {
  byId("comparison-name").textContent = entry.name;
  const path = `api/videos/${entry.id}`;
  const end = createSlider(byId("slider"), { before: `${path}/input`, after: `${path}/output`, fps: entry.fps });
  byId("comparison").onclose = async () => { await end(); opener.focus(); };
  byId("comparison").showModal();
}

byId("close").onclick = () => byId("comparison").close();
byId("settings").onsubmit = (event) => event.preventDefault();
byId("fields").oninput = () => {
  for (const radio of byId("presets").querySelectorAll("input")) radio.checked = false;
  planAll();
};
byId("start-all").onclick = async () => {
  for (const card of cards.values()) {
    // A video that is refused does not hold up the others.
    if (card.entry.state === "ready") await attempt(() => call("POST", `api/videos/${card.entry.id}/start`, settings()));
  }
};
acceptFiles();
attempt(async () => {
  await loadSettings();
  watch();
});
