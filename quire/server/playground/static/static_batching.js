// What static batching would have needed for requests that were served; steps and tokens, no clock.

// `requests`: {number, arrival, numPrompt, numOutput}, arrivals in steps. Returns the batches and their sums.
export function staticBatches(requests, maxSeqs, maxTokens) {
  const waiting = [...requests].sort((a, b) => a.arrival - b.arrival || a.number - b.number);
  const batches = [];
  let now = waiting.length ? waiting[0].arrival : 0;
  while (waiting.length) {
    now = Math.max(now, waiting[0].arrival);
    let size = 0;
    while (size < Math.min(maxSeqs, waiting.length) && waiting[size].arrival <= now) size += 1;
    const batch = makeBatch(waiting.splice(0, size), now, maxTokens);
    batches.push(batch);
    now = batch.end;
  }
  const first = batches.length ? batches[0].start : 0;
  const sum = (key) => batches.reduce((total, batch) => total + batch[key], 0);
  return { batches, numSteps: now - first, numTokens: sum("numTokens"), numUseful: sum("numUseful") };
}

// Prompts padded to the longest, in steps of at most `maxTokens`; the last of them gives the first token. Then one step per
// token until the longest answer is done.
function makeBatch(members, start, maxTokens) {
  const longestPrompt = Math.max(...members.map((member) => member.numPrompt));
  const longestOutput = Math.max(...members.map((member) => member.numOutput));
  const numPromptTokens = members.length * longestPrompt;
  const prefillSteps = Math.ceil(numPromptTokens / maxTokens);
  const steps = Array.from({ length: prefillSteps }, (_, i) => Math.min(maxTokens, numPromptTokens - i * maxTokens));
  for (let i = 1; i < longestOutput; i += 1) steps.push(members.length);
  return {
    members, start, prefillSteps, steps,
    end: start + steps.length,
    numTokens: steps.reduce((total, tokens) => total + tokens, 0),
    numUseful: members.reduce((total, member) => total + member.numPrompt + member.numOutput - 1, 0),
  };
}

// (a, b) of time = a + b × tokens by least squares over steps {duration, numTokens}; b is at least 0.
export function fitStepTime(steps) {
  const n = steps.length;
  if (n === 0) return [0, 0];
  const meanTokens = steps.reduce((total, step) => total + step.numTokens, 0) / n;
  const meanTime = steps.reduce((total, step) => total + step.duration, 0) / n;
  let [above, below] = [0, 0];
  for (const step of steps) {
    above += (step.numTokens - meanTokens) * (step.duration - meanTime);
    below += (step.numTokens - meanTokens) ** 2;
  }
  const slope = below > 0 ? Math.min(Math.max(0, above / below), meanTokens ? meanTime / meanTokens : 0) : 0;
  return [meanTime - slope * meanTokens, slope];
}
