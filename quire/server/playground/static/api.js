// Calls to the server: the API key on each of them, errors as exceptions, server-sent events out of a fetch.
import { $ } from "./dom.js";

const KEY = "quire-api-key";
let asking = null;

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// A successful response. Asks for the key when the server wants one, and throws ApiError for every other refusal.
export async function call(path, { body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    if (body !== undefined) headers["content-type"] = "application/json";
    const response = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: body && JSON.stringify(body), signal });
    if (response.ok) return response;
    const message = await refusal(response);
    if (response.status !== 401) throw new ApiError(response.status, message);
    if (sessionStorage.getItem(KEY) === key) await askForKey(key ? "The server does not know this key." : "");
  }
}

async function refusal(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}`;
  }
}

// One dialog, however many calls wait for it.
function askForKey(said) {
  asking ??= new Promise((resolve, reject) => {
    const [dialog, form, input] = [$("key-dialog"), $("key-form"), $("key")];
    $("key-said").textContent = said;
    input.value = "";
    const settle = (action) => {
      form.onsubmit = dialog.oncancel = $("key-cancel").onclick = null;
      dialog.close();
      asking = null;
      action();
    };
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, input.value.trim());
      settle(resolve);
    };
    dialog.oncancel = $("key-cancel").onclick = () => settle(() => reject(new ApiError(401, "This server asks for an API key.")));
    dialog.showModal();
    input.focus();
  });
  return asking;
}

// {event, data} of each event of a response, until it ends.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) yield parse(frame);
  }
}

function parse(frame) {
  let event = "message";
  const data = [];
  for (const line of frame.split("\n")) {
    if (line.startsWith("event: ")) event = line.slice(7);
    else if (line.startsWith("data: ")) data.push(line.slice(6));
  }
  return { event, data: data.join("\n") };
}
