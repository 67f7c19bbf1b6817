// ---- figure: accuracy against shots -----------------------------------------------------------------------------------
const CELL_HEADS = ["target", "backbone", "source", "ways", "shots", "seed", "probe", "params", "split", "metric", "mean", "low", "high", "interval", "low_images", "high_images", "n", "n_queries"];
const cellRow = (c) => [c.target, c.label, c.source, c.ways, c.shots, c.seed, c.probe, c.params, c.split, c.metric, c.mean, c.low, c.high, c.interval, c.low_images, c.high_images, c.n, c.queries];
const cellTable = (rows) => ({ heads: CELL_HEADS, rows: rows.map(cellRow) });
const point = (c) => `${plain(metricName(c.metric))} <b>${shown(c.mean, c.metric)}</b>${UNITS.has(c.metric) ? " %" : ""}${range(c)}`;
const behind = (c) => (c.interval === "episodes" ? `${thousands(c.n)} episodes` : `${thousands(c.queries)} ${c.split} images`);
function hover(c) {
  const where = c.shots === "full" ? "whole train split" : `${c.ways === "all" ? "all classes" : c.ways + "-way"}, ${c.shots}-shot`;
  const wide = imagesInterval(c);
  return [plain(c.label), point(c), `over ${behind(c)}`, wide && `${wide} over episodes and test images`,
    `${where}, ${plain(methodName(c.probe))}`, plain(short(c.params, 40))].filter(Boolean).join("<br>");
}
/** "a 85.0, then b 80.2" */
const leaders = (rows) => [...rows].sort((a, b) => b.mean - a.mean).slice(0, 2).map((c) => `${c.label} ${shown(c.mean, c.metric)}`).join(", then ");
const settingWords = (shots) => (shots === "full" ? "With the whole train split" : `At ${shots} shot${shots === "1" ? "" : "s"}`);
function curves() {
  const rows = cells.filter((c) => asFiltered(c) && ofWays(c) && (c.shots !== "full" || few.length));
  const withCurve = targets.filter((t) => rows.some((c) => c.target === t));
  note("curves", rows.length
    ? (rows.some((c) => c.shots === "full") ? "The last point, “full”, is the probe on the whole train split; its interval is over test images." : "")
    : few.length ? "No rows match these filters." : "There are no few-shot results yet: fastxfer fewshot makes them.");
  show("curves-figure", withCurve.map((target) => {
    const here = rows.filter((c) => c.target === target);
    const metric = here[0].metric;
    return {
      key: String(targets.indexOf(target)), title: target, target, subtitle: `${here[0].ways === "all" ? "all classes" : here[0].ways + "-way"} ${metricUnit(metric)}`,
      name: fileName("shots", target), make: (t) => curvePanel(t, here, metric),
    };
  }));
}
function curvePanel(t, here, metric) {
  const k = scale(metric);
  const shots = distinct(here.filter((c) => c.shots !== "full"), "shots").map(Number).sort((a, b) => a - b);
  const last = shots.length ? shots[shots.length - 1] : 1;
  const end = last * (shots.length > 1 ? Math.max(1.6, Math.pow(last / shots[0], 0.28)) : 2);
  const x = (c) => (c.shots === "full" ? end : Number(c.shots));
  const bands = [], lines = [];
  const band = (rows, low, high, colour, alpha) => bands.push({
    type: "scatter", mode: "lines", x: [...rows.map(x), ...rows.map(x).reverse()],
    y: [...rows.map((c) => c[high] * k), ...rows.map((c) => c[low] * k).reverse()],
    fill: "toself", fillcolor: rgba(colour, alpha), line: { width: 0 }, hoverinfo: "skip",
  });
  for (const label of data.labels) {
    const own = here.filter((c) => c.label === label).sort((a, b) => x(a) - x(b));
    if (!own.length) continue;
    const colour = colourOf(label, t);
    const curve = own.filter((c) => c.shots !== "full");
    const full = own.filter((c) => c.shots === "full");
    const banded = curve.filter((c) => c.low !== null);
    const wide = curve.filter(imagesInterval);
    if (wide.length > 1) band(wide, "low_images", "high_images", colour, 0.12);
    if (banded.length > 1) band(banded, "low", "high", colour, 0.22);
    lines.push({
      type: "scatter", mode: "lines+markers", name: plain(label), meta: label, x: curve.map(x), y: curve.map((c) => c.mean * k),
      line: { color: colour, width: 2, dash: dashOf(label) }, marker: { color: colour, size: 7, symbol: symbolOf(label) },
      text: curve.map(hover), hovertemplate: "%{text}<extra></extra>",
      error_y: banded.length > 1 ? undefined : errors(curve, k, colour),
    });
    if (full.length) {
      if (curve.length) {
        const from = curve[curve.length - 1];
        bands.push({ type: "scatter", mode: "lines", x: [x(from), end], y: [from.mean * k, full[0].mean * k], line: { color: colour, width: 1, dash: "dot" }, hoverinfo: "skip" });
      }
      lines.push({
        type: "scatter", mode: "markers", name: plain(label), meta: label, x: full.map(x), y: full.map((c) => c.mean * k),
        marker: { color: t.paper, size: 8, symbol: symbolOf(label), line: { color: colour, width: 2 } },
        error_y: errors(full, k, colour), text: full.map(hover), hovertemplate: "%{text}<extra></extra>",
      });
    }
  }
  const hasFull = here.some((c) => c.shots === "full");
  const ends = [shots.length ? shots[0] : end, hasFull ? end : last];
  const pad = Math.max(0.04 * Math.log10(ends[1] / ends[0]), 0.03);
  const chance = chanceOf(here[0]);
  const least = (...values) => Math.min(...values.filter(isKnown)), most = (...values) => Math.max(...values.filter(isKnown));
  const lowest = least(...here.flatMap((c) => [c.mean, c.low, c.low_images])) * k;
  const highest = most(...here.flatMap((c) => [c.mean, c.high, c.high_images])) * k;
  const withChance = chance !== null && chance * k > lowest - 0.12 * k;
  const floor = withChance ? Math.min(lowest, chance * k) : lowest;
  const room = Math.max(highest - floor, 0.01 * k);
  return {
    traces: [...bands, ...lines], table: cellTable(here), legend: "lines+markers",
    says: distinct(here, "shots").sort((a, b) => bigLast(a) - bigLast(b)).filter((_, i, all) => i === 0 || i === all.length - 1)
      .map((s) => `${settingWords(s)}: ${leaders(here.filter((c) => c.shots === s))}.`).join(" "),
    layout: {
      height: 290,
      xaxis: { type: "log", tickvals: [...shots, ...(hasFull ? [end] : [])], ticktext: [...shots.map(String), ...(hasFull ? ["full"] : [])], range: [Math.log10(ends[0]) - pad, Math.log10(ends[1]) + pad], title: { text: "shots per class" }, showgrid: false, ticks: "outside", tickcolor: t.line, ticklen: 4, showline: true },
      yaxis: { nticks: 6, range: [floor - (withChance ? 0.12 : 0.07) * room, highest + 0.07 * room] },
      shapes: withChance
        ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: chance * k, y1: chance * k, line: { color: t.soft, width: 1, dash: "dot" } }] : [],
      annotations: withChance
        ? [{ xref: "paper", x: 0.995, y: chance * k, xanchor: "right", yanchor: "top", text: "chance", showarrow: false, font: { size: 11, color: t.soft } }] : [],
    },
  };
}
function errors(rows, k, colour) {
  return {
    type: "data", symmetric: false, array: rows.map((c) => (c.high === null ? 0 : (c.high - c.mean) * k)),
    arrayminus: rows.map((c) => (c.low === null ? 0 : (c.mean - c.low) * k)), color: colour, thickness: 1.4, width: 3,
  };
}
function chanceOf(c) {
  if (c.metric === "auc") return 0.5;
  if (c.metric !== "accuracy" && c.metric !== "balanced_accuracy") return null;
  const n = c.ways === "all" ? data.classes[c.target] : Number(c.ways);
  return n > 1 ? 1 / n : null;
}
