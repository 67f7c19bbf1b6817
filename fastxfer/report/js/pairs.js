// ---- figures of paired comparisons: matrix, ranks, mean ranks, crossings ------------------------------------------------
const pairs = linesOf(data.pairs), ranks = linesOf(data.ranks), crossingLines = linesOf(data.crossings);
const tableOf = (lines) => ({ heads: Object.keys(lines[0] || {}), rows: lines.map((line) => Object.values(line)) });
const MOST_NAMES = 5;
const someOf = (names) => (names.length > MOST_NAMES + 1 ? `${names.slice(0, MOST_NAMES).join(", ")} and ${names.length - MOST_NAMES} more` : listed(names));
const signed = (v, digits = 1) => `${v < 0 ? "−" : "+"}${Math.abs(v).toFixed(digits)}`;
const widest = (line) => (isKnown(line.low_images) ? [line.low_images, line.high_images] : [line.low, line.high]);
const nameTicks = (labels, t, width) => ({
  tickvals: labels.map((_, i) => i), ticktext: labels.map((l) => plain(short(l, width < 420 ? 16 : 24))), showgrid: false, ticks: "", tickfont: { size: 12, color: t.ink },
});

function matrices() {
  const rows = pairs.filter((p) => p.shots === state.shots && isShown(p.a, p.target) && isShown(p.b, p.target));
  note("matrix", rows.length ? `${settingWords(state.shots)}, ${distinct(rows, "probe").map(methodName).join(" or ")}.` : "Nothing was compared at these shots.");
  show("matrix-figure", targets.filter((t) => rows.some((p) => p.target === t)).map((target) => {
    const here = rows.filter((p) => p.target === target);
    return { key: String(targets.indexOf(target)), title: target, target, subtitle: `${metricName(here[0].metric)}, points`, name: fileName("pairs", target), make: (t, width) => matrixPanel(t, here, width) };
  }));
}
function matrixPanel(t, here, width) {
  const means = new Map(here.flatMap((p) => [[p.a, p.mean_a], [p.b, p.mean_b]]));
  const labels = [...means.keys()].sort((a, b) => means.get(b) - means.get(a));
  const of = new Map(here.flatMap((p) => [[JSON.stringify([p.a, p.b]), [p, 1]], [JSON.stringify([p.b, p.a]), [p, -1]]]));
  const sure = (p) => p.verdict === "a better" || p.verdict === "b better";
  const most = Math.max(1, ...here.filter(sure).map((p) => Math.abs(p.difference)));
  const z = [], text = [], words = [];
  for (const a of labels) {
    z.push([]); text.push([]); words.push([]);
    for (const b of labels) {
      const [p, sign] = of.get(JSON.stringify([a, b])) || [];
      const difference = p && sign * p.difference;
      // The root, so that a few large differences do not leave all others pale.
      z[z.length - 1].push(p && sure(p) ? Math.sign(difference) * Math.sqrt(Math.abs(difference) / most) : null);
      text[text.length - 1].push(!p ? "" : p.verdict === "equivalent" ? "≈" : sure(p) ? signed(difference) : `${signed(difference)} ?`);
      const [low, high] = p ? widest(p).map((v) => sign * v).sort((u, v) => u - v) : [];
      words[words.length - 1].push(!p ? "" : `${plain(a)} less ${plain(b)}: <b>${signed(difference, 2)}</b> points${p.low === null ? "" : ` (${signed(low, 2)} to ${signed(high, 2)})`}<br>${p.verdict === "equivalent" || p.verdict === "undecided" ? p.verdict : `${plain(p.verdict === "a better" ? p.a : p.b)} better`}${isKnown(p.p_holm) ? `, p ${p.p_holm < 0.0001 ? "< 0.0001" : p.p_holm.toFixed(4)} (Holm)` : ""}<br>over ${p.over}`);
    }
  }
  const best = labels[0], against = (test) => labels.slice(1).filter((b) => { const [p, sign] = of.get(JSON.stringify([best, b])) || []; return p && test(p, sign); });
  const worse = against(sure), alike = against((p) => p.verdict === "equivalent"), open = against((p) => p.verdict === "undecided");
  const says = [worse.length ? `${best} is better than ${someOf(worse)}` : "", alike.length ? `as good as ${someOf(alike)}` : "", open.length ? `not told from ${someOf(open)}` : ""].filter(Boolean);
  const many = labels.length > 9;
  const side = Math.max(26, Math.min(52, 300 / labels.length));
  return {
    traces: [{
      type: "heatmap", z, text, customdata: words, texttemplate: many ? "" : "%{text}", hovertemplate: "%{customdata}<extra></extra>", hoverongaps: false,
      colorscale: [[0, rgba(t.backbones[1], 0.75)], [0.5, rgba(t.backbones[1], 0.04)], [0.5, rgba(t.backbones[0], 0.04)], [1, rgba(t.backbones[0], 0.75)]],
      zmin: -1, zmax: 1, showscale: false, xgap: 2, ygap: 2, textfont: { size: 12, color: t.ink },
    }, {
      // Cells without colour have words, too.
      type: "scatter", mode: many ? "markers" : "text", hoverinfo: "skip", marker: { size: 4, color: t.soft, symbol: "circle" },
      ...gaps(z, text, labels), textfont: { size: 12, color: t.soft },
    }],
    says: says.length ? `${says.join("; ")}.` : "",
    table: tableOf(here),
    layout: {
      height: 60 + side * labels.length + (width < 420 ? 70 : 60), margin: { l: 12, r: 14, t: 6, b: 12 },
      xaxis: { ...nameTicks(labels, t, width), ticktext: labels.map((l) => plain(short(l, 14))), tickangle: labels.length > 3 ? -40 : 0, showline: false, range: [-0.5, labels.length - 0.5] },
      yaxis: { ...nameTicks(labels, t, width), range: [labels.length - 0.5, -0.5] },
    },
  };
}
/** Where a matrix has words but no colour. */
function gaps(z, text, labels) {
  const found = labels.flatMap((_, i) => labels.map((__, j) => [i, j])).filter(([i, j]) => z[i][j] === null && text[i][j]);
  return { x: found.map(([, j]) => j), y: found.map(([i]) => i), text: found.map(([i, j]) => text[i][j]) };
}

function rankings() {
  const rows = ranks.filter((r) => r.shots === state.shots && !hidden.has(r.name) && (r.target === data.allTargets || isShown(r.name, r.target)));
  const places = [data.allTargets, ...targets].filter((target) => rows.some((r) => r.target === target));
  const critical = data.critical.filter((c) => c.shots === state.shots);
  note("ranks", rows.length ? `${settingWords(state.shots)}.` : "Nothing was compared at these shots.");
  const ranked = places.map((target) => {
    const here = rows.filter((r) => r.target === target);
    return { key: `r${targets.indexOf(target)}`, title: target, target: targets.includes(target) ? target : undefined, subtitle: "ranks", name: fileName("ranks", target), make: (t, width) => rankPanel(t, here, width) };
  });
  const means = critical.map((c, i) => ({ key: `mean${i}`, title: "Mean ranks", subtitle: `${metricName(c.metric)}, over ${plural(c.targets, "target")}`, name: fileName("mean-ranks", c.metric), make: (t, width) => criticalPanel(t, c, width) }));
  show("ranks-figure", places[0] === data.allTargets ? [ranked[0], ...means, ...ranked.slice(1)] : [...means, ...ranked]);
}
const rankAxis = (n) => ({ range: [0.5, n + 0.5], tickvals: Array.from({ length: n }, (_, i) => i + 1).filter((r) => n <= 12 || r === 1 || r % 5 === 0), title: { text: "rank, 1 is best" } });
function rankPanel(t, here, width) {
  const n = Math.max(...here.map((r) => r.high));
  return {
    traces: here.map((r, i) => {
      const colour = colourOf(r.name, t);
      return {
        type: "scatter", mode: "markers", meta: r.name, x: [r.rank], y: [i], marker: { color: colour, size: 9, symbol: symbolOf(r.name) },
        error_x: { type: "data", symmetric: false, array: [r.high - r.rank], arrayminus: [r.rank - r.low], color: rgba(colour, 0.6), thickness: 2, width: 4 },
        text: [`${plain(r.name)}<br>rank ${r.rank}, ${r.low} to ${r.high} left open<br>mean ${r.mean.toFixed(1)} points`], hovertemplate: "%{text}<extra></extra>",
      };
    }),
    says: here.slice(0, 3).map((r) => `${r.name}: ${r.low === r.high ? `rank ${r.rank}` : `ranks ${r.low} to ${r.high}`}`).join("; ") + (here.length > 3 ? " …" : "."),
    table: tableOf(here),
    layout: { height: 70 + 26 * here.length, margin: { l: 12, r: 14, t: 6, b: 42 }, xaxis: rankAxis(n), yaxis: { ...nameTicks(here.map((r) => r.name), t, width), range: [here.length - 0.5, -0.5] } },
  };
}
/** The diagram of Demšar 2006, with names at the left: marks at mean ranks, bars over those not told apart. */
function criticalPanel(t, critical, width) {
  const lines = linesOf(critical.ranks).map((r, i) => ({ ...r, i }));
  const of = new Map(lines.map((r) => [r.name, r]));
  const bars = critical.groups.map((names, i) => {
    const x = names.map((name) => of.get(name).mean_rank), y = lines.length + 0.1 + 0.5 * i;
    return { type: "scatter", mode: "lines", x: [Math.min(...x) - 0.03, Math.max(...x) + 0.03], y: [y, y], line: { color: t.ink, width: 4 }, text: plain(listed(names)), hovertemplate: "not told apart: %{text}<extra></extra>" };
  });
  return {
    traces: [...lines.map((r) => ({
      type: "scatter", mode: "markers", meta: r.name, x: [r.mean_rank], y: [r.i], marker: { color: colourOf(r.name, t), size: 10, symbol: symbolOf(r.name) },
      text: [`${plain(r.name)}<br>mean rank ${r.mean_rank.toFixed(2)}`], hovertemplate: "%{text}<extra></extra>",
    })), ...bars],
    says: `${lines.slice(0, 3).map((r) => `${r.name} ${r.mean_rank.toFixed(2)}`).join(", ")}${lines.length > 3 ? " …" : "."} ${critical.targets < 6 ? "Fewer than six targets cannot tell any apart." : critical.groups.length ? `Not told apart: ${critical.groups.map(someOf).join("; ")}.` : "All are told apart."}`,
    table: { heads: ["backbone", "mean_rank"], rows: lines.map((r) => [r.name, r.mean_rank]) },
    layout: {
      height: 76 + 26 * lines.length + 13 * bars.length, margin: { l: 12, r: 14, t: 6, b: 42 }, xaxis: { ...rankAxis(lines.length), title: { text: "mean rank, 1 is best" } },
      yaxis: { ...nameTicks(lines.map((r) => r.name), t, width), range: [lines.length + 0.5 * bars.length, -0.5] },
    },
  };
}

const MOST_CROSSINGS = 15; // pairs of a panel
function crossingFigures() {
  const rows = crossingLines.filter((r) => isShown(r.a, r.target) && isShown(r.b, r.target));
  show("crossings-figure", targets.filter((t) => rows.some((r) => r.target === t)).map((target) => {
    const here = rows.filter((r) => r.target === target);
    return { key: String(targets.indexOf(target)), title: target, target, subtitle: "who is better, by shots", name: fileName("crossings", target), make: (t, width) => crossingPanel(t, here, width) };
  }));
}
function crossingPanel(t, here, width) {
  const couples = new Map();
  for (const r of here) couples.set(JSON.stringify([r.a, r.b]), [...(couples.get(JSON.stringify([r.a, r.b])) || []), r]);
  // Those that cross first.
  const lines = [...couples.values()].sort((u, v) => v.some((r) => r.verdict === "crossing") - u.some((r) => r.verdict === "crossing")).slice(0, MOST_CROSSINGS);
  const [first, last] = [here[0].from, here[0].to], inside = (v) => Math.min(Math.max(v === null ? last : v, first), last);
  const traces = [];
  const stretch = (i, from, to, who, words) => {
    if (to <= from) return;
    traces.push({
      type: "scatter", mode: "lines", x: [from, to], y: [i, i], line: { color: who ? colourOf(who, t) : t.line, width: who ? 9 : 5, ...(who ? { dash: "solid" } : {}) },
      meta: who, text: plain(words), hovertemplate: "%{text}<extra></extra>",
    });
  };
  lines.forEach((of, i) => {
    let at = first, who = of[0].below;
    for (const r of of) {
      // No stretch without verdict: one leads everywhere. A stretch up to the end has no upper bound (null).
      const [low, high] = r.low === null ? [last, last] : [inside(r.low), inside(r.high)];
      stretch(i, at, low, who, `${who} is better`);
      stretch(i, low, high, "", r.answer);
      [at, who] = [high, r.above];
    }
    stretch(i, at, last, who, `${who} is better`);
  });
  const named = (of) => `${plain(short(of[0].a, width < 420 ? 13 : 18))}<br>${plain(short(of[0].b, width < 420 ? 13 : 18))}`;
  const ticks = logTicks(first, last);
  return {
    traces, table: tableOf(here),
    says: lines.length < couples.size ? `${plural(couples.size, "pair")}, the first ${lines.length} shown.` : "",
    layout: {
      height: 66 + 40 * lines.length, margin: { l: 12, r: 14, t: 6, b: 42 },
      xaxis: { type: "log", range: [Math.log10(first) - 0.03, Math.log10(last) + 0.03], tickvals: ticks, ticktext: ticks.map(String), title: { text: "shots per class" }, showgrid: false, showline: true },
      yaxis: { ...nameTicks([], t, width), tickvals: lines.map((_, i) => i), ticktext: lines.map(named), tickfont: { size: 11, color: t.ink }, range: [lines.length - 0.5, -0.5] },
    },
  };
}
