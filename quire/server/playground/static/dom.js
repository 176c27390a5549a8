// Small helpers to build the page. Text always becomes text nodes: nothing here, or anywhere, parses HTML.

export const $ = (id) => document.getElementById(id);

// An element with properties and children; strings become text.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A canvas as sharp as the screen; returns its context, with a unit of one CSS pixel.
export function fitCanvas(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return context;
}

// The colour of a variable of the style sheet, in the theme of the moment.
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Requests with neighbouring numbers get hues far apart: steps of the golden angle.
export function ownerColours() {
  const [lightness, chroma] = [colour("--owner-l"), colour("--owner-c")];
  return (number) => `oklch(${lightness} ${chroma} ${(number * 137.508 + 100) % 360})`;
}

export function count(number, singular, plural = `${singular}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? singular : plural}`;
}

// Ids differ at their ends.
export const shorten = (id) => (id.length > 22 ? `${id.slice(0, 9)}…${id.slice(-10)}` : id);

export const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;
