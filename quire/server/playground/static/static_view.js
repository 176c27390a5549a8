// The picture that sets continuous beside static batching: the same requests, the same scale, padding left pale.
import { $, makeSvg, ownerColours, count } from "./dom.js";
import { fitStepTime, staticBatches } from "./static_batching.js";

const MAX_REQUESTS = 60;
const HALF_HEIGHT = 224; // one of the two pictures, with its title

export function drawStatic(timeline, limits) {
  const requests = timeline.completed().slice(-MAX_REQUESTS);
  if (!requests.length) return;
  const found = compare(requests, timeline, limits);
  $("static-said").textContent = sentence(found);
  const box = $("static");
  box.dataset.continuousSteps = found.numSteps;
  box.dataset.staticSteps = found.batched.numSteps;
  box.setAttribute("aria-label", sentence(found));
  box.replaceChildren(picture(found, Math.max(320, box.clientWidth)));
}

function compare(requests, timeline, limits) {
  const batched = staticBatches(requests, limits.max_num_seqs, limits.max_num_batched_tokens);
  const start = Math.min(...requests.map((request) => request.arrival));
  const end = Math.max(...requests.map((request) => request.end)) + 1;
  const steps = timeline.steps.filter((step) => step.column >= start && step.column < end);
  const [base, perToken] = fitStepTime(timeline.steps);
  const measured = steps.reduce((total, step) => total + step.duration, 0);
  const estimated = batched.batches.reduce((total, batch) => total + batch.steps.reduce((sum, tokens) => sum + base + perToken * tokens, 0), 0);
  return { requests, batched, start, numSteps: end - start, measured, estimated };
}

function sentence({ requests, batched, numSteps, measured, estimated }) {
  const padding = 1 - batched.numUseful / batched.numTokens;
  return `${count(requests.length, "request")} took ${count(numSteps, "step")} (${seconds(measured)}). ` +
    `Static batches would have taken ${count(batched.numSteps, "step")} (${seconds(estimated)}, ${(estimated / measured).toFixed(1)} times as long), ` +
    `${Math.round(100 * padding)} % of their work on padding.`;
}

const seconds = (us) => (us < 1e6 ? `${(us / 1000).toPrecision(3)} ms` : `${(us / 1e6).toPrecision(3)} s`);

function picture({ requests, batched, start, numSteps }, boxWidth) {
  const numRows = requests.length;
  const row = Math.min(9, (HALF_HEIGHT - 34) / numRows);
  const height = 2 * HALF_HEIGHT;
  const scale = boxWidth / Math.max(numSteps, batched.numSteps);
  const svg = makeSvg("svg", { viewBox: `0 0 ${boxWidth} ${height}`, "aria-hidden": "true" });
  const owner = ownerColours();
  const rank = new Map(requests.map((request, index) => [request.number, index]));
  const bar = (top, request, from, to, className) => {
    const rect = makeSvg("rect", { x: from * scale, y: top + rank.get(request.number) * row, width: Math.max(0.5, (to - from) * scale), height: Math.max(1, row - 1) });
    if (className) rect.setAttribute("class", className);
    else rect.style.fill = owner(request.number);
    svg.append(rect);
  };
  title(svg, 12, "Continuous", numSteps);
  for (const request of requests) bar(20, request, request.first - start, request.end + 1 - start);
  const top = height / 2 + 12;
  title(svg, top, "Static", batched.numSteps);
  for (const batch of batched.batches) {
    const from = batch.start - start;
    for (const member of batch.members) {
      bar(top + 8, member, from, batch.end - start, "padding");
      bar(top + 8, member, from, from + batch.prefillSteps + member.numOutput - 1);
    }
  }
  return svg;
}

function title(svg, y, text, numSteps) {
  svg.append(makeSvg("text", { x: 0, y }, text), makeSvg("text", { x: 84, y, class: "soft" }, count(numSteps, "step")));
}
