// What the viewer shows of the selected trajectory: its turns or tokens, or a pair side by side.
// Details are unpacked when they are looked at.
"use strict";

const CODE_CLASSES = ["", "keyword", "builtin", "function", "string", "number", "comment", "operator", "error"];
const OPEN_CHUNKS = 24;

const opened = new Map(); // chunk number -> promise, oldest first

function detailOf(row) {
  const number = Math.floor(row / view.data.chunk);
  const chunk = opened.get(number) || unpack(`chunk-${number}`);
  opened.delete(number);
  opened.set(number, chunk);
  if (opened.size > OPEN_CHUNKS) opened.delete(opened.keys().next().value);
  return chunk.then((details) => details[row % view.data.chunk]);
}

async function renderDetail() {
  const row = view.rows[view.at];
  if (row === undefined) return;
  const ticket = ++view.ticket;
  const pair = view.pair ? view.pairOf.get(row) : undefined;
  const shown = pair || [row];
  const details = await Promise.all(shown.map(detailOf));
  if (ticket !== view.ticket) return; // another one was asked for in the meantime
  const place = document.getElementById("detail");
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const colours = availableColours(details);
  const colour = colours.includes(view.colour) ? view.colour : colours[0];
  place.replaceChildren(
    detailHeader(row, details),
    detailTools(row, details, colours, colour),
    view.mode === "tokens" ? legendOf(colour, scaleOf(row)) : "",
    pair ? pairView(pair, details, colour) : element("div", {}, body(row, details[0], colour)),
  );
  if (place.getBoundingClientRect().top < 0) place.scrollIntoView();
  if (focused) place.querySelector(`[data-key="${focused}"]`)?.focus();
}

function detailHeader(row, details) {
  const { rows, problems, names, sources } = view.data;
  const problem = rows.problem[row];
  const level = names.level[problems.level[problem]];
  const subject = names.subject[problems.subject[problem]];
  const about = [level && `level ${level.replace(/^level /i, "")}`, subject].filter(Boolean).join(", ");
  const source = sources[rows.source[row]];
  const step = (by, text) =>
    element("button", { type: "button", "data-key": text, onclick: () => select(view.at + by, false) }, text);
  return element("header", {},
    element("div", { class: "steps" },
      element("button", { type: "button", class: "back", onclick: backToList }, "Back to the list"),
      step(-1, "Previous"), step(1, "Next"),
      element("span", { class: "hint" }, `${(view.at + 1).toLocaleString("en")} of ${view.rows.length.toLocaleString("en")}`)),
    element("h3", {}, visible(problems.id[problem]), about ? element("small", {}, ` ${visible(about)}`) : ""),
    element("p", { class: "question" }, visible(problems.question[problem])),
    source.note ? element("p", { class: "hint" }, visible(source.note)) : "");
}

function detailTools(row, details, colours, colour) {
  const choice = (name, text, on, action) => element("button",
    { type: "button", "aria-pressed": on ? "true" : "false", "data-key": name, onclick: action }, text);
  const tools = element("div", { class: "tools", role: "toolbar", "aria-label": "What is shown" },
    choice("turns", "Turns", view.mode === "turns", () => setMode("turns")),
    choice("tokens", "Tokens", view.mode === "tokens", () => setMode("tokens")));
  if (view.pairOf.has(row))
    tools.append(choice("pair", "Chosen and rejected", view.pair, () => setPair(!view.pair)));
  tools.append(element("button", { type: "button", "data-key": "same", onclick: () => onlyProblem(row) },
    "All of this problem"));
  if (view.mode === "tokens") {
    const select = element("select", { "data-key": "colour", "aria-label": "Colour" },
      colours.map((c) => element("option", { value: c, selected: c === colour }, COLOURS[c])));
    select.addEventListener("change", () => { view.colour = select.value; renderDetail(); });
    tools.append(element("label", { class: "inline" }, "Colour ", select));
  }
  return tools;
}

function onlyProblem(row) {
  for (const filter of view.filters) filter.select.value = "";
  document.getElementById("search").value = view.data.problems.id[view.data.rows.problem[row]];
  applyFilters();
}

function scaleOf(row) {
  return view.data.sources[view.data.rows.source[row]].scale || 1;
}

function pairView(pair, details, colour) {
  const sides = ["chosen", "rejected"].map((side, i) =>
    element("section", { class: `side ${side}`, "aria-label": side },
      element("h4", {}, side[0].toUpperCase() + side.slice(1)), body(pair[i], details[i], colour)));
  return element("div", {}, marginLine(pair, details), element("div", { class: "pair" }, sides));
}

function marginLine(pair, details) {
  const { eta } = view.data.sources[view.data.rows.source[pair[0]]];
  if (!eta || details.some((d) => !d.tokens?.ratios)) return "";
  const [w, l] = details.map((d) => eta * total(d.tokens.ratios));
  return element("p", { class: "sum" },
    `Implicit rewards (eta ${eta}): chosen ${signed(w)}, rejected ${signed(l)}, margin ${signed(w - l)}.`);
}

function body(row, detail, colour) {
  const content = view.mode === "tokens"
    ? [ratioLine(row, detail), tokenView(view.data, detail, colour, scaleOf(row))]
    : detail.turns.map(turnView);
  return [episodeLine(row, detail), ...content, outcome(row, detail)];
}

function episodeLine(row, detail) {
  const { rows, names } = view.data;
  const facts = [placeOf(row), `agent ${names.agent[rows.agent[row]]}`, `sample ${rows.sample[row]}`,
    `seed ${detail.seed}`, plural(rows.turns[row], "turn")];
  if (rows.tokens[row]) facts.push(plural(rows.tokens[row], "token"));
  if (detail.parent) facts.push(`branch of ${detail.parent[0]} after turn ${detail.parent[1]}`);
  return element("p", { class: "facts" }, verdictOf(row), " ", roleBadges(rows.role[row]), " ",
    visible(facts.join(", ")));
}

function ratioLine(row, detail) {
  const source = view.data.sources[view.data.rows.source[row]];
  const trained = (view.data.rows.role[row] & TRAINED) > 0;
  let text = trained ? "" : "This trajectory was not trained on.";
  if (trained && detail.tokens && !detail.tokens.trained)
    text = "Which tokens were trained is not known here.";
  else if (detail.tokens?.ratios)
    text = `Sum of log-ratios over trained tokens ${signed(total(detail.tokens.ratios))}: ` +
      `${source.policy} against ${source.reference}.`;
  else if (trained && source.ratios)
    text = `Log-ratios were computed for ${source.ratios} trajectories of this iteration, not this one.`;
  return element("p", { class: "sum" }, visible(text));
}

function total(values) {
  return values.reduce((a, b) => a + b, 0);
}

function signed(value) {
  return (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(3);
}

function turnView(turn, i) {
  const finish = turn.finish ? `, ended by ${turn.finish.replaceAll("_", " ")}` : "";
  const node = element("section", { class: "turn" },
    element("h5", {}, `Turn ${i + 1}${finish}`), actionView(turn));
  if (turn.status) node.append(outputView(turn));
  if (turn.observation)
    node.append(element("details", {}, element("summary", {}, "As the model read it"),
      element("pre", {}, visible(turn.observation))));
  return node;
}

function actionView(turn) {
  const prose = (text) => (text.trim() ? element("pre", { class: "prose" }, visible(text)) : null);
  const code = turn.code;
  if (!code) return element("div", {}, prose(turn.action) || element("p", { class: "hint" }, "(nothing)"));
  if (code.text !== undefined)
    return element("div", {}, prose(turn.action), element("p", { class: "hint" }, "The cell that ran:"),
      codeView(code.text, code.runs));
  const length = code.runs.reduce((sum, n, i) => (i % 2 ? sum + n : sum), 0);
  const end = code.at + length;
  const [before, after] = withoutFences(turn.action.slice(0, code.at), turn.action.slice(end));
  return element("div", {}, prose(before),
    codeView(turn.action.slice(code.at, end), code.runs), prose(after));
}

// The fence around a cell says what its frame on the page says; the tokens show it.
function withoutFences(before, after) {
  const open = /(^|\n)[ \t]*```[^\n`]*\n$/, close = /^\n[ \t]*```[ \t]*(?=\n|$)/;
  return open.test(before) && close.test(after)
    ? [before.replace(open, ""), after.replace(close, "").replace(/^\n/, "")] : [before, after];
}

function codeView(text, runs) {
  const node = element("code");
  for (let i = 0, at = 0; i < runs.length; i += 2) {
    const piece = visible(text.slice(at, (at += runs[i + 1])));
    node.append(runs[i] ? element("span", { class: `c-${CODE_CLASSES[runs[i]]}` }, piece) : piece);
  }
  return element("pre", { class: "code", tabindex: 0, role: "region", "aria-label": "Python code" }, node);
}

function outputView(turn) {
  const facts = [turn.status.replaceAll("_", " ")];
  if (turn.seconds) facts.push(`${turn.seconds} s`);
  if (turn.cut) facts.push("output cut");
  if (turn.lost) facts.push("session lost");
  return element("div", { class: `output ${turn.status === "ok" ? "ok" : "bad"}` },
    element("p", { class: "output-title" }, `Interpreter: ${facts.join(", ")}`),
    element("pre", {}, visible(turn.output) || "(nothing printed)"));
}

function outcome(row, detail) {
  const { rows, problems, names } = view.data;
  const [answer, tier, why] = detail.grade;
  const reference = problems.answer[rows.problem[row]];
  const stop = names.stop[rows.stop[row]].replaceAll("_", " ");
  return element("p", { class: "outcome" }, verdictOf(row), ": answer ",
    element("b", {}, answer === null ? "(none)" : visible(answer)), ", reference ",
    element("b", {}, visible(reference) || "(none)"), `, stop reason ${stop}`,
    tier ? `, decided by rule ${visible(tier)}` : "", why ? ` (${visible(why)})` : "", ".");
}
