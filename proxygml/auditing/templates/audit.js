"use strict";
// The page of an audit: a card for each label, what a person decides about it, and the file that holds the decisions.
const data = JSON.parse(document.getElementById("data").textContent);
const STORE = "proxygml-audit-" + data.key;
const decisions = new Map();
let current = 0;

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
};

function picture(row, caption) {
  const name = data.names[row] ?? `row ${row}`;
  const source = data.pictures[row];
  const shown = source
    ? element("img", { src: "data:image/jpeg;base64," + source, alt: caption || name, loading: "lazy" })
    : element("div", { className: "missing", textContent: name.split("/").pop() });
  shown.title = name;
  return shown;
}

function strip(place, rows, caption) {
  place.append(element("div", { className: "caption", textContent: caption }));
  for (const row of rows) place.append(element("figure", {}, picture(row, caption)));
}

function card(item, place) {
  const main = element("div", { className: "main" }, picture(item.row, `${data.names[item.row]}, labelled ${item.label}`));
  const own = element("div", { className: "strip" });
  const other = element("div", { className: "strip" });
  if (item.own.length) strip(own, item.own, `${item.label}:`);
  if (item.other.length) strip(other, item.other, `${item.suggestion}:`);
  const input = element("input", { placeholder: "another class", autocomplete: "off" });
  input.setAttribute("list", "classes");
  input.setAttribute("aria-label", "the right class");
  const button = (key, words, act) => {
    const made = element("button", { type: "button" }, words + " ", element("kbd", { textContent: key }));
    made.addEventListener("click", () => { select(place, false); act(); });
    return made;
  };
  const buttons = {};
  if (item.suggestion) buttons.accept = button("a", `Accept ${item.suggestion}`, () => accept(place));
  buttons.keep = button("k", `Keep ${item.label}`, () => decide(place, "keep", ""));
  buttons.remove = button("r", "Remove", () => decide(place, "remove", ""));
  const correct = button("c", "Correct", () => correctTo(place));
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); correctTo(place); }
    if (event.key === "Escape") input.blur();
    event.stopPropagation();
  });
  const said = element("p", { className: "said" });
  said.setAttribute("aria-live", "polite");
  const box = element("article", { className: "card", tabIndex: -1, id: `item-${item.row}` }, main,
    element("div", {},
      element("h3", { textContent: item.title }),
      element("p", { textContent: data.names[item.row] }),
      element("p", { textContent: item.evidence }), own, other,
      element("div", { className: "actions" }, ...Object.values(buttons), input, correct), said));
  box.addEventListener("focusin", () => select(place, false));
  return { item, box, input, buttons, said };
}

function decide(place, decision, corrected) {
  const { item } = cards[place];
  if (decision) decisions.set(item.row, { decision, corrected }); else decisions.delete(item.row);
  show(place);
  remember();
  if (decision && place + 1 < cards.length) select(place + 1, true);
}

const accept = (place) => cards[place].item.suggestion && decide(place, "correct", cards[place].item.suggestion);

function correctTo(place) {
  const { item, input } = cards[place];
  const label = input.value.trim();
  if (!label) { input.focus(); return; }
  input.blur();
  if (label === item.label) decide(place, "keep", ""); else decide(place, "correct", label);
}

function show(place) {
  const { item, said, buttons } = cards[place];
  const made = decisions.get(item.row);
  said.className = "said " + (made ? made.decision : "");
  const isNew = made && made.decision === "correct" && !data.classes.includes(made.corrected);
  said.textContent = !made ? "" : made.decision === "correct"
    ? `Correct to ${made.corrected}${isNew ? " (a new class: apply with --new_classes)" : ""}`
    : made.decision === "keep" ? `Keep ${item.label}` : "Remove this image";
  buttons.keep.setAttribute("aria-pressed", String(made?.decision === "keep"));
  buttons.remove.setAttribute("aria-pressed", String(made?.decision === "remove"));
  buttons.accept?.setAttribute("aria-pressed", String(made?.decision === "correct" && made.corrected === item.suggestion));
  const count = cards.filter(({ item: one }) => decisions.has(one.row)).length;
  document.getElementById("progress").textContent = `${count} of ${cards.length} decided`;
}

function select(place, move) {
  cards[current]?.box.classList.remove("current");
  current = Math.max(0, Math.min(place, cards.length - 1));
  const box = cards[current]?.box;
  if (!box) return;
  box.classList.add("current");
  if (move) { box.focus({ preventScroll: true }); box.scrollIntoView({ block: "nearest" }); }
}

function complain(words) {
  const message = document.getElementById("message");
  message.textContent = words;
  message.hidden = !words;
}

function remember() {
  try { localStorage.setItem(STORE, JSON.stringify([...decisions])); complain(""); } catch {
    complain("This browser keeps nothing for this page: save corrections.csv before you close it.");
  }
}

// As spreadsheets need it: text that they would run as a formula begins with a quote, as in the other tables.
const quoted = (text) => /^([=+@\t\r]|-(?!\d+(\.\d+)?$))/.test(text) ? "'" + text : text;
const cell = (value) => { const text = quoted(String(value)); return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text; };

function csv() {
  const named = data.named;
  const lines = [["row", ...(named ? [named] : []), "label", "decision", "corrected"]];
  for (const [row, made] of [...decisions].sort((one, other) => one[0] - other[0])) {
    lines.push([row, ...(named ? [data.names[row]] : []), data.labels[row], made.decision, made.corrected].map(cell));
  }
  return lines.map((line) => line.join(",")).join("\n") + "\n";
}

function save() {
  const link = element("a", { href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })), download: "corrections.csv" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function parse(text) {
  const rows = [[""]];
  let inside = false;
  for (let place = 0; place < text.length; place += 1) {
    const letter = text[place], line = rows[rows.length - 1];
    if (inside && letter === '"' && text[place + 1] === '"') { line[line.length - 1] += '"'; place += 1; }
    else if (letter === '"') inside = !inside;
    else if (letter === "," && !inside) line.push("");
    else if (letter === "\n" && !inside) rows.push([""]);
    else if (letter !== "\r" || inside) line[line.length - 1] += letter;
  }
  return rows.filter((line) => line.length > 1);
}

const unquoted = (text) => text.startsWith("'") && quoted(text.slice(1)) === text ? text.slice(1) : text;

function load(text) {
  const [head, ...lines] = parse(text.replace(/^\ufeff/, ""));
  const at = (name) => (head ?? []).indexOf(name);
  if (at("row") < 0 || at("decision") < 0 || at("corrected") < 0) { complain("This file has no columns row, decision and corrected."); return; }
  let others = 0;
  for (const line of lines) {
    const row = Number(line[at("row")]), decision = line[at("decision")];
    const known = row in data.labels && (at("label") < 0 || unquoted(line[at("label")]) === data.labels[row]);
    if (!known || !["keep", "correct", "remove"].includes(decision)) { others += 1; continue; }
    decisions.set(row, { decision, corrected: unquoted(line[at("corrected")]) });
  }
  cards.forEach((_, place) => show(place));
  remember();
  complain(others ? `${others} decisions of the file are about other images than those of this page: keep that file too.` : "");
}

const cards = data.items.map(card);
document.getElementById("cards").append(...cards.map(({ box }) => box));
if (!cards.length) document.getElementById("cards").append(element("p", { textContent: data.nothing }));
document.querySelectorAll(".strip[data-rows]").forEach((place) => strip(place, JSON.parse(place.dataset.rows), place.dataset.caption));
try { for (const [row, made] of JSON.parse(localStorage.getItem(STORE) ?? "[]")) decisions.set(row, made); } catch { /* nothing is kept */ }
cards.forEach((_, place) => show(place));
if (!cards.length) document.getElementById("progress").textContent = "nothing to decide";
select(0, false);

document.getElementById("save").addEventListener("click", save);
document.getElementById("load").addEventListener("change", async (event) => { if (event.target.files[0]) load(await event.target.files[0].text()); event.target.value = ""; });
document.getElementById("clear").addEventListener("click", () => {
  if (!confirm("Forget all decisions of this page?")) return;
  decisions.clear();
  cards.forEach((_, place) => show(place));
  remember();
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, summary")) return;
  const actions = {
    ArrowDown: () => select(current + 1, true), n: () => select(current + 1, true),
    ArrowUp: () => select(current - 1, true), p: () => select(current - 1, true),
    a: () => accept(current), k: () => decide(current, "keep", ""), r: () => decide(current, "remove", ""),
    c: () => cards[current].input.focus(), u: () => decide(current, "", ""), s: save,
  };
  if (!actions[event.key] || (!cards.length && event.key !== "s")) return;
  event.preventDefault();
  actions[event.key]();
});
