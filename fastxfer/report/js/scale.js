// ---- figures of proximity, scale, transferability and the paper's cells -------------------------------------------------
const proximities = linesOf(data.proximity), gains = linesOf(data.gains), papers = linesOf(data.paper), agreements = linesOf(data.agreement);
const MEASURES = { frechet: "Fréchet distance", mmd: "MMD²", "a-distance": "A-distance", neighbours: "share of foreign neighbours", labels: "words of class names in common" };
const LARGE_IS_NEAR = new Set(["neighbours", "labels"]);

/** Each filtered cell, with how much better it is than the mean of its target, and how near its source is. */
function nearness() {
  if (!proximities.length) return;
  const rows = cells.filter((c) => c.shots === state.shots && asFiltered(c));
  const panelsOf = distinct(proximities, "measure").flatMap((measure) => distinct(proximities.filter((p) => p.measure === measure), "reference").map((reference) => {
    const of = new Map(proximities.filter((p) => p.measure === measure && p.reference === reference).map((p) => [JSON.stringify([p.source, p.target]), p]));
    const points = rows.map((c) => ({ c, p: of.get(JSON.stringify([c.source, c.target])) })).filter((q) => q.p && isKnown(q.p.value));
    return { measure, reference, points };
  })).filter((panel) => panel.points.length);
  note("proximity", panelsOf.length ? `${settingWords(state.shots)}, ${methodName(state.probe)}.` : "No cell that matches the filters has a source whose nearness was measured.");
  show("proximity-figure", panelsOf.map(({ measure, reference, points }) => ({
    key: `${measure}-${distinct(proximities, "reference").indexOf(reference)}`, title: MEASURES[measure] || measure, subtitle: reference && `by ${reference}`,
    name: fileName("proximity", measure, reference), make: (t) => nearPanel(t, measure, points),
  })));
}
function nearPanel(t, measure, points) {
  const mean = (target) => { const here = points.filter((q) => q.c.target === target); return here.reduce((s, q) => s + q.c.mean, 0) / here.length; };
  const lead = points.map((q) => ({ ...q, above: 100 * (q.c.mean - mean(q.c.target)) }));
  const turned = LARGE_IS_NEAR.has(measure);
  const nearest = [...lead].sort((a, b) => (turned ? b.p.value - a.p.value : a.p.value - b.p.value))[0];
  return {
    traces: lead.map((q) => {
      const colour = colourOf(q.c.label, t);
      return {
        type: "scatter", mode: "markers", meta: q.c.label, x: [q.p.value], y: [q.above], marker: { color: colour, size: 9, symbol: symbolOf(q.c.label) },
        error_x: isKnown(q.p.low) ? { type: "data", symmetric: false, array: [q.p.high - q.p.value], arrayminus: [q.p.value - q.p.low], color: rgba(colour, 0.5), thickness: 1.2, width: 0 } : undefined,
        text: [`${hover(q.c)}<br>on ${plain(q.c.target)}: ${signed(q.above)} points to the mean<br>${plain(q.c.source)}: ${q.p.value.toPrecision(3)}`], hovertemplate: "%{text}<extra></extra>",
      };
    }),
    legend: "markers", says: `Nearest: ${nearest.c.source} to ${nearest.c.target}, where ${nearest.c.label} is ${signed(nearest.above)} points to the mean.`,
    table: { heads: [...CELL_HEADS, "measure", "reference", "proximity", "proximity_low", "proximity_high", "points_to_mean"], rows: lead.map((q) => [...cellRow(q.c), measure, q.p.reference, q.p.value, q.p.low, q.p.high, q.above]) },
    layout: {
      height: 300, margin: { l: 58, r: 14, t: 10, b: 42 }, xaxis: { title: { text: `${MEASURES[measure] || measure}: near on the left` }, autorange: turned ? "reversed" : true, showline: true, nticks: 5 },
      yaxis: { title: { text: "points to the target’s mean" }, zeroline: true, zerolinecolor: t.line, nticks: 6 },
    },
  };
}

function gainFigures() {
  if (!gains.length) return;
  const kinds = { size: ["Size", "ten times the parameters"], data: ["Data", "ten times the source’s images"] };
  show("gains-figure", distinct(gains, "kind").map((kind) => {
    const here = gains.filter((g) => g.kind === kind && (g.shots === "full" || Number(g.shots) > 0) && isKnown(g.value));
    return { key: kind, title: (kinds[kind] || [kind])[0], subtitle: `points by ${(kinds[kind] || [kind, kind])[1]}`, name: fileName("gains", kind), make: (t) => gainPanel(t, here) };
  }));
}
function gainPanel(t, here) {
  const shots = distinct(here, "shots").sort((a, b) => bigLast(a) - bigLast(b)), at = (g) => shots.indexOf(g.shots);
  const relations = distinct(here, "relation"), traces = [];
  relations.forEach((relation, i) => {
    const own = here.filter((g) => g.relation === relation).sort((a, b) => at(a) - at(b)), banded = own.filter((g) => isKnown(g.low)), colour = t.backbones[i % COLOURS];
    traces.push({
      type: "scatter", mode: "lines", x: [...banded.map(at), ...banded.map(at).reverse()], y: [...banded.map((g) => g.high), ...banded.map((g) => g.low).reverse()],
      fill: "toself", fillcolor: rgba(colour, 0.15), line: { width: 0 }, hoverinfo: "skip", showlegend: false,
    }, {
      type: "scatter", mode: "lines+markers", name: plain(relation), x: own.map(at), y: own.map((g) => g.value), line: { color: colour, width: 2, dash: DASHES[i % DASHES.length] }, marker: { color: colour, size: 7, symbol: SYMBOLS[i % SYMBOLS.length] },
      text: own.map((g) => `${plain(relation)}, ${g.shots === "full" ? "whole train split" : `${g.shots} shot${g.shots === "1" ? "" : "s"}`}<br><b>${signed(g.value)}</b> points${isKnown(g.low) ? ` (${signed(g.low)} to ${signed(g.high)})` : ""}<br>${plural(g.n_targets, "target")}, ${plural(g.n_cells, "cell")}`), hovertemplate: "%{text}<extra></extra>",
    });
  });
  const sure = here.filter((g) => isKnown(g.low) && (g.low > 0 || g.high < 0)).length;
  return {
    traces, table: tableOf(here),
    says: `${relations.map((r) => { const own = here.filter((g) => g.relation === r), peak = own.reduce((a, b) => (Math.abs(b.value) > Math.abs(a.value) ? b : a)); return `${r}: up to ${signed(peak.value)} points (${peak.shots === "full" ? "whole train split" : `${peak.shots} shot${peak.shots === "1" ? "" : "s"}`})`; }).join("; ")}. ${sure} of ${here.length} intervals exclude 0.`,
    layout: {
      height: 300 + 18 * relations.length, showlegend: true, legend: { orientation: "h", y: -0.25, yanchor: "top" }, margin: { l: 44, r: 14, t: 10, b: 42 },
      xaxis: { tickvals: shots.map((_, i) => i), ticktext: shots, title: { text: "shots per class" }, showgrid: false, showline: true }, yaxis: { nticks: 6, zeroline: true, zerolinecolor: t.soft },
    },
  };
}

function agreementFigure() {
  if (!agreements.length) return;
  byId("agreement-figure").classList.add("wide");
  show("agreement-figure", [{ key: "0", title: "Scores against fine-tuning", subtitle: "weighted rank correlation", name: "transferability", make: agreementPanel }]);
}
function agreementPanel(t, width) {
  const means = agreements.filter((a) => !a.target).sort((a, b) => b.weighted_tau - a.weighted_tau), scores = means.map((a) => a.score);
  const each = agreements.filter((a) => a.target && isShown(undefined, a.target));
  const trace = (rows, marker) => ({
    type: "scatter", mode: "markers", x: rows.map((a) => a.weighted_tau), y: rows.map((a) => scores.indexOf(a.score)), marker,
    text: rows.map((a) => `${plain(a.score)}${a.target ? ` on ${plain(a.target)}` : ", mean"}<br>weighted τ ${a.weighted_tau.toFixed(2)}, Spearman ${a.spearman.toFixed(2)}<br>${plural(a.n_backbones, "backbone")}`), hovertemplate: "%{text}<extra></extra>",
  });
  return {
    traces: [trace(each, { color: rgba(t.backbones[0], 0.45), size: 7 }), trace(means, { color: t.ink, size: 11, symbol: "line-ns", line: { width: 3, color: t.ink } })],
    says: means.slice(0, 3).map((a) => `${a.score} ${a.weighted_tau.toFixed(2)}`).join(", ") + (means.length > 3 ? " …" : "."), table: tableOf(agreements),
    layout: { height: 70 + 26 * scores.length, margin: { l: 12, r: 14, t: 6, b: 42 }, xaxis: { range: [-1.05, 1.05], title: { text: "weighted rank correlation with fine-tuning" }, zeroline: true, zerolinecolor: t.soft }, yaxis: { ...nameTicks(scores, t, width), range: [scores.length - 0.5, -0.5] } },
  };
}

function paperFigure() {
  if (!papers.length) return;
  const rows = papers.filter((p) => !data.labels.includes(p.backbone) || isShown(p.backbone));
  show("paper-figure", rows.length ? [{ key: "0", title: "Theirs and ours", subtitle: "%", name: "paper-beside", make: (t) => paperPanel(t, rows) }] : []);
}
function paperPanel(t, rows) {
  const all = rows.flatMap((p) => [100 * p.paper, 100 * p.ours]), ends = [Math.min(...all) - 3, Math.max(...all) + 3];
  return {
    traces: [
      { type: "scatter", mode: "lines", x: ends, y: ends, line: { color: t.line, width: 1 }, hoverinfo: "skip" },
      ...rows.map((p) => {
        const colour = colourOf(p.backbone, t), bar = (v) => ({ type: "data", array: [196 * v], color: rgba(colour, 0.5), thickness: 1.2, width: 0 });
        return {
          type: "scatter", mode: "markers", meta: p.backbone, x: [100 * p.paper], y: [100 * p.ours], marker: { color: p.beyond ? colour : t.paper, size: 9, symbol: methodSymbol(p.probe), line: { color: colour, width: 2 } },
          error_x: bar(p.paper_sd / Math.sqrt(p.paper_n)), error_y: isKnown(p.ours_se) ? bar(p.ours_se) : undefined,
          text: [`${plain(p.target)}, ${plain(p.source)}, ${plain(p.model)}, ${plain(p.shots)}<br>paper <b>${(100 * p.paper).toFixed(1)}</b>, ours <b>${(100 * p.ours).toFixed(1)}</b>`], hovertemplate: "%{text}<extra></extra>",
        };
      }),
    ],
    legend: "markers", says: `Ours lie ${signed((100 * rows.reduce((s, p) => s + p.difference, 0)) / rows.length)} points from the paper’s on average of ${plural(rows.length, "cell")}; ${rows.filter((p) => p.beyond).length} beyond both noises.`,
    table: tableOf(rows),
    layout: { height: 340, margin: { l: 58, r: 14, t: 10, b: 42 }, xaxis: { range: ends, title: { text: "paper, %" }, showline: true }, yaxis: { range: ends, title: { text: "ours, %" } } },
  };
}
