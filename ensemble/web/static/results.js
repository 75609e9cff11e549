// List of results: one card for each recording.

import { getDownloadAddress } from "./api.js";
import { formatTime, isCurrent, play, toggle } from "./player.js";
import { prepareWaveform, showPosition } from "./waveform.js";

const list = document.getElementById("results");
const template = document.getElementById("result");
const MAX_SHOWN_CAPTIONS = 3;
const COPIED_MS = 2000;

const GONE =
  "This file no longer exists in its folder. If it was moved, add the folder that it is in now to the index: "
  + "search.py DIR --add FOLDER.";

// `onSimilar` is called with the recording that others are to be similar to, `onCopied` with a sentence for the status.
export function showResults(hits, onSimilar, onCopied) {
  list.replaceChildren(...hits.map((hit) => buildResult(hit, onSimilar, onCopied)));
  const first = list.querySelector(".result");
  if (first) first.tabIndex = 0;
}

export function clearResults() {
  list.replaceChildren();
}

function buildResult({ recording, score, moments }, onSimilar, onCopied) {
  const item = template.content.cloneNode(true).querySelector("li");
  const card = item.querySelector(".result");
  const find = (name) => card.querySelector(name);
  const moment = moments[0];
  card.dataset.id = recording.id;
  card.setAttribute("aria-label", recording.name);
  card.recording = recording;
  find(".name").textContent = recording.name;
  find(".name").title = recording.path;
  find(".folder").textContent = [recording.corpus, recording.folder].filter(Boolean).join("/");
  find(".duration").textContent = formatTime(recording.duration_s);
  find(".value").textContent = score.toFixed(3);
  find(".score").title = "Score: the greater, the better the recording fits";
  showCaptions(find(".captions"), recording.captions);

  find(".play").setAttribute("aria-label", `Play ${recording.name}`);
  find(".play").addEventListener("click", () => toggle(recording));
  find(".similar").addEventListener("click", () => onSimilar(recording));
  find(".copy").addEventListener("click", (event) => copyPath(recording.path, event.currentTarget, onCopied));
  find(".download").href = getDownloadAddress(recording.id);
  if (moment) {
    find(".best span").textContent = `Best moment ${formatTime(moment.start_s)}–${formatTime(moment.end_s)}`;
    find(".best").addEventListener("click", () => play(recording, moment.start_s));
  } else {
    find(".best").remove();
  }
  const waveform = find(".waveform");
  waveform.addEventListener("click", (event) => {
    const box = waveform.getBoundingClientRect();
    play(recording, ((event.clientX - box.left) / box.width) * recording.duration_s);
  });
  card.addEventListener("focusin", () => {
    for (const other of list.querySelectorAll(".result")) other.tabIndex = other === card ? 0 : -1;
  });
  prepareWaveform(waveform, recording, moment);
  if (!recording.exists) showGone(card, GONE);
  return item;
}

function showCaptions(captions, texts) {
  for (const text of texts.slice(0, MAX_SHOWN_CAPTIONS)) {
    const line = document.createElement("li");
    line.textContent = text;
    captions.append(line);
  }
  if (!texts.length) captions.remove();
}

function showGone(card, message) {
  card.classList.add("is-gone");
  const line = card.querySelector(".gone");
  line.textContent = message;
  line.hidden = false;
  for (const name of [".play", ".best", ".download", ".waveform"]) card.querySelector(name)?.remove();
}

// Show on its card why a recording can't be played; return whether the card is on the page.
export function showProblem(recording, message) {
  const card = findCard(recording.id);
  if (!card) return false;
  const line = card.querySelector(".gone");
  line.textContent = message;
  line.hidden = false;
  line.setAttribute("role", "alert");
  return true;
}

function findCard(id) {
  return id && list.querySelector(`.result[data-id="${CSS.escape(id)}"]`);
}

export function showPlayerState({ playing, share }) {
  for (const card of list.querySelectorAll(".result")) {
    const button = card.querySelector(".play");
    if (!button) continue;
    const current = isCurrent(card.dataset.id);
    card.classList.toggle("is-current", current);
    button.querySelector("use").setAttribute("href", current && playing ? "#icon-pause" : "#icon-play");
    button.setAttribute("aria-label", `${current && playing ? "Pause" : "Play"} ${card.recording.name}`);
    showPosition(card.querySelector(".waveform"), current ? share : null);
  }
}

async function copyPath(path, button, onCopied) {
  const text = button.querySelector("span");
  let isCopied = true;
  try {
    await navigator.clipboard.writeText(path);
  } catch {
    isCopied = copySelection(path, button); // the clipboard needs HTTPS on other machines
  }
  text.textContent = isCopied ? "Copied" : path;
  onCopied(isCopied ? `Copied: ${path}` : path);
  if (isCopied) setTimeout(() => { text.textContent = "Copy path"; }, COPIED_MS);
}

function copySelection(path, button) {
  const field = document.createElement("textarea");
  field.value = path;
  field.className = "hidden-label";
  document.body.append(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  button.focus();
  return isCopied;
}

// Focus the next result (1) or the previous one (-1); return whether there is one.
export function moveFocus(direction) {
  const cards = [...list.querySelectorAll(".result")];
  const current = cards.indexOf(document.activeElement?.closest?.(".result"));
  const next = cards[current < 0 ? (direction > 0 ? 0 : -1) : current + direction];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
  return Boolean(next);
}
