// Waveforms of results: peaks, the best moment, and the position of the player.

import { readPeaks } from "./api.js";

const HEIGHT = 40;
const WIDTH = 240;
const MIN_PEAK = 0.02; // of the height, so that silence is a line
const cache = new Map();

const observer = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((one) => one.isIntersecting)) {
    observer.unobserve(entry.target);
    draw(entry.target);
  }
});

export function prepareWaveform(waveform, recording, moment) {
  waveform.dataset.id = recording.id;
  const scale = WIDTH / Math.max(recording.duration_s, 1e-3);
  const rect = waveform.querySelector(".moment");
  const edge = waveform.querySelector(".moment-edge");
  if (moment) {
    const start = Math.min(moment.start_s * scale, WIDTH);
    rect.setAttribute("x", start);
    rect.setAttribute("width", Math.max(1.5, Math.min(moment.end_s * scale, WIDTH) - start));
    edge.setAttribute("x", start);
  } else {
    rect.remove();
    edge.remove();
  }
  showPosition(waveform, null);
  observer.observe(waveform);
}

async function draw(waveform) {
  const id = waveform.dataset.id;
  if (!cache.has(id)) {
    cache.set(id, readPeaks(id).catch(() => {
      cache.delete(id);
      return { peaks: [] };
    }));
  }
  const { peaks } = await cache.get(id);
  const step = WIDTH / Math.max(peaks.length, 1);
  const highest = Math.max(1, ...peaks);
  const bars = peaks.map((peak, index) => {
    const half = Math.max(MIN_PEAK, peak / highest) * (HEIGHT / 2 - 2);
    return `M${(index * step).toFixed(2)} ${(HEIGHT / 2 - half).toFixed(2)}h${(step * 0.62).toFixed(2)}v${(2 * half).toFixed(2)}h-${(step * 0.62).toFixed(2)}z`;
  });
  for (const path of waveform.querySelectorAll(".peaks")) path.setAttribute("d", bars.join(""));
}

// Show the share of the recording that has been played; null hides the position.
export function showPosition(waveform, share) {
  const hand = waveform.querySelector(".hand");
  const played = waveform.querySelector(".played");
  hand.style.display = share === null ? "none" : "";
  hand.setAttribute("x", Math.min(WIDTH * (share ?? 0), WIDTH - 0.8));
  played.style.clipPath = `inset(0 ${100 * (1 - Math.min(share ?? 0, 1))}% 0 0)`;
}
