"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const COLOURS = 7;
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const METHODS = { logistic: "circle", ridge: "square", prototype: "triangle-up", knn: "diamond", finetune: "star" };
  const METHOD_NAMES = { logistic: "logistic", ridge: "ridge", prototype: "prototype", knn: "kNN", finetune: "fine-tuned" };
  const UNITS = new Set(["accuracy", "balanced_accuracy", "auc", "average_precision"]);

  // ---- data -------------------------------------------------------------------------------------------------------
  const TEXT = ["target", "label", "source", "ways", "shots", "seed", "probe", "params", "split", "metric", "interval"];
  const NUMBERS = ["mean", "low", "high", "n", "queries", "main", "chosen"];
  const cells = data.cells.mean.map((_, i) => {
    const cell = {};
    for (const k of TEXT) cell[k] = data.cells[k].levels[data.cells[k].codes[i]];
    for (const k of NUMBERS) cell[k] = data.cells[k][i];
    return cell;
  });
  const natural = new Intl.Collator("en", { numeric: true }).compare;
  const bigLast = (v) => (v === "all" || v === "full" ? Infinity : Number(v));
  const distinct = (rows, key) => [...new Set(rows.map((r) => r[key]))];
  const hidden = new Set();
  const targets = distinct(cells, "target");

  const scale = (metric) => (UNITS.has(metric) ? 100 : 1);
  // As percent() of words.py: only 1 itself is "100", what would round to it gets a second digit.
  function shown(value, metric) {
    if (!UNITS.has(metric)) return value.toFixed(3);
    if (value === 1) return "100";
    const text = (100 * value).toFixed(1);
    return text === "100.0" && value < 1 ? Math.min(100 * value, 99.99).toFixed(2) : text;
  }
  const interval = (c) => (UNITS.has(c.metric)
    ? `${shown(Math.max(c.low, 0), c.metric)}–${shown(Math.min(c.high, 1), c.metric)}` : `${shown(c.low, c.metric)}–${shown(c.high, c.metric)}`);
  const range = (c) => (c.low === null ? "" : ` (${interval(c)})`);
  const metricName = (metric) => data.metricNames[metric] || metric;
  const metricUnit = (metric) => `${metricName(metric)}${UNITS.has(metric) ? ", %" : ""}`;
  const methodName = (probe) => METHOD_NAMES[probe] || probe;
  const methodSymbol = (probe) => METHODS[probe] || "hexagon";
  const thousands = (n) => n.toLocaleString("en");

  // ---- text for Plotly, which reads a few HTML tags and %{…} of its own --------------------------------------------
  const plain = (text) =>
    String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%\{/g, "%\u200b{");
  const short = (text, n) => (String(text).length > n ? String(text).slice(0, n - 1) + "…" : String(text));

  // ---- colours: always those of the style sheet, so that dark mode and paper need no second list ------------------
  function theme() {
    const style = getComputedStyle(document.documentElement);
    const get = (name) => style.getPropertyValue(name).trim();
    return {
      ink: get("--ink"), soft: get("--soft"), line: get("--line"), grid: get("--grid"), paper: get("--paper"), warn: get("--warn"),
      sans: get("--sans").replace(/"/g, "'"),
      backbones: Array.from({ length: COLOURS }, (_, i) => get(`--b${i}`)),
    };
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

  function layout(t, extra) {
    const axis = {
      color: t.soft, gridcolor: t.grid, linecolor: t.line, zeroline: false, fixedrange: true, automargin: true,
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
  const CONFIG = { displayModeBar: false, responsive: false, showTips: false, doubleClick: false };

  // ---- panels -----------------------------------------------------------------------------------------------------
  const panels = new Map(); // element id -> {make, plot}
  function element(name, attributes = {}, ...children) {
    const node = document.createElement(name);
    for (const [k, v] of Object.entries(attributes)) {
      if (k.startsWith("on")) node.addEventListener(k.slice(2), v);
      else if (v !== false && v !== null) node.setAttribute(k, v === true ? "" : v);
    }
    node.append(...children);
    return node;
  }
  /** Show `specs` = [{key, title, name, make(theme) -> {traces, layout, words}}] in a box, reusing what is there. */
  function show(boxId, specs) {
    const box = byId(boxId);
    if (!box) return;
    const wanted = new Set(specs.map((s) => `${boxId}-${s.key}`));
    for (const [id, panel] of [...panels]) {
      if (panel.box === box && !wanted.has(id)) { Plotly.purge(panel.plot); panel.node.remove(); panels.delete(id); }
    }
    for (const spec of specs) {
      const id = `${boxId}-${spec.key}`;
      let panel = panels.get(id);
      if (!panel) {
        const plot = element("div", { class: "plot", id, role: "img" });
        const heading = element("h3");
        const node = element("div", { class: "panel" },
          element("header", {}, heading, element("button", { type: "button", onclick: () => saveSvg(id) }, "SVG")), plot);
        box.append(node);
        panel = { box, node, plot, heading };
        panels.set(id, panel);
      }
      panel.make = spec.make;
      panel.name = spec.name;
      panel.heading.replaceChildren(spec.title, " ", element("small", {}, spec.subtitle || ""));
      panel.node.querySelector("button").setAttribute("aria-label", `Download the figure ${spec.title} as SVG`);
      box.append(panel.node);
      draw(panel);
    }
  }
  function draw(panel) {
    const t = theme();
    const { traces, layout: own, words } = panel.make(t, panel.plot.clientWidth || 600);
    panel.plot.setAttribute("aria-label", words);
    panel.plot.style.height = `${own.height}px`;
    Plotly.react(panel.plot, traces, { ...layout(t, own), width: panel.plot.clientWidth || 600 }, CONFIG);
  }
  const redraw = () => panels.forEach(draw);
  function saveSvg(id) {
    const { plot, name } = panels.get(id);
    Plotly.downloadImage({ data: plot.data, layout: { ...plot.layout, paper_bgcolor: theme().paper } },
      { format: "svg", width: plot.clientWidth, height: plot.clientHeight, filename: name });
  }
  const fileName = (...parts) => parts.join("-").replace(/[^\w.-]+/g, "_").slice(0, 80);

  // ---- filters ----------------------------------------------------------------------------------------------------
  const CHOSEN = "\u0000chosen";
  const MAIN = "\u0000main";
  const ALL = "\u0000all";
  const USUAL = "\u0000usual"; // a target with fewer classes than the others has its own number of ways
  const state = {};
  const few = cells.filter((c) => c.shots !== "full");
  function fill(key, options, preferred) {
    const select = byId(`f-${key}`);
    select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
    const values = options.map((o) => o[0]);
    state[key] = values.includes(state[key]) ? state[key] : values.includes(preferred) ? preferred : values[0];
    select.value = state[key];
    byId(`l-${key}`).hidden = options.length < 2;
  }
  const PROBES = ["logistic", "ridge", "prototype", "knn", "finetune"];
  const byOrder = (order) => (a, b) => ((order.indexOf(a) + 99) % 99) - ((order.indexOf(b) + 99) % 99) || natural(a, b);
  const ofWays = (c) => c.ways === (state.ways === USUAL ? data.defaults.waysOf[c.target] || "all" : state.ways);
  function fillFilters() {
    const curves = few.length ? few : cells;
    fill("probe", distinct(curves, "probe").sort(byOrder(PROBES)).map((p) => [p, methodName(p)]), data.defaults.probe);
    const ofProbe = curves.filter((c) => c.probe === state.probe);
    const ways = distinct(ofProbe, "ways").sort((a, b) => bigLast(a) - bigLast(b));
    const usual = distinct(Object.entries(data.defaults.waysOf).map(([target, w]) => ({ target, w })), "w");
    fill("ways", [...(usual.length > 1 ? [[USUAL, "per target"]] : []), ...ways.map((w) => [w, w === "all" ? "all classes" : `${w}-way`])], usual.length > 1 ? USUAL : usual[0]);
    const choices = distinct(ofProbe.filter(ofWays), "params").sort(natural);
    const several = ofProbe.some((c) => !c.chosen);
    fill("params", [[CHOSEN, "as chosen"], ...(several ? choices.map((p) => [p, p]) : [])], CHOSEN);
    const metrics = distinct(cells, "metric").sort(byOrder(["accuracy", "balanced_accuracy", "auc", "average_precision"]));
    const mains = distinct(cells.filter((c) => c.main), "metric");
    fill("metric", [...(mains.length > 1 ? [[MAIN, "each target’s own"]] : []), ...metrics.map((m) => [m, metricName(m)])], mains.length > 1 ? MAIN : mains[0]);
    fill("split", distinct(cells, "split").sort(byOrder(["test", "val", "train"])).map((s) => [s, s]), data.defaults.split);
    fill("seed", distinct(cells, "seed").sort((a, b) => a - b).map((s) => [String(s), String(s)]), String(data.defaults.seed));
    fill("target", [[ALL, "all"], ...(targets.length > 1 ? targets.map((t) => [t, t]) : [])], ALL);
  }
  const visible = (c) => !hidden.has(c.label)
    && (state.target === ALL || c.target === state.target)
    && (state.metric === MAIN ? c.main : c.metric === state.metric)
    && c.split === state.split;

  // ---- legend -----------------------------------------------------------------------------------------------------
  function marker(symbol, colour, dash) {
    const ns = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(ns, "svg");
    const wide = dash !== undefined;
    for (const [k, v] of Object.entries({ width: wide ? 26 : 14, height: 14, viewBox: wide ? "-13 -7 26 14" : "-7 -7 14 14", "aria-hidden": "true" })) svg.setAttribute(k, v);
    const paths = {
      circle: "M4.5,0A4.5,4.5 0 1,1 -4.5,0A4.5,4.5 0 1,1 4.5,0Z", square: "M-4,-4H4V4H-4Z", diamond: "M0,-5.4L5.4,0L0,5.4L-5.4,0Z",
      "triangle-up": "M0,-5L5,4H-5Z", "triangle-down": "M0,5L5,-4H-5Z", cross: "M-5,-1.7H-1.7V-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5Z",
      x: "M-5,-3L-3,-5L0,-2L3,-5L5,-3L2,0L5,3L3,5L0,2L-3,5L-5,3L-2,0Z", star: "M0,-6L1.5,-2L5.7,-1.9L2.4,0.8L3.5,4.9L0,2.5L-3.5,4.9L-2.4,0.8L-5.7,-1.9L-1.5,-2Z",
      hexagon: "M5,0L2.5,4.3L-2.5,4.3L-5,0L-2.5,-4.3L2.5,-4.3Z",
    };
    const add = (d, attributes) => {
      const path = document.createElementNS(ns, "path");
      path.setAttribute("d", d);
      for (const [k, v] of Object.entries(attributes)) path.style.setProperty(k, v);
      svg.append(path);
    };
    if (wide) add("M-12,0H12", { stroke: colour, "stroke-width": 2, "stroke-dasharray": { solid: "none", dash: "6 4", dot: "2 3", dashdot: "6 3 2 3" }[dash] });
    add(paths[symbol], { fill: colour });
    return svg;
  }
  function legends() {
    for (const key of ["curves", "methods"]) {
      const box = byId(`${key}-legend`);
      if (!box) continue;
      const lines = key === "curves";
      const buttons = data.labels.map((label) => element("button", {
        type: "button", "aria-pressed": String(!hidden.has(label)), title: "Show or hide in all figures",
        onclick: () => {
          if (!hidden.delete(label)) hidden.add(label);
          const focused = data.labels.indexOf(label);
          legends();
          figures();
          byId(`${key}-legend`).querySelectorAll("button")[focused].focus();
        },
      }, marker(lines ? symbolOf(label) : "circle", `var(--b${indexOf(label) % COLOURS})`, lines ? dashOf(label) : undefined), label));
      box.replaceChildren(...(data.labels.length > 1 || lines ? buttons : []));
      if (!lines) {
        const methods = distinct(cells.filter((c) => c.shots === "full"), "probe").sort(byOrder(PROBES));
        box.append(element("div", { class: "methods" }, ...methods.map((m) => element("span", {}, marker(methodSymbol(m), "var(--soft)"), methodName(m)))));
      }
    }
  }

  // ---- figure: accuracy against shots -----------------------------------------------------------------------------
  const point = (c) => `${plain(metricName(c.metric))} <b>${shown(c.mean, c.metric)}</b>${UNITS.has(c.metric) ? " %" : ""}${range(c)}`;
  const behind = (c) => (c.interval === "episodes" ? `${thousands(c.n)} episodes` : `${thousands(c.queries)} ${c.split} images`);
  function hover(c) {
    const where = c.shots === "full" ? "whole train split" : `${c.ways === "all" ? "all classes" : c.ways + "-way"}, ${c.shots}-shot`;
    return [plain(c.label), point(c), `over ${behind(c)}`, `${where}, ${plain(methodName(c.probe))}`, plain(short(c.params, 40))].filter(Boolean).join("<br>");
  }
  function curveRows() {
    return cells.filter((c) => visible(c) && c.probe === state.probe && ofWays(c)
      && (state.params === CHOSEN ? c.chosen : c.params === state.params || (c.shots === "full" && c.chosen))
      && (String(c.seed) === state.seed || c.shots === "full"));
  }
  function curves() {
    const rows = curveRows().filter((c) => c.shots !== "full" || few.length);
    const withCurve = targets.filter((t) => rows.some((c) => c.target === t));
    byId("curves-note").textContent = rows.length
      ? (rows.some((c) => c.shots === "full") ? "The last point, “full”, is the probe on the whole train split; its interval is over test images." : "")
      : few.length ? "No rows match these filters." : "There are no few-shot results yet: fastxfer fewshot makes them.";
    show("curves-figure", withCurve.map((target) => {
      const here = rows.filter((c) => c.target === target);
      const metric = here[0].metric;
      return {
        key: String(targets.indexOf(target)), title: target, subtitle: `${here[0].ways === "all" ? "all classes" : here[0].ways + "-way"} ${metricUnit(metric)}`,
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
    const bands = [], lines = [], words = [];
    for (const label of data.labels) {
      const own = here.filter((c) => c.label === label).sort((a, b) => x(a) - x(b));
      if (!own.length) continue;
      const colour = colourOf(label, t);
      const curve = own.filter((c) => c.shots !== "full");
      const full = own.filter((c) => c.shots === "full");
      const banded = curve.filter((c) => c.low !== null);
      if (banded.length > 1) {
        bands.push({
          type: "scatter", mode: "lines", x: [...banded.map(x), ...banded.map(x).reverse()],
          y: [...banded.map((c) => c.high * k), ...banded.map((c) => c.low * k).reverse()],
          fill: "toself", fillcolor: rgba(colour, 0.2), line: { width: 0 }, hoverinfo: "skip",
        });
      }
      lines.push({
        type: "scatter", mode: "lines+markers", name: plain(label), x: curve.map(x), y: curve.map((c) => c.mean * k),
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
          type: "scatter", mode: "markers", name: plain(label), x: full.map(x), y: full.map((c) => c.mean * k),
          marker: { color: t.paper, size: 8, symbol: symbolOf(label), line: { color: colour, width: 2 } },
          error_y: errors(full, k, colour), text: full.map(hover), hovertemplate: "%{text}<extra></extra>",
        });
      }
      words.push(`${label}: ${own.map((c) => `${c.shots === "full" ? "full" : c.shots + (c.shots === "1" ? " shot" : " shots")} ${shown(c.mean, metric)}${range(c)}`).join(", ")}`);
    }
    const hasFull = here.some((c) => c.shots === "full");
    const ends = [shots.length ? shots[0] : end, hasFull ? end : last];
    const pad = Math.max(0.04 * Math.log10(ends[1] / ends[0]), 0.03);
    const chance = chanceOf(here[0]);
    const lowest = Math.min(...here.map((c) => (c.low === null ? c.mean : c.low))) * k;
    const highest = Math.max(...here.map((c) => (c.high === null ? c.mean : c.high))) * k;
    const withChance = chance !== null && chance * k > lowest - 0.12 * k;
    const floor = withChance ? Math.min(lowest, chance * k) : lowest;
    const room = Math.max(highest - floor, 0.01 * k);
    return {
      traces: [...bands, ...lines], words: `${metricName(metric)} against shots on ${here[0].target}. ${words.join(". ")}.`,
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

  // ---- figure: methods on the whole train split -------------------------------------------------------------------
  function methods() {
    if (!byId("methods-figure")) return;
    const rows = cells.filter((c) => c.shots === "full" && visible(c) && c.chosen);
    byId("methods-note").textContent = rows.length ? "" : "No rows match these filters.";
    show("methods-figure", targets.filter((t) => rows.some((c) => c.target === t)).map((target) => {
      const here = rows.filter((c) => c.target === target);
      const metric = here[0].metric;
      return {
        key: String(targets.indexOf(target)), title: target, subtitle: metricUnit(metric),
        name: fileName("methods", target), make: (t, width) => methodPanel(t, here, metric, width),
      };
    }));
  }
  function methodPanel(t, here, metric, width) {
    const k = scale(metric);
    const labels = data.labels.filter((l) => here.some((c) => c.label === l));
    const probes = distinct(here, "probe").sort(byOrder(PROBES));
    const step = Math.min(0.22, 0.7 / Math.max(probes.length, 1));
    const y = (c) => labels.indexOf(c.label) + (probes.indexOf(c.probe) - (probes.length - 1) / 2) * step;
    const words = [];
    const traces = here.map((c) => {
      const colour = colourOf(c.label, t);
      words.push(`${c.label}, ${methodName(c.probe)}: ${shown(c.mean, metric)}${range(c)}`);
      return {
        type: "scatter", mode: "markers", x: [c.mean * k], y: [y(c)], name: plain(c.label),
        marker: { color: colour, size: c.probe === "finetune" ? 12 : 8, symbol: methodSymbol(c.probe) },
        error_x: { ...errors([c], k, rgba(colour, 0.65)), width: 0 }, text: [hover(c)], hovertemplate: "%{text}<extra></extra>",
      };
    });
    return {
      traces, words: `${metricName(metric)} on ${here[0].target} by method. ${words.join(". ")}.`,
      layout: {
        height: 60 + labels.length * Math.max(34, 17 * probes.length), margin: { l: 12, r: 14, t: 6, b: 42 },
        xaxis: { nticks: 6, title: { text: metricUnit(metric) } },
        yaxis: {
          tickvals: labels.map((_, i) => i), ticktext: labels.map((l) => plain(short(l, width < 420 ? 20 : 26))), range: [labels.length - 0.5, -0.5],
          showgrid: false, ticks: "", tickfont: { size: 12, color: t.ink },
        },
        shapes: labels.slice(1).map((_, i) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: i + 0.5, y1: i + 0.5, line: { color: t.grid, width: 1 } })),
      },
    };
  }

  // ---- figure: what the plan expected, what came ------------------------------------------------------------------
  function outcomes() {
    const box = byId("outcomes-figure");
    const rows = data.outcomes.filter((r) => r.expected_value !== null || r.test_mean !== null);
    if (!box || !rows.length) { if (box) byId("outcomes-box").hidden = true; return; }
    box.classList.add("wide");
    show("outcomes-figure", [{ key: "0", title: "Expected and found", subtitle: "", name: "expected-and-found", make: (t, width) => outcomePanel(t, rows, width) }]);
  }
  function outcomePanel(t, rows, width) {
    const marks = [["expected", "value", "full probe, val: expected", false], ["val", "mean", "fine-tuned, val", true], ["probe", "mean", "full probe, test", false], ["test", "mean", "fine-tuned, test", true]]
      .filter(([key, valueKey]) => rows.some((r) => r[`${key}_${valueKey}`] !== null));
    const offset = (j) => 0.22 * (j - (marks.length - 1) / 2);
    const traces = [], words = [];
    rows.forEach((r, i) => {
      const k = scale(r.metric), colour = colourOf(r.label, t);
      marks.forEach(([key, valueKey, text, filled], j) => {
        const value = r[`${key}_${valueKey}`];
        if (value === null) return;
        const c = { mean: value, low: r[`${key}_low`], high: r[`${key}_high`], metric: r.metric };
        words.push(`${r.label} on ${r.target}, ${text}: ${shown(value, r.metric)}${range(c)}`);
        traces.push({
          type: "scatter", mode: "markers", x: [value * k], y: [i + offset(j)],
          marker: { color: filled ? colour : t.paper, size: 9, symbol: key === "probe" || key === "test" ? "circle" : "diamond", line: { color: colour, width: 2 } },
          error_x: { ...errors([c], k, rgba(colour, 0.6)), width: 0 },
          text: [`${plain(r.label)} on ${plain(r.target)}<br>${point(c)}<br>${text}`], hovertemplate: "%{text}<extra></extra>",
        });
      });
    });
    const name = (r) => (width < 480 ? `${plain(short(r.label, 15))}<br>${plain(short(r.target, 15))}` : `${plain(short(r.label, 26))} on ${plain(short(r.target, 26))}`);
    return {
      traces, words: `Expected and found. ${words.join(". ")}.`,
      layout: {
        height: 60 + (16 + 17 * marks.length) * rows.length, margin: { l: 12, r: 14, t: 6, b: 42 }, xaxis: { nticks: 7, title: { text: distinct(rows, "metric").map(metricUnit).join(" or ") } },
        yaxis: { tickvals: rows.map((_, i) => i), ticktext: rows.map(name), range: [rows.length - 0.5, -0.5], showgrid: false, tickfont: { size: 12, color: t.ink } },
      },
    };
  }

  // ---- figure: learning curves of fine-tunings --------------------------------------------------------------------
  function learning() {
    const panel = (key, title, subtitle, pick, k) => ({
      key, title, subtitle, name: `learning-${key}`, make: (t, width) => learningPanel(t, title, pick, k, width),
    });
    const unit = distinct(data.learning, "metric").map(metricUnit).join(" or ");
    const splits = distinct(data.learning, "split").filter(Boolean).join(" or ");
    show("learning-figure", [
      panel("scores", `On ${splits} images`, unit, (run) => run.scores, (run) => scale(run.metric)),
      panel("loss", "Training loss", "mean since the last point", (run) => run.loss, () => 1),
    ]);
  }
  function learningPanel(t, title, pick, k, width) {
    const known = data.learning.filter((run) => pick(run)[0].length);
    const traces = known.map((run) => {
      const i = data.learning.indexOf(run), [x, values] = pick(run), colour = t.backbones[i % COLOURS];
      return {
        type: "scatter", mode: x.length > 20 ? "lines" : "lines+markers", name: plain(short(run.run, 40)), x, y: values.map((v) => v * k(run)),
        line: { color: colour, width: 2, dash: DASHES[Math.floor(i / COLOURS) % DASHES.length] },
        marker: { color: colour, size: 7, symbol: SYMBOLS[i % SYMBOLS.length] }, hovertemplate: `${plain(run.run)}<br>step %{x}: %{y:.4g}<extra></extra>`,
      };
    });
    const words = known.map((run) => `${run.run} ends at ${pick(run)[1][pick(run)[1].length - 1]}`);
    return {
      traces, words: `${title} by step. ${words.join(". ")}.`,
      layout: {
        height: 290 + 20 * known.length, showlegend: true, legend: { orientation: "h", y: -0.25, yanchor: "top", font: { size: width < 420 ? 10 : 12 } },
        margin: { l: 44, r: 14, t: 10, b: 42 }, xaxis: { title: { text: "step" }, rangemode: "tozero", showgrid: false, showline: true }, yaxis: { nticks: 6 },
      },
    };
  }

  // ---- the table --------------------------------------------------------------------------------------------------
  const HEADS = [["target", "target"], ["label", "backbone"], ["ways", "ways"], ["shots", "shots"], ["probe", "probe"], ["split", "split"], ["metric", "metric"], ["mean", "mean"], ["interval", "95 % interval"], ["n", "over"], ["params", "parameters"], ["source", "trained on"]];
  const TIPS = { mean: "Sort by the mean, in percent where the metric says so", interval: "Sort by the width of the interval", n: "What the interval is over" };
  const NUMERIC = new Set(["ways", "shots", "mean", "n", "interval"]);
  const PAGE = 20;
  let order = null, ascending = true, limit = PAGE;
  const haystacks = cells.map((c) => [c.target, c.label, c.source, `${c.ways}-way`, `${c.shots}-shot`, c.probe, methodName(c.probe), c.params, c.split, c.metric, metricName(c.metric)].join(" ").toLowerCase());
  const sortValue = { ways: (c) => bigLast(c.ways), shots: (c) => bigLast(c.shots), mean: (c) => c.mean * scale(c.metric), n: (c) => (c.interval === "episodes" ? c.n : c.queries), interval: (c) => (c.low === null ? -1 : c.high - c.low) };
  function matching() {
    const words = byId("table-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = cells.map((_, i) => i).filter((i) => words.every((w) => haystacks[i].includes(w)));
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
        metric: metricUnit(c.metric), mean: shown(c.mean, c.metric), interval: c.low === null ? "–" : interval(c), n: behind(c),
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
    const firstAscending = !["mean", "n", "interval"].includes(key);
    ascending = order === key ? !ascending : firstAscending;
    order = key;
    for (const th of byId("cells").querySelectorAll("th")) {
      th.setAttribute("aria-sort", th.dataset.key === order ? (ascending ? "ascending" : "descending") : "none");
    }
    fillTable();
  }
  function csv() {
    const heads = ["target", "backbone", "source", "ways", "shots", "seed", "probe", "params", "split", "metric", "mean", "low", "high", "interval", "n", "n_queries"];
    const quote = (v) => {
      const text = v === null || v === undefined ? "" : String(v);
      // A name that starts like a formula must not become one in a spreadsheet.
      const safe = typeof v === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
      return /[",\n\r]/.test(safe) ? `"${safe.replace(/"/g, '""')}"` : safe;
    };
    const lines = matching().map((i) => cells[i]).map((c) => [c.target, c.label, c.source, c.ways, c.shots, c.seed, c.probe, c.params, c.split, c.metric, c.mean, c.low, c.high, c.interval, c.n, c.queries].map(quote).join(","));
    const url = URL.createObjectURL(new Blob([[heads.join(","), ...lines, ""].join("\n")], { type: "text/csv" }));
    element("a", { href: url, download: "fastxfer-cells.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  // ---- start ------------------------------------------------------------------------------------------------------
  function figures() { curves(); methods(); outcomes(); learning(); }
  fillFilters();
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("change", (event) => {
    state[event.target.id.slice(2)] = event.target.value;
    fillFilters();
    curves();
    methods();
  });
  legends();
  figures();
  tableHead();
  fillTable();
  byId("table-filter").addEventListener("input", () => { limit = PAGE; fillTable(); });
  byId("more").addEventListener("click", () => { limit = Infinity; fillTable(); });
  byId("csv").addEventListener("click", csv);

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  matchMedia("print").addEventListener("change", redraw);
  addEventListener("beforeprint", () => { document.querySelectorAll("details").forEach((d) => { d.dataset.was = d.open; d.open = true; }); });
  addEventListener("afterprint", () => { document.querySelectorAll("details").forEach((d) => { d.open = d.dataset.was === "true"; }); });
  let width = innerWidth, waiting = 0;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's address bar comes and goes
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(redraw, 120);
  });
  document.documentElement.dataset.ready = "true";
})();
