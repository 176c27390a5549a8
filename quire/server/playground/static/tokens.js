// An answer as tokens, each of which tells how likely it was: under the pointer, or at the arrow keys.
import { $, make } from "./dom.js";

const UNLIKELY = Math.log(0.5);
const RARE = Math.log(0.1);

export class TokenText {
  // `given` is shown before the answer and is not part of it.
  constructor(given) {
    this.text = "";
    this.numTokens = 0;
    this.known = [];
    this.here = -1;
    this.element = make("div", { className: "said-text" });
    if (given) this.element.append(make("span", { className: "given" }, given));
    this.element.addEventListener("pointerover", (event) => this.point(event.target));
    this.element.addEventListener("pointerleave", () => this.leave());
    this.element.addEventListener("keydown", (event) => this.press(event));
    this.element.addEventListener("blur", () => this.leave());
  }

  // A piece of the answer and what is known of its tokens; a piece may end within a token, or hold several.
  add(piece, tokens) {
    this.text += piece;
    this.numTokens += tokens.length || 1;
    if (tokens.length === 0) {
      this.element.append(piece);
      return;
    }
    for (const token of divide(piece, tokens)) this.addToken(token);
  }

  addToken(token) {
    const kind = token.logprob < RARE ? " rare" : token.logprob < UNLIKELY ? " unlikely" : "";
    const span = make("span", { className: `token${kind}` }, token.text);
    span.dataset.index = this.known.length;
    this.known.push({ span, token });
    this.element.append(span);
    if (this.known.length === 1) {
      this.element.tabIndex = 0;
      this.element.setAttribute("role", "group");
      this.element.setAttribute("aria-roledescription", "answer with probabilities, walk with the arrow keys");
    }
  }

  point(target) {
    if (target.classList.contains("token")) this.go(Number(target.dataset.index), false);
  }

  press(event) {
    const last = this.known.length - 1;
    const index = { ArrowRight: this.here + 1, ArrowLeft: this.here - 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.leave();
    if (index === undefined) return;
    event.preventDefault();
    this.go(Math.min(Math.max(index, 0), last), true);
  }

  go(index, isSaid) {
    this.known[this.here]?.span.classList.remove("here");
    this.here = index;
    const { span, token } = this.known[index];
    span.classList.add("here");
    showCard(span, token);
    if (isSaid) $("card-said").textContent = say(token);
  }

  leave() {
    this.known[this.here]?.span.classList.remove("here");
    this.here = -1;
    $("card").hidden = true;
  }
}

// The tokens with what each of them shows of a piece: a special token shows nothing, and a character of several tokens is shown
// by the first of them.
export function divide(piece, tokens) {
  const shown = [];
  let rest = piece;
  let pending = null;
  for (const token of tokens) {
    const place = token.text ? rest.indexOf(token.text) : -1;
    if (place < 0 || (place > 0 && !pending)) {
      pending ??= token;
      continue;
    }
    if (place > 0) shown.push({ ...pending, text: rest.slice(0, place) });
    shown.push(token);
    rest = rest.slice(place + token.text.length);
    pending = null;
  }
  if (rest) shown.push({ ...(pending ?? tokens.at(-1)), text: rest });
  return shown;
}

function showCard(span, token) {
  const others = token.others.some(([text]) => text === token.text) ? token.others : [[token.text, token.logprob], ...token.others];
  const rows = others.map(([text, logprob]) => {
    const bar = make("span", { className: "bar" });
    bar.style.width = `${100 * Math.exp(logprob)}%`;
    const row = make("tr", {}, make("td", {}, visible(text)), make("td", {}, bar), make("td", {}, share(logprob)));
    if (text === token.text) row.className = "taken";
    return row;
  });
  const card = $("card");
  card.replaceChildren(make("table", {}, make("tbody", {}, ...rows)));
  card.hidden = false;
  const [place, size] = [span.getClientRects()[0] ?? span.getBoundingClientRect(), card.getBoundingClientRect()];
  const left = Math.min(Math.max(8, place.left), document.documentElement.clientWidth - size.width - 8);
  const above = place.top - size.height - 6;
  card.style.left = `${left}px`;
  card.style.top = `${above > 8 ? above : place.bottom + 6}px`;
}

const share = (logprob) => (Math.exp(logprob) < 0.0005 ? "< 0.1 %" : `${(100 * Math.exp(logprob)).toFixed(1)} %`);
const visible = (text) =>
  text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣").replace(/\p{C}/gu, (character) => `<${character.codePointAt(0).toString(16)}>`);

function say(token) {
  const others = token.others.filter(([text]) => text !== token.text).slice(0, 3);
  const instead = others.map(([text, logprob]) => `${visible(text)} ${share(logprob)}`).join(", ");
  return `${visible(token.text)}, ${share(token.logprob)}${instead ? `; instead: ${instead}` : ""}`;
}
