// ---- figure: methods on the whole train split -------------------------------------------------------------------
function methods() {
  if (!byId("methods-figure")) return;
  const rows = cells.filter((c) => c.shots === "full" && visible(c) && c.chosen);
  note("methods", rows.length ? "" : "No rows match these filters.");
  show("methods-figure", targets.filter((t) => rows.some((c) => c.target === t)).map((target) => {
    const here = rows.filter((c) => c.target === target);
    const metric = here[0].metric;
    return {
      key: String(targets.indexOf(target)), title: target, target, subtitle: metricUnit(metric),
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
  const traces = here.map((c) => {
    const colour = colourOf(c.label, t);
    return {
      type: "scatter", mode: "markers", x: [c.mean * k], y: [y(c)], name: plain(c.label), meta: c.label,
      marker: { color: colour, size: c.probe === "finetune" ? 12 : 8, symbol: methodSymbol(c.probe) },
      error_x: { ...errors([c], k, rgba(colour, 0.65)), width: 0 }, text: [hover(c)], hovertemplate: "%{text}<extra></extra>",
    };
  });
  return {
    traces, table: cellTable(here), says: probes.map((p) => `${methodName(p)}: ${leaders(here.filter((c) => c.probe === p))}`).join("; "),
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
