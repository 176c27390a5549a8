// The chat: turns, parameters, streaming, stopping, and how long it took.
import { ApiError, call, events } from "./api.js";
import { $, make } from "./dom.js";
import { TokenText } from "./tokens.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const NUM_ALTERNATIVES = 5;

export class Chat {
  constructor() {
    this.model = null;
    this.ready = new Promise((resolve) => (this.setReady = resolve)); // a model is chosen
    this.messages = [];
    this.abort = null;
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.abort) this.abort.abort();
      else this.send();
    });
    $("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.abort) this.send();
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.abort) this.abort.abort();
    });
    $("clear").addEventListener("click", () => this.clear());
    for (const radio of document.querySelectorAll("[name=mode]")) radio.addEventListener("change", () => this.showMode());
    const wide = matchMedia("(min-width: 56.001rem)");
    const unfold = () => ($("settings").open = wide.matches);
    wide.addEventListener("change", unfold);
    unfold();
  }

  // The model that the next messages go to.
  choose(model) {
    this.model = model;
    this.setReady();
    if ($("opening-model")) $("opening-model").textContent = model.name;
    const mode = model.has_chat_template === false ? "completion" : "chat";
    document.querySelector(`[name=mode][value=${mode}]`).checked = true;
    this.showMode();
  }

  get isChat() {
    return document.querySelector("[name=mode]:checked").value === "chat";
  }

  showMode() {
    $("system-field").hidden = !this.isChat;
    $("prompt").placeholder = this.isChat ? "Write a message" : "Write the beginning of a text";
  }

  // Ready to type in, unless that would open a phone's keyboard.
  begin() {
    if (matchMedia("(hover: hover)").matches) $("prompt").focus({ preventScroll: true });
  }

  clear() {
    this.abort?.abort();
    this.messages = [];
    $("turns").replaceChildren($("opening") ?? make("p", { className: "opening", id: "opening" }, "Ask ", make("em", { id: "opening-model" }, this.model?.name ?? ""), " something."));
    $("prompt").focus();
  }

  complain(message) {
    $("turns").append(make("p", { className: "failure", role: "alert" }, message));
  }

  async send() {
    await this.ready;
    const text = $("prompt").value;
    if (!text.trim() || this.abort) return;
    $("prompt").value = "";
    $("opening")?.remove();
    const isChat = this.isChat;
    if (isChat) {
      this.messages.push({ role: "user", content: text });
      addTurn("user", "You", make("div", { className: "said-text" }, text));
    }
    const answer = new TokenText(isChat ? "" : text);
    const measure = make("p", { className: "measure" }, "…");
    const turn = addTurn("answer", this.model.name, answer.element, measure);
    this.abort = new AbortController();
    setBusy(true);
    const clock = new Clock();
    let finish = null;
    try {
      finish = await this.stream(isChat, text, answer, clock, this.abort.signal);
    } catch (error) {
      if (error.name === "AbortError") finish = "stopped";
      else turn.append(make("p", { className: "failure", role: "alert" }, error instanceof ApiError ? error.message : `The connection broke: ${error.message}`));
    }
    this.abort = null;
    setBusy(false);
    measure.textContent = clock.describe(answer.numTokens, finish);
    turn.dataset.finish = finish ?? "failed";
    if (isChat && answer.text) this.messages.push({ role: "assistant", content: answer.text });
    else if (isChat) this.messages.pop(); // no answer: the next message takes its place
  }

  // Reads the answer into `answer`; returns why it ended.
  async stream(isChat, text, answer, clock, signal) {
    const path = isChat ? "v1/chat/completions" : "v1/completions";
    const response = await call(path, { body: this.request(isChat, text), signal });
    let finish = null;
    for await (const { data } of events(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(500, chunk.error.message);
      if (chunk.usage) answer.numTokens = chunk.usage.completion_tokens;
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      const piece = isChat ? choice.delta.content ?? "" : choice.text;
      if (piece) {
        clock.tick();
        answer.add(piece, isChat ? fromChat(choice.logprobs) : fromCompletion(choice.logprobs));
        follow();
      }
      finish = choice.finish_reason ?? finish;
    }
    return finish;
  }

  request(isChat, text) {
    const body = { model: this.model.name, stream: true, stream_options: { include_usage: true } };
    for (const name of NUMBERS) {
      const value = $(name).valueAsNumber;
      if (!Number.isNaN(value)) body[name] = value;
    }
    const system = $("system").value.trim();
    if (isChat) body.messages = [...(system ? [{ role: "system", content: system }] : []), ...this.messages];
    else body.prompt = text;
    if ($("logprobs").checked) Object.assign(body, isChat ? { logprobs: true, top_logprobs: NUM_ALTERNATIVES } : { logprobs: NUM_ALTERNATIVES });
    return body;
  }
}

// [{text, logprob, others: [[text, logprob]]}] of a chat's chunk.
function fromChat(logprobs) {
  return (logprobs?.content ?? []).map((each) => ({
    text: each.token,
    logprob: each.logprob,
    others: each.top_logprobs.map((other) => [other.token, other.logprob]),
  }));
}

function fromCompletion(logprobs) {
  return (logprobs?.tokens ?? []).map((text, index) => ({
    text,
    logprob: logprobs.token_logprobs[index],
    others: Object.entries(logprobs.top_logprobs?.[index] ?? {}),
  }));
}

function addTurn(kind, name, ...content) {
  const turn = make("article", { className: `turn ${kind}` }, make("h3", {}, name), ...content);
  $("turns").append(turn);
  turn.scrollIntoView({ block: "end" });
  return turn;
}

// Keep the end in sight for a reader who is there.
function follow() {
  const page = document.scrollingElement;
  if (page.scrollHeight - page.scrollTop - page.clientHeight < 120) page.scrollTop = page.scrollHeight;
}

function setBusy(isBusy) {
  $("send").textContent = isBusy ? "Stop" : "Send";
  $("turns").setAttribute("aria-busy", isBusy);
}

class Clock {
  constructor() {
    this.start = performance.now();
    this.first = this.last = null;
  }

  tick() {
    this.last = performance.now();
    this.first ??= this.last;
  }

  // "42 tokens · 38 tokens/s · first after 31 ms · stop"
  describe(numTokens, finish) {
    if (this.first === null) return finish ?? "";
    const parts = [numTokens === 1 ? "1 token" : `${numTokens} tokens`];
    if (this.last > this.first) parts.push(`${significant((1000 * (numTokens - 1)) / (this.last - this.first))} tokens/s`);
    parts.push(`first after ${significant(this.first - this.start)} ms`);
    if (finish) parts.push({ stop: "finished", length: "stopped at max tokens", stopped: "stopped by you" }[finish] ?? finish);
    return parts.join(" · ");
  }
}

const significant = (number) => (number < 100 ? Number(number.toPrecision(3)) : Math.round(number)).toLocaleString("en");
