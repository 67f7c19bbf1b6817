// ---- the table --------------------------------------------------------------------------------------------------
const HEADS = [["target", "target"], ["label", "backbone"], ["ways", "ways"], ["shots", "shots"], ["probe", "probe"], ["split", "split"], ["metric", "metric"], ["mean", "mean"], ["interval", "95 % interval"], ["n", "over"], ["images", "and new images"], ["params", "parameters"], ["source", "trained on"]].filter(([k]) => k !== "images" || cells.some(imagesInterval));
const TIPS = { mean: "Sort by the mean, in percent where the metric says so", interval: "Sort by the width of the interval", n: "What the interval is over", images: "The interval over episodes and test images" };
const NUMERIC = new Set(["ways", "shots", "mean", "n", "interval", "images"]);
const PAGE = 20;
let order = null, ascending = true, limit = PAGE;
const haystacks = cells.map((c) => [c.target, c.label, c.source, `${c.ways}-way`, `${c.shots}-shot`, c.probe, methodName(c.probe), c.params, c.split, c.metric, metricName(c.metric)].join(" ").toLowerCase());
const sortValue = { ways: (c) => bigLast(c.ways), shots: (c) => bigLast(c.shots), mean: (c) => c.mean * scale(c.metric), n: (c) => (c.interval === "episodes" ? c.n : c.queries), interval: (c) => (c.low === null ? -1 : c.high - c.low), images: (c) => (imagesInterval(c) ? c.high_images - c.low_images : -1) };
function matching() {
  const words = byId("table-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = cells.map((_, i) => i).filter((i) => isShown(cells[i].label, cells[i].target) && words.every((w) => haystacks[i].includes(w)));
  if (order) {
    const value = sortValue[order];
    const compare = value ? (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0) : (a, b) => natural(a[order], b[order]);
    found.sort((a, b) => (ascending ? 1 : -1) * compare(cells[a], cells[b]) || a - b);
  }
  return found;
}
function fillTable() {
  const found = matching();
  const rows = found.slice(0, limit).map((i) => {
    const c = cells[i];
    const name = element("span", { class: "name" }, c.label);
    name.style.setProperty("--c", `var(--b${indexOf(c.label) % COLOURS})`);
    const values = {
      target: c.target, label: name, source: c.source, ways: c.ways, shots: c.shots, probe: methodName(c.probe), params: c.params, split: c.split,
      metric: metricUnit(c.metric), mean: shown(c.mean, c.metric), interval: c.low === null ? "–" : interval(c), n: behind(c), images: imagesInterval(c) || "–",
    };
    return element("tr", {}, ...HEADS.map(([k]) => {
      const long = typeof values[k] === "string" && values[k].length > 26;
      return element("td", { class: NUMERIC.has(k) ? "num" : "text", title: long ? values[k] : null, "data-key": k }, values[k]);
    }));
  });
  byId("cells").tBodies[0].replaceChildren(...rows);
  byId("table-status").textContent = found.length === cells.length && rows.length === found.length
    ? `${thousands(found.length)} cells.`
    : `${found.length < cells.length ? `${thousands(found.length)} of ` : ""}${thousands(cells.length)} cells${rows.length < found.length ? `, the first ${thousands(rows.length)} shown` : ""}.`;
  byId("more").hidden = rows.length >= found.length;
  byId("more").textContent = `Show all ${thousands(found.length)} rows`;
}
function tableHead() {
  byId("cells").tHead.replaceChildren(element("tr", {}, ...HEADS.map(([k, text]) =>
    element("th", { scope: "col", class: NUMERIC.has(k) ? "num" : null, "aria-sort": "none", "data-key": k },
      element("button", { type: "button", title: TIPS[k] || `Sort by ${text}`, onclick: () => sortBy(k) }, text)))));
}
function sortBy(key) {
  // Numbers start with the largest, text with A.
  const firstAscending = !["mean", "n", "interval", "images"].includes(key);
  ascending = order === key ? !ascending : firstAscending;
  order = key;
  for (const th of byId("cells").querySelectorAll("th")) {
    th.setAttribute("aria-sort", th.dataset.key === order ? (ascending ? "ascending" : "descending") : "none");
  }
  fillTable();
}
function saveCells() { download("fastxfer-cells.csv", "text/csv", csvOf(CELL_HEADS, matching().map((i) => cellRow(cells[i])))); }
