"use strict";
// The map of a report: Bokeh draws and moves the points; this searches, colours and names them.
(() => {
  const HOVER_PIXELS = 14, LEGEND_ROWS = 300, WHOLE = [-0.04, 1.04, -0.04, 1.04];
  const root = document.getElementById("map");
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const part = (name) => document.getElementById(`map-${name}`);
  const lower = (texts) => texts.map((text) => text.toLowerCase());
  const classNames = lower(data.groupings[0].names), texts = lower(data.texts);
  let plot, source, columns, found = [], step = -1;

  function element(tag, text, name) {
    const made = document.createElement(tag);
    if (text) made.textContent = text;  // never as HTML: labels and paths are anybody's
    if (name) made.className = name;
    return made;
  }

  function groupOf(place, index) {
    return data.groupings[place].names[columns[`group_${place}`][index]];
  }

  // Where things are. ----------------------------------------------------------------------------------------------

  function zoomTo([left, right, bottom, top]) {
    plot.x_range.setv({ start: left, end: right });
    plot.y_range.setv({ start: bottom, end: top });
    hideCard();
  }

  function zoomBy(factor) {
    const scaled = ({ start, end }) => {
      const middle = (start + end) / 2, half = (end - start) / 2 * factor;
      return [middle - half, middle + half];
    };
    zoomTo([...scaled(plot.x_range), ...scaled(plot.y_range)]);
  }

  function zoomToFound() {
    let [left, right, bottom, top] = [1, 0, 1, 0];
    for (const i of found) {
      left = Math.min(left, columns.x[i]); right = Math.max(right, columns.x[i]);
      bottom = Math.min(bottom, columns.y[i]); top = Math.max(top, columns.y[i]);
    }
    const wide = Math.max(0.03, (right - left) * 0.1), high = Math.max(0.03, (top - bottom) * 0.1);
    zoomTo([left - wide, right + wide, bottom - high, top + high]);
  }

  function scale() {
    const { x_range: x, y_range: y } = plot;
    return { left: x.start, top: y.end, x: plot.inner_width / (x.end - x.start), y: plot.inner_height / (y.end - y.start) };
  }

  // A hundred thousand comparisons take less than a millisecond, so no index is kept.
  function nearestTo(sx, sy) {
    const { left, top, x, y } = scale();
    let best = -1, least = HOVER_PIXELS ** 2;
    for (let i = 0; i < columns.x.length; i++) {
      const distance = ((columns.x[i] - left) * x - sx) ** 2 + ((top - columns.y[i]) * y - sy) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  // The card of one point. -----------------------------------------------------------------------------------------

  function showCard(index) {
    const card = part("card"), ring = part("ring");
    const { left, top, x, y } = scale();
    const sx = (columns.x[index] - left) * x, sy = (top - columns.y[index]) * y;
    card.replaceChildren();
    if (String(index) in data.pictures) {
      const image = element("img");
      image.alt = "";
      image.src = `data:image/webp;base64,${data.pictures[index]}`;
      card.append(image);
    }
    card.append(element("b", groupOf(0, index)));
    for (let place = 1; place < data.groupings.length; place++)
      card.append(element("span", `${data.groupings[place].title}: ${groupOf(place, index)}`));
    card.append(element("span", data.texts[index], "map-path"));
    ring.hidden = card.hidden = false;
    ring.style.left = `${sx}px`; ring.style.top = `${sy}px`;
    const { offsetWidth: width, offsetHeight: height } = card;
    const { inner_width: all, inner_height: deep } = plot;
    card.style.left = `${Math.max(0, Math.min(sx + 16, sx > all / 2 ? sx - width - 16 : all - width))}px`;
    card.style.top = `${Math.max(0, Math.min(sy + 12, deep - height))}px`;
    card.dataset.point = index;
  }

  function hideCard() {
    part("card").hidden = part("ring").hidden = true;
  }

  function point({ sx, sy }) {
    const index = nearestTo(sx, sy);
    if (index < 0) hideCard();
    else showCard(index);
  }

  // What is looked for. --------------------------------------------------------------------------------------------

  let chosen = null;  // the group of the legend that was clicked, a number

  function search() {
    const words = part("search").value.trim().toLowerCase();
    const place = Number(part("colour").value), codes = columns[`group_${place}`], classes = columns.group_0;
    const named = classNames.map((name) => name.includes(words));
    found = [];
    step = -1;
    if (words || chosen !== null)
      for (let i = 0; i < texts.length; i++)
        if ((chosen === null || codes[i] === chosen) && (named[classes[i]] || texts[i].includes(words))) found.push(i);
    source.selected.indices = found;
    if (found.length) zoomToFound();
    else zoomTo(WHOLE);
    part("found").textContent = !words && chosen === null ? ""
      : found.length ? `${found.length.toLocaleString("en")} of ${texts.length.toLocaleString("en")} found` : "Nothing found";
    drawLegend(words);
  }

  function nextFound() {
    if (!found.length) return;
    step = (step + 1) % found.length;
    showCard(found[step]);
  }

  // Colours and their legend. --------------------------------------------------------------------------------------

  function colour() {
    const place = Number(part("colour").value), codes = columns[`group_${place}`];
    const values = data.groupings[place].colours.map((value) => parseInt(`${value.slice(1)}ff`, 16));
    for (let i = 0; i < codes.length; i++) columns.colour[i] = values[codes[i]];
    source.change.emit();
    chosen = null;
    search();
  }

  function drawLegend(words) {
    const place = Number(part("colour").value), { names, colours } = data.groupings[place];
    const counts = new Uint32Array(names.length);
    for (const code of columns[`group_${place}`]) counts[code]++;
    let rows = names.map((_, code) => code).filter((code) => counts[code]);
    const matching = words && place === 0 ? rows.filter((code) => classNames[code].includes(words)) : [];
    if (matching.length) rows = matching;
    rows.sort((a, b) => counts[b] - counts[a] || a - b);
    const legend = part("legend");
    legend.replaceChildren(...rows.slice(0, LEGEND_ROWS).map((code) => {
      const row = element("button"), swatch = element("i");
      row.type = "button";
      row.setAttribute("aria-pressed", String(code === chosen));
      swatch.style.background = colours[code];
      row.append(swatch, element("span", names[code]), element("small", counts[code].toLocaleString("en")));
      row.addEventListener("click", () => { chosen = code === chosen ? null : code; search(); });
      return row;
    }));
    const more = rows.length - LEGEND_ROWS;
    if (more > 0) legend.append(element("p", `${more.toLocaleString("en")} more: search for their names.`));
  }

  // ----------------------------------------------------------------------------------------------------------------

  function start() {
    const page = Bokeh.documents[Bokeh.documents.length - 1];
    plot = page.get_model_by_name("embedding_map");
    source = page.get_model_by_name("points");
    columns = source.data instanceof Map ? Object.fromEntries(source.data) : source.data;
    data.groupings.forEach((group, place) => part("colour").append(new Option(group.title, place)));
    plot.on_event("mousemove", point);
    plot.on_event("tap", point);
    plot.on_event("rangesupdate", hideCard);
    const wheel = plot.toolbar.tools.find((tool) => tool.type === "WheelZoomTool");
    part("plot").addEventListener("pointerdown", () => { wheel.active = true; part("notice").hidden = true; });
    part("plot").addEventListener("wheel", () => {  // which scrolls the page now, to the surprise of who wants to zoom
      part("notice").hidden = wheel.active;
    }, { passive: true });
    part("plot").addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "mouse") return;  // a finger leaves at once after each tap
      wheel.active = false;
      part("notice").hidden = true;
      hideCard();
    });
    let waiting;
    part("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 150); });
    part("search").addEventListener("keydown", (event) => { if (event.key === "Enter") nextFound(); });
    part("colour").addEventListener("change", colour);
    part("in").addEventListener("click", () => zoomBy(0.6));
    part("out").addEventListener("click", () => zoomBy(1 / 0.6));
    part("reset").addEventListener("click", () => { part("search").value = ""; chosen = null; search(); });
    drawLegend("");
    root.dataset.ready = "true";
  }

  // The picture of the same map stays, for print and for browsers where this fails.
  root.hidden = false;
  root.parentElement.classList.add("live");
  Bokeh.set_log_level("error");
  Bokeh.embed.embed_item(data.plot, "map-plot").then(start).catch((error) => {
    root.hidden = true;
    root.parentElement.classList.remove("live");
    throw error;
  });
})();
