// Charts of a benchmark run: one panel for each workload and figure, a bar for each engine, the numbers as a table as well.
import { call } from "./api.js";
import { $, make, makeSvg } from "./dom.js";

const FIGURES = {
  decode_tokens_per_s: ["decode", "tokens/s", true],
  ttft_ms: ["time to first token", "ms", false],
  prompt_tokens_per_s: ["prefill", "tokens/s", true],
  output_tokens_per_s: ["output", "tokens/s", true],
};
const SHAPES = { S: "Qwen2.5-0.5B’s shape", M: "TinyLlama-1.1B’s shape" };
const WORKLOADS = { W1: "One request", W2: "One prompt of 1,024 tokens", W3: "32 requests at once" };
const [WIDTH, NAME, VALUE, BAR, GAP] = [260, 108, 42, 15, 4];
let isLoaded = false;

export async function showComparison() {
  if (isLoaded) return;
  isLoaded = true;
  try {
    const { source, runs } = await (await call("playground/data/comparison")).json();
    $("comparison-said").textContent += source === "built-in" ? " These are the runs of Quire’s performance log; a run of your own replaces them." : ` Read from ${source}.`;
    $("charts").replaceChildren(...runs.map(makeRun));
  } catch (error) {
    isLoaded = false;
    $("charts").replaceChildren(make("p", { className: "failure", role: "alert" }, error.message));
  }
}

function makeRun(run) {
  const shapes = [...new Set(run.rows.map((row) => row.shape))].map((shape) => SHAPES[shape] ?? shape);
  const rounds = Math.max(...run.rows.flatMap((row) => Object.values(row.values).map((values) => values.length)));
  const conditions = [run.date, run.machine.processor, `${run.threads} threads`, rounds > 1 ? `medians of up to ${rounds} rounds` : "one round"];
  if (run.scale !== 1) conditions.push(`generated tokens divided by ${run.scale}`);
  const panels = group(run.rows, (row) => `${row.shape} ${row.workload} ${row.figure}`).map((rows) => makePanel(rows, run.peers));
  return make("section", { className: "run" }, make("h3", {}, shapes.join(", ")), make("p", { className: "note" }, `${conditions.filter(Boolean).join(" · ")}. Random weights: speed only.`),
    make("div", { className: "panels" }, ...panels), makeTable(run));
}

function group(rows, key) {
  const groups = new Map();
  for (const row of rows) groups.set(key(row), [...(groups.get(key(row)) ?? []), row]);
  return [...groups.values()];
}

function makePanel(rows, peers) {
  const [title, unit, isHigherBetter] = FIGURES[rows[0].figure] ?? [rows[0].figure, "", true];
  const panel = make("figure", { className: "panel" }, make("h4", {}, `${workload(rows[0].workload)}, ${title}`), make("p", { className: "note" }, `${unit}, ${isHigherBetter ? "more" : "less"} is better`));
  panel.append(makeBars(rows, peers, isHigherBetter));
  return panel;
}

function workload(name) {
  const [kind, size] = name.split("x");
  return size ? `${size} equal requests` : WORKLOADS[kind] ?? name;
}

// Horizontal bars by precision, the best engine first.
function makeBars(rows, peers, isHigherBetter) {
  const most = Math.max(...rows.flatMap((row) => Object.values(row.values).map(median)));
  const svg = makeSvg("svg", { role: "img" });
  let y = 0;
  const said = [];
  for (const row of rows) {
    svg.append(makeSvg("text", { x: 0, y: y + 12, class: "soft" }, row.precision));
    y += 18;
    const values = Object.entries(row.values).map(([peer, each]) => [peer, median(each)]);
    values.sort((a, b) => (isHigherBetter ? b[1] - a[1] : a[1] - b[1]));
    for (const [peer, value] of values) {
      const kind = peer === "quire" ? " ours" : "";
      const length = ((WIDTH - NAME - VALUE) * value) / most;
      svg.append(
        makeSvg("text", { x: 0, y: y + 12, class: kind && "ours-text" }, peers[peer]?.title ?? peer),
        makeSvg("rect", { x: NAME, y: y + 2, width: Math.max(1, length), height: BAR - 4, class: `bar${kind}` }),
        makeSvg("text", { x: NAME + length + 6, y: y + 12, class: kind ? "ours-text" : "soft" }, number(value)),
      );
      y += BAR + GAP - 2;
    }
    said.push(`${row.precision}: ${values.map(([peer, value]) => `${peers[peer]?.title ?? peer} ${number(value)}`).join(", ")}`);
    y += 8;
  }
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${y}`);
  svg.setAttribute("aria-label", said.join("; "));
  return svg;
}

function makeTable(run) {
  const names = [...new Set(run.rows.flatMap((row) => Object.keys(row.values)))];
  const head = ["Workload", "Figure", "Precision", ...names.map((name) => run.peers[name]?.title ?? name), "Quire / best peer"];
  const rows = run.rows.map((row) => {
    const [title, unit, isHigherBetter] = FIGURES[row.figure] ?? [row.figure, "", true];
    const cells = [`${row.shape} ${workload(row.workload)}`, `${title}, ${unit}`, row.precision, ...names.map((name) => (row.values[name] ? number(median(row.values[name])) : "")), ratio(row, isHigherBetter)];
    return make("tr", {}, ...cells.map((cell) => make("td", {}, cell)));
  });
  return make("details", { className: "alternative" }, make("summary", {}, "As a table"),
    make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Figures" },
      make("table", {}, make("thead", {}, make("tr", {}, ...head.map((cell) => make("th", { scope: "col" }, cell)))), make("tbody", {}, ...rows))));
}

function ratio(row, isHigherBetter) {
  const others = Object.entries(row.values).filter(([name]) => name !== "quire").map(([, values]) => median(values));
  if (!row.values.quire || !others.length) return "";
  const ours = median(row.values.quire);
  return (isHigherBetter ? ours / Math.max(...others) : Math.min(...others) / ours).toFixed(2);
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length / 2;
  return sorted.length % 2 ? sorted[Math.floor(middle)] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const number = (value) => (value < 100 ? Number(value.toPrecision(3)) : Math.round(value)).toLocaleString("en");
