// The scheduler's log as columns (steps) and lanes (rows for requests); what drawing, table and comparison read.

export const MAX_COLUMNS = 1200;
const MAX_ENDED = 400;

export class Timeline {
  constructor() {
    this.steps = [];
    this.requests = new Map();
    this.sequence = 0;
    this.nextColumn = 0;
    this.decodes = [];
  }

  // Rows of /stats: [sequence, step_id, start_us, duration_us, decodes | null, chunks, drafts, arrived, preempted, finished].
  add(rows) {
    for (const row of rows) {
      if (row[4] === null) row[4] = this.decodes;
      this.decodes = row[4];
      if (row[0] > this.sequence) this.addStep(row);
    }
    while (this.steps.length > MAX_COLUMNS) this.steps.shift();
    const ended = [...this.requests.values()].filter((request) => request.end !== null);
    for (const request of ended.slice(0, Math.max(0, ended.length - MAX_ENDED))) this.requests.delete(request.number);
  }

  addStep([sequence, id, start, duration, decodes, chunks, drafts, arrived, preempted, finished]) {
    this.sequence = sequence;
    const column = this.nextColumn;
    for (const [number, requestId, numPrompt] of arrived) this.arrive(number, requestId, numPrompt, column);
    const step = { id, column, start, duration, decodes, chunks: pairs(chunks), drafts: pairs(drafts), preempted, finished };
    step.numTokens = decodes.length;
    for (const [number, numTokens] of [...step.chunks, ...step.drafts]) {
      step.numTokens += numTokens;
      this.touch(number, column);
    }
    for (const number of decodes) this.touch(number, column);
    for (const number of preempted) this.request(number, column).preemptions.push(column);
    for (const [number, reason, numOutput] of finished) {
      const request = this.request(number, column);
      Object.assign(request, { end: request.last ?? column - 1, reason, numOutput }); // an abort comes after its last step
    }
    if (id === 0) return; // events between steps
    this.steps.push(step);
    this.nextColumn += 1;
  }

  // Some steps were missed, and with them ends: requests that ran and are not `live` have ended.
  settle(live) {
    for (const request of this.requests.values()) {
      if (request.end === null && request.last !== null && !live.has(request.number)) Object.assign(request, { end: request.last, reason: "not seen" });
    }
  }

  arrive(number, id, numPrompt, column) {
    const used = new Set();
    for (const request of this.requests.values()) if (request.end === null || request.end >= column - 2) used.add(request.lane);
    let lane = 0;
    while (used.has(lane)) lane += 1;
    this.requests.set(number, { number, id, numPrompt, arrival: column, first: null, last: null, end: null, reason: null, numOutput: 0, lane, preemptions: [] });
  }

  // The request, also one whose arrival was missed.
  request(number, column) {
    if (!this.requests.has(number)) this.arrive(number, `request ${number}`, null, column);
    return this.requests.get(number);
  }

  touch(number, column) {
    const request = this.request(number, column);
    request.first ??= column;
    request.last = column;
  }

  // Of the last stretch of work in which requests met: those that were seen from their arrival to their end.
  completed() {
    const stretches = [[]];
    let end = -1;
    for (const request of this.requests.values()) {
      if (request.arrival > end) stretches.push([]);
      end = Math.max(end, request.end ?? Infinity);
      if (request.end !== null && request.numPrompt !== null && request.numOutput > 0 && request.first !== null) stretches.at(-1).push(request);
    }
    return stretches.findLast((stretch) => stretch.length > 1) ?? stretches.at(-1);
  }
}

function pairs(flat) {
  const result = [];
  for (let i = 0; i < flat.length; i += 2) result.push([flat[i], flat[i + 1]]);
  return result;
}
