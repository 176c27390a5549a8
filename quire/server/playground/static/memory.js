// The memory view: a cell for each block, numbers beside it, and the block table of a request.
import { $, colour, count, fitCanvas, make, ownerColours, percent, shorten } from "./dom.js";

const OWNER_BITS = 12;
const CACHED = 1;
const [MIN_CELL, MAX_CELL, MAX_HEIGHT] = [2, 28, 460];
const MAX_ROWS = 100;

export class Memory {
  constructor(live) {
    this.live = live;
    this.isShown = false;
    this.cursor = -1;
    live.addEventListener("frame", () => this.isShown && this.draw());
    live.addEventListener("status", () => ($("memory-live").textContent = live.status));
    const canvas = $("blocks");
    canvas.addEventListener("pointermove", (event) => this.go(this.blockAt(event.offsetX, event.offsetY)));
    canvas.addEventListener("keydown", (event) => this.press(event));
    canvas.addEventListener("click", () => this.chooseOwner());
    new ResizeObserver(() => this.isShown && this.draw()).observe($("blocks-box"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.isShown && this.draw());
  }

  show() {
    this.isShown = true;
    $("memory-live").textContent = this.live.status;
    if (this.live.frame) this.draw();
  }

  hide() {
    this.isShown = false;
  }

  draw() {
    if (!this.live.frame) return;
    this.byOwner = new Map(this.live.frame.requests.filter((row) => row[2]).map((row) => [row[0] % (1 << OWNER_BITS), row]));
    this.drawNumbers();
    this.drawBlocks();
    this.drawOwners();
    this.drawTable();
    this.say();
  }

  drawNumbers() {
    const memory = this.live.frame.memory;
    $("block-size").textContent = memory.block_size;
    for (const cell of document.querySelectorAll("#memory-numbers dd")) {
      const value = memory[cell.dataset.number];
      cell.textContent = cell.dataset.number === "waste" ? percent(value) : value.toLocaleString("en");
    }
  }

  layOut() {
    const width = $("blocks-box").clientWidth;
    const numBlocks = Math.max(1, this.live.words.length);
    const size = Math.min(MAX_CELL, Math.max(MIN_CELL, Math.floor(Math.sqrt((width * MAX_HEIGHT) / numBlocks))));
    const columns = Math.max(1, Math.floor(width / size));
    return { width, size, columns, gap: size >= 8 ? 2 : size >= 4 ? 1 : 0, rows: Math.ceil(numBlocks / columns) };
  }

  drawBlocks() {
    const { width, size, columns, gap, rows } = (this.layout = this.layOut());
    const context = fitCanvas($("blocks"), width, rows * size + 4);
    context.clearRect(0, 0, width, rows * size + 4);
    const owner = ownerColours();
    const [free, cached, paper] = [colour("--cell-free"), colour("--cell-cached"), colour("--paper")];
    const side = size - gap;
    const chosen = this.chosenNumber();
    for (const [block, word] of this.live.words.entries()) {
      const [x, y] = [(block % columns) * size, Math.floor(block / columns) * size];
      const isOwned = word >> OWNER_BITS > 0;
      context.globalAlpha = isOwned && chosen !== null && !this.isChosen(block, word, chosen) ? 0.3 : 1;
      context.fillStyle = isOwned ? owner(word & ((1 << OWNER_BITS) - 1)) : word === CACHED && size < 6 ? cached : free;
      context.fillRect(x, y, side, side);
      if (size < 6) continue;
      if (word === CACHED) {
        context.strokeStyle = cached;
        context.lineWidth = 1.5;
        context.strokeRect(x + 0.75, y + 0.75, side - 1.5, side - 1.5);
      } else if (word >> OWNER_BITS > 1) {
        context.fillStyle = paper;
        context.beginPath();
        context.arc(x + side / 2, y + side / 2, side / 5, 0, 7);
        context.fill();
      }
    }
    context.globalAlpha = 1;
    if (this.cursor >= 0) this.outline(context, this.cursor);
    $("blocks").setAttribute("aria-label", this.describe());
  }

  outline(context, block) {
    const { size, columns, gap } = this.layout;
    context.strokeStyle = colour("--ink");
    context.lineWidth = 2;
    context.strokeRect((block % columns) * size - 1, Math.floor(block / columns) * size - 1, size - gap + 2, size - gap + 2);
  }

  describe() {
    const memory = this.live.frame.memory;
    return `KV blocks: ${memory.num_used} of ${memory.num_blocks} in use, ${memory.num_shared} shared, ${memory.num_cached} cached, ${memory.num_free} free, waste ${percent(memory.waste)}`;
  }

  // -- one block ------------------------------------------------------------------------------------------------

  blockAt(x, y) {
    if (!this.layout) return -1;
    const { size, columns } = this.layout;
    const block = Math.floor(y / size) * columns + Math.min(columns - 1, Math.floor(x / size));
    return block < this.live.words.length ? block : -1;
  }

  press(event) {
    if (!this.layout) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.chooseOwner();
      return;
    }
    const { columns } = this.layout;
    const last = this.live.words.length - 1;
    const from = Math.max(0, this.cursor);
    const to = { ArrowRight: this.cursor + 1, ArrowLeft: from - 1, ArrowDown: from + columns, ArrowUp: from - columns, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.go(Math.min(Math.max(0, to), last));
  }

  go(block) {
    if (block < 0 || block === this.cursor) return;
    this.cursor = block;
    this.drawBlocks();
    this.say();
  }

  say() {
    if (this.cursor < 0) return;
    const word = this.live.words[this.cursor];
    const owners = word >> OWNER_BITS;
    let what = word === CACHED ? "nobody’s, its content is kept in the cache" : "free";
    if (owners) {
      const row = this.byOwner.get(word & ((1 << OWNER_BITS) - 1));
      what = `${row ? row[1] : "a request"}${owners > 1 ? ` and ${owners === 15 ? "14 or more" : owners - 1} other${owners > 2 ? "s" : ""}` : ""}`;
    }
    const text = `Block ${this.cursor}: ${what}.`;
    if ($("block-said").textContent !== text) $("block-said").textContent = text;
  }

  chooseOwner() {
    const word = this.live.words[this.cursor];
    const row = word >> OWNER_BITS ? this.byOwner.get(word & ((1 << OWNER_BITS) - 1)) : null;
    if (row) this.choose(row[1]);
  }

  // -- requests -------------------------------------------------------------------------------------------------

  choose(id) {
    this.live.chooseRequest(this.live.chosen === id ? null : id);
    this.draw();
  }

  chosenNumber() {
    const row = this.live.frame.requests.find((each) => each[1] === this.live.chosen);
    return row ? row[0] : null;
  }

  isChosen(block, word, number) {
    const table = this.live.frame.table;
    if (table?.request === this.live.chosen && table.blocks) {
      if (this.tableOf !== table) [this.tableOf, this.tableSet] = [table, new Set(table.blocks)];
      return this.tableSet.has(block);
    }
    return (word & ((1 << OWNER_BITS) - 1)) === number % (1 << OWNER_BITS);
  }

  drawOwners() {
    const rows = this.live.frame.requests.filter((row) => row[2]).slice(0, MAX_ROWS);
    const owner = ownerColours();
    const body = $("owners").tBodies[0];
    const known = new Map([...body.rows].map((row) => [row.dataset.id, row]));
    body.replaceChildren(...rows.map((row) => this.ownerRow(row, owner, known.get(row[1]))));
    $("no-owners").hidden = rows.length > 0;
    $("owners").tHead.hidden = rows.length === 0;
  }

  // A row is kept as long as its request lives, so that it can keep the focus.
  ownerRow([number, id, , , numTokens, , numBlocks], owner, row) {
    if (!row) {
      const swatch = make("i");
      swatch.style.background = owner(number);
      const button = make("button", { type: "button", title: id, "aria-label": id }, swatch, make("span", {}, shorten(id)));
      button.addEventListener("click", () => this.choose(id));
      row = make("tr", {}, make("td", {}, button), make("td"), make("td"));
      row.dataset.id = id;
    }
    row.cells[0].firstChild.setAttribute("aria-pressed", id === this.live.chosen);
    row.cells[1].textContent = numTokens.toLocaleString("en");
    row.cells[2].textContent = numBlocks.toLocaleString("en");
    return row;
  }

  drawTable() {
    const table = this.live.frame.table;
    const isKnown = table?.request === this.live.chosen;
    const blocks = isKnown ? table.blocks : null;
    if (!isKnown && this.live.chosen !== null) return; // the next frame has it
    $("table").replaceChildren(...(blocks ?? []).map((block) => make("li", {}, String(block))));
    $("no-table").hidden = blocks !== null;
    $("no-table").textContent = isKnown ? "This request holds no block any more." : "Choose a request to see which blocks hold its tokens, in order.";
    $("table-title").textContent = blocks ? `Block table, ${count(blocks.length, "block")}` : "Block table";
  }
}
