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

/// Shows a text, also to those who do not see the screen.
function say(text, stays = false) {
  byId("status").textContent = text;
  clearTimeout(hiding);
  if (!stays) hiding = setTimeout(() => { byId("status").textContent = ""; }, SHOWN);
}

/// Calls the API. The server's own words are in the error.
async function call(method, path, body) {
  let response;
  try {
    response = await fetch(path, { method, body: body && JSON.stringify(body) });
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

/// Uploads one file after the other.
function add(files) {
  const videos = files.filter((file) => EXTENSIONS.test(file.name) || file.type.startsWith("video/"));
  const others = files.length - videos.length;
  say(others ? `${others} of ${files.length} files are not videos: skipped` : "");
  for (const file of videos) {
    const bar = make("progress", { max: 1, value: 0 });
    bar.setAttribute("aria-label", `Upload of ${file.name}`);
    const request = new XMLHttpRequest();
    const cancel = make("button", { type: "button", textContent: "Cancel" });
    cancel.setAttribute("aria-label", `Cancel the upload of ${file.name}`);
    const item = make("li", {}, make("h3", { textContent: file.name }), "Uploading", bar,
      make("div", { className: "actions" }, cancel));
    let wanted = true;
    cancel.onclick = () => { wanted = false; request.abort(); item.remove(); };
    byId("list").append(item);
    byId("empty").hidden = true;
    uploads = uploads.then(() => wanted && upload(request, file, bar)).then(() => item.remove(), (error) => {
      item.replaceChildren(make("h3", { textContent: file.name }), make("p", { className: "bad", textContent: error.message }));
      say(error.message);
    });
  }
}

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
    attempt(async () => add((await Promise.all(entries.map(filesOf))).flat()));
  };
}

// ---- Videos ----

const STATES = {
  ready: "Ready to start", queued: "In the queue", running: "Running", stopping: "Stopping", done: "Done",
  failed: "Failed", cancelled: "Cancelled",
};
const cards = new Map();

/// One video of the list. Its elements stay, so that the focus does.
class Card {
  constructor(entry) {
    this.name = make("h3", { textContent: entry.name });
    this.state = make("p", { className: "quiet" });
    this.bar = make("progress", { max: 1 });
    this.bar.setAttribute("aria-label", `Progress of ${entry.name}`);
    this.plan = make("pre", {});
    this.message = make("pre", {});
    this.notes = make("pre", {});
    this.more = make("details", {}, make("summary", { textContent: "Messages" }), this.notes);
    const path = `api/videos/${entry.id}`;
    const post = (action, body) => () => attempt(() => call("POST", `${path}/${action}`, body?.()));
    this.start = this.button("Start", post("start", settings), "main");
    this.resume = this.button("Resume", post("resume"), "main");
    this.compare = this.button("Compare", () => compare(this.entry, this.compare), "main");
    this.download = make("a", { className: "button", textContent: "Download", href: `${path}/output` });
    this.download.setAttribute("aria-label", `Download ${entry.output_name}`);
    this.cancel = this.button("Cancel", post("cancel"));
    this.again = this.button("Enhance again", post("start", settings));
    this.remove = this.button("Remove", () => attempt(() => call("DELETE", path)));
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
    this.plan.hidden = entry.state !== "ready";
    this.message.hidden = entry.message === "";
    this.more.hidden = entry.notes.length === 0;
    const shown = {
      ready: [this.start, this.remove],
      queued: [this.cancel],
      running: [this.cancel],
      stopping: [],
      done: [this.compare, this.download, this.again, this.remove],
      failed: [this.resume, this.again, this.remove],
      cancelled: [this.resume, this.again, this.remove],
    }[entry.state];
    for (const button of this.buttons) button.hidden = !shown.includes(button);
    if (before && before !== entry.state) say(`${entry.name}: ${STATES[entry.state]}`);
    if (!before && entry.state === "ready") this.showPlan();
  }

  async showPlan() {
    if (this.entry.state !== "ready") return;
    this.plan.className = "";
    this.plan.textContent = "Planning …";
    const asked = JSON.stringify(settings());
    const plan = await call("POST", `api/videos/${this.entry.id}/plan`, settings()).then(({ plan }) => plan, (error) => error);
    // The settings may have changed since.
    if (asked !== JSON.stringify(settings())) return;
    this.plan.className = plan instanceof Error ? "bad" : "";
    this.plan.textContent = plan instanceof Error ? plan.message : plan;
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
  return `${percent}, ${progress.frames} frames${unit}${left}`;
}

function show(entries) {
  const ids = new Set(entries.map((entry) => entry.id));
  for (const [id, card] of cards) {
    if (ids.has(id)) continue;
    card.element.remove();
    cards.delete(id);
  }
  for (const entry of entries) {
    if (!cards.has(entry.id)) {
      cards.set(entry.id, new Card(entry));
      byId("list").append(cards.get(entry.id).element);
    }
    cards.get(entry.id).update(entry);
  }
  byId("empty").hidden = byId("list").childElementCount > 0;
  byId("start-all").hidden = entries.filter((entry) => entry.state === "ready").length < 2;
}

let planning;
function planAll() {
  clearTimeout(planning);
  planning = setTimeout(() => { for (const card of cards.values()) card.showPlan(); }, 500);
}

function watch() {
  const events = new EventSource("api/events");
  events.onmessage = (event) => show(JSON.parse(event.data));
  // The browser connects again by itself.
  events.onerror = () => say("The connection to the server is lost.", true);
  events.onopen = () => say("");
}

// ---- Comparison ----

function compare(entry, opener) {
  byId("comparison-name").textContent = entry.name;
  const path = `api/videos/${entry.id}`;
  const end = createSlider(byId("slider"), { before: `${path}/input`, after: `${path}/output`, fps: entry.fps });
  byId("comparison").onclose = () => { end(); opener.focus(); };
  byId("comparison").showModal();
}

byId("close").onclick = () => byId("comparison").close();
byId("settings").onsubmit = (event) => event.preventDefault();
byId("fields").oninput = () => {
  for (const radio of byId("presets").querySelectorAll("input")) radio.checked = false;
  planAll();
};
byId("start-all").onclick = () => attempt(async () => {
  for (const card of cards.values()) {
    if (card.entry.state === "ready") await call("POST", `api/videos/${card.entry.id}/start`, settings());
  }
});
acceptFiles();
attempt(async () => {
  await loadSettings();
  watch();
});
