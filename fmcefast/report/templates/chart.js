"use strict";
// Line charts in panels with one x axis, a cursor for pointer, finger and arrow keys, and what the cursor reads.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = 10000; // points of a line at most; of more, the smallest and largest of every stretch
const LEFT = 58, RIGHT = 14, TOP = 22, GAP = 34, BOTTOM = 38;

function element(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// The indices of y that are drawn: all, or of more than `limit` the smallest and largest of equal stretches, in order.
function thinned(y, limit = DRAWN) {
  if (y.length <= limit) return Array.from(y, (_, i) => i);
  const kept = [], stretch = Math.ceil((2 * y.length) / limit);
  for (let begin = 0; begin < y.length; begin += stretch) {
    let low = -1, high = -1;
    for (let i = begin; i < Math.min(begin + stretch, y.length); i++) {
      if (!Number.isFinite(y[i])) continue;
      if (low < 0 || y[i] < y[low]) low = i;
      if (high < 0 || y[i] > y[high]) high = i;
    }
    if (low >= 0) kept.push(...new Set([Math.min(low, high), Math.max(low, high)]));
  }
  return kept;
}

function niceSteps(low, high, count) {
  const raw = (high - low || 1) / count, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * unit).find((n) => n >= 0.75 * raw);
  const steps = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) steps.push(i * step);
  return steps;
}

function logSteps(low, high) {
  const steps = [], few = high / low < 1000;
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const digit of few ? [1, 2, 5] : [1]) {
      const value = digit * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) steps.push(value);
    }
  }
  return steps.length > 1 ? steps : niceSteps(low, high, 4);
}

function shown(value) {
  if (!Number.isFinite(value)) return "";
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
}

// holder: an element; x: numbers that do not fall; xName: what they are; panels: [{title, log, lines: [{name, y, kind}],
// levels: [{y, name}], dots: [{i, y, name}]}], where i is an index into x and y of a line NaN where it has no value.
class Chart {
  constructor(holder, {x, xName, panels, panelHeight = 190}) {
    Object.assign(this, {holder, x, xName, panels, panelHeight, at: -1});
    const names = new Map(panels.flatMap((panel) => (panel.lines.length > 1 ? panel.lines : [])).map((line) => [line.name, line.kind]));
    if (names.size) holder.before(legendOf(names));
    this.readout = document.createElement("p");
    this.readout.className = "readout";
    this.readout.setAttribute("role", "status");
    holder.tabIndex = 0;
    holder.setAttribute("role", "group");
    holder.addEventListener("pointermove", (event) => this.point(event));
    holder.addEventListener("pointerdown", (event) => this.point(event));
    holder.addEventListener("pointerleave", () => this.move(-1));
    holder.addEventListener("keydown", (event) => this.key(event));
    holder.after(this.readout);
    new ResizeObserver(() => this.draw()).observe(holder);
    this.draw();
    this.move(-1);
  }

  update(panels) {
    this.panels = panels;
    this.draw();
    this.move(this.at);
  }

  draw() {
    const width = Math.max(300, this.holder.clientWidth || 900);
    const height = TOP + this.panels.length * (this.panelHeight + GAP) - GAP + BOTTOM;
    const [first, last] = [this.x[0], this.x[this.x.length - 1]];
    this.toX = (value) => LEFT + ((value - first) / (last - first || 1)) * (width - LEFT - RIGHT);
    const drawing = element("svg", {viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true"});
    this.panels.forEach((panel, number) => {
      const top = TOP + number * (this.panelHeight + GAP);
      drawing.append(this.drawPanel(panel, top, width));
    });
    const bottom = height - BOTTOM;
    for (const value of niceSteps(first, last, width < 500 ? 4 : 8)) {
      if (!Number.isInteger(value)) continue;
      drawing.append(element("text", {x: this.toX(value), y: bottom + 16, class: "tick middle"}, shown(value)));
    }
    drawing.append(element("text", {x: (LEFT + width - RIGHT) / 2, y: bottom + 32, class: "tick middle"}, this.xName));
    this.cursor = element("line", {y1: TOP, y2: bottom, class: "cursor", visibility: "hidden"});
    drawing.append(this.cursor);
    this.holder.replaceChildren(drawing);
  }

  drawPanel(panel, top, width) {
    const group = element("g", {}), bottom = top + this.panelHeight;
    const usable = (value) => Number.isFinite(value) && (!panel.log || value > 0);
    for (const line of panel.lines) line.drawn ??= thinned(line.y);
    let low = Infinity, high = -Infinity;
    for (const value of [...panel.lines.flatMap(({y, drawn}) => drawn.map((i) => y[i])), ...(panel.levels ?? []).map(({y}) => y)]) {
      if (usable(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
    if (low > high) [low, high] = panel.log ? [0.1, 1] : [0, 1];
    if (low === high) [low, high] = panel.log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
    const scale = panel.log ? Math.log10 : (value) => value;
    const span = scale(high) - scale(low), [from, to] = [scale(low) - 0.05 * span, scale(high) + 0.08 * span];
    const toY = (value) => bottom - ((scale(value) - from) / (to - from)) * (bottom - top);
    group.append(element("text", {x: LEFT, y: top - 8, class: "title"}, panel.title));
    for (const value of panel.log ? logSteps(low, high) : niceSteps(low, high, 4)) {
      group.append(element("line", {x1: LEFT, x2: width - RIGHT, y1: toY(value), y2: toY(value), class: "grid"}));
      group.append(element("text", {x: LEFT - 6, y: toY(value) + 4, class: "tick end"}, shown(value)));
    }
    for (const level of panel.levels ?? []) {
      group.append(element("line", {x1: LEFT, x2: width - RIGHT, y1: toY(level.y), y2: toY(level.y), class: `level ${level.kind ?? ""}`}));
      if (level.name) group.append(element("text", {x: LEFT + 4, y: toY(level.y) - 5, class: "tick strong"}, level.name));
    }
    for (const line of panel.lines) {
      let path = "", pen = "M";
      for (const i of line.drawn) {
        if (usable(line.y[i])) path += `${pen}${this.toX(this.x[i]).toFixed(1)} ${toY(line.y[i]).toFixed(1)}`;
        pen = usable(line.y[i]) ? "L" : "M";
      }
      group.append(element("path", {d: path, class: `line ${line.kind}`}));
    }
    const crowded = (panel.dots ?? []).length > 21;
    let free = -Infinity;
    for (const dot of panel.dots ?? []) {
      const [cx, cy] = [this.toX(this.x[dot.i]), toY(dot.y)];
      group.append(element("circle", {cx, cy, r: 4, class: "dot"}));
      if (crowded || cx < free) continue; // names would cover each other
      const atEnd = cx + 8 * dot.name.length > width;
      group.append(element("text", {x: atEnd ? cx - 5 : cx + 5, y: cy - 7, class: `tick ${atEnd ? "end" : ""}`}, dot.name));
      free = cx + 18;
    }
    return group;
  }

  point(event) {
    const value = event.clientX - this.holder.getBoundingClientRect().left;
    let [low, high] = [0, this.x.length - 1];
    while (high - low > 1) { // x does not fall
      const middle = (low + high) >> 1;
      if (this.toX(this.x[middle]) < value) low = middle; else high = middle;
    }
    this.move(Math.abs(this.toX(this.x[low]) - value) <= Math.abs(this.toX(this.x[high]) - value) ? low : high);
  }

  key(event) {
    const last = this.x.length - 1, far = Math.max(1, Math.round(last / 20));
    const steps = {ArrowLeft: -1, ArrowRight: 1, PageDown: -far, PageUp: far};
    if (event.key in steps) this.move(Math.min(last, Math.max(0, this.at + steps[event.key])));
    else if (event.key === "Home") this.move(0);
    else if (event.key === "End") this.move(last);
    else if (event.key === "Escape") this.move(-1);
    else return;
    event.preventDefault();
  }

  move(i) {
    this.at = i;
    if (i < 0) {
      this.cursor.setAttribute("visibility", "hidden");
      this.readout.textContent = "Point at the chart, or focus it and use the arrow keys, to read its values.";
      return;
    }
    const at = this.toX(this.x[i]);
    for (const [name, value] of Object.entries({x1: at, x2: at, visibility: "visible"})) this.cursor.setAttribute(name, value);
    const values = this.panels.flatMap((panel) => panel.lines).filter((line) => Number.isFinite(line.y[i]));
    const words = values.map((line) => `${line.name} ${shown(line.y[i])}`);
    this.readout.textContent = [`${this.xName} ${shown(this.x[i])}`, ...words].join(" · ");
  }
}

function legendOf(names) {
  const list = document.createElement("ul");
  list.className = "legend";
  for (const [name, kind] of names) {
    const item = document.createElement("li"), sample = element("svg", {width: 34, height: 10, "aria-hidden": "true"});
    sample.append(element("line", {x1: 0, x2: 34, y1: 5, y2: 5, class: `line ${kind}`}));
    item.append(sample, name);
    list.append(item);
  }
  return list;
}

function decodeNumbers(text) { // base64 of little-endian float64
  return new Float64Array(Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer);
}
