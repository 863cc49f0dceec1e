// Opening the page: unpack its data, build tables, wire the theme.
//
// Everything in the data may have been written by a model. It reaches the document as text
// only (textContent and text nodes), never as markup.
"use strict";

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "onclick") node.addEventListener("click", value);
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

// Characters that would not show, or would reorder what stands around them, are written out.
const INVISIBLE =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

function visible(text) {
  return text.replace(INVISIBLE, (c) => {
    const code = c.charCodeAt(0).toString(16);
    return code.length > 2 ? "\\u" + code.padStart(4, "0") : "\\x" + code.padStart(2, "0");
  });
}

async function unpack(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function plural(n, word) {
  return `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
}

function tableOf({ title, columns, rows }) {
  // Numbers stand right, names left: a column is numbers where no cell starts with a letter.
  const numeric = columns.map((_, i) => i > 0 && rows.every((row) => !/^[a-z]/i.test(row[i])));
  const cell = (tag, text, i) =>
    element(tag, { class: numeric[i] ? "number" : null, scope: tag === "th" ? "col" : null }, visible(text));
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title },
    element("table", {},
      element("caption", {}, visible(title)),
      element("thead", {}, element("tr", {}, columns.map((c, i) => cell("th", c, i)))),
      element("tbody", {}, rows.map((row) =>
        element("tr", {}, row.map((text, i) =>
          i === 0 ? element("th", { scope: "row" }, visible(text)) : cell("td", text, i)))))));
}

function show(id) {
  document.getElementById(id).hidden = false;
}

function buildTables(data) {
  if (data.tables.length) {
    show("results");
    const [first, ...rest] = data.tables;
    const place = document.getElementById("tables");
    place.append(tableOf(first));
    if (rest.length > 3) {
      place.append(element("details", {},
        element("summary", {}, `${rest.length} more tables`), rest.map(tableOf)));
    } else place.append(...rest.map(tableOf));
  }
  if (data.settings.length) {
    show("settings");
    document.getElementById("settings-tables").append(...data.settings.map((table) =>
      element("details", {}, element("summary", {}, visible(table.title)), tableOf(table))));
  }
}

function buildCharts(data) {
  if (!data.charts.length) return;
  show("curves");
  const select = document.getElementById("chart-group");
  select.append(...data.charts.map((group, i) => element("option", { value: i }, group.name)));
  const draw = () => {
    const group = data.charts[select.value];
    document.getElementById("charts").replaceChildren(...group.charts.map(chartFigure));
  };
  select.addEventListener("change", draw);
  draw();
}

// The choice holds for the page only: a file:// page has no storage of its own.
function wireTheme() {
  const button = document.getElementById("theme");
  const order = ["system", "dark", "light"];
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme || "system";
    const next = order[(order.indexOf(now) + 1) % order.length];
    document.documentElement.dataset.theme = next;
    button.textContent = `Theme: ${next}`;
  });
}

async function open() {
  wireTheme();
  const status = document.getElementById("status");
  if (typeof DecompressionStream === "undefined") {
    status.textContent = "This browser is too old for the page: it lacks DecompressionStream " +
      "(Chromium 80, Firefox 113, Safari 16.4 have it).";
    return;
  }
  try {
    const data = await unpack("summary");
    document.getElementById("about").textContent = visible(data.about);
    document.getElementById("notes").append(
      ...data.notes.map((note) => element("p", { class: "note" }, visible(note))));
    buildTables(data);
    buildCharts(data);
    buildViewer(data);
    for (const link of document.querySelectorAll(".top nav a"))
      link.hidden = document.querySelector(link.getAttribute("href")).hidden;
    status.hidden = true;
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    status.textContent = `The page's data cannot be read (${error}): build the page again.`;
    throw error;
  }
}

open();
