// The page: reads the query from its fields and its address, searches, and shows the answer.

import { RequestError, getRecording, listFolders, search } from "./api.js";
import { startKeyboard } from "./keyboard.js";
import { startPlayer } from "./player.js";
import { FILTERS, hasFilters, isSet, readQuery, writeQuery } from "./query.js";
import { clearResults, showPlayerState, showProblem, showResults } from "./results.js";
import { startSounds } from "./sounds.js";

const DEBOUNCE_MS = 120;
const SENTENCE_PAUSE_MS = 2000; // after which a sentence is an entry of the history
const PAGE_SIZE = 20;
const MAX_RESULTS = 100;

const EMPTY_INDEX =
  "The index contains no recordings. Add the recordings of a folder with python ensemble/search.py DIR --add FOLDER, "
  + "then search.";
const NO_RESULT = "No recording meets the filters: widen or remove them.";
const LOST_SOUND = "The recording that was searched by isn't kept when the page is loaded again: drop it once more.";

const element = (id) => document.getElementById(id);
const field = element("query");
const status = element("status");
const notice = element("notice");

const sounds = new Map(); // dropped files by name, for the back button
let query = {};
let numResults = PAGE_SIZE;
let folders = [];
let controller = new AbortController();
let timer = 0;
let isTypingSession = false; // one entry of the history for a sentence, not one for each key
let pause = 0;

function showNotice(message, action, onAction) {
  notice.hidden = false;
  element("notice-text").textContent = message;
  const button = element("notice-action");
  button.hidden = !action;
  button.textContent = action ?? "";
  button.onclick = onAction ?? null;
}

function hideNotice() {
  notice.hidden = true;
}

function showError(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof RequestError)) throw error;
  status.textContent = "";
  showNotice(error.message, error.canRetry ? "Try again" : null, start);
}

function showFields() {
  if (document.activeElement !== field || field.value.trim() !== (query.q ?? "").trim()) field.value = query.q ?? "";
  for (const name of FILTERS) element(name).value = query[name] ?? "";
  element("reset").hidden = !hasFilters(query);
  const source = element("source");
  source.hidden = !(query.like || query.sound);
  if (query.sound) element("source-name").textContent = `Recordings that sound like ${query.sound}`;
}

async function showSourceName() {
  if (!query.like) return;
  const id = query.like;
  try {
    const recording = await getRecording(id);
    if (query.like === id) element("source-name").textContent = `Recordings that sound like ${recording.name}`;
  } catch (error) {
    element("source-name").textContent = "Recordings that sound like another one";
  }
}

function showFolders() {
  const fill = (select, values, name) => {
    const options = values.map((value) => new Option(value, value));
    select.replaceChildren(new Option("all", ""), ...options);
    if (isSet(query, name) && !values.includes(query[name])) select.append(new Option(query[name], query[name]));
    select.value = query[name] ?? "";
  };
  const corpora = [...new Set(folders.map((one) => one.corpus))].sort();
  const chosen = folders.filter((one) => !query.corpus || one.corpus === query.corpus);
  // A folder contains its subfolders, so those without recordings of their own are listed, too.
  const names = new Set();
  for (const { folder } of chosen.filter((one) => one.folder)) {
    const parts = folder.split("/");
    parts.forEach((_, index) => names.add(parts.slice(0, index + 1).join("/")));
  }
  fill(element("corpus"), corpora, "corpus");
  fill(element("folder"), [...names].sort(), "folder");
}

function countRecordings(count) {
  return `${count.toLocaleString("en")} recording${count === 1 ? "" : "s"}`;
}

function describeAnswer(answer) {
  const shown = `${countRecordings(answer.hits.length)} of ${answer.num_recordings.toLocaleString("en")}, the best first`;
  return [shown, ...answer.warnings].join("; ");
}

function showAnswer(answer) {
  hideNotice();
  showResults(answer.hits, searchSimilar, (message) => { status.textContent = message; });
  element("more").hidden = answer.hits.length < numResults || numResults >= MAX_RESULTS;
  status.textContent = "";
  if (!answer.num_recordings) showNotice(EMPTY_INDEX, "Try again", start);
  else if (!answer.hits.length && hasFilters(query)) showNotice(NO_RESULT, "Remove filters", removeFilters);
  else if (!answer.hits.length) showNotice("The index contains no other recordings.", null);
  else status.textContent = describeAnswer(answer);
}

function showStart() {
  hideNotice();
  clearResults();
  element("more").hidden = true;
  const count = folders.reduce((sum, one) => sum + one.num_recordings, 0);
  element("start").hidden = !count;
  if (count) status.textContent = `${countRecordings(count)} to search: describe a sound, or drop a recording onto this page.`;
  else showNotice(EMPTY_INDEX, "Try again", start);
}

async function run() {
  clearTimeout(timer);
  element("start").hidden = true;
  controller.abort();
  controller = new AbortController();
  const { signal } = controller;
  showFields();
  document.title = [query.q || query.sound, "Chorale"].filter(Boolean).join(" – ");
  if (!query.q && !query.like && !query.sound) return showStart();
  if (query.sound && !sounds.has(query.sound)) {
    clearResults();
    status.textContent = "";
    return showNotice(LOST_SOUND, null);
  }
  showSourceName();
  if (query.sound) status.textContent = "Searching by the recording…";
  try {
    const answer = await search(query, sounds.get(query.sound), numResults, signal);
    if (!signal.aborted) showAnswer(answer);
  } catch (error) {
    if (signal.aborted) return undefined;
    if (!(error instanceof RequestError && error.canRetry)) clearResults();
    showError(error);
  }
  return undefined;
}

function change(next, isNewEntry = true) {
  query = next;
  numResults = PAGE_SIZE;
  writeQuery(query, isNewEntry);
  return run();
}

function pickFilters() {
  return Object.fromEntries(FILTERS.filter((name) => isSet(query, name)).map((name) => [name, query[name]]));
}

function searchText() {
  const q = field.value.trim();
  if (q === (query.q ?? "") && (q || !(query.like || query.sound))) return;
  if (!q && (query.like || query.sound)) return;
  change(q ? { q, ...pickFilters() } : pickFilters(), !isTypingSession);
  isTypingSession = true;
}

function searchSimilar(recording) {
  isTypingSession = false;
  change({ like: recording.id, ...pickFilters() });
  window.scrollTo({ top: 0 });
  element("results").focus({ preventScroll: true });
}

function searchSound(file) {
  isTypingSession = false;
  sounds.set(file.name, file);
  change({ sound: file.name, ...pickFilters() });
}

function changeFilters() {
  const next = { ...query };
  for (const name of FILTERS) next[name] = element(name).value;
  if (next.corpus !== (query.corpus ?? "")) next.folder = "";
  change(next);
  showFolders();
}

function removeFilters() {
  const next = { ...query };
  for (const name of FILTERS) delete next[name];
  change(next);
  showFolders();
}

async function start() {
  query = readQuery();
  try {
    folders = (await listFolders()).folders;
  } catch (error) {
    showFields();
    return showError(error);
  }
  showFolders();
  return run();
}

field.addEventListener("input", () => {
  clearTimeout(timer);
  clearTimeout(pause);
  timer = setTimeout(searchText, DEBOUNCE_MS);
  pause = setTimeout(() => { isTypingSession = false; }, SENTENCE_PAUSE_MS);
});
field.addEventListener("blur", () => { isTypingSession = false; });
element("search").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(timer);
  searchText();
  isTypingSession = false;
});
for (const button of document.querySelectorAll(".example")) {
  button.addEventListener("click", () => change({ q: button.textContent, ...pickFilters() }));
}
element("filters").addEventListener("submit", (event) => event.preventDefault());
for (const name of ["corpus", "folder"]) element(name).addEventListener("change", changeFilters);
for (const name of ["min", "max"]) {
  let wait = 0;
  element(name).addEventListener("input", () => {
    clearTimeout(wait);
    wait = setTimeout(changeFilters, 2 * DEBOUNCE_MS);
  });
}
element("reset").addEventListener("click", removeFilters);
element("source-close").addEventListener("click", () => {
  change(pickFilters());
  field.focus();
});
element("more").addEventListener("click", () => {
  numResults = Math.min(numResults + PAGE_SIZE, MAX_RESULTS);
  run();
});
element("home").addEventListener("click", (event) => {
  event.preventDefault();
  change({});
  showFolders();
  field.focus();
});
window.addEventListener("popstate", () => {
  isTypingSession = false;
  numResults = PAGE_SIZE;
  query = readQuery();
  showFolders();
  run();
});

startPlayer(showPlayerState, (recording, message) => {
  if (!showProblem(recording, message)) showNotice(message, null);
});
startKeyboard();
startSounds(searchSound);
start();
