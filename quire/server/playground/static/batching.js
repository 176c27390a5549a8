// The batching view: the timeline of steps and requests, the same as a table, and what static batches would have needed.
import { $, colour, count, fitCanvas, make, ownerColours } from "./dom.js";
import { drawStatic } from "./static_view.js";

const [MIN_COLUMN, MAX_COLUMN] = [3, 16];
const HEIGHT = 256;
const TABLE_STEPS = 200;
const TABLE_REQUESTS = 100;

export class Batching {
  constructor(live) {
    this.live = live;
    this.isShown = this.isPaused = false;
    this.cursor = null;
    this.drawn = 0;
    live.addEventListener("frame", () => this.isShown && !this.isPaused && this.draw());
    live.addEventListener("status", () => ($("batching-live").textContent = live.status));
    $("pause").addEventListener("click", () => this.pause());
    const canvas = $("timeline");
    canvas.addEventListener("pointermove", (event) => this.go(this.columnAt(event.offsetX)));
    canvas.addEventListener("keydown", (event) => this.press(event));
    $("steps").closest("details").addEventListener("toggle", () => this.drawTable());
    new ResizeObserver(() => this.isShown && this.draw()).observe($("timeline-box"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.isShown && this.draw());
  }

  show() {
    this.isShown = true;
    $("batching-live").textContent = this.live.status;
    if (this.live.frame) this.draw();
  }

  hide() {
    this.isShown = false;
  }

  pause() {
    this.isPaused = !this.isPaused;
    $("pause").setAttribute("aria-pressed", this.isPaused);
    $("pause").textContent = this.isPaused ? "Go on" : "Pause";
    if (!this.isPaused) this.draw();
  }

  draw() {
    if (!this.live.frame) return;
    const { stats, limits } = this.live.frame;
    this.steps = this.live.timeline.steps.slice();
    this.drawNumbers(stats);
    $("max-seqs").textContent = `${limits.max_num_seqs} (max_num_seqs)`;
    $("max-tokens").textContent = `${limits.max_num_batched_tokens.toLocaleString("en")} (max_num_batched_tokens)`;
    this.drawTimeline();
    if (this.live.timeline.sequence === this.drawn) return;
    this.drawn = this.live.timeline.sequence;
    this.drawTable();
    drawStatic(this.live.timeline, limits);
  }

  drawNumbers(stats) {
    const recent = this.steps.slice(-100);
    const mean = (key) => recent.reduce((total, step) => total + step[key], 0) / recent.length;
    const values = {
      ...stats,
      step_ms: recent.length ? `${(mean("duration") / 1000).toPrecision(2)} ms` : "–",
      tokens_per_step: recent.length ? mean("numTokens").toFixed(1) : "–",
    };
    for (const cell of document.querySelectorAll("#batching-numbers dd")) {
      const value = values[cell.dataset.number];
      cell.textContent = typeof value === "number" ? value.toLocaleString("en") : value;
    }
  }

  // -- the picture ----------------------------------------------------------------------------------------------

  layOut() {
    const width = $("timeline-box").clientWidth;
    const size = Math.min(MAX_COLUMN, Math.max(MIN_COLUMN, width / Math.max(1, this.steps.length)));
    const visible = this.steps.slice(-Math.floor(width / size));
    const firstColumn = visible.length ? visible[0].column : 0;
    const requests = [...this.live.timeline.requests.values()].filter((request) => request.end === null || request.end >= firstColumn);
    const lanes = 1 + requests.reduce((most, request) => Math.max(most, request.lane), 7);
    return { width, size, visible, firstColumn, requests, lane: Math.min(28, HEIGHT / lanes) };
  }

  drawTimeline() {
    const layout = (this.layout = this.layOut());
    const context = fitCanvas($("timeline"), layout.width, HEIGHT);
    context.clearRect(0, 0, layout.width, HEIGHT);
    const owner = ownerColours();
    const lanes = new Map(layout.requests.map((request) => [request.number, request]));
    this.drawWaits(context, layout);
    for (const step of layout.visible) this.drawStep(context, layout, step, lanes, owner);
    this.drawMarks(context, layout);
    if (this.cursor !== null) {
      const x = (this.cursor - layout.firstColumn) * layout.size;
      context.fillStyle = colour("--ink");
      context.globalAlpha = 0.12;
      context.fillRect(x, 0, layout.size, HEIGHT);
      context.globalAlpha = 1;
    }
    $("timeline").setAttribute("aria-label", `Timeline: ${count(layout.visible.length, "step")}, ${count(layout.requests.length, "request")}`);
  }

  // A prompt chunk fills its lane; a token is a thinner bar, which joins its neighbours.
  drawStep(context, { size, lane, firstColumn }, step, lanes, owner) {
    const x = (step.column - firstColumn) * size;
    const gap = size >= 6 ? 1 : 0;
    const bar = (number, height, width) => {
      const request = lanes.get(number);
      if (!request) return null;
      context.fillStyle = owner(number);
      const y = request.lane * lane + (lane - height) / 2;
      context.fillRect(x, y, width, height);
      return y;
    };
    const thin = Math.max(1, lane * 0.32);
    for (const number of step.decodes) bar(number, thin, size);
    for (const [number] of step.drafts) bar(number, lane * 0.5, size);
    for (const [number, numTokens] of step.chunks) {
      const y = bar(number, Math.max(1, lane - 2), Math.max(1, size - gap));
      if (y !== null && size >= 14 && lane >= 12) {
        context.fillStyle = colour("--paper");
        context.font = "9px sans-serif";
        context.textAlign = "center";
        context.fillText(numTokens < 1000 ? numTokens : `${Math.round(numTokens / 1000)}k`, x + size / 2, y + lane / 2 + 2);
      }
    }
  }

  drawWaits(context, { size, lane, firstColumn, requests }) {
    context.fillStyle = colour("--cell-cached");
    for (const { arrival, first, end, lane: row } of requests) {
      const to = first ?? (end === null ? this.live.timeline.nextColumn : end + 1);
      const from = Math.max(arrival, firstColumn);
      if (to > from) context.fillRect((from - firstColumn) * size, row * lane + lane / 2, (to - from) * size, 1);
    }
  }

  drawMarks(context, { size, lane, firstColumn, requests }) {
    const [ink, rubric] = [colour("--ink"), colour("--rubric")];
    const mark = (column, row, fill) => {
      context.fillStyle = fill;
      context.fillRect((column - firstColumn) * size - 1, row * lane + 1, 2, Math.max(2, lane - 2));
    };
    for (const request of requests) {
      if (request.end !== null) mark(request.end + 1, request.lane, ink);
      for (const column of request.preemptions) mark(column, request.lane, rubric);
    }
  }

  // -- one step -------------------------------------------------------------------------------------------------

  columnAt(x) {
    if (!this.layout?.visible.length) return null;
    const column = this.layout.firstColumn + Math.floor(x / this.layout.size);
    return Math.min(column, this.layout.visible.at(-1).column);
  }

  press(event) {
    if (!this.layout?.visible.length) return;
    const [first, last] = [this.layout.firstColumn, this.layout.visible.at(-1).column];
    const to = { ArrowRight: (this.cursor ?? first - 1) + 1, ArrowLeft: (this.cursor ?? last + 1) - 1, Home: first, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.go(Math.min(Math.max(first, to), last));
  }

  go(column) {
    if (column === null || column === this.cursor) return;
    this.cursor = column;
    this.drawTimeline();
    const step = this.steps.find((each) => each.column === column);
    if (step) $("step-said").textContent = describe(step, this.live.timeline);
  }

  drawTable() {
    if (!$("steps").closest("details").open) return;
    const requests = [...this.live.timeline.requests.values()].slice(-TABLE_REQUESTS).reverse();
    const stepId = new Map(this.live.timeline.steps.map((step) => [step.column, step.id]));
    $("lanes").tBodies[0].replaceChildren(...requests.map((request) => {
      const { number, id, numPrompt, first, end, numOutput, reason } = request;
      return row([number, id, numPrompt ?? "", stepId.get(first) ?? "", end === null ? "" : stepId.get(end) ?? "", end === null ? "" : numOutput, reason ?? ""]);
    }));
    const rows = this.live.timeline.steps.slice(-TABLE_STEPS).reverse();
    $("steps").tBodies[0].replaceChildren(...rows.map((step) => {
      const chunks = step.chunks.map(([number, numTokens]) => `${number} (${numTokens})`);
      const decodes = [...step.decodes, ...step.drafts.map(([number, numTokens]) => `${number} (${numTokens})`)];
      const cells = [step.id, chunks.join(", "), decodes.join(", "), step.preempted.join(", "), step.finished.map(([number]) => number).join(", ")];
      return row(cells);
    }));
  }
}

const row = (cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, String(cell))));

function describe(step, timeline) {
  const name = (number) => timeline.requests.get(number)?.id ?? `request ${number}`;
  const parts = [`Step ${step.id}, ${(step.duration / 1000).toPrecision(3)} ms, ${count(step.numTokens, "token")}`];
  if (step.chunks.length) parts.push(`prompt chunks: ${step.chunks.map(([number, numTokens]) => `${name(number)} ${numTokens}`).join(", ")}`);
  if (step.decodes.length) parts.push(`one token each for ${count(step.decodes.length, "request")}`);
  if (step.drafts.length) parts.push(`drafts checked for ${count(step.drafts.length, "request")}`);
  if (step.preempted.length) parts.push(`preempted: ${step.preempted.map(name).join(", ")}`);
  if (step.finished.length) parts.push(`finished: ${step.finished.map(([number, reason]) => `${name(number)} (${reason})`).join(", ")}`);
  return `${parts.join("; ")}.`;
}
