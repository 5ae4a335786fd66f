// Dark or light, as the system has it until the person chooses; loaded before the page is drawn.
const system = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
try { chosen = localStorage.getItem("theme"); } catch { /* without storage a choice lasts as long as the page */ }
function showTheme() {
  const theme = chosen ?? (system.matches ? "dark" : "light");
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme")?.setAttribute("aria-pressed", theme === "dark");
}
function switchTheme() {
  chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("theme", chosen); } catch { /* as above */ }
  showTheme();
}
showTheme();
system.addEventListener("change", showTheme);
addEventListener("DOMContentLoaded", () => document.getElementById("theme").addEventListener("click", switchTheme));
addEventListener("DOMContentLoaded", showTheme);
