// ---- panels: a figure with its name, what it says in words, its table and its files --------------------------------
const panels = new Map(); // element id -> panel
const waiting = new Set(); // panels whose picture is out of date

/**
 * Show figures in a box, reusing what is there. `specs` = [{key, title, subtitle, target, name, make(theme, width)}], where
 * `make` gives {traces, layout, says, table: {heads, rows}}, and `legend` (a mode of Plotly's) where
 * only the page's legend names its colours; `name` is that of its files; `target`, where the whole
 * panel speaks of one, makes its title choose that target everywhere.
 */
function show(boxId, specs) {
  const box = byId(boxId);
  if (!box) return;
  const wanted = new Set(specs.map((s) => `${boxId}-${s.key}`));
  for (const [id, panel] of [...panels]) {
    if (panel.box === box && !wanted.has(id)) { Plotly.purge(panel.plot); panel.node.remove(); panels.delete(id); waiting.delete(panel); }
  }
  const shownPanels = specs.map((spec, i) => {
    const id = `${boxId}-${spec.key}`;
    if (!panels.has(id)) panels.set(id, newPanel(id, box));
    const panel = panels.get(id);
    Object.assign(panel, { make: spec.make, name: spec.name });
    entitle(panel, spec);
    // Moving a node takes the focus from it, so it stays where it is already.
    if (box.children[i] !== panel.node) box.insertBefore(panel.node, box.children[i] || null);
    return panel;
  });
  refresh(shownPanels);
}
/** What stands beside a figure's caption. */
function note(key, words) {
  const place = byId(`${key}-note`);
  if (place) place.textContent = words;
}
function newPanel(id, box) {
  const panel = {
    id, box,
    heading: element("h3", { id: `${id}-h` }),
    says: element("p", { class: "says", id: `${id}-says` }),
    plot: element("div", { class: "plot", id, role: "img", "aria-labelledby": `${id}-h`, "aria-describedby": `${id}-says` }),
    data: element("div", { class: "data", id: `${id}-data`, hidden: true }),
  };
  const button = (text, what, act, more = {}) => element("button", { type: "button", onclick: act, ...more }, text, element("span", { class: "unseen" }, ` ${what}`));
  panel.more = button("Table", "of this figure", () => toggleData(panel), { "aria-expanded": "false", "aria-controls": `${id}-data` });
  const files = element("div", { class: "files", role: "group", "aria-labelledby": `${id}-h` }, panel.more,
    button("SVG", "of this figure, to download", () => saveSvg(panel)),
    button("PDF", "of this figure, by printing it", () => savePdf(panel)),
    button("CSV", "of this figure’s data, to download", () => saveCsv(panel)));
  panel.node = element("div", { class: "panel" }, element("header", {}, panel.heading, files), panel.says, panel.plot, panel.data);
  return panel;
}
function entitle(panel, { title, subtitle, target }) {
  if (panel.title !== title) {
    panel.title = title;
    panel.choose = target === undefined || targets.length < 2 ? null
      : element("button", { type: "button", class: "pick", title: "Show this target alone, everywhere", onclick: () => onlyTarget(target) }, title);
    panel.heading.replaceChildren(panel.choose || title, " ", element("small"));
  }
  if (panel.choose) panel.choose.setAttribute("aria-pressed", String(state.target === target));
  panel.heading.querySelector("small").textContent = subtitle || "";
}
/** Words, table and height at once; the picture when its turn comes. */
function refresh(some) {
  // All widths are read before anything is written: each read after a write would lay out the page anew.
  const t = theme(), widths = some.map((panel) => panel.plot.clientWidth || 600);
  some.forEach((panel, i) => {
    panel.width = widths[i];
    panel.made = panel.make(t, panel.width);
    panel.says.textContent = panel.made.says;
    panel.plot.style.height = `${panel.made.layout.height}px`;
    if (!panel.data.hidden) fillData(panel);
    waiting.add(panel);
  });
}
function draw(panel) {
  waiting.delete(panel);
  const { traces, layout: own } = panel.made;
  Plotly.react(panel.plot, traces, { ...layout(theme(), own), width: panel.width }, CONFIG);
  if (!panel.clicks) {
    panel.clicks = true;
    panel.plot.on("plotly_click", ({ points: [p] }) => { if (data.labels.includes(p.data.meta)) only(p.data.meta); });
  }
}
const later = window.requestIdleCallback ? (act) => requestIdleCallback(act, { timeout: 400 }) : (act) => setTimeout(act, 0);
function drawInSight() {
  for (const panel of [...waiting]) {
    const { top, bottom } = panel.plot.getBoundingClientRect();
    if (bottom > 0 && top < innerHeight) draw(panel);
  }
}
/** What is in sight is drawn at once, the rest one by one while the reader reads; then the page is "ready". */
function drawWaiting() {
  delete document.documentElement.dataset.ready;
  drawInSight();
  const next = () => {
    const [panel] = waiting;
    if (panel) { draw(panel); later(next); } else document.documentElement.dataset.ready = "true";
  };
  later(next);
}
function drawAll() { [...waiting].forEach(draw); }
function redraw() { refresh([...panels.values()]); drawWaiting(); }

// ---- what a figure shows, as a table and as files --------------------------------------------------------------------
function toggleData(panel) {
  panel.data.hidden = !panel.data.hidden;
  panel.more.setAttribute("aria-expanded", String(!panel.data.hidden));
  if (!panel.data.hidden) fillData(panel);
}
/** A column that holds one thing only goes into the caption. */
function fillData(panel) {
  const { heads, rows } = panel.made.table;
  const same = (i) => rows.length > 1 && rows.every((row) => row[i] === rows[0][i]);
  const kept = heads.map((_, i) => i).filter((i) => !same(i));
  const constant = heads.map((head, i) => [head, i]).filter(([, i]) => same(i) && isKnown(rows[0][i]) && rows[0][i] !== "").map(([head, i]) => `${head} ${rows[0][i]}`);
  const text = (v) => (!isKnown(v) ? "–" : typeof v === "number" && !Number.isInteger(v) ? String(Number(v.toPrecision(4))) : String(v));
  const numeric = (i) => rows.some((row) => typeof row[i] === "number");
  panel.data.replaceChildren(element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": `Table: ${panel.title}` },
    element("table", {},
      element("caption", {}, `${panel.title}${constant.length ? `; in all rows: ${constant.join(", ")}` : ""}`),
      element("thead", {}, element("tr", {}, ...kept.map((i) => element("th", { scope: "col", class: numeric(i) ? "num" : null }, heads[i].replace(/_/g, " "))))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...kept.map((i) => element("td", { class: numeric(i) ? "num" : null }, text(row[i])))))))));
}
function saveCsv({ name, made }) { download(`${name}.csv`, "text/csv", csvOf(made.table.heads, made.table.rows)); }
/** {data, layout} of a figure that stands alone on white paper: with its title, and a legend where the page's names its colours. */
function drawingOf({ make, width, heading }) {
  const t = paperTheme(), { traces, layout: own, legend } = make(t, width), margin = { ...layout(t, {}).margin, ...own.margin };
  const names = legend ? data.labels.filter((label) => traces.some((trace) => trace.meta === label)) : [];
  const keys = names.map((label) => ({
    type: "scatter", mode: legend, x: [null], y: [null], name: plain(short(label, 30)),
    line: { color: colourOf(label, t), width: 2, dash: dashOf(label) }, marker: { color: colourOf(label, t), size: 7, symbol: symbolOf(label) },
  }));
  const above = 26, below = names.length ? 14 + 20 * Math.ceil(names.length / Math.max(1, Math.floor(width / 150))) : 0;
  const alone = {
    ...own, height: own.height + above + below, margin: { ...margin, t: margin.t + above, b: margin.b + below },
    title: { text: `<b>${plain(heading.firstChild.textContent)}</b>  ${plain(heading.querySelector("small").textContent)}`, font: { size: 13 }, x: 0.01, yref: "container", y: 1, yanchor: "top", pad: { t: 8, l: 4 } },
    ...(names.length ? { showlegend: true, legend: { orientation: "h", x: 0, xref: "container", y: 0, yref: "container", yanchor: "bottom" } } : {}),
  };
  const drawn = names.length ? [...traces.map((trace) => ({ ...trace, showlegend: false })), ...keys] : traces;
  return { data: drawn, layout: { ...layout(t, alone), paper_bgcolor: t.paper, width } };
}
/** {svg, width, height} */
async function pictureOf(panel) {
  const drawing = drawingOf(panel), { width, height } = drawing.layout;
  return { svg: await Plotly.toImage(drawing, { format: "svg", width, height, imageDataOnly: true }), width, height };
}
async function saveSvg(panel) { download(`${panel.name}.svg`, "image/svg+xml", (await pictureOf(panel)).svg); }
/** The browser writes PDF when it prints: for that moment the page is this figure alone, on paper of its size. */
async function savePdf(panel) {
  const { svg, width, height } = await pictureOf(panel);
  const root = document.documentElement, title = document.title;
  const image = element("img", { src: `data:image/svg+xml,${encodeURIComponent(svg)}`, alt: panel.made.says, width, height });
  const sheet = element("div", { class: "sheet" }, element("style", {}, `@page { size: ${width}px ${height}px; margin: 0; }`), image);
  document.body.append(sheet);
  await image.decode();
  root.dataset.sheet = "";
  document.title = panel.name;
  addEventListener("afterprint", () => {
    sheet.remove();
    delete root.dataset.sheet;
    document.title = title;
  }, { once: true });
  print();
}
