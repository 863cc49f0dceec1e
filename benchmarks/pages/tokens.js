// One trajectory token by token: who wrote it, what was trained, how far training moved it.
"use strict";

const KIND_NAMES = { prompt: "prompt", sampled: "model", scaffold: "template", observation: "output" };
const COLOURS = {
  ratio: "log-ratio to the reference",
  logprob: "sampler's log-probability",
  kind: "who wrote it",
};

// Positions by token: kind, turn, trained or not, sampler's log-prob, log-ratio.
function tokenFacts(tokens, kinds) {
  const facts = [];
  let start = 0, sampled = 0;
  for (let s = 0; s < tokens.spans.length; s += 3) {
    const [kind, turn, end] = tokens.spans.slice(s, s + 3);
    for (let i = start; i < end; i++) {
      const fact = { kind: kinds[kind], turn, trained: false };
      if (fact.kind === "sampled" && tokens.logprobs) fact.logprob = tokens.logprobs[sampled++];
      facts.push(fact);
    }
    start = end;
  }
  let at = 0, ratio = 0;
  (tokens.trained || []).forEach((length, i) => {
    for (const end = at + length; at < end; at++) {
      facts[at].trained = i % 2 === 1;
      if (facts[at].trained && tokens.ratios) facts[at].ratio = tokens.ratios[ratio++];
    }
  });
  return facts;
}

function availableColours(details) {
  const has = (name) => details.some((d) => d.tokens && d.tokens[name]);
  return ["ratio", "logprob", "kind"].filter(
    (c) => c === "kind" || has({ ratio: "ratios", logprob: "logprobs" }[c]));
}

// Four strengths either way; the scale is the iteration's own, see `legendOf`.
function colourClass(fact, colour, scale) {
  if (colour === "ratio" && fact.ratio !== undefined) {
    const strength = Math.min(4, Math.round((4 * Math.abs(fact.ratio)) / scale));
    return strength ? `${fact.ratio > 0 ? "up" : "down"}-${strength}` : "";
  }
  if (colour === "logprob" && fact.logprob !== undefined) {
    const strength = [0.9, 0.5, 0.1, 0.01].filter((p) => Math.exp(fact.logprob) < p).length;
    return strength ? `rare-${strength}` : "";
  }
  return "";
}

function legendOf(colour, scale) {
  const sample = (name, text) => element("span", { class: `token ${name}` }, text);
  const parts = {
    ratio: [
      "Less likely after training ", sample("down-4", `\u2264 \u2212${scale.toPrecision(2)}`), sample("down-2", "\u2212"),
      sample("", "0"), sample("up-2", "+"), sample("up-4", `\u2265 ${scale.toPrecision(2)}`),
      " more likely. Natural logarithm of policy over reference.",
    ],
    logprob: [
      "Probability when sampled: ", sample("", "over 90%"), sample("rare-1", "under 90%"),
      sample("rare-2", "50%"), sample("rare-3", "10%"), sample("rare-4", "1%"),
    ],
    kind: ["Every token stands beside who wrote it."],
  }[colour];
  return element("p", { class: "token-legend" }, parts, " ",
    sample("trained", "Underlined"), " tokens were trained on.");
}

function pieceText(data, piece) {
  const text = data.pieces.texts[piece];
  return text ? visible(text).replaceAll("\n", "\u23ce\n") : `\u27e8${data.pieces.ids[piece]}\u27e9`;
}

function describeToken(data, piece, fact) {
  const number = (v) => (v > 0 ? "+" : "") + v.toFixed(3);
  const parts = [
    JSON.stringify(visible(data.pieces.texts[piece] ?? "")), `token ${data.pieces.ids[piece]}`,
    `${KIND_NAMES[fact.kind]}, turn ${fact.turn + 1}`, fact.trained ? "trained" : "not trained",
  ];
  if (fact.logprob !== undefined)
    parts.push(`sampler's log-prob ${fact.logprob.toFixed(3)} (${(100 * Math.exp(fact.logprob)).toFixed(1)}%)`);
  if (fact.ratio !== undefined) parts.push(`log-ratio ${number(fact.ratio)}`);
  return parts.join(", ");
}

function tokenView(data, detail, colour, scale) {
  if (!detail.tokens) return element("p", { class: "hint" }, "No tokens were recorded.");
  const facts = tokenFacts(detail.tokens, data.kinds);
  const readout = element("p", { class: "readout", "aria-live": "polite" },
    "Point at a token, or focus the tokens and use the left and right arrows.");
  const box = element("div", {
    class: "tokens", tabindex: 0, role: "group",
    "aria-label": "Tokens. Left and right arrows read one at a time.",
  });
  const nodes = [];
  let block = null, last = "";
  facts.forEach((fact, i) => {
    const place = `${fact.kind} ${fact.turn}`;
    if (place !== last) {
      const name = KIND_NAMES[fact.kind] + (fact.kind === "sampled" ? `, turn ${fact.turn + 1}` : "");
      block = element("div", { class: "token-text" });
      box.append(element("div", { class: `token-block kind-${fact.kind}` },
        element("div", { class: "token-kind" }, name), block));
      last = place;
    }
    const classes = ["token", colourClass(fact, colour, scale), fact.trained ? "trained" : ""];
    const node = element("span", { class: classes.filter(Boolean).join(" ") },
      pieceText(data, detail.tokens.ids[i]));
    node.dataset.i = i;
    nodes.push(node);
    block.append(node);
  });
  let at = -1;
  const read = (i) => {
    nodes[at]?.classList.remove("current");
    at = Math.max(0, Math.min(nodes.length - 1, i));
    nodes[at].classList.add("current");
    readout.textContent = describeToken(data, detail.tokens.ids[at], facts[at]);
  };
  for (const type of ["pointerover", "click"])
    box.addEventListener(type, (event) => {
      const i = event.target.dataset.i;
      if (i !== undefined) read(Number(i));
    });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    read(at + step);
  });
  return element("div", {}, box, readout);
}
