const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const COLOURS = 7;
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const METHODS = { logistic: "circle", ridge: "square", prototype: "triangle-up", knn: "diamond", finetune: "star" };
const METHOD_NAMES = { logistic: "logistic", ridge: "ridge", prototype: "prototype", knn: "kNN", finetune: "fine-tuned" };
const UNITS = new Set(["accuracy", "balanced_accuracy", "auc", "average_precision"]);

// ---- data -------------------------------------------------------------------------------------------------------
/** Lines from columns; text columns come as numbers into their distinct values. */
function linesOf(columns) {
  const names = Object.keys(columns);
  const at = (name, i) => (Array.isArray(columns[name]) ? columns[name][i] : columns[name].levels[columns[name].codes[i]]);
  const first = names.length ? columns[names[0]] : [];
  return (Array.isArray(first) ? first : first.codes).map((_, i) => Object.fromEntries(names.map((name) => [name, at(name, i)])));
}
const cells = linesOf(data.cells);
const natural = new Intl.Collator("en", { numeric: true }).compare;
const bigLast = (v) => (v === "all" || v === "full" ? Infinity : Number(v));
const distinct = (rows, key) => [...new Set(rows.map((r) => r[key]))];
const targets = distinct(cells, "target");

const isKnown = (v) => v !== null && v !== undefined;
const scale = (metric) => (UNITS.has(metric) ? 100 : 1);
// As percent() of words.py: only 1 itself is "100", what would round to it gets a second digit.
function shown(value, metric) {
  if (!UNITS.has(metric)) return value.toFixed(3);
  if (value === 1) return "100";
  const text = (100 * value).toFixed(1);
  return text === "100.0" && value < 1 ? Math.min(100 * value, 99.99).toFixed(2) : text;
}
const between = (low, high, metric) => (UNITS.has(metric)
  ? `${shown(Math.max(low, 0), metric)}–${shown(Math.min(high, 1), metric)}` : `${shown(low, metric)}–${shown(high, metric)}`);
const interval = (c) => between(c.low, c.high, c.metric);
const range = (c) => (c.low === null ? "" : ` (${interval(c)})`);
// Few-shot cells have a second interval: over episodes and test images. It is null where it isn't offered.
const imagesInterval = (c) => (c.interval === "episodes" && isKnown(c.low_images) ? between(c.low_images, c.high_images, c.metric) : "");
const metricName = (metric) => data.metricNames[metric] || metric;
const metricUnit = (metric) => `${metricName(metric)}${UNITS.has(metric) ? ", %" : ""}`;
const methodName = (probe) => METHOD_NAMES[probe] || probe;
const methodSymbol = (probe) => METHODS[probe] || "hexagon";
const thousands = (n) => n.toLocaleString("en");
const plural = (n, word) => `${thousands(n)} ${word}${n === 1 ? "" : "s"}`;
const listed = (items) => (items.length < 2 ? items.join("") : `${items.slice(0, -1).join(", ")} and ${items[items.length - 1]}`);

// ---- text for Plotly, which reads a few HTML tags and %{…} of its own --------------------------------------------
const plain = (text) =>
  String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%\{/g, "%\u200b{");
const short = (text, n) => (String(text).length > n ? String(text).slice(0, n - 1) + "…" : String(text));

// ---- elements and files ---------------------------------------------------------------------------------------------
function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [k, v] of Object.entries(attributes)) {
    if (k.startsWith("on")) node.addEventListener(k.slice(2), v);
    else if (v !== false && isKnown(v)) node.setAttribute(k, v === true ? "" : v);
  }
  node.append(...children);
  return node;
}
function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
function csvOf(heads, rows) {
  const quote = (v) => {
    const text = isKnown(v) ? String(v) : "";
    // A name that starts like a formula must not become one in a spreadsheet.
    const safe = typeof v === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
  };
  return [heads, ...rows].map((row) => row.map(quote).join(",")).join("\n") + "\n";
}
const fileName = (...parts) => parts.join("-").replace(/[^\w.-]+/g, "_").slice(0, 80);

// ---- colours: always those of the style sheet, so that dark mode and paper need no second list ----------------------
function theme() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(name).trim();
  return {
    ink: get("--ink"), soft: get("--soft"), line: get("--line"), grid: get("--grid"), paper: get("--paper"), warn: get("--warn"),
    sans: get("--sans").replace(/"/g, "'"),
    backbones: Array.from({ length: COLOURS }, (_, i) => get(`--b${i}`)),
  };
}
/** What is kept as a file is drawn for white paper, whatever the screen shows. */
function paperTheme() {
  const root = document.documentElement;
  root.dataset.paper = "";
  const colours = theme();
  delete root.dataset.paper;
  return colours;
}
function rgba(hex, alpha) {
  const n = parseInt(hex.slice(1), 16);
  return `rgba(${n >> 16},${(n >> 8) & 255},${n & 255},${alpha})`;
}
const indexOf = (label) => Math.max(0, data.labels.indexOf(label));
const colourOf = (label, t) => t.backbones[indexOf(label) % COLOURS];
// Those who share a colour (from the eighth backbone on) differ in marker and dash.
const symbolOf = (label) => SYMBOLS[(indexOf(label) + Math.floor(indexOf(label) / COLOURS)) % SYMBOLS.length];
const dashOf = (label) => DASHES[Math.floor(indexOf(label) / COLOURS) % DASHES.length];

/** `extra.margin` of less than 20 pixels is for long names: there the margin grows as needed, which takes a third of the drawing. */
function layout(t, extra) {
  const axis = {
    color: t.soft, gridcolor: t.grid, linecolor: t.line, zeroline: false, fixedrange: true, automargin: Boolean(extra.margin) && extra.margin.l < 20,
    tickfont: { size: 12 }, title: { font: { size: 12 }, standoff: 8 },
  };
  return {
    font: { family: t.sans, size: 12, color: t.ink },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 40, r: 14, t: 10, b: 42 }, showlegend: false, dragmode: false, hovermode: "closest",
    hoverlabel: { bgcolor: t.paper, bordercolor: t.line, font: { family: t.sans, color: t.ink, size: 12 }, align: "left" },
    ...extra,
    xaxis: { ...axis, ...extra.xaxis, title: { ...axis.title, ...(extra.xaxis || {}).title } },
    yaxis: { ...axis, ...extra.yaxis, title: { ...axis.title, ...(extra.yaxis || {}).title } },
  };
}
/** Ticks of a logarithmic axis between two values: 1, 2, 5, 10 … as many as there is room for. */
function logTicks(low, high) {
  const powers = Array.from({ length: 40 }, (_, i) => i - 19), inside = (v) => v >= low && v <= high;
  const fine = powers.flatMap((p) => [1, 2, 5].map((m) => Number(`${m}e${p}`))).filter(inside);
  if (fine.length <= 6) return fine;
  const coarse = powers.map((p) => Number(`1e${p}`)).filter(inside), step = Math.ceil(coarse.length / 6);
  return coarse.filter((_, i) => i % step === 0);
}
const CONFIG = { displayModeBar: false, responsive: false, showTips: false, doubleClick: false };
