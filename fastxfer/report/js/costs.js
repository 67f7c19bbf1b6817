// ---- figure: cost against accuracy -------------------------------------------------------------------------------------
const COST_KINDS = {
  seconds: ["seconds", "seconds for this target"], flops: ["operations", "operations for this target, FLOP"],
  parameters: ["parameters", "parameters of the backbone"],
};
/** Each filtered cell with what it took, of those whose cost is known. */
function costRows(kind) {
  const known = new Map(data.costs.map((p) => [JSON.stringify([p.label, p.target, p.shots]), p]));
  const price = (c) => known.get(JSON.stringify([c.label, c.target, c.probe === "finetune" ? c.shots : null]));
  const tuned = (c) => c.probe === "finetune" && c.chosen && visible(c);
  return cells.filter((c) => c.shots === state.shots && (asFiltered(c) || tuned(c)))
    .map((c) => ({ c, cost: (price(c) || {})[kind] })).filter((p) => isKnown(p.cost) && p.cost > 0);
}
/** Those that nothing else beats at the same cost or less, cheapest first. */
function front(points) {
  let best = -Infinity;
  return [...points].sort((a, b) => a.cost - b.cost || b.c.mean - a.c.mean).filter((p) => { const better = p.c.mean > best; best = Math.max(best, p.c.mean); return better; });
}
function costsAgainst() {
  const box = byId("trade-figure");
  if (!box) return;
  const kinds = Object.keys(COST_KINDS).filter((kind) => data.costs.some((p) => isKnown(p[kind])));
  fill("cost", kinds.map((kind) => [kind, COST_KINDS[kind][0]]), kinds[0]);
  const rows = costRows(state.cost);
  note("trade", rows.length ? `${settingWords(state.shots)}, ${methodName(state.probe)}.` : "No cell that matches the filters has a known cost.");
  show("trade-figure", targets.filter((t) => rows.some((p) => p.c.target === t)).map((target) => {
    const here = rows.filter((p) => p.c.target === target);
    return {
      key: String(targets.indexOf(target)), title: target, target, subtitle: metricUnit(here[0].c.metric),
      name: fileName("cost", target), make: (t, width) => costPanel(t, here, width),
    };
  }));
}
function costPanel(t, here, width) {
  const k = scale(here[0].c.metric), kind = state.cost, best = front(here);
  const cost = (v) => (kind === "seconds" ? `${Number(v.toPrecision(3))} s` : `${amount(v)}${kind === "flops" ? "FLOP" : ""}`);
  const called = (p) => `${p.c.label}${p.c.probe === "finetune" ? ", fine-tuned" : ""}`;
  const spread = here.map((p) => Math.log10(p.cost)), room = Math.max(0.2, 0.15 * (Math.max(...spread) - Math.min(...spread)));
  const ends = [Math.min(...spread) - room, Math.max(...spread) + room], ticks = logTicks(10 ** ends[0], 10 ** ends[1]);
  const marks = here.map((p) => {
    const colour = colourOf(p.c.label, t), onFront = best.includes(p);
    return {
      type: "scatter", mode: onFront || here.length <= 8 ? "markers+text" : "markers", x: [p.cost], y: [p.c.mean * k], meta: p.c.label,
      marker: { color: onFront ? colour : t.paper, size: p.c.probe === "finetune" ? 12 : 9, symbol: methodSymbol(p.c.probe), line: { color: colour, width: 2 } },
      error_y: { ...errors([p.c], k, rgba(colour, 0.6)), width: 0 },
      text: [plain(short(p.c.label, width < 420 ? 14 : 22))], textposition: Math.log10(p.cost) > (ends[0] + ends[1]) / 2 ? "top left" : "top right", textfont: { size: 11, color: t.soft }, cliponaxis: false,
      customdata: [`${hover(p.c)}<br>${cost(p.cost)}${onFront ? "<br>nothing cheaper is as good" : ""}`], hovertemplate: "%{customdata}<extra></extra>",
    };
  });
  const line = { type: "scatter", mode: "lines", x: best.map((p) => p.cost), y: best.map((p) => p.c.mean * k), line: { color: t.soft, width: 1, shape: "hv", dash: "dot" }, hoverinfo: "skip" };
  return {
    traces: [line, ...marks],
    says: `${best.map((p) => `${called(p)} at ${cost(p.cost)} reaches ${shown(p.c.mean, p.c.metric)}`).join("; ")}: nothing cheaper is as good.`,
    table: { heads: [...CELL_HEADS, COST_KINDS[kind][0], "on_front"], rows: here.map((p) => [...cellRow(p.c), p.cost, best.includes(p) ? "yes" : "no"]) },
    layout: {
      height: 290, margin: { l: 44, r: 14, t: 18, b: 42 },
      xaxis: { type: "log", title: { text: COST_KINDS[kind][1] }, range: ends, tickvals: ticks, ticktext: ticks.map(amount), ticks: "outside", ticklen: 4, tickcolor: t.line, showgrid: false, showline: true },
      yaxis: { nticks: 6 },
    },
  };
}
/** 23400000 -> "23.4 M" */
function amount(value) {
  const units = ["", "k", "M", "G", "T", "P", "E"];
  const step = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log10(value) / 3)));
  return `${Number((value / 1000 ** step).toPrecision(3))} ${units[step]}`.trim();
}
