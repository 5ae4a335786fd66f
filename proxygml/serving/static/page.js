// Searches, adds and removes by the HTTP interface and nothing else. Names, labels and messages come from elsewhere: they
// are set as text only. The token stays in its field: it is in no address, no storage and no history.
const at = (id) => document.getElementById(id);
const images = new Map(); // the images or vectors searched with, by the key in their history entry: Back finds them again
const MOST_TRIES = 3;
const TITLES = {
  0: "The server does not answer", 401: "The token is missing or wrong", 403: "No changes are possible",
  404: "This item is gone", 409: "Not possible now", 413: "Too large", 415: "Not an image that is taken",
  422: "This cannot be used", 429: "The server is busy", 500: "The server failed", 503: "The server was too slow",
};
let gallery = { columns: [], takes: "image", kinds: [], max_k: 100, max_upload_mb: Infinity, changes: false };
let view = null; // what is shown: {key or item, name, k, where}
let where = []; // the filters, column=value
let underWay = null;

const refusal = (status, message) => Object.assign(new Error(message), { status });

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Requests ------------------------------------------------------------------------------------------------------------
async function ask(path, options = {}, tries = 1) {
  const answer = await fetch(path, { cache: "no-store", redirect: "error", ...options }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw refusal(0, "Is it still running, and is this machine connected to it?");
  });
  if (answer.status === 204) return null;
  const said = await answer.json().catch(() => ({ error: `It answered with status ${answer.status}.` }));
  if (answer.ok) return said;
  const wait = Math.min(10, Number(answer.headers.get("Retry-After")) || 1);
  if (answer.status !== 429 || tries === MOST_TRIES) throw refusal(answer.status, String(said.error));
  say(`The server is busy. Trying again in ${wait} s.`, true);
  await new Promise((resume) => setTimeout(resume, 1000 * wait));
  return ask(path, options, tries + 1);
}

function authorised(options) {
  try {
    return { ...options, headers: new Headers({ Authorization: `Bearer ${at("token").value}` }) };
  } catch {
    throw refusal(401, "It has characters that cannot be sent: type it again.");
  }
}

async function describe() {
  try {
    gallery = await ask("gallery");
    at("size").textContent = gallery.items === 1 ? "1 item" : `${gallery.items.toLocaleString("en")} items`;
    at("file").accept = gallery.kinds.join();
    showInput(gallery.takes === "vector");
    at("k").max = gallery.max_k;
    at("columns").replaceChildren(...gallery.columns.map((name) => make("option", { value: `${name}=` })));
    at("change").hidden = !gallery.changes;
    if (at("values").childElementCount !== gallery.columns.length) at("values").replaceChildren(...gallery.columns.map(field));
  } catch (error) {
    showError(error, describe);
  }
}

function showInput(takesVectors) {
  at("drop").hidden = takesVectors;
  at("vector-form").hidden = !takesVectors;
  if (!takesVectors) return;
  document.title = at("heading").textContent = "Search by vector";
  at("vector-help").textContent =
    `${gallery.vector_size.toLocaleString("en")} numbers, as JSON or separated by commas, of the model whose vectors this one was trained on.`;
  at("add").textContent = "Add the query vector";
}

function field(name, index) {
  const input = make("input", { id: `value-${index}`, autocomplete: "off" });
  input.dataset.column = name;
  return make("div", {}, make("label", { htmlFor: input.id, textContent: name, dir: "auto" }), input);
}

// Searching -----------------------------------------------------------------------------------------------------------
async function search(wanted, { push = false, focus = null } = {}) {
  underWay?.abort();
  const mine = (underWay = new AbortController());
  view = wanted;
  if (push) history.pushState(view, "", address(view));
  showQuery();
  at("results").ariaBusy = "true";
  let failure = null;
  const answer = await ask(...request(view, mine.signal)).catch((error) => { failure = error; });
  if (mine !== underWay) return; // another search has begun
  at("results").ariaBusy = "false";
  if (failure !== null) clear(); // what is shown is not what was searched with
  if (failure !== null) return showError(failure, () => search(wanted));
  showAnswer(answer);
  if (focus !== null) place(focus);
}

function request({ key, item, k, where }, signal) {
  const form = key === undefined ? new URLSearchParams() : new FormData();
  form.append("k", k);
  for (const pair of where) form.append("where", pair);
  if (key === undefined) return [`items/${item}/neighbors?${form}`, { signal }];
  appendQuery(form, key);
  return ["search", { method: "POST", body: form, signal }];
}

function appendQuery(form, key) {
  if (gallery.takes === "vector") form.append("vector", images.get(key));
  else form.append("image", images.get(key), "image");
}

const address = ({ item, k, where }) =>
  item === undefined ? "#image" : `#${new URLSearchParams([["item", item], ["k", k], ...where.map((pair) => ["where", pair])])}`;

function settings() {
  const k = Math.round(Math.min(gallery.max_k, Math.max(1, at("k").valueAsNumber || 1)));
  at("k").value = k;
  return { k, where };
}

function searchByVector() {
  const text = at("vector").value.trim();
  if (!text) return showError(refusal(422, "Give a vector: its numbers, as JSON or separated by commas."));
  const key = `${performance.timeOrigin}.${images.size}`;
  images.set(key, text);
  return search({ key, name: "Your vector", ...settings() }, { push: true });
}

function searchByImage(file) {
  if (gallery.takes === "vector") return showError(refusal(415, "This gallery is searched with vectors, not with images."));
  if (!file) return showError(refusal(415, "Give an image file: a link or a text cannot be searched with."));
  if (file.size + 1000 > gallery.max_upload_mb * 1e6) {
    const size = (file.size / 1e6).toFixed(1);
    return showError(refusal(413, `The file has ${size} MB, but at most ${gallery.max_upload_mb} MB are taken.`));
  }
  const key = `${performance.timeOrigin}.${images.size}`;
  images.set(key, file);
  return search({ key, name: file.name, ...settings() }, { push: true });
}

function searchByItem(item) {
  history.replaceState({ ...view, from: item.id }, ""); // Back leads to where one was
  search({ item: item.id, name: nameOf(item), ...settings() }, { push: true, focus: "title" });
}

function restore(state) {
  const hash = new URLSearchParams(location.hash.slice(1));
  const item = /^\d{1,15}$/.test(hash.get("item")) ? Number(hash.get("item")) : undefined;
  const k = Number(hash.get("k")) || at("k").valueAsNumber;
  const wanted = state ?? { item, name: `Item ${item}`, k, where: hash.getAll("where") };
  where = wanted.where;
  at("k").value = wanted.k;
  if (wanted.item !== undefined || images.has(wanted.key)) return search(wanted, { focus: wanted.from ?? null });
  underWay?.abort();
  underWay = view = null;
  return showQuery();
}

// Showing -------------------------------------------------------------------------------------------------------------
const nameOf = (item) => String(item.label ?? `Item ${item.id}`);
function showQuery() {
  const preview = at("preview");
  if (preview.src.startsWith("blob:")) URL.revokeObjectURL(preview.src);
  at("main").classList.toggle("found", view !== null);
  at("seen").hidden = view === null;
  preview.hidden = false;
  at("add").disabled = view?.key === undefined;
  at("filters").replaceChildren(...where.map(chip));
  showError(null);
  if (view === null) return clear();
  preview.alt = view.key === undefined ? `The query: item ${view.item}` : "The query image";
  const isVector = view.key !== undefined && typeof images.get(view.key) === "string";
  preview.hidden = isVector;
  if (isVector) preview.removeAttribute("src");
  else preview.src = view.key === undefined ? `items/${view.item}/image` : URL.createObjectURL(images.get(view.key));
  at("query-name").textContent = view.name;
}

function showAnswer({ items, prediction }) {
  at("items").replaceChildren(...items.map(tile));
  const filtered = view.where.length ? `, where ${view.where.join(", ")}` : "";
  const query = view.key === undefined ? `item ${view.item}` : `your ${gallery.takes}`;
  at("title").textContent = `${items.length} nearest to ${query}${filtered}`;
  at("verdict").hidden = prediction === null; // no label is no rejection
  const { label, share } = prediction ?? { label: "" };
  at("verdict-label").textContent = label ?? "None of the known classes";
  at("verdict-share").textContent = label ? `${Math.round(100 * share)}% of the neighbors' votes` : "";
  say(`${at("title").textContent}. ${at("verdict").textContent.trim()}`);
}

function tile(item) {
  const source = `items/${item.id}/image`;
  const image = make("img", { alt: `Item ${item.id}`, loading: "lazy", width: 320, height: 320, src: source });
  image.addEventListener("error", () => setTimeout(() => (image.src = source), 1500), { once: true }); // it was busy
  const label = make("span", { className: "label", textContent: nameOf(item), title: nameOf(item), dir: "auto" });
  const score = make("span", { className: "score", textContent: Number(item.score).toFixed(3), title: "cosine similarity" });
  const button = make("button", { type: "button", className: "tile" }, image, label, " ", score);
  button.dataset.item = item.id;
  button.addEventListener("click", () => searchByItem(item));
  const remove = make("button", { type: "button", className: "remove", textContent: "Remove" });
  remove.ariaLabel = `Remove item ${item.id}, ${nameOf(item)}`;
  remove.addEventListener("click", () => removeItem(item));
  return make("li", {}, button, remove);
}

function chip(pair) {
  const button = make("button", { type: "button", textContent: pair, dir: "auto", ariaLabel: `Remove the filter ${pair}` });
  button.addEventListener("click", () => {
    filterBy(where.filter((other) => other !== pair));
    at("filter").focus();
  });
  return make("li", {}, button);
}

function showError(error, again = null) {
  at("error").replaceChildren();
  if (error === null) return;
  const words = error.message.charAt(0).toUpperCase() + error.message.slice(1);
  const title = make("b", { textContent: TITLES[error.status] ?? "This did not work" });
  at("error").append(title, make("span", { textContent: words, dir: "auto" }));
  at("error").scrollIntoView({ block: "nearest" });
  if (again === null || ![0, 429, 500, 503].includes(error.status)) return;
  const button = make("button", { type: "button", textContent: "Try again" });
  button.addEventListener("click", () => { showError(null); again(); });
  at("error").append(button);
}

function clear() {
  at("items").replaceChildren();
  at("title").textContent = "";
  at("verdict").hidden = true;
}

function say(words, visibly = false) {
  at("status").className = visibly ? "toast" : "hidden";
  at("status").textContent = "";
  requestAnimationFrame(() => (at("status").textContent = words));
}

function place(focus) {
  const tile = document.querySelector(`.tile[data-item="${Number(focus)}"]`);
  if (tile !== null) return tile.focus();
  scrollTo(0, 0);
  at("title").focus({ preventScroll: true });
}

// Changing ------------------------------------------------------------------------------------------------------------
async function changing(path, options, done) {
  if (at("change").ariaBusy === "true") return;
  at("change").ariaBusy = "true"; // once is enough
  try {
    const words = done(await ask(path, authorised(options)));
    await describe();
    await search(view, { focus: "title" });
    say(words, true);
  } catch (error) {
    showError(error);
    if (error.status === 401) at("token").focus();
  } finally {
    at("change").ariaBusy = "false";
  }
}

function addImage() {
  const form = new FormData();
  appendQuery(form, view.key);
  for (const input of at("values").querySelectorAll("input")) {
    if (input.value !== "") form.append("column", `${input.dataset.column}=${input.value}`);
  }
  return changing("items", { method: "POST", body: form }, (added) => `The ${gallery.takes} was added as item ${added.id}.`);
}

async function removeItem(item) {
  at("question").textContent = `Remove item ${item.id}, ${nameOf(item)}?`;
  at("confirm").returnValue = "";
  at("confirm").showModal();
  await new Promise((closed) => at("confirm").addEventListener("close", closed, { once: true }));
  if (at("confirm").returnValue !== "yes") return;
  await changing(`items/${item.id}`, { method: "DELETE" }, () => `Item ${item.id} was removed.`);
}

function filterBy(pairs) {
  where = pairs;
  if (view === null) return showQuery();
  return search({ ...view, ...settings(), from: undefined }, { push: true });
}

// What a person does --------------------------------------------------------------------------------------------------
const on = (id, event, does) => at(id).addEventListener(event, does);
const submitted = (does) => (event) => { event.preventDefault(); does(); };
on("choose", "click", () => at("file").click());
on("take", "click", () => at("camera").click());
for (const id of ["file", "camera"]) on(id, "change", ({ target }) => { searchByImage(target.files[0]); target.value = ""; });
on("preview", "error", () => (at("preview").hidden = true)); // a format that this browser does not know
on("k", "change", () => filterBy(where));
on("vector-form", "submit", submitted(searchByVector));
on("filter-form", "submit", submitted(() => {
  const pair = at("filter").value.trim();
  at("filter").value = "";
  if (pair && !where.includes(pair)) filterBy([...where, pair]);
}));
on("add-form", "submit", submitted(addImage));
on("change", "toggle", () => document.body.classList.toggle("changing", at("change").open));
on("yes", "click", () => at("confirm").close("yes"));
on("no", "click", () => at("confirm").close("no"));
document.addEventListener("paste", ({ clipboardData, target }) => {
  if (clipboardData.files.length || !target.closest?.("input, textarea")) searchByImage(clipboardData.files[0]);
});
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
document.addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  searchByImage(event.dataTransfer.files[0]);
});
on("skip", "click", (event) => { event.preventDefault(); at("results").focus(); });
addEventListener("popstate", ({ state }) => restore(state));
at("options").open = innerWidth >= 896;
restore(history.state);
describe();
