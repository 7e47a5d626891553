// SPDX-License-Identifier: MIT OR Apache-2.0
// Two videos of the same length, one over the other, with a divider: the first is seen to the left of it. The second
// one is played, and the first one follows.
"use strict";

// Seconds by which the first video may be off while both play. Less is corrected by its speed.
const MAX_DRIFT = 0.1;
// Frame rate for single steps where it is not known.
const ASSUMED_FPS = 25;

/// Fills `root`. Returns a function that stops the videos, leaves full screen and empties it.
function createSlider(root, { before, after, fps }) {
  const make = (parent, tag, properties) => {
    const element = Object.assign(document.createElement(tag), properties);
    parent.append(element);
    return element;
  };
  root.classList.add("slider");
  const stage = make(root, "div", { className: "stage" });
  const video = (className, ariaLabel, src) => make(stage, "video", {
    className, ariaLabel, src, preload: "auto", playsInline: true, muted: className === "before", loop: true, tabIndex: -1,
  });
  const played = video("after", "Output", after);
  const follower = video("before", "Input", before);
  const range = (parent, className, label, max) => {
    const input = make(parent, "input", { type: "range", className, min: 0, max, step: "any", value: 0 });
    input.setAttribute("aria-label", label);
    return input;
  };
  const split = range(stage, "split", "Divider: the input is left of it, the output right of it", 100);
  split.step = 1;
  split.value = 50;
  make(stage, "div", { className: "line" });
  make(stage, "div", { className: "name left", textContent: "Input" });
  make(stage, "div", { className: "name right", textContent: "Output" });
  const problem = make(root, "p", { className: "problem" });
  problem.setAttribute("role", "status");
  const controls = make(root, "div", { className: "controls" });
  const button = (text, label, action) => {
    const element = make(controls, "button", { type: "button", textContent: text, title: label, onclick: action });
    element.setAttribute("aria-label", label);
    return element;
  };

  const toggle = () => (played.paused ? played.play() : played.pause());
  const step = (frames) => {
    played.pause();
    const rate = fps || ASSUMED_FPS;
    const last = Math.max(0, Math.round(played.duration * rate) - 1);
    const frame = Math.min(last, Math.max(0, Math.floor(played.currentTime * rate) + frames));
    // The middle of the frame: its ends are rounded.
    played.currentTime = (frame + 0.5) / rate;
  };
  const fullScreen = () => (document.fullscreenElement ? document.exitFullscreen() : root.requestFullscreen());
  // Characters that every system has, and none as a coloured picture.
  const play = button("▶\ufe0e", "Play", toggle);
  button("◀\ufe0e|", "Previous frame (,)", () => step(-1));
  button("|▶\ufe0e", "Next frame (.)", () => step(1));
  const seek = range(controls, "seek", "Position", 1);
  const time = make(controls, "output", { textContent: "0:00.00" });
  button("⤢", "Full screen (f)", fullScreen);

  const show = () => {
    const seconds = played.currentTime;
    time.textContent = `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(2).padStart(5, "0")}`;
    seek.value = seconds;
    seek.setAttribute("aria-valuetext", time.textContent);
  };
  const align = () => {
    if (follower.readyState && Math.abs(follower.currentTime - played.currentTime) > 0.001) {
      follower.currentTime = Math.min(played.currentTime, follower.duration);
    }
  };
  const follow = () => {
    const drift = follower.currentTime - played.currentTime;
    if (Math.abs(drift) > MAX_DRIFT) {
      if (!follower.seeking) align();
    } else {
      follower.playbackRate = played.playbackRate * (1 - drift);
    }
    show();
    if (!played.paused) requestAnimationFrame(follow);
  };
  const fit = () => {
    const [width, height] = [played.videoWidth, played.videoHeight];
    if (!width) return;
    const room = document.fullscreenElement === root ? "100vh - 5rem" : "75vh";
    stage.style.aspectRatio = `${width} / ${height}`;
    stage.style.width = `calc(min(100vw, (${room}) * ${width / height}))`;
  };

  split.oninput = () => root.style.setProperty("--split", `${split.value}%`);
  seek.oninput = () => { played.currentTime = seek.value; };
  played.onloadedmetadata = () => { seek.max = played.duration; fit(); };
  follower.onloadedmetadata = align;
  played.ontimeupdate = show;
  played.onseeked = () => { align(); show(); };
  played.onplay = () => {
    [play.textContent, play.title] = ["❚❚", "Pause"];
    play.setAttribute("aria-label", play.title);
    // It fails where the input cannot be played, which is said below.
    follower.play().catch(() => {});
    requestAnimationFrame(follow);
  };
  played.onpause = () => {
    [play.textContent, play.title] = ["▶\ufe0e", "Play"];
    play.setAttribute("aria-label", play.title);
    follower.pause();
    align();
  };
  follower.onerror = () => {
    follower.hidden = true;
    problem.textContent = "This browser cannot play the input.";
  };
  played.onerror = () => { problem.textContent = "This browser cannot play the output: download it instead."; };
  root.onfullscreenchange = fit;
  root.onkeydown = (event) => {
    const actions = { ",": () => step(-1), ".": () => step(1), f: fullScreen, " ": toggle };
    const action = actions[event.key];
    // A button has its own use of the space bar.
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && event.target.tagName === "BUTTON") return;
    event.preventDefault();
    action();
  };
  return async () => {
    if (document.fullscreenElement === root) await document.exitFullscreen();
    for (const player of [played, follower]) {
      player.onerror = null;
      player.removeAttribute("src");
      player.load();
    }
    root.replaceChildren();
  };
}
