// Recordings that are dropped onto the page or chosen, to search by their sound.

const overlay = document.getElementById("drop");
const input = document.getElementById("sound-file");

// `onSound` is called with the file.
export function startSounds(onSound) {
  let depth = 0; // the events of child elements come in pairs
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth += 1;
    overlay.hidden = false;
  });
  document.addEventListener("dragover", (event) => {
    if (hasFiles(event)) event.preventDefault();
  });
  document.addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    overlay.hidden = depth === 0;
  });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    overlay.hidden = true;
    if (event.dataTransfer.files.length) onSound(event.dataTransfer.files[0]);
  });
  document.getElementById("choose-sound").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    if (input.files.length) onSound(input.files[0]);
    input.value = "";
  });
}
