// Starts the page: tabs with the keys that tabs have, the models to choose from, and which view is at work.
import { call } from "./api.js";
import { Batching } from "./batching.js";
import { Chat } from "./chat.js";
import { showComparison } from "./comparison.js";
import { $, make } from "./dom.js";
import { Live } from "./live.js";
import { Memory } from "./memory.js";
import { runSample } from "./sample.js";

const names = ["chat", "memory", "batching", "comparison"];
const tabs = names.map((name) => $(`tab-${name}`));
const live = new Live();
const chat = new Chat();
const views = { chat, memory: new Memory(live), batching: new Batching(live), comparison: { show: showComparison } };
let shown = null;

function show(name, { focus = false } = {}) {
  for (const [index, other] of names.entries()) {
    const isShown = other === name;
    $(other).hidden = !isShown;
    tabs[index].setAttribute("aria-selected", isShown);
    tabs[index].tabIndex = isShown ? 0 : -1;
    if (isShown && focus) tabs[index].focus();
  }
  if (shown !== name) views[shown]?.hide?.();
  shown = name;
  views[name].show?.();
  watch();
}

// The engine is watched only while somebody sees what it does.
function watch() {
  live.watch(document.visibilityState === "visible" && (shown === "memory" || shown === "batching"));
}

for (const [index, tab] of tabs.entries()) {
  tab.addEventListener("click", () => (location.hash = `/${names[index]}`));
  tab.addEventListener("keydown", (event) => {
    const move = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: names.length - 1 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    const name = names[(move + names.length) % names.length];
    history.replaceState(null, "", `#/${name}`);
    show(name, { focus: true });
  });
}
document.addEventListener("visibilitychange", watch);
window.addEventListener("hashchange", () => show(fromAddress()));
for (const button of document.querySelectorAll(".sample")) {
  button.addEventListener("click", () => runSample(button, $("model").value));
}

function fromAddress() {
  const name = location.hash.slice(2); // `#/memory`: an id of an element would be scrolled to
  return names.includes(name) ? name : "chat";
}

async function chooseModels() {
  const select = $("model");
  const models = await (await call("playground/data/models")).json();
  select.replaceChildren(...models.map((model) => make("option", { value: model.name }, model.name)));
  select.disabled = models.length < 2;
  const choose = () => {
    const model = models.find((each) => each.name === select.value);
    chat.choose(model);
    live.choose(model.name);
  };
  select.addEventListener("change", choose);
  choose();
}

show(fromAddress());
if (shown === "chat") chat.begin();
chooseModels().catch((error) => chat.complain(error.message));
