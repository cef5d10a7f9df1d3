/* The report page: what its parts share, the filters, the boxes around charts. See page.table.js, page.charts.js. */
const data = JSON.parse(document.getElementById("comparison").textContent);
const FACETS_AT_FIRST = 6; // one section must not bury the next under thirty charts
const SYMBOLS = [
  // Plotly's name and the same shape for the page's own SVG
  ["circle", "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0"],
  ["square", "M-3.6-3.6h7.2v7.2h-7.2z"],
  ["diamond", "M0-5L5 0 0 5-5 0z"],
  ["triangle-up", "M0-4.6L4.8 3.6h-9.6z", 1.3],
  ["cross", "M-1.6-4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z"],
  ["triangle-down", "M0 4.6L4.8-3.6h-9.6z", 1.3],
  ["hourglass", "M-4.2-4.2h8.4l-8.4 8.4h8.4z"],
  ["pentagon", "M0-5L4.8-1.5 2.9 4.1h-5.8L-4.8-1.5z", 1.1],
];
const DASHES = [
  ["solid", ""],
  ["dash", "6 3"],
  ["dot", "1.5 3"],
  ["dashdot", "6 3 1.5 3"],
];

/* ---- small tools ---- */
const $ = (id) => document.getElementById(id);
const unique = (list) => [...new Set(list)];
const sum = (list) => list.reduce((total, value) => total + value, 0);
const narrow = () => innerWidth < 600;
const defined = (value) => value !== null && value !== undefined;
const counted = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

/** An element; strings among the children become text nodes, so that no name can act as markup. */
function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (defined(value) && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter(defined));
  return node;
}

/** Text for Plotly, which reads a few tags: without this `<b>` in a name would be a command. */
function plain(text, longest = 200) {
  const cut = text.length > longest ? `${text.slice(0, longest - 1)}…` : text;
  return cut.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

const resolved = new Map(); // emptied when the theme changes
/** The colour of a CSS variable as the current theme resolves it. */
function colour(variable, opacity = 1) {
  if (!resolved.has(variable)) {
    document.body.style.outlineColor = `var(${variable})`;
    resolved.set(variable, getComputedStyle(document.body).outlineColor);
  }
  const opaque = resolved.get(variable);
  return opacity === 1 ? opaque : opaque.replace("rgb(", "rgba(").replace(")", `, ${opacity})`);
}

/* ---- numbers ---- */
const scale = (metric) => (metric.unit ? 1 : 100);
const unit = (metric) => metric.unit || "%";
const raw = (metric, value) => (defined(value) ? value * scale(metric) : null);
const number = (value, digits = 1) => (defined(value) ? value.toFixed(digits).replace("-", "−") : "–");
const score = (metric, value) => number(raw(metric, value));
const difference = (metric, value) => (defined(value) && value >= 0 ? "+" : "") + score(metric, value);
const probability = (p) => (!defined(p) ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3));
/** Orders the better value first, undefined last. */
function byScore(metric, value) {
  const sign = metric.better === "lower" ? 1 : -1;
  return (a, b) => defined(value(b)) - defined(value(a)) || sign * (value(a) - value(b)) || 0;
}
/** "4 runs" or "3–4 runs", as far as the items say. */
function span(items, key, word) {
  const known = items.map((item) => item[key]).filter(defined);
  if (!known.length) return `unknown number of ${word}s`;
  const [low, high] = [Math.min(...known), Math.max(...known)];
  return low === high ? counted(low, word) : `${low}–${high} ${word}s`;
}

/* ---- what there is ---- */
const protocols = unique([...data.protocols.map((p) => p.id), ...data.cells.map((c) => c.protocol)]);
const everything = [...data.cells, ...data.published_only];
const datasets = unique(everything.map((c) => c.dataset));
const labelNumber = new Map(everything.map((c) => [c.labeled, c.fraction ?? parseFloat(c.labeled)]));
const isCount = new Map(everything.map((c) => [c.labeled, !defined(c.fraction)]));
const labels = unique(everything.map((c) => c.labeled)).sort(
  (a, b) => isCount.get(a) - isCount.get(b) || labelNumber.get(a) - labelNumber.get(b) || 0,
);
const names = new Map(data.cells.map((c) => [c.method, c.name]));
const controls = unique(data.cells.filter((c) => c.control).map((c) => c.method));
const baselines = data.differences.map((d) => d.baseline); // first, so that the baseline is the black one
const methods = unique([
  ...baselines,
  ...data.cells.map((c) => c.method),
  ...data.ranks.flatMap((r) => r.methods),
]).filter((method) => !controls.includes(method));
const nameOf = (method) => names.get(method) ?? method;

/** A method's colour, symbol and dash, the same everywhere on the page. */
function look(method) {
  const control = controls.indexOf(method);
  if (control >= 0) return { variable: "--control", dash: 1 + (control % 3), symbol: null };
  const index = Math.max(methods.indexOf(method), 0);
  const round = Math.floor(index / 8);
  return { variable: `--m${index % 8}`, dash: round % DASHES.length, symbol: (index + round) % SYMBOLS.length };
}
/** The same as a small picture, `half` its width to each side: wide with its line, narrow without. */
function swatch(method, half = 6) {
  const { variable, dash, symbol } = look(method);
  const node = el("svg", { width: 2 * half, height: 12, viewBox: `${-half} -6 ${2 * half} 12`, "aria-hidden": "true" });
  const stroke = { style: `stroke:var(${variable});stroke-width:2`, "stroke-dasharray": DASHES[dash][1] };
  if (half > 6 || symbol === null) node.append(el("line", { x1: -half, x2: half, ...stroke }));
  if (symbol !== null) node.append(el("path", { d: SYMBOLS[symbol][1], style: `fill:var(${variable})` }));
  return node;
}

/* ---- state: kept in the address, so that a view can be bookmarked and shared ---- */
const state = { protocol: "", dataset: "", labeled: "", metric: "", published: false, theme: "", search: "" };
const sorting = { key: "", down: false };
const off = new Set(); // methods hidden in the charts
const expanded = new Set(); // sections that show all their charts

const here = (item) => item.protocol === state.protocol;
const chosen = (item) =>
  (!state.dataset || item.dataset === state.dataset) && (!state.labeled || item.labeled === state.labeled);
const visible = (item) => here(item) && chosen(item) && !off.has(item.method);
const metric = () => data.metrics.find((m) => m.key === state.metric);
const measured = (cell) => defined(cell.mean[state.metric]);

function readAddress() {
  const hash = new URLSearchParams(location.hash.slice(1));
  const known = {
    protocol: protocols,
    dataset: datasets,
    labeled: labels,
    metric: data.metrics.map((m) => m.key),
    theme: ["light", "dark"],
  };
  for (const [key, values] of Object.entries(known)) state[key] = values.includes(hash.get(key)) ? hash.get(key) : "";
  state.protocol ||= protocols[0] ?? "";
  state.metric ||= data.metrics[0]?.key ?? "";
  state.published = hash.get("published") === "true";
  state.search = hash.get("search") ?? "";
}
function writeAddress() {
  const hash = new URLSearchParams(Object.entries(state).filter(([, value]) => value));
  history.replaceState(null, "", `#${hash}`);
}
function set(key, value) {
  state[key] = value;
  writeAddress();
  render();
}

function fillSelect(id, all, options) {
  const items = options.map(([value, text]) => el("option", { value }, text));
  $(id).replaceChildren(...(all ? [el("option", { value: "" }, all)] : []), ...items);
  $(id).value = state[id];
}
function renderFilters() {
  const inProtocol = [...data.cells.filter(here), ...data.published_only];
  const offered = (list, key) =>
    list.filter((value) => inProtocol.some((c) => c[key] === value)).map((value) => [value, value]);
  if (!offered(datasets, "dataset").some(([value]) => value === state.dataset)) state.dataset = "";
  if (!offered(labels, "labeled").some(([value]) => value === state.labeled)) state.labeled = "";
  fillSelect(
    "protocol",
    null,
    protocols.map((id) => [id, id]),
  );
  fillSelect("dataset", "All data sets", offered(datasets, "dataset"));
  fillSelect("labeled", "All label shares", offered(labels, "labeled"));
  fillSelect(
    "metric",
    null,
    data.metrics.map((m) => [m.key, m.name]),
  );
  $("protocol").parentElement.hidden = protocols.length < 2;
  $("published").checked = state.published;
  $("search").value = state.search;
}

/* ---- showing facets ---- */
const CHARTS = {
  fractions: fractionFacets,
  differences: differenceFacets,
  ranks: rankFacets,
  distributions: distributionFacets,
  cost: costFacets,
  curves: curveFacets,
  initialisations: initialisationFacets,
};
const pending = new Map(); // chart elements not yet drawn
const observer = new IntersectionObserver(
  (entries) => entries.filter((e) => e.isIntersecting).forEach((e) => draw(e.target)),
  { rootMargin: "300px" },
);

/** Plotly waits as text: running its five megabytes is put off until the first chart is wanted. */
function plotly() {
  if (!window.Plotly) document.head.append(el("script", {}, $("plotly-source").textContent));
  return window.Plotly;
}
function draw(node) {
  const facet = pending.get(node);
  if (!facet) return;
  pending.delete(node);
  observer.unobserve(node);
  const spec = facet.spec();
  plotly().newPlot(node, spec.traces, layout({ height: facet.height, ...spec.layout }), {
    displayModeBar: false,
    responsive: true,
  });
}
function figure(section, facet) {
  const heading = section.querySelector("h2").textContent;
  const node = el("div", {
    class: "chart",
    role: "img",
    style: `height:${facet.height}px`,
    "aria-label": `${heading}: ${facet.title}. ${facet.caption}. The numbers follow as a table.`,
  });
  pending.set(node, facet);
  observer.observe(node);
  const save = () => {
    draw(node);
    plotly().downloadImage(node, { format: "svg", filename: `${section.id} ${facet.title}`.replace(/[^\w.-]+/g, "_") });
  };
  const numbers = el(
    "details",
    {
      ontoggle: (event) => {
        if (event.target.open && event.target.children.length < 2) event.target.append(numbersTable(facet));
      },
    },
    el("summary", {}, "Numbers"),
  );
  return el(
    "figure",
    {},
    el("figcaption", {}, el("strong", {}, facet.title), el("span", {}, facet.caption)),
    node,
    el("div", { class: "under" }, numbers, el("button", { type: "button", onclick: save }, "Save as SVG")),
  );
}
function table(head, rows, rest = "number") {
  const right = (i) => (i ? rest : null);
  return el(
    "table",
    {},
    el("thead", {}, el("tr", {}, ...head.map((text, i) => el("th", { scope: "col", class: right(i) }, text)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((text, i) => el("td", { class: right(i) }, text))))),
  );
}
/** A box that scrolls by itself, with the keyboard too, so that the page never scrolls sideways. */
const scrollBox = (label, child) =>
  el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, child);
function numbersTable(facet) {
  const spec = facet.spec();
  return scrollBox(`Numbers: ${facet.title}`, table(spec.columns, spec.rows));
}
function showFacets(id, facets, make) {
  const section = $(id);
  const limit = expanded.has(id) ? facets.length : FACETS_AT_FIRST;
  const more = el(
    "button",
    {
      type: "button",
      class: "more",
      onclick: () => {
        expanded.add(id);
        render();
      },
    },
    `Show all ${facets.length} (${limit} shown; or choose a data set or label share)`,
  );
  section.hidden = !facets.length;
  section
    .querySelector(".facets")
    .replaceChildren(
      ...facets.slice(0, limit).map((facet) => make(section, facet)),
      ...(facets.length > limit ? [more] : []),
    );
}
function renderLegends() {
  const present = data.cells
    .filter((c) => here(c) && (!state.dataset || c.dataset === state.dataset))
    .map((c) => c.method);
  const toggle = (method) => {
    if (!off.delete(method)) off.add(method);
    render();
  };
  for (const box of document.querySelectorAll(".legend")) {
    const listed = [...methods, ...(box.closest("#fractions") ? controls : [])].filter((m) => present.includes(m));
    box.replaceChildren(
      ...listed.map((m) =>
        el(
          "button",
          {
            type: "button",
            "data-method": m,
            "aria-pressed": String(!off.has(m)),
            title: "Show or hide in all charts",
            onclick: () => toggle(m),
          },
          swatch(m, 13),
          nameOf(m),
        ),
      ),
    );
  }
}
function renderCharts() {
  resolved.clear();
  document.querySelectorAll(".js-plotly-plot").forEach((node) => window.Plotly.purge(node));
  observer.disconnect();
  pending.clear();
  for (const [id, facets] of Object.entries(CHARTS)) showFacets(id, state.metric ? facets() : [], figure);
  $("published").parentElement.hidden = !unique(data.cells.map((c) => c.dataset)).some(
    (dataset) => publishedPoints(dataset).length,
  );
}

/* ---- pictures, protocol, failures ---- */
function renderPanels() {
  const shown = groups(data.panels.filter(visible)).map((group) => ({ group, title: caption(group) }));
  showFacets("panels", shown, (_, { group, title }) =>
    el(
      "div",
      {},
      el("figcaption", {}, el("strong", {}, title)),
      el("div", { class: "pictures" }, ...group.map(picture)),
    ),
  );
}
function picture(panel) {
  const alt =
    `${nameOf(panel.method)} on ${panel.dataset}, ${panel.labeled} labelled: ` +
    "best, median and worst test case, each with image, truth and prediction";
  const enlarge = () => {
    const large = $("enlarged").querySelector("img");
    large.src = panel.src;
    large.alt = alt;
    $("enlarged").showModal();
  };
  return el(
    "figure",
    {},
    el(
      "button",
      { type: "button", onclick: enlarge },
      el("img", { loading: "lazy", src: panel.src, alt, width: panel.width, height: panel.height }),
    ),
    el("figcaption", {}, el("span", {}, nameOf(panel.method))),
  );
}
function unequalFacts() {
  const keys = unique(data.protocols.flatMap((p) => p.facts.map(([key]) => key)));
  const fact = (protocol, key) => protocol.facts.find(([k]) => k === key)?.[1] ?? "–";
  return keys
    .map((key) => ({ key, values: data.protocols.map((p) => fact(p, key)) }))
    .map((f) => ({ ...f, differs: unique(f.values).length > 1 }));
}
function renderProtocolNote() {
  const differing = unequalFacts()
    .filter((f) => f.differs)
    .map((f) => f.key);
  $("protocol-note").hidden = protocols.length < 2;
  $("protocol-note").textContent =
    `Protocol ${state.protocol} of ${protocols.length}. Results of different protocols are never shown together; ` +
    `they differ in ${differing.join(", ") || "facts that were not recorded"}.`;
}
function renderBox() {
  const facts = unequalFacts();
  const rows = facts.map((f) =>
    el(
      "tr",
      { class: f.differs ? "differs" : null },
      el("th", { scope: "row" }, f.key),
      ...f.values.map((v) => el("td", {}, v)),
    ),
  );
  const head = el(
    "thead",
    {},
    el("tr", {}, el("th", {}, ""), ...data.protocols.map((p) => el("th", { scope: "col" }, `Protocol ${p.id}`))),
  );
  const notes = data.protocols.flatMap((p) =>
    p.notes.map((note) => el("p", { class: "quiet" }, `Protocol ${p.id}: ${note}`)),
  );
  const pairs = (list) => list.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)]);
  if (facts.length) $("protocol-box").append(scrollBox("Protocols", el("table", {}, head, el("tbody", {}, ...rows))));
  $("protocol-box").append(...notes);
  for (const [id, list] of Object.entries({ reference: data.reference, software: data.software })) {
    $(id).append(...pairs(list));
    $(id).previousElementSibling.hidden = !list.length;
  }
  if (data.failures.length)
    $("failures").append(
      el("h3", {}, `Runs left out (${data.failures.length})`),
      scrollBox(
        "Runs left out",
        table(
          ["Run", "Reason"],
          data.failures.map((f) => [f.run, f.error]),
          null,
        ),
      ),
    );
  $("protocols").hidden = !(facts.length || data.reference.length || data.software.length || data.failures.length);
}

/* ---- page ---- */
function renderContents() {
  const shown = [...document.querySelectorAll("main > section")].filter((s) => !s.hidden);
  $("contents").replaceChildren(
    ...shown.map((s) =>
      el("li", {}, el("a", { href: `#${s.id}`, "data-jump": true }, s.querySelector("h2").textContent)),
    ),
  );
}
/** Links move the focus themselves: the address holds the filters, not the place. */
function jump(event) {
  const link = event.target.closest("[data-jump]");
  if (!link) return;
  event.preventDefault();
  const section = $(link.getAttribute("href").slice(1));
  section.scrollIntoView();
  section.querySelector("h2").focus({ preventScroll: true });
}
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (state.theme ? state.theme === "dark" : prefersDark.matches);
function renderTheme() {
  if (state.theme) document.documentElement.dataset.theme = state.theme;
  else delete document.documentElement.dataset.theme;
  $("theme").textContent = isDark() ? "Light theme" : "Dark theme";
}
function render() {
  renderTheme();
  renderFilters();
  renderHeader();
  renderProtocolNote();
  if (state.metric) renderLeaderboard();
  else $("leaderboard").hidden = true;
  renderLegends();
  renderCharts();
  renderPanels();
  renderContents();
}
/** On paper everything is drawn, and dark on white. */
function preparePrint(light) {
  for (const image of document.querySelectorAll("#panels img")) image.loading = "eager";
  if (light) document.documentElement.dataset.theme = "light";
  else renderTheme();
  renderCharts();
  if (light) [...pending.keys()].forEach(draw);
}
function start() {
  readAddress();
  $("empty").hidden = data.cells.length > 0;
  $("filters").hidden = !everything.length;
  for (const id of ["protocol", "dataset", "labeled", "metric"])
    $(id).addEventListener("change", (event) => set(id, event.target.value));
  $("published").addEventListener("change", (event) => set("published", event.target.checked));
  $("search").addEventListener("input", (event) => {
    state.search = event.target.value;
    writeAddress();
    renderLeaderboard();
  });
  $("theme").addEventListener("click", () => set("theme", isDark() ? "light" : "dark"));
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("click", jump);
  prefersDark.addEventListener("change", render);
  window.addEventListener("hashchange", () => {
    readAddress();
    render();
  });
  window.addEventListener("beforeprint", () => preparePrint(true));
  window.addEventListener("afterprint", () => preparePrint(false));
  renderBox();
  render();
}
