/* Charts: each …Facets() returns a list of {title, caption, height, spec}; spec() is called when one comes into view. */
const LOG_TICKS = [0.1, 1, 10, 100, 1000].flatMap((power) => [power, 2 * power, 5 * power]);

const axis = (title, more = {}) => ({
  title: { text: title, standoff: 10, font: { size: 12, color: colour("--quiet") } },
  automargin: true,
  fixedrange: true,
  gridcolor: colour("--line"),
  zeroline: false,
  ticks: "outside",
  ticklen: 6,
  tickcolor: "rgba(0,0,0,0)",
  ...more,
});
const scoreAxis = (of, more) => axis(`${plain(of.name)} (${plain(unit(of))})`, more);
const rowAxis = (texts) =>
  axis("", {
    tickvals: texts.map((_, i) => i),
    ticktext: texts.map((t) => plain(t, narrow() ? 15 : 24)),
    range: [texts.length - 0.4, -0.6],
    showgrid: false,
  });
const rowHeight = (n) => 28 * n + 64;
const layout = (more) => ({
  autosize: true,
  margin: { l: 12, r: 12, t: 10, b: 44 },
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--ink") },
  showlegend: false,
  dragmode: false,
  hovermode: "closest",
  hoverlabel: {
    bgcolor: colour("--paper"),
    bordercolor: colour("--quiet"),
    font: { color: colour("--ink") },
    align: "left",
  },
  ...more,
});
function marker(method, { size = 8, open = false } = {}) {
  const { variable, symbol } = look(method);
  const [name, , larger = 1] = SYMBOLS[symbol ?? 0];
  return { opacity: 1, size: size * larger, color: colour(variable), symbol: name + (open ? "-open" : "") };
}
/** Markers of different methods in one trace. */
const markers = (looks) => ({
  opacity: 1,
  size: looks.map((m) => m.size),
  symbol: looks.map((m) => m.symbol),
  color: looks.map((m) => m.color),
  line: { width: 1.75, color: looks.map((m) => m.color) },
});
/** Text at the right end of each row. */
const rowEnds = (rows) =>
  rows.map(([text, color], y) => ({
    x: 1,
    xref: "paper",
    xanchor: "left",
    xshift: 6,
    y,
    showarrow: false,
    font: { color },
    text: plain(text),
  }));
/** A line that only guides the eye. */
const guide = (x, y, line) => ({ x, y, mode: "lines", line, hoverinfo: "skip" });
const line = (method) => ({ width: 1.75, color: colour(look(method).variable), dash: DASHES[look(method).dash][0] });
const caption = (group) => [group[0].dataset, group[0].labeled].join(" · ");
const runsIn = (group) =>
  span(
    data.cells.filter((c) => here(c) && !c.control && c.dataset === group[0].dataset && c.labeled === group[0].labeled),
    "runs",
    "run",
  );

function band(method, x, low, high, among) {
  const at = x.map((_, i) => i).filter((i) => defined(low[i]) && defined(high[i]));
  const back = [...at].reverse();
  return {
    x: [...at, ...back].map((i) => x[i]),
    y: [...at.map((i) => high[i]), ...back.map((i) => low[i])],
    mode: "lines",
    fill: "toself",
    fillcolor: colour(look(method).variable, Math.min(0.13, 0.8 / among)),
    line: { width: 0 },
    hoverinfo: "skip",
  };
}

function fractionFacets() {
  const cells = data.cells.filter(
    (c) => here(c) && measured(c) && !off.has(c.method) && (!state.dataset || c.dataset === state.dataset),
  );
  return datasets
    .map((dataset) => cells.filter((c) => c.dataset === dataset))
    .filter((group) => unique(group.map((c) => c.labeled)).length > 1)
    .map((group) => ({
      title: group[0].dataset,
      caption: `n = ${span(
        group.filter((c) => !c.control),
        "runs",
        "run",
      )} per point`,
      height: 360,
      spec: () => fractionSpec(group),
    }));
}
/** Label shares keep their proportions on a logarithmic axis; shares mixed with counts are only put in order. */
function labelAxis(present) {
  const shown = labels.filter((l) => present.includes(l));
  const comparable =
    shown.every((l) => labelNumber.get(l) > 0) && unique(shown.map((l) => isCount.get(l))).length === 1;
  const at = new Map(shown.map((l, i) => [l, comparable ? labelNumber.get(l) : i]));
  return {
    at,
    axis: axis("Labelled", {
      type: comparable ? "log" : "linear",
      tickvals: [...at.values()],
      ticktext: shown.map((l) => plain(l, 14)),
    }),
  };
}
function fractionSpec(group) {
  const of = metric();
  const published = state.published ? publishedPoints(group[0].dataset) : [];
  const { at, axis: xaxis } = labelAxis([...group, ...published].map((c) => c.labeled));
  const traces = [...controls, ...methods].flatMap((method) => {
    const cells = group.filter((c) => c.method === method).sort((a, b) => at.get(a.labeled) - at.get(b.labeled));
    if (!cells.length) return [];
    const x = cells.map((c) => at.get(c.labeled));
    const y = cells.map((c) => raw(of, c.mean[of.key]));
    const half = cells.map((c) => raw(of, c.ci90[of.key]));
    const interval = (c) => (defined(c.ci90[of.key]) ? ` ± ${score(of, c.ci90[of.key])}` : "");
    const text = cells.map((c) => `${plain(c.name)}, ${plain(c.labeled)}: ${score(of, c.mean[of.key])}${interval(c)}`);
    const bound = (sign) => y.map((v, i) => (half[i] === null ? null : v + sign * half[i]));
    const control = cells[0].control;
    return [
      ...(control ? [] : [band(method, x, bound(-1), bound(1), methods.length)]),
      {
        x,
        y,
        mode: control ? "lines" : "lines+markers",
        line: line(method),
        marker: marker(method),
        hovertext: text,
        hoverinfo: "text",
        name: plain(nameOf(method)),
      },
    ];
  });
  const open = published.map((p) => ({
    x: [at.get(p.labeled)],
    y: [raw(of, p.mean)],
    mode: "markers",
    hoverinfo: "text",
    hovertext: plain(`${nameOf(p.method)}, ${p.source}: ${score(of, p.mean)}`),
    marker: {
      ...marker(p.method, { size: 11, open: true }),
      line: { width: 1.75 },
      ...(methods.includes(p.method) ? {} : { color: colour("--quiet"), symbol: "star-open" }),
    },
  }));
  return {
    traces: [...traces, ...open],
    layout: { xaxis, yaxis: scoreAxis(of) },
    columns: ["Method", "Labelled", of.name, "90 % CI", "Runs"],
    rows: [
      ...group.map((c) => [
        c.name,
        c.labeled,
        score(of, c.mean[of.key]),
        score(of, c.ci90[of.key]),
        String(c.control ? "–" : c.runs),
      ]),
      ...published.map((p) => [
        `${nameOf(p.method)}, ${p.source}`,
        p.labeled,
        score(of, p.mean),
        score(of, p.ci90),
        "published",
      ]),
    ],
  };
}
function publishedPoints(dataset) {
  const beside = data.cells
    .filter((c) => here(c) && !off.has(c.method))
    .flatMap((c) => c.published.map((p) => ({ ...p, dataset: c.dataset, labeled: c.labeled, method: c.method })));
  return [...beside, ...data.published_only].filter(
    (p) => p.metric === state.metric && p.dataset === dataset && defined(p.mean),
  );
}

function differenceFacets() {
  const rows = data.differences.filter((d) => visible(d) && d.metric === state.metric && defined(d.mean));
  return groups(rows).map((group) => ({
    title: `${caption(group)}, against ${nameOf(group[0].baseline)}`,
    caption: `n = ${span(group, "patients", "patient")}, ${span(group, "runs", "run")} each; right: p after Holm`,
    height: rowHeight(group.length) + 14,
    spec: () => differenceSpec(group.sort(byScore(metric(), (d) => d.mean))),
  }));
}
function differenceSpec(group) {
  const of = metric();
  const values = (pick) => group.map((d) => raw(of, pick(d)));
  const side = of.better === "lower" ? "left" : "right";
  const clear = (d) => defined(d.p_holm) && d.p_holm < 0.05;
  const looks = group.map((d) => marker(d.method, { size: 9, open: !clear(d) }));
  const trace = {
    x: values((d) => d.mean),
    y: group.map((_, i) => i),
    mode: "markers",
    hoverinfo: "text",
    error_x: {
      type: "data",
      symmetric: false,
      array: values((d) => (d.high ?? d.mean) - d.mean),
      arrayminus: values((d) => d.mean - (d.low ?? d.mean)),
      thickness: 1.5,
      width: 0,
      color: colour("--quiet"),
    },
    marker: markers(looks),
    hovertext: group.map(
      (d) =>
        `${plain(nameOf(d.method))}: ${difference(of, d.mean)} (${score(of, d.low)} to ${score(of, d.high)})<br>` +
        `p ${plain(probability(d.p))}, after Holm ${plain(probability(d.p_holm))}<br>` +
        `per run ${difference(of, d.per_run_mean)}, SD ${score(of, d.per_run_sd)}`,
    ),
  };
  return {
    traces: [trace],
    layout: {
      margin: { l: 12, r: 58, t: 10, b: 58 },
      annotations: rowEnds(group.map((d) => [probability(d.p_holm), colour("--quiet")])),
      yaxis: rowAxis(group.map((d) => nameOf(d.method))),
      xaxis: axis(`Change of ${plain(of.name)} (${plain(of.unit || "points")})<br>${side} is better`, {
        zeroline: true,
        zerolinecolor: colour("--ink"),
        zerolinewidth: 1,
      }),
    },
    columns: ["Method", "Mean", "Low", "High", "p", "p (Holm)", "Per run", "SD"],
    rows: group.map((d) => [
      nameOf(d.method),
      difference(of, d.mean),
      difference(of, d.low),
      difference(of, d.high),
      probability(d.p),
      probability(d.p_holm),
      difference(of, d.per_run_mean),
      score(of, d.per_run_sd),
    ]),
  };
}

function rankFacets() {
  return data.ranks
    .filter((r) => here(r) && r.metric === state.metric && r.methods.length > 1)
    .map((r) => ({
      title: metric().name,
      caption:
        `${r.methods.length} methods in ${counted(r.cells, "comparison")}; Friedman p ${probability(r.p_friedman)}` +
        `${r.p_friedman >= 0.05 ? ", which does not tell the methods apart" : ""}; ` +
        `critical difference ${number(r.critical_difference, 2)}`,
      height: 24 * (Math.ceil(r.methods.length / 2) + 4) + 12 * r.groups.length,
      spec: () => rankSpec(r),
    }));
}
/** The diagram of Demšar (2006): ranks on a line, elbows to the names on both sides, bars over what is not told apart. */
function rankSpec(result) {
  const order = result.methods.map((_, i) => i).sort((a, b) => result.ranks[a] - result.ranks[b]);
  const bars = result.groups.filter((g) => g.length > 1);
  const [low, high] = [1, Math.max(result.methods.length, Math.ceil(Math.max(...result.ranks)))];
  const reach = (narrow() ? 0.8 : 0.32) * (high - low); // room for the names beside the line
  const half = Math.ceil(order.length / 2);
  const traces = [];
  const annotations = [];
  order.forEach((index, place) => {
    const left = place < half;
    const [rank, method] = [result.ranks[index], result.methods[index]];
    const y = -0.6 - 0.5 * bars.length - (left ? place : order.length - 1 - place);
    const edge = left ? low - reach : high + reach;
    traces.push(guide([rank, rank, edge], [0, y, y], { width: 1.25, color: colour("--quiet") }), {
      x: [rank],
      y: [0],
      mode: "markers",
      marker: marker(method),
      hoverinfo: "text",
      hovertext: [`${plain(nameOf(method))}: ${number(rank, 2)}`],
    });
    annotations.push({
      x: edge,
      y,
      xanchor: left ? "left" : "right",
      yanchor: "bottom",
      showarrow: false,
      borderpad: 0,
      text: `${plain(nameOf(method), narrow() ? 14 : 24)} ${number(rank, 2)}`,
    });
  });
  const every = Math.ceil((high - low) / (narrow() ? 7 : 20));
  const ticks = Array.from({ length: Math.floor((high - low) / every) + 1 }, (_, i) => low + i * every);
  traces.unshift(guide([low, high], [0, 0], { width: 1, color: colour("--ink") }), {
    x: ticks,
    y: ticks.map(() => 0.55),
    mode: "text",
    text: ticks.map(String),
    textfont: { color: colour("--quiet") },
    hoverinfo: "skip",
  });
  bars.forEach((group, i) => {
    const ranks = group.map((index) => result.ranks[index]);
    const ends = [Math.min(...ranks) - 0.05, Math.max(...ranks) + 0.05];
    traces.push(guide(ends, [-0.5 * (i + 1), -0.5 * (i + 1)], { width: 5, color: colour("--ink") }));
  });
  if (defined(result.critical_difference)) {
    const ruler = guide([low, low + result.critical_difference], [1.6, 1.6], { width: 1.5, color: colour("--ink") });
    traces.push({ ...ruler, mode: "lines+markers", marker: { symbol: "line-ns-open", size: 8 } });
    annotations.push({
      x: low,
      y: 1.7,
      xanchor: "left",
      yanchor: "bottom",
      showarrow: false,
      text: `critical difference ${number(result.critical_difference, 2)}`,
    });
  }
  const blank = { visible: false, fixedrange: true };
  return {
    traces,
    layout: {
      annotations,
      margin: { l: 4, r: 4, t: 4, b: 4 },
      xaxis: { ...blank, range: [low - reach, high + reach] },
      yaxis: { ...blank, range: [-0.9 - 0.5 * bars.length - half + 0.6, 2.7] },
    },
    columns: ["Method", "Mean rank"],
    rows: order.map((i) => [nameOf(result.methods[i]), number(result.ranks[i], 2)]),
  };
}

function distributionFacets() {
  const median = (d) => quantile(d.dice, 0.5);
  return groups(data.distributions.filter((d) => visible(d) && d.dice.some(defined))).map((group) => ({
    title: caption(group),
    caption: `n = ${span(
      group.map((d) => d.dice.filter(defined)),
      "length",
      "case",
    )}`,
    height: rowHeight(group.length),
    spec: () => distributionSpec(group.sort((a, b) => median(b) - median(a))),
  }));
}
function quantile(values, q) {
  const order = values.filter(defined).sort((a, b) => a - b);
  const at = q * (order.length - 1);
  const below = Math.floor(at);
  return order[below] + (at - below) * ((order[below + 1] ?? order[below]) - order[below]);
}
function distributionSpec(group) {
  const percent = (value) => number(100 * value);
  const traces = group.map((d, i) => ({
    type: "box",
    orientation: "h",
    x: d.dice.filter(defined).map((v) => 100 * v),
    y: d.dice.filter(defined).map(() => i),
    boxpoints: "all",
    pointpos: 0,
    jitter: 0.7,
    width: 0.62,
    marker: { ...marker(d.method, { size: 4 }), opacity: 0.6 },
    whiskerwidth: 0,
    line: { width: 1.25, color: colour(look(d.method).variable) },
    fillcolor: colour(look(d.method).variable, 0.1),
    name: plain(nameOf(d.method)),
    hoverinfo: "x+name",
  }));
  return {
    traces,
    layout: { yaxis: rowAxis(group.map((d) => nameOf(d.method))), xaxis: axis("Dice of a case (%)") },
    columns: ["Method", "Lowest", "Quartile", "Median", "Quartile", "Highest"],
    rows: group.map((d) => [nameOf(d.method), ...[0, 0.25, 0.5, 0.75, 1].map((q) => percent(quantile(d.dice, q)))]),
  };
}

function costFacets() {
  const cells = data.cells.filter((c) => visible(c) && !c.control && measured(c) && defined(c.minutes));
  return groups(cells)
    .filter((group) => group.length > 1)
    .map((group) => ({
      title: caption(group),
      caption: `n = ${span(group, "runs", "run")} per point`,
      height: 340,
      spec: () => costSpec(group),
    }));
}
function costSpec(group) {
  const of = metric();
  const times = group.map((c) => c.minutes);
  const traces = group.map((c) => ({
    x: [c.minutes],
    y: [raw(of, c.mean[of.key])],
    mode: "markers",
    marker: marker(c.method, { size: 10 }),
    hoverinfo: "text",
    error_y: {
      type: "data",
      array: [raw(of, c.ci90[of.key]) ?? 0],
      thickness: 1.25,
      width: 0,
      color: colour(look(c.method).variable),
    },
    hovertext: [`${plain(c.name)}: ${score(of, c.mean[of.key])}, ${number(c.minutes)} min`],
  }));
  const front = undominated(group);
  const heights = front.map((c) => raw(of, c.mean[of.key]));
  const steps = { shape: "hv", width: 1.25, color: colour("--control"), dash: "dot" };
  traces.unshift(
    guide(
      front.map((c) => c.minutes),
      heights,
      steps,
    ),
  );
  const wide = Math.min(...times) > 0 && Math.max(...times) > 8 * Math.min(...times);
  return {
    traces,
    layout: {
      xaxis: axis(
        "Training time (minutes)",
        wide ? { type: "log", tickvals: LOG_TICKS, ticktext: LOG_TICKS.map(String) } : {},
      ),
      yaxis: scoreAxis(of),
    },
    columns: ["Method", "Minutes", of.name, "Parameters"],
    rows: group.map((c) => [
      c.name,
      number(c.minutes),
      score(of, c.mean[of.key]),
      defined(c.parameters) ? `${(c.parameters / 1e6).toFixed(2)} M` : "–",
    ]),
  };
}
function undominated(cells) {
  const value = (c) => c.mean[state.metric] * (metric().better === "lower" ? -1 : 1);
  let best = -Infinity;
  return [...cells]
    .sort((a, b) => a.minutes - b.minutes || value(b) - value(a))
    .filter((c) => value(c) > best && ((best = value(c)), true));
}

function curveFacets() {
  return groups(data.curves.filter((c) => visible(c) && c.step.length)).map((group) => ({
    title: caption(group),
    caption: `n = ${runsIn(group)} per method`,
    height: 340,
    spec: () => curveSpec(group),
  }));
}
function curveSpec(group) {
  const percent = (list) => list.map((v) => (defined(v) ? 100 * v : null));
  const traces = group.flatMap((c) => [
    band(c.method, c.step, percent(c.low), percent(c.high), group.length),
    {
      x: c.step,
      y: percent(c.mean),
      mode: "lines",
      line: line(c.method),
      hoverinfo: "text",
      hovertext: c.mean.map(
        (v, i) => `${plain(nameOf(c.method))}, step ${c.step[i]}: ${number(defined(v) ? 100 * v : null)}`,
      ),
    },
  ]);
  return {
    traces,
    layout: { xaxis: axis("Step"), yaxis: axis("Validation Dice (%)") },
    columns: ["Method", "Last step", "Dice", "Low", "High"],
    rows: group.map((c) => [
      nameOf(c.method),
      String(c.step.at(-1)),
      ...[c.mean, c.low, c.high].map((list) => number(percent(list).at(-1))),
    ]),
  };
}

function initialisationFacets() {
  const rows = data.initialisations.filter(
    (r) => visible(r) && r.metric === state.metric && defined(r.scratch) && defined(r.pretrained),
  );
  return groups(rows).map((group) => ({
    title: `${caption(group)}, from ${group[0].start}`,
    caption: `${counted(group.length, "pair")} of means over ${runsIn(group)}; right: the change`,
    height: rowHeight(group.length),
    spec: () => initialisationSpec(group),
  }));
}
function initialisationSpec(group) {
  const of = metric();
  const good = (r) => r.pretrained >= r.scratch === (of.better !== "lower");
  const paint = (r) => colour(good(r) ? "--better" : "--worse");
  const arrows = group.map((r, i) => ({
    x: raw(of, r.pretrained),
    ax: raw(of, r.scratch),
    y: i,
    ay: i,
    axref: "x",
    ayref: "y",
    showarrow: true,
    arrowhead: 2,
    arrowsize: 1,
    arrowwidth: 2,
    arrowcolor: paint(r),
    text: "",
  }));
  const changes = group.map((r) => [difference(of, r.pretrained - r.scratch), paint(r)]);
  const dots = {
    x: group.map((r) => raw(of, r.scratch)),
    y: group.map((_, i) => i),
    mode: "markers",
    marker: markers(group.map((r) => marker(r.method))),
    hoverinfo: "text",
    hovertext: group.map(
      (r) => `${plain(nameOf(r.method))}, ${plain(r.start)}: ${score(of, r.scratch)} → ${score(of, r.pretrained)}`,
    ),
  };
  const room = { ...dots, x: group.map((r) => raw(of, r.pretrained)), marker: { size: 10, opacity: 0 } }; // for heads
  return {
    traces: [dots, room],
    layout: {
      annotations: [...arrows, ...rowEnds(changes)],
      margin: { l: 12, r: 48, t: 10, b: 44 },
      xaxis: scoreAxis(of),
      yaxis: rowAxis(group.map((r) => nameOf(r.method))),
    },
    columns: ["Method", "Scratch", "Pretrained", "Change"],
    rows: group.map((r) => [
      nameOf(r.method),
      score(of, r.scratch),
      score(of, r.pretrained),
      difference(of, r.pretrained - r.scratch),
    ]),
  };
}
