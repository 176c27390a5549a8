// What /stats tells, as one picture of the engine that is kept up to date: blocks, requests, steps.
import { call, events } from "./api.js";
import { Timeline } from "./timeline.js";

const RETRY_MS = 2000;

export class Live extends EventTarget {
  constructor() {
    super();
    this.model = null;
    this.chosen = null;
    this.status = "Not connected.";
    this.isWatching = false;
    this.abort = null;
    this.reset(null);
  }

  reset(epoch) {
    this.epoch = epoch;
    this.frame = null;
    this.words = new Uint16Array(0);
    this.timeline = new Timeline();
  }

  // Another model: another engine.
  choose(model) {
    this.model = model;
    this.chosen = null;
    this.reopen();
  }

  // The request whose block table is wanted; null for none.
  chooseRequest(id) {
    this.chosen = id;
    this.reopen();
  }

  watch(isWatching) {
    if (isWatching === this.isWatching) return;
    this.isWatching = isWatching;
    this.reopen();
  }

  reopen() {
    this.abort?.abort();
    this.abort = null;
    if (this.isWatching && this.model !== null) {
      this.abort = new AbortController();
      this.run(this.abort.signal);
    }
  }

  async run(signal) {
    while (!signal.aborted) {
      try {
        await this.read(signal);
        this.say("The server ended the stream; trying again.");
      } catch (error) {
        if (signal.aborted) return;
        this.say(`${error.message} Trying again.`);
        if (error.status === 401) {
          this.say(error.message);
          return;
        }
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  async read(signal) {
    const query = new URLSearchParams({ model: this.model });
    if (this.chosen !== null) query.set("request", this.chosen);
    for await (const { event, data } of events(await call(`stats?${query}`, { signal }))) {
      if (signal.aborted) return;
      const frame = JSON.parse(data);
      if (event === "error") throw new Error(frame.error.message);
      this.take(frame);
    }
  }

  take(frame) {
    if (frame.epoch !== this.epoch) this.reset(frame.epoch);
    const { num_blocks, page_blocks, pages } = frame.memory;
    if (this.words.length !== num_blocks) this.words = new Uint16Array(num_blocks);
    for (const [page, content] of Object.entries(pages)) decode(content, this.words, page * page_blocks);
    this.timeline.add(frame.steps);
    if (frame.num_missed) this.timeline.settle(new Set(frame.requests.map(([number]) => number)));
    this.frame = frame;
    this.say(`Watching ${frame.model}.`);
    this.dispatchEvent(new Event("frame"));
  }

  say(status) {
    if (status === this.status) return;
    this.status = status;
    this.dispatchEvent(new Event("status"));
  }
}

// 16-bit little-endian words in base64, to their place.
function decode(content, words, first) {
  const bytes = atob(content);
  for (let i = 0; i + 1 < bytes.length; i += 2) words[first + i / 2] = bytes.charCodeAt(i) | (bytes.charCodeAt(i + 1) << 8);
}
