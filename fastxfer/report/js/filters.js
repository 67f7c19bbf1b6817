// ---- filters: what is shown, everywhere -------------------------------------------------------------------------------
const CHOSEN = "\u0000chosen";
const MAIN = "\u0000main";
const ALL = "\u0000all";
const USUAL = "\u0000usual"; // a target with fewer classes than the others has its own number of ways
const state = {};
const hidden = new Set(); // labels of backbones
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
  const shots = distinct(cells.filter((c) => c.probe === state.probe && (c.shots === "full" || ofWays(c))), "shots").sort((a, b) => bigLast(a) - bigLast(b));
  fill("shots", shots.map((s) => [s, s === "full" ? "whole train split" : s]), data.defaults.shots);
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
const isShown = (label, target) => !hidden.has(label) && (state.target === ALL || target === undefined || target === state.target);
const visible = (c) => isShown(c.label, c.target)
  && (state.metric === MAIN ? c.main : c.metric === state.metric)
  && c.split === state.split;
/** Cells of the chosen probe, ways, parameters and seed; of the whole train split there is one choice of them. */
const asFiltered = (c) => visible(c) && c.probe === state.probe
  && (c.shots === "full" ? c.chosen : ofWays(c) && String(c.seed) === state.seed && (state.params === CHOSEN ? c.chosen : c.params === state.params));

// ---- selection: a backbone or a target chosen anywhere is chosen everywhere ------------------------------------------
function toggle(label) {
  if (!hidden.delete(label)) hidden.add(label);
  update();
}
/** This backbone alone; all of them if it was alone already. */
function only(label) {
  const alone = !hidden.has(label) && hidden.size === data.labels.length - 1;
  hidden.clear();
  if (!alone) data.labels.filter((l) => l !== label).forEach((l) => hidden.add(l));
  update();
}
function onlyTarget(target) {
  state.target = state.target === target ? ALL : target;
  update();
}
function showAll() {
  hidden.clear();
  state.target = ALL;
  update();
}
function tellSelection() {
  const box = byId("chosen");
  const shownLabels = data.labels.filter((l) => !hidden.has(l));
  const which = !hidden.size ? "" : !shownLabels.length ? "no backbone" : shownLabels.length <= hidden.size ? listed(shownLabels) : `all but ${listed([...hidden])}`;
  const where = state.target === ALL ? "" : `on ${state.target}`;
  box.hidden = !which && !where;
  byId("chosen-words").textContent = box.hidden ? "" : `Shown everywhere: ${[which || "all backbones", where].filter(Boolean).join(" ")}`;
  for (const node of document.querySelectorAll("[data-target]")) node.hidden = !isShown(undefined, node.dataset.target);
  for (const button of document.querySelectorAll(".legend button")) button.setAttribute("aria-pressed", String(!hidden.has(button.value)));
}

// ---- legend -----------------------------------------------------------------------------------------------------------
const PATHS = {
  circle: "M4.5,0A4.5,4.5 0 1,1 -4.5,0A4.5,4.5 0 1,1 4.5,0Z", square: "M-4,-4H4V4H-4Z", diamond: "M0,-5.4L5.4,0L0,5.4L-5.4,0Z",
  "triangle-up": "M0,-5L5,4H-5Z", "triangle-down": "M0,5L5,-4H-5Z", cross: "M-5,-1.7H-1.7V-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5Z",
  x: "M-5,-3L-3,-5L0,-2L3,-5L5,-3L2,0L5,3L3,5L0,2L-3,5L-5,3L-2,0Z", star: "M0,-6L1.5,-2L5.7,-1.9L2.4,0.8L3.5,4.9L0,2.5L-3.5,4.9L-2.4,0.8L-5.7,-1.9L-1.5,-2Z",
  hexagon: "M5,0L2.5,4.3L-2.5,4.3L-5,0L-2.5,-4.3L2.5,-4.3Z",
};
function marker(symbol, colour, dash) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  const wide = dash !== undefined;
  for (const [k, v] of Object.entries({ width: wide ? 26 : 14, height: 14, viewBox: wide ? "-13 -7 26 14" : "-7 -7 14 14", "aria-hidden": "true" })) svg.setAttribute(k, v);
  const add = (d, attributes) => {
    const path = document.createElementNS(ns, "path");
    path.setAttribute("d", d);
    for (const [k, v] of Object.entries(attributes)) path.style.setProperty(k, v);
    svg.append(path);
  };
  if (wide) add("M-12,0H12", { stroke: colour, "stroke-width": 2, "stroke-dasharray": { solid: "none", dash: "6 4", dot: "2 3", dashdot: "6 3 2 3" }[dash] });
  add(PATHS[symbol], { fill: colour });
  return svg;
}
/** Buttons that show and hide backbones, in every box of class "legend"; with data-lines as they look as curves. */
function legends() {
  for (const box of document.querySelectorAll(".legend")) {
    const lines = box.dataset.lines !== undefined;
    if (data.labels.length > 1 || lines) {
      box.append(...data.labels.map((label) => element("button", { type: "button", value: label, title: "Show or hide everywhere", onclick: () => toggle(label) },
        marker(lines ? symbolOf(label) : "circle", `var(--b${indexOf(label) % COLOURS})`, lines ? dashOf(label) : undefined), label)));
    }
  }
  const methods = byId("methods-legend");
  if (methods) {
    const used = distinct(cells.filter((c) => c.shots === "full"), "probe").sort(byOrder(PROBES));
    methods.append(element("div", { class: "methods" }, ...used.map((m) => element("span", {}, marker(methodSymbol(m), "var(--soft)"), methodName(m)))));
  }
}
