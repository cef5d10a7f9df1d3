/* ---- header ---- */
/** Cells of one data set and one label share, which alone may be ranked against each other. */
function groups(items) {
  const found = new Map();
  for (const item of items) {
    const key = JSON.stringify([item.dataset, item.labeled, item.baseline, item.start]);
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(item);
  }
  const place = ([first]) => datasets.indexOf(first.dataset) * 1000 + labels.indexOf(first.labeled);
  return [...found.values()].sort((a, b) => place(a) - place(b));
}
const ranked = (cells) =>
  cells.filter((c) => !c.control && measured(c)).sort(byScore(metric(), (c) => c.mean[state.metric]));

function renderHeader() {
  const cells = data.cells.filter((c) => here(c) && !c.control);
  $("made").textContent = [data.made && `Made ${data.made}`, data.command].filter(Boolean).join(" · ");
  $("highlights").replaceChildren();
  $("summary").textContent = "";
  if (!cells.length) return;
  const kinds = (key, word = key) => counted(unique(cells.map((c) => c[key])).length, word);
  const failed = sum(cells.map((c) => c.failed));
  const leaders = groups(cells)
    .map((group) => ranked(group)[0])
    .filter(defined);
  const wins = unique(leaders.map((c) => c.method))
    .map((m) => [leaders.filter((c) => c.method === m).length, m])
    .sort((a, b) => b[0] - a[0]);
  const runs = counted(sum(cells.map((c) => c.runs)), "run") + (failed ? ` and ${failed} that failed` : "");
  const [most, leader] = wins[0] ?? [];
  const lead = `${nameOf(leader)} has the best mean ${metric().name} in ${most} of ${counted(leaders.length, "comparison")}.`;
  $("summary").textContent =
    `${kinds("method")} on ${kinds("dataset", "data set")}, ${runs}. ${leader ? lead : ""}`.trim();
  for (const dataset of datasets) {
    const [best] = ranked(cells.filter((c) => c.dataset === dataset));
    if (best)
      $("highlights").append(
        el(
          "div",
          {},
          el("dt", {}, `${dataset}, best ${metric().name}`),
          el(
            "dd",
            {},
            el("strong", {}, `${score(metric(), best.mean[state.metric])} ${unit(metric())}`),
            `${best.name}, ${best.labeled}`,
          ),
        ),
      );
  }
}

/* ---- leaderboard ---- */
function leaderboardRows() {
  const ours = data.cells.filter((c) => here(c) && chosen(c)).map(cellRow);
  const published = data.published_only.filter((p) => chosen(p) && p.metric === state.metric).map(publishedRow);
  return groups([...ours, ...published]).flatMap((group) => {
    const order = group.filter((r) => !r.muted && defined(r.mean)).sort(byScore(metric(), (r) => r.mean));
    order.forEach((row, i) => {
      row.rank = i + 1;
    });
    const others = group.filter((r) => !order.includes(r)).sort((a, b) => a.muted - b.muted);
    return [...order, ...others];
  });
}
function publishedRow(p) {
  return {
    dataset: p.dataset,
    labeled: p.labeled,
    method: p.method,
    name: nameOf(p.method),
    values: [],
    muted: true,
    elsewhere: true,
    published: [p],
  };
}
function cellRow(cell) {
  const key = state.metric;
  const published = cell.published.filter((p) => p.metric === key);
  return {
    dataset: cell.dataset,
    labeled: cell.labeled,
    method: cell.method,
    name: cell.name,
    mean: cell.mean[key],
    interval: cell.ci90[key],
    sd: cell.sd[key],
    runs: cell.control ? null : cell.runs,
    failed: cell.failed,
    values: cell.control ? [] : (cell.values[key] ?? []).filter(defined),
    last: cell.last[key],
    minutes: cell.minutes,
    muted: cell.control,
    published,
    gap: published.length && measured(cell) ? cell.mean[key] - published[0].mean : null,
  };
}

const withInterval = (value, half) => [
  score(metric(), value),
  el("span", { class: "interval" }, defined(half) ? `± ${score(metric(), half)}` : ""),
];
function columns(rows) {
  const sources = unique(rows.flatMap((r) => r.published.map((p) => p.source)));
  const mark = (source) => el("sup", {}, String(1 + sources.indexOf(source)));
  $("sources").replaceChildren(...sources.flatMap((source) => [mark(source), ` ${source}   `]));
  const limits = stripLimits(rows);
  const all = [
    { key: "rank", head: "Rank", value: (r) => r.rank },
    {
      key: "name",
      head: "Method",
      text: true,
      value: (r) => r.name,
      show: (r) => [el("span", {}, r.elsewhere ? el("svg", { width: 12, height: 12 }) : swatch(r.method), r.name)],
    },
    { key: "dataset", head: "Data set", text: true, value: (r) => r.dataset },
    { key: "labeled", head: "Labelled", value: (r) => labels.indexOf(r.labeled), show: (r) => [r.labeled] },
    {
      key: "mean",
      head: `${metric().name} (${unit(metric())})`,
      best: true,
      value: (r) => r.mean,
      show: (r) => withInterval(r.mean, r.interval),
    },
    { key: "sd", head: "SD", value: (r) => r.sd, show: (r) => [score(metric(), r.sd)] },
    {
      key: "runs",
      head: "Runs",
      value: (r) => r.runs,
      show: (r) => [number(r.runs, 0), r.failed ? el("span", { class: "worse" }, ` (${r.failed} failed)`) : null],
    },
    {
      key: "each",
      head: "Each run",
      note: "Each run: one tick per run, blue the mean.",
      fixed: true,
      value: (r) => r.values.length || null,
      show: (r) => [strip(r, limits.get(r))],
    },
    {
      key: "last",
      head: "Last",
      note: "Last: mean of the last checkpoint instead of the chosen one.",
      value: (r) => r.last,
      show: (r) => [score(metric(), r.last)],
    },
    { key: "minutes", head: "Minutes", value: (r) => r.minutes, show: (r) => [number(r.minutes)] },
    {
      key: "published",
      head: "Published",
      value: (r) => r.published[0]?.mean,
      show: (r) =>
        r.published.map((p) => el("div", { title: p.source }, ...withInterval(p.mean, p.ci90), mark(p.source))),
    },
    {
      key: "gap",
      head: "Difference",
      note: "Difference: ours minus published.",
      value: (r) => r.gap,
      show: (r) => [defined(r.gap) ? difference(metric(), r.gap) : ""],
    },
  ];
  if (narrow()) all.splice(2, 0, ...all.splice(4, 1)); // the score stays in sight on a phone
  const varies = (key) => unique(rows.map((r) => r[key])).length > 1;
  return all.filter((c) =>
    ["dataset", "labeled"].includes(c.key) ? varies(c.key) : rows.some((r) => defined(c.value(r))),
  );
}
/** One scale per data set and label share: what is ranked together can be compared down the column. */
function stripLimits(rows) {
  return new Map(
    groups(rows).flatMap((group) => {
      const values = group.flatMap((r) => r.values);
      return group.map((r) => [r, [Math.min(...values), Math.max(...values)]]);
    }),
  );
}
function strip(row, [low, high]) {
  if (!row.values.length || !defined(row.mean)) return "";
  const x = (value) => (2 + 92 * (high > low ? (value - low) / (high - low) : 0.5)).toFixed(1);
  const ticks = row.values.map((value) => `M${x(value)} 4v8`).join("");
  return el(
    "svg",
    {
      class: "strip",
      width: 96,
      height: 16,
      role: "img",
      "aria-label": row.values.map((v) => score(metric(), v)).join(", "),
    },
    el("path", { class: "rail", d: "M0 8h96" }),
    el("path", { d: ticks }),
    el("path", { class: "mean", d: `M${x(row.mean)} 2v12` }),
  );
}

function sorted(rows, column) {
  if (!column) return rows;
  const sign = sorting.down ? -1 : 1;
  const compare = column.text ? (a, b) => a.localeCompare(b) : (a, b) => a - b;
  return [...rows].sort((a, b) => {
    const [x, y] = [column.value(a), column.value(b)];
    return defined(y) - defined(x) || (defined(x) ? sign * compare(x, y) : 0);
  });
}
function sortBy(column) {
  const bestDown = column.best && metric().better === "higher";
  sorting.down = sorting.key === column.key ? !sorting.down : Boolean(bestDown);
  sorting.key = column.key;
  renderLeaderboard();
  $("scores").querySelector(`th[data-key="${column.key}"] button`).focus();
}

function renderLeaderboard() {
  const everyRow = leaderboardRows();
  const wanted = state.search.trim().toLowerCase();
  const rows = everyRow.filter((r) => `${r.name} ${r.method}`.toLowerCase().includes(wanted));
  const shown = columns(everyRow);
  const column = shown.find((c) => c.key === sorting.key);
  $("leaderboard").hidden = !everyRow.length;
  $("found").textContent = wanted
    ? `${rows.length} of ${counted(everyRow.length, "row")}`
    : counted(rows.length, "row");
  $("leaderboard-note").textContent = leaderboardNote(everyRow, shown);
  const head = el("tr", {}, ...shown.map((c) => headCell(c, c === column)));
  const body = sorted(rows, column).map((row) =>
    el(
      "tr",
      {
        class: [row.rank === 1 && "best", row.muted && "muted", !column && row.rank === 1 && "first"]
          .filter(Boolean)
          .join(" "),
      },
      ...shown.map((c) => bodyCell(c, row)),
    ),
  );
  $("scores").replaceChildren(el("thead", {}, head), el("tbody", {}, ...body));
}
function leaderboardNote(rows, shown) {
  const { name, better, description } = metric();
  const controlled = rows.some((r) => r.muted) ? "; controls and published rows are muted and have no rank" : "";
  return [
    `${name}: ${description ? `${description}; ` : ""}${better} is better.`,
    `Mean over ${span(rows, "runs", "run")} ± 90 % confidence interval.`,
    `Ranked within one data set and one label share, the best in bold${controlled}.`,
    ...shown.map((c) => c.note).filter(defined),
  ].join(" ");
}
function headCell(column, current) {
  const inside = column.fixed
    ? column.head
    : el("button", { type: "button", onclick: () => sortBy(column) }, column.head);
  return el(
    "th",
    {
      scope: "col",
      "data-key": column.key,
      class: cellClass(column),
      "aria-sort": current ? (sorting.down ? "descending" : "ascending") : null,
    },
    inside,
  );
}
function bodyCell(column, row) {
  const content = column.show ? column.show(row) : [defined(column.value(row)) ? String(column.value(row)) : "–"];
  return el(
    column.key === "name" ? "th" : "td",
    { class: cellClass(column), scope: column.key === "name" ? "row" : null },
    ...content,
  );
}
const cellClass = (column) =>
  ({ name: "name", mean: "number score", dataset: null, each: null })[column.key] ??
  (column.text || column.fixed ? null : "number");
