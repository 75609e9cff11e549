// Keys of the page: / and the arrows move the focus, space plays, left and right move the player's position.

import { STEP_S, hasRecording, isCurrent, step, toggle } from "./player.js";
import { moveFocus } from "./results.js";

const field = document.getElementById("query");

function isTyping(target) {
  return target.matches("input, select, textarea");
}

function handleKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  const { key, target } = event;
  const card = target.closest?.(".result");
  if (target === field) {
    if (key !== "ArrowDown") return false;
    return moveFocus(1);
  }
  if (isTyping(target)) return false;
  if (key === "/") {
    field.focus();
    field.select();
    return true;
  }
  if (key === "ArrowDown") return moveFocus(1);
  if (key === "ArrowUp") {
    if (!moveFocus(-1) && card) field.focus();
    return Boolean(card);
  }
  if (key === " " && !target.closest("button, a")) return togglePlayer(card);
  if ((key === "ArrowLeft" || key === "ArrowRight") && (!card || isCurrent(card.dataset.id)) && hasRecording()) {
    step(key === "ArrowLeft" ? -STEP_S : STEP_S);
    return true;
  }
  return false;
}

function togglePlayer(card) {
  if (card?.querySelector(".play")) {
    toggle(card.recording);
    return true;
  }
  if (card || !hasRecording()) return false;
  toggle();
  return true;
}

export function startKeyboard() {
  document.addEventListener("keydown", (event) => {
    if (handleKey(event)) event.preventDefault();
  });
}
