// A small load to look at, for a few seconds: groups of answers of different lengths, to prompts that begin alike, several
// groups at a time.
import { call } from "./api.js";

const OPENING = "The library lends books on these terms. ".repeat(6);
const DURATION_MS = 5000; // no group begins later
const NUM_WORKERS = 4; // a browser opens six connections to a server, and /stats is one
// (prompts, tokens of each answer) of each group
const GROUPS = [[5, 90], [3, 24], [4, 160], [2, 12], [6, 48], [3, 120], [4, 20], [5, 72], [2, 200], [4, 36], [3, 60], [6, 16], [2, 140], [4, 28]];

export async function runSample(button, model) {
  button.disabled = true;
  const end = performance.now() + DURATION_MS;
  let group = 0;
  const work = async () => {
    while (performance.now() < end) await runGroup(model, group++);
  };
  const results = await Promise.allSettled(Array.from({ length: NUM_WORKERS }, work));
  button.disabled = false;
  button.title = results.find((result) => result.status === "rejected")?.reason.message ?? "";
}

async function runGroup(model, group) {
  const [numPrompts, length] = GROUPS[group % GROUPS.length];
  const prompt = Array.from({ length: numPrompts }, (_, i) => OPENING + "Chapter ".repeat(1 + ((group * 11 + i * 17) % 40)));
  const response = await call("v1/completions", { body: { model, prompt, max_tokens: length, temperature: 1, seed: group, ignore_eos: true } });
  await response.json();
}
