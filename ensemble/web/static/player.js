// Player: one audio element for all results, and the bar at the bottom of the page.

import { getAudioAddress, getRecording } from "./api.js";

const audio = document.getElementById("audio");
const bar = document.getElementById("player");
const toggleButton = document.getElementById("player-toggle");
const position = document.getElementById("player-position");
const time = document.getElementById("player-time");

export const STEP_S = 5;

let recording = null;
let isDragged = false;
let startS = null; // where to play from once the recording is loaded
let onChange = () => {};
let onProblem = () => {};

export function formatTime(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const parts = [Math.floor(whole / 60) % 60, whole % 60];
  if (whole >= 3600) parts.unshift(Math.floor(whole / 3600));
  return parts.map((part, index) => (index ? String(part).padStart(2, "0") : part)).join(":");
}

// `change` is called with the player's state whenever it changes, `problem` with a recording and a sentence.
export function startPlayer(change, problem) {
  onChange = change;
  onProblem = problem;
  for (const name of ["play", "pause", "ended", "seeked", "loadedmetadata", "timeupdate"]) {
    audio.addEventListener(name, update);
  }
  audio.addEventListener("loadedmetadata", () => {
    if (startS !== null) audio.currentTime = startS;
    startS = null;
  });
  audio.addEventListener("play", () => requestAnimationFrame(animate));
  audio.addEventListener("error", explainError);
  toggleButton.addEventListener("click", () => toggle(recording));
  document.getElementById("player-close").addEventListener("click", close);
  position.addEventListener("input", () => {
    isDragged = true;
    update();
  });
  position.addEventListener("change", () => {
    isDragged = false;
    audio.currentTime = Number(position.value);
  });
}

export function isCurrent(id) {
  return recording?.id === id;
}

export function isPlaying() {
  return Boolean(recording) && !audio.paused && !audio.ended;
}

export function hasRecording() {
  return recording !== null;
}

export function play(next, fromS) {
  if (!isCurrent(next.id) || audio.error) {
    recording = next;
    startS = null;
    bar.hidden = false;
    document.getElementById("player-name").textContent = next.name;
    audio.src = getAudioAddress(next.id);
  }
  if (fromS !== undefined) seek(fromS);
  audio.play().catch(() => {}); // the error event says why
  update();
}

export function toggle(next = recording) {
  if (next && isCurrent(next.id) && isPlaying()) audio.pause();
  else if (next) play(next);
}

export function step(seconds) {
  if (recording) seek(audio.currentTime + seconds);
}

function seek(seconds) {
  const target = Math.max(0, Math.min(seconds, recording.duration_s));
  if (audio.readyState >= HTMLMediaElement.HAVE_METADATA) audio.currentTime = target;
  else startS = target;
}

function close() {
  audio.pause();
  recording = null;
  audio.removeAttribute("src");
  audio.load();
  bar.hidden = true;
  update();
}

function update() {
  const durationS = Number.isFinite(audio.duration) ? audio.duration : recording?.duration_s ?? 0;
  const currentS = isDragged ? Number(position.value) : audio.currentTime;
  const playing = isPlaying();
  toggleButton.querySelector("use").setAttribute("href", playing ? "#icon-pause" : "#icon-play");
  toggleButton.setAttribute("aria-label", playing ? "Pause" : "Play");
  position.max = durationS || 1;
  if (!isDragged) position.value = currentS;
  position.setAttribute("aria-valuetext", `${formatTime(currentS)} of ${formatTime(durationS)}`);
  time.textContent = `${formatTime(currentS)} / ${formatTime(durationS)}`;
  onChange({ id: recording?.id ?? null, playing, share: durationS ? currentS / durationS : 0 });
}

function animate() {
  update();
  if (isPlaying()) requestAnimationFrame(animate);
}

// The audio element doesn't say why it failed: the server does.
async function explainError() {
  if (!recording || !audio.getAttribute("src")) return;
  const failed = recording;
  let message = `${failed.name} can't be played here: download it, and open it with another program.`;
  try {
    const response = await fetch(getAudioAddress(failed.id), { method: "GET", headers: { Range: "bytes=0-0" } });
    if (!response.ok) message = (await response.json()).error;
    await getRecording(failed.id);
  } catch (error) {
    if (error.canRetry) message = error.message;
  }
  onProblem(failed, message);
  update();
}
