// Theme of the page: that of the system, or the one that was chosen. This script runs before the page is drawn.

const THEMES = ["system", "light", "dark"];

function readTheme() {
  try {
    const theme = localStorage.getItem("theme");
    return THEMES.includes(theme) ? theme : "system";
  } catch {
    return "system"; // storage is blocked
  }
}

function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  if (button) {
    button.title = `Theme: ${theme}`;
    button.setAttribute("aria-label", `Theme: ${theme}. Change`);
  }
}

function changeTheme() {
  const theme = THEMES[(THEMES.indexOf(readTheme()) + 1) % THEMES.length];
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // The theme lasts as long as the page.
  }
  showTheme(theme);
}

showTheme(readTheme());
document.addEventListener("DOMContentLoaded", () => {
  showTheme(readTheme());
  document.getElementById("theme")?.addEventListener("click", changeTheme);
});
