// The trajectory viewer: filters, a list that renders only what is in sight, the keyboard.
"use strict";

const ROW = 58; // pixels; the CSS has the same number
const CHOSEN = 1, REJECTED = 2, MEASURED = 4, SHOWN = 8;
const TRAINED = CHOSEN | REJECTED | SHOWN;
const ROLES = {
  0: "not trained on", [CHOSEN]: "chosen", [REJECTED]: "rejected",
  [CHOSEN | REJECTED]: "chosen and rejected", [SHOWN]: "demonstration",
};
const MARKS = { correct: "\u2713", incorrect: "\u2717", no_answer: "\u2205", gold_error: "!", infra: "!" };

const view = { data: null, rows: [], at: -1, mode: "turns", pair: false, colour: null, ticket: 0 };

function buildViewer(data) {
  view.data = data;
  if (!data.rows.problem.length) return;
  show("trajectories");
  view.pairOf = new Map();
  data.pairs.forEach((pair) => pair.forEach((row) => view.pairOf.has(row) || view.pairOf.set(row, pair)));
  view.haystack = data.problems.id.map((id, i) =>
    `${id}\n${data.problems.question[i]}\n${data.problems.answer[i]}`.toLowerCase());
  view.seeds = new Set(data.sources.map((source) => source.seed)).size;
  buildFilters(data);
  const list = document.getElementById("list");
  list.addEventListener("scroll", () => requestAnimationFrame(renderList));
  new ResizeObserver(renderList).observe(list);
  list.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) select(Number(row.dataset.at), true);
  });
  document.addEventListener("keydown", onKey);
  applyFilters();
}

// ---- filters ----------------------------------------------------------------

function buildFilters(data) {
  const { rows, sources, names, problems } = data;
  const plain = (list) => ({
    text: (n) => list[n].replaceAll("_", " ") || "(none)",
    order: (a, b) => list[a].localeCompare(list[b], "en", { numeric: true }),
  });
  const bySource = (label) => {
    const labels = sources.map(label);
    const order = (a, b) => labels.indexOf(a) - labels.indexOf(b);
    return { value: (r) => labels[rows.source[r]], text: (v) => v, order };
  };
  view.filters = [
    { label: "Run", ...bySource((s) => s.seed === null ? s.name : `${s.learner || "before the loop"}, seed ${s.seed}`) },
    { label: "Stage", ...bySource((s) => s.phase) },
    { label: "Iteration", ...bySource((s) => s.iteration ? `iteration ${s.iteration}` : "SFT") },
    { label: "Verdict", value: (r) => rows.verdict[r], ...plain(names.verdict) },
    { label: "Stop reason", value: (r) => rows.stop[r], ...plain(names.stop) },
    { label: "Level", value: (r) => problems.level[rows.problem[r]], ...plain(names.level) },
    { label: "Subject", value: (r) => problems.subject[rows.problem[r]], ...plain(names.subject) },
    {
      label: "Training",
      value: (r) => rows.role[r] & TRAINED,
      order: (a, b) => a - b,
      text: (v) => ROLES[v],
    },
    {
      label: "Log-ratios",
      value: (r) => rows.role[r] & MEASURED,
      order: (a, b) => b - a,
      text: (v) => (v ? "computed" : "not computed"),
    },
  ];
  const form = document.getElementById("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const filter of view.filters) {
    const found = new Set();
    for (let r = 0; r < rows.problem.length; r++) found.add(filter.value(r));
    if (found.size < 2) continue;
    filter.values = [...found].sort(filter.order);
    filter.numbers = new Map(filter.values.map((value, i) => [value, i]));
    filter.options = filter.values.map((_, i) => element("option", { value: i }));
    filter.select = element("select", { "aria-label": filter.label },
      element("option", { value: "" }, "all"), filter.options);
    filter.select.addEventListener("change", applyFilters);
    form.append(element("label", {}, filter.label, filter.select));
  }
  view.filters = view.filters.filter((filter) => filter.select);
  document.getElementById("search").addEventListener("input", applyFilters);
  form.append(element("button", { type: "button", onclick: clearFilters }, "Clear"));
}

function clearFilters() {
  document.getElementById("search").value = "";
  for (const filter of view.filters) filter.select.value = "";
  applyFilters();
}

function matchingProblems() {
  const { problems } = view.data;
  const query = document.getElementById("search").value.trim();
  const exact = problems.id.includes(query);
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  return view.haystack.map((text, i) =>
    exact ? problems.id[i] === query : words.every((word) => text.includes(word)));
}

// An option's count is of what it would show with the other filters as they are.
function applyFilters() {
  const { rows } = view.data;
  const matches = matchingProblems();
  const wanted = view.filters.map((f) => (f.select.value === "" ? null : Number(f.select.value)));
  const counts = view.filters.map((f) => f.values.map(() => 0));
  const kept = view.rows[view.at];
  view.rows = [];
  for (let r = 0; r < rows.problem.length; r++) {
    if (!matches[rows.problem[r]]) continue;
    const numbers = view.filters.map((f) => f.numbers.get(f.value(r)));
    const misses = numbers.filter((n, i) => wanted[i] !== null && wanted[i] !== n).length;
    if (misses === 0) view.rows.push(r);
    numbers.forEach((n, i) => {
      if (misses === 0 || (misses === 1 && wanted[i] !== null && wanted[i] !== n)) counts[i][n]++;
    });
  }
  view.filters.forEach((f, i) => f.options.forEach((option, n) => {
    option.textContent = visible(`${f.text(f.values[n])} (${counts[i][n].toLocaleString("en")})`);
  }));
  const total = rows.problem.length.toLocaleString("en");
  document.getElementById("count").textContent =
    `${view.rows.length.toLocaleString("en")} of ${total} trajectories`;
  document.getElementById("runway").style.height = `${view.rows.length * ROW}px`;
  const found = kept === undefined ? -1 : view.rows.indexOf(kept);
  if (view.rows.length) select(found >= 0 ? found : 0, false);
  else {
    view.at = -1;
    view.ticket++;
    renderList();
    document.getElementById("detail").replaceChildren(
      element("p", { class: "hint" }, "Nothing fits these filters."));
  }
}

// ---- list -------------------------------------------------------------------

function placeOf(row) {
  const source = view.data.sources[view.data.rows.source[row]];
  if (source.seed === null) return visible(source.name);
  const stage = source.iteration ? `${source.learner} iteration ${source.iteration}` : "SFT";
  const seed = view.seeds > 1 ? `, seed ${source.seed}` : "";
  const name = source.phase === "validation" ? ` ${source.name}` : "";
  return visible(`${stage}, ${source.phase}${name}${seed}`);
}

function roleBadges(role) {
  const badge = (name) => element("span", { class: `badge ${name}` }, name);
  return [role & CHOSEN ? badge("chosen") : null, role & REJECTED ? badge("rejected") : null];
}

function verdictOf(row) {
  const { rows, names } = view.data;
  const verdict = names.verdict[rows.verdict[row]];
  const mark = element("span", { "aria-hidden": "true" }, MARKS[verdict] || "?");
  return element("span", { class: `verdict ${verdict}` }, mark, ` ${verdict.replaceAll("_", " ")}`);
}

function renderList() {
  const list = document.getElementById("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = Math.min(view.rows.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
  const nodes = [];
  for (let i = first; i < last; i++) nodes.push(listRow(i));
  document.getElementById("runway").replaceChildren(...nodes);
  if (view.at >= first && view.at < last) list.setAttribute("aria-activedescendant", `row-${view.at}`);
  else list.removeAttribute("aria-activedescendant");
}

function listRow(i) {
  const row = view.rows[i];
  const { rows, problems, names } = view.data;
  const tokens = rows.tokens[row] ? `, ${plural(rows.tokens[row], "token")}` : "";
  const node = element("div", {
    class: "row", role: "option", id: `row-${i}`, "aria-selected": i === view.at ? "true" : "false",
    "aria-setsize": view.rows.length, "aria-posinset": i + 1,
  },
    element("div", { class: "row-top" }, verdictOf(row),
      element("span", { class: "row-id" }, visible(problems.id[rows.problem[row]])), roleBadges(rows.role[row])),
    element("div", { class: "row-facts" }, `${placeOf(row)}, `,
      visible(names.agent[rows.agent[row]]), ` ${rows.sample[row]}, ${plural(rows.turns[row], "turn")}${tokens}`));
  node.dataset.at = i;
  node.style.top = `${i * ROW}px`;
  return node;
}

function select(i, read) {
  if (!view.rows.length) return;
  view.at = Math.max(0, Math.min(view.rows.length - 1, i));
  const list = document.getElementById("list");
  const top = view.at * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  renderList();
  const shown = renderDetail();
  if (read) startReading(shown);
}

// ---- keyboard ---------------------------------------------------------------

function onKey(event) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const search = document.getElementById("search");
  if (event.key === "Escape") {
    if (event.target === search && search.value) return; // the browser empties it
    backToList();
  } else if (typing) {
    if (event.target === search && (event.key === "Enter" || event.key === "ArrowDown")) focusList();
    else return;
  } else if (!moveByKey(event, event.target.id === "list")) {
    const action = {
      "/": () => { search.focus(); search.select(); },
      t: () => setMode(view.mode === "turns" ? "tokens" : "turns"),
      p: () => setPair(!view.pair),
    }[event.key];
    if (!action) return;
    action();
  }
  event.preventDefault();
}

function moveByKey(event, inList) {
  const page = Math.max(1, Math.floor(document.getElementById("list").clientHeight / ROW) - 1);
  const everywhere = { j: view.at + 1, k: view.at - 1 };
  const listOnly = {
    ArrowDown: view.at + 1, ArrowUp: view.at - 1, PageDown: view.at + page, PageUp: view.at - page,
    Home: 0, End: view.rows.length - 1,
  };
  if (inList && event.key === "Enter") {
    startReading(Promise.resolve());
    return true;
  }
  const target = everywhere[event.key] ?? (inList ? listOnly[event.key] : undefined);
  if (target === undefined) return false;
  select(target, false);
  return true;
}

// On a phone the list gives way to what is read; elsewhere both stand side by side.
function startReading(shown) {
  const section = document.getElementById("trajectories");
  section.dataset.reading = "yes";
  shown.then(() => {
    const detail = document.getElementById("detail");
    detail.focus({ preventScroll: true });
    if (detail.getBoundingClientRect().top < 0) detail.scrollIntoView();
  });
}

function focusList() {
  document.getElementById("list").focus();
}

function backToList() {
  delete document.getElementById("trajectories").dataset.reading;
  renderList();
  focusList();
}

function setMode(mode) {
  view.mode = mode;
  renderDetail();
}

function setPair(on) {
  view.pair = on;
  renderDetail();
}
