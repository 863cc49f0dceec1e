// Small line charts in SVG: lines over optimizer steps, or points with intervals over stages.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const SHAPES = ["circle", "square", "diamond", "triangle"];

function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.flat());
  return node;
}

function niceTicks(low, high, wanted) {
  const step = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(step));
  const size = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= step * 0.999);
  const ticks = [];
  for (let t = Math.ceil(low / size - 1e-9); t * size <= high + size * 1e-9; t++) ticks.push(t * size);
  return ticks;
}

function formatValue(value, kind) {
  if (kind === "percent") return `${(100 * value).toFixed(1)}%`;
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e5 ? String(+value.toPrecision(4)) : value.toExponential(2);
}

function formatTick(value, kind) {
  if (kind === "percent") return `${+(100 * value).toFixed(1)}%`;
  const tiny = value && Math.abs(value) < 1e-3;
  return tiny ? (+value.toPrecision(3)).toExponential() : String(+value.toPrecision(6));
}

function markerPath(shape, x, y, r = 4) {
  switch (SHAPES[shape % SHAPES.length]) {
    case "circle": return `M${x - r},${y}a${r},${r} 0 1 0 ${2 * r},0a${r},${r} 0 1 0 ${-2 * r},0`;
    case "square": return `M${x - r},${y - r}h${2 * r}v${2 * r}h${-2 * r}z`;
    case "diamond": return `M${x},${y - r - 1}l${r + 1},${r + 1}l${-r - 1},${r + 1}l${-r - 1},${-r - 1}z`;
    default: return `M${x},${y - r - 1}l${r + 1},${2 * r}h${-2 * r - 2}z`;
  }
}

function bounds(chart) {
  const ys = chart.series.flatMap((s) => [...s.y, ...(s.low || []), ...(s.high || [])]);
  const xs = chart.ticks ? [-0.35, chart.ticks.length - 0.65] : [...(chart.breaks || []).map((b) => b.x), ...chart.series.flatMap((s) => s.x)];
  let low = ys.reduce((a, b) => Math.min(a, b), Infinity);
  let high = ys.reduce((a, b) => Math.max(a, b), -Infinity);
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  low -= room;
  high += room;
  if (chart.y === "percent") [low, high] = [Math.max(0, low), Math.min(1, high)];
  const left = xs.reduce((a, b) => Math.min(a, b), Infinity);
  const right = xs.reduce((a, b) => Math.max(a, b), -Infinity);
  return { low, high, left, right: right > left ? right : left + 1 };
}

function chartFigure(chart) {
  const points = chart.series.reduce((n, s) => n + s.x.length, 0);
  const readout = element("p", { class: "readout", "aria-live": "polite" }, "\u00a0");
  const box = element("div", { class: "plot" });
  const figure = element("figure", { class: "chart" },
    element("figcaption", {}, element("strong", {}, visible(chart.title)), " ",
      element("span", { class: "about" }, chart.about)),
    chart.series.length > 1 ? legend(chart) : null,
    box, readout,
    element("details", { class: "values" }, element("summary", {}, plural(points, "value"))));
  const values = figure.querySelector("details");
  values.addEventListener("toggle", () => {
    if (values.open && !values.querySelector("table")) values.append(valueTable(chart));
  });
  let width = 0;
  new ResizeObserver(() => {
    if (Math.abs(box.clientWidth - width) < 2 || !box.clientWidth) return;
    width = box.clientWidth;
    box.replaceChildren(drawChart(chart, width, readout));
  }).observe(box);
  return figure;
}

function legend(chart) {
  return element("ul", { class: "legend" }, chart.series.map((line, i) =>
    element("li", {},
      svg("svg", { width: 30, height: 12, "aria-hidden": "true", class: `line-${i % 7}` },
        svg("path", { d: "M1,6H29", class: "line" }),
        svg("path", { d: markerPath(i, 15, 6), class: "marker" })),
      visible(line.name))));
}

function valueTable(chart) {
  const rows = chart.series.flatMap((line) => line.x.map((x, i) => [
    line.name,
    chart.ticks ? chart.ticks[x] : String(x),
    formatValue(line.y[i], chart.y),
    line.low ? `${formatValue(line.low[i], chart.y)} to ${formatValue(line.high[i], chart.y)}` : "",
  ]));
  const columns = ["line", chart.ticks ? "stage" : chart.x, "value", "from, to"];
  return tableOf({ title: chart.title, columns, rows });
}

function drawChart(chart, width, readout) {
  const height = Math.round(Math.min(300, Math.max(200, width * 0.55)));
  const area = { left: 52, right: width - 12, top: chart.breaks?.length ? 24 : 12, bottom: height - 34 };
  const range = bounds(chart);
  const toX = (v) => area.left + ((v - range.left) / (range.right - range.left)) * (area.right - area.left);
  const toY = (v) => area.bottom - ((v - range.low) / (range.high - range.low)) * (area.bottom - area.top);
  const root = svg("svg", {
    width, height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0,
    "aria-label": `${chart.title}. ${summary(chart)} Left and right arrows read the values.`,
  });
  root.append(...axes(chart, area, range, toX, toY));
  chart.series.forEach((line, i) => root.append(drawLine(chart, line, i, toX, toY)));
  wireReading(chart, root, area, toX, readout);
  return root;
}

function summary(chart) {
  return chart.series.filter((s) => s.y.length).map((s) =>
    `${s.name}: first ${formatValue(s.y[0], chart.y)}, last ${formatValue(s.y.at(-1), chart.y)}.`).join(" ");
}

function axes(chart, area, range, toX, toY) {
  const parts = [];
  const label = (x, y, text, anchor) =>
    parts.push(svg("text", { x, y, "text-anchor": anchor }, visible(text)));
  for (const tick of niceTicks(range.low, range.high, 4)) {
    parts.push(svg("path", { d: `M${area.left},${toY(tick)}H${area.right}`, class: "grid" }));
    label(area.left - 6, toY(tick) + 4, formatTick(tick, chart.y), "end");
  }
  for (const mark of (chart.breaks || [])) {
    parts.push(svg("path", { d: `M${toX(mark.x)},${area.top}V${area.bottom}`, class: "break" }));
    label(toX(mark.x), area.top - 8, mark.label, "start");
  }
  if (chart.ticks) {
    const room = (area.right - area.left) / chart.ticks.length;
    const longest = Math.max(...chart.ticks.map((t) => t.length)) * 6.5 + 4;
    const every = Math.max(1, Math.ceil(longest / room));
    chart.ticks.forEach((tick, i) => {
      const last = i === chart.ticks.length - 1;
      if (i % every === 0) label(last ? Math.min(toX(i), area.right - tick.length * 2) : toX(i), area.bottom + 18, tick, "middle");
    });
  } else {
    for (const tick of niceTicks(range.left, range.right, Math.max(2, (area.right - area.left) / 60)))
      label(toX(tick), area.bottom + 18, formatTick(tick), "middle");
    label(area.right, area.bottom + 31, chart.x, "end");
  }
  return parts;
}

function drawLine(chart, line, number, toX, toY) {
  // Stages: lines stand side by side, so that their intervals do not hide each other.
  const shift = chart.ticks ? 7 * (number - (chart.series.length - 1) / 2) : 0;
  const at = line.x.map((x) => toX(x) + shift);
  const path = (ys) => ys.map((y, i) => `${i ? "L" : "M"}${at[i].toFixed(1)},${toY(y).toFixed(1)}`).join("");
  const group = svg("g", { class: `line-${number % 7}` });
  if (line.low && !chart.ticks) {
    const back = line.low.map((y, i) => `L${at[i].toFixed(1)},${toY(y).toFixed(1)}`).reverse().join("");
    group.append(svg("path", { d: `${path(line.high)}${back}z`, class: "band" }));
  } else if (line.low) {
    line.low.forEach((low, i) => group.append(svg("path", {
      d: `M${at[i]},${toY(low)}V${toY(line.high[i])}M${at[i] - 4},${toY(low)}h8M${at[i] - 4},${toY(line.high[i])}h8`,
      class: "whisker",
    })));
  }
  group.append(svg("path", { d: path(line.y), class: "line" }));
  if (line.y.length <= 40)
    line.y.forEach((y, i) => group.append(svg("path", { d: markerPath(number, at[i], toY(y)), class: "marker" })));
  return group;
}

// One x at a time is read, by pointer or arrow keys; the values stand below the chart.
function wireReading(chart, root, area, toX, readout) {
  const xs = [...new Set(chart.series.flatMap((s) => s.x))].sort((a, b) => a - b);
  const rule = svg("path", { class: "rule", d: "" });
  root.append(rule);
  let at = -1;
  const read = (i) => {
    if (!xs.length) return;
    at = Math.max(0, Math.min(xs.length - 1, i));
    const x = xs[at];
    rule.setAttribute("d", `M${toX(x)},${area.top}V${area.bottom}`);
    const where = chart.ticks ? chart.ticks[x] : `${chart.x} ${x}`;
    const values = chart.series.filter((s) => s.x.includes(x)).map((s) => {
      const k = s.x.indexOf(x);
      const spread = s.low ? ` (${formatValue(s.low[k], chart.y)} to ${formatValue(s.high[k], chart.y)})` : "";
      return `${s.name} ${formatValue(s.y[k], chart.y)}${spread}`;
    });
    readout.textContent = visible(`${where}: ${values.join(", ")}`);
  };
  root.addEventListener("pointermove", (event) => {
    const x = event.clientX - root.getBoundingClientRect().left;
    const distance = xs.map((v) => Math.abs(toX(v) - x));
    read(distance.indexOf(Math.min(...distance)));
  });
  root.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    read(at + step);
  });
}
