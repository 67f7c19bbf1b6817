// ---- figure: what the plan expected, what came ------------------------------------------------------------------
const OUTCOMES = ["target", "backbone", "metric", ...["expected_value", "val_mean", "probe_mean", "test_mean"].flatMap((k) => [k, ...["low", "high"].map((end) => `${k.split("_")[0]}_${end}`)])];
function outcomes() {
  const box = byId("outcomes-figure");
  const rows = data.outcomes.filter((r) => (r.expected_value !== null || r.test_mean !== null) && isShown(r.label, r.target));
  if (!box || !rows.length) { if (box) byId("outcomes-box").hidden = true; return; }
  byId("outcomes-box").hidden = false;
  box.classList.add("wide");
  show("outcomes-figure", [{ key: "0", title: "Expected and found", subtitle: "", name: "expected-and-found", make: (t, width) => outcomePanel(t, rows, width) }]);
}
function outcomePanel(t, rows, width) {
  const marks = [["expected", "value", "full probe, val: expected", false], ["val", "mean", "fine-tuned, val", true], ["probe", "mean", "full probe, test", false], ["test", "mean", "fine-tuned, test", true]]
    .filter(([key, valueKey]) => rows.some((r) => r[`${key}_${valueKey}`] !== null));
  const offset = (j) => 0.22 * (j - (marks.length - 1) / 2);
  const traces = [];
  rows.forEach((r, i) => {
    const k = scale(r.metric), colour = colourOf(r.label, t);
    marks.forEach(([key, valueKey, text, filled], j) => {
      const value = r[`${key}_${valueKey}`];
      if (value === null) return;
      const c = { mean: value, low: r[`${key}_low`], high: r[`${key}_high`], metric: r.metric };
      traces.push({
        type: "scatter", mode: "markers", meta: r.label, x: [value * k], y: [i + offset(j)],
        marker: { color: filled ? colour : t.paper, size: 9, symbol: key === "probe" || key === "test" ? "circle" : "diamond", line: { color: colour, width: 2 } },
        error_x: { ...errors([c], k, rgba(colour, 0.6)), width: 0 },
        text: [`${plain(r.label)} on ${plain(r.target)}<br>${point(c)}<br>${text}`], hovertemplate: "%{text}<extra></extra>",
      });
    });
  });
  const name = (r) => (width < 480 ? `${plain(short(r.label, 15))}<br>${plain(short(r.target, 15))}` : `${plain(short(r.label, 26))} on ${plain(short(r.target, 26))}`);
  return {
    traces, says: rows.map((r) => `${r.label} on ${r.target}: ${marks.filter((m) => r[`${m[0]}_${m[1]}`] !== null).map((m) => `${m[2]} ${shown(r[`${m[0]}_${m[1]}`], r.metric)}`).join(", ")}.`).join(" "),
    table: { heads: OUTCOMES, rows: rows.map((r) => OUTCOMES.map((k) => r[k])) },
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
  const points = known.flatMap((run) => pick(run)[0].map((step, i) => [run.run, step, pick(run)[1][i]]));
  return {
    traces, says: `${words.join(". ")}.`, table: { heads: ["run", "step", "value"], rows: points },
    layout: {
      height: 290 + 20 * known.length, showlegend: true, legend: { orientation: "h", y: -0.25, yanchor: "top", font: { size: width < 420 ? 10 : 12 } },
      margin: { l: 44, r: 14, t: 10, b: 42 }, xaxis: { title: { text: "step" }, rangemode: "tozero", showgrid: false, showline: true }, yaxis: { nticks: 6 },
    },
  };
}
