// A graph on a canvas: pan, zoom, hover and the keyboard. Layouts come from layouts.js.

const FONT = "12px system-ui, sans-serif";
const BOLD = "600 12px system-ui, sans-serif";
const MONO = "10.5px ui-monospace, monospace";
// Smaller than this many pixels, a letter is no letter.
const READABLE = 6;
const MOST_ZOOM = 4;

// Canvas knows no CSS variables: their colours are read off an element, and again for another theme.
const theme = {
  colours: new Map(),
  colour(name) {
    if (!this.colours.has(name)) {
      const probe = document.createElement("i");
      probe.style.color = `var(--${name})`;
      document.body.append(probe);
      this.colours.set(name, getComputedStyle(probe).color);
      probe.remove();
    }
    return this.colours.get(name);
  },
  forget() {
    this.colours.clear();
    Picture.all.forEach((picture) => picture.redraw());
  },
};

class Picture {
  static all = [];

  // `describe(box)` gives the element to show for a box; `chosen(box)`, if given, hears of a choice.
  constructor(canvas, describe, chosen = null) {
    Object.assign(this, { canvas, describe, chosen });
    this.context = canvas.getContext("2d");
    this.layout = { boxes: [], edges: [], groups: [], width: 1, height: 1 };
    this.scale = 1;
    this.left = this.top = 0;
    this.selected = this.hovered = -1;
    this.marked = new Set();
    this.keeps = () => true;
    this.moved = false;
    Picture.all.push(this);
    new ResizeObserver(() => this.resized()).observe(canvas);
    this.listen();
  }

  show(layout) {
    this.layout = layout;
    this.selected = this.hovered = -1;
    this.marked = new Set();
    this.moved = false;
    this.resized();
  }

  resized() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = width * ratio;
    this.canvas.height = height * ratio;
    if (!this.moved) this.fit();
    this.draw();
  }

  // -- where things are ---------------------------------------------------------------------------

  fit() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const margin = 12;
    this.scale = Math.min(
      1.2,
      (width - 2 * margin) / this.layout.width,
      (height - 2 * margin) / this.layout.height,
    );
    this.left = (width - this.layout.width * this.scale) / 2;
    this.top = (height - this.layout.height * this.scale) / 2;
    this.redraw();
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const scale = Math.min(MOST_ZOOM, Math.max(0.01, this.scale * factor));
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.moved = true;
    this.redraw();
  }

  pan(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.moved = true;
    this.redraw();
  }

  onScreen(box) {
    return [box.x * this.scale + this.left, box.y * this.scale + this.top];
  }

  boxAt(x, y) {
    const px = (x - this.left) / this.scale;
    const py = (y - this.top) / this.scale;
    return this.layout.boxes.findIndex(
      (b) => Math.abs(px - b.x) <= b.w / 2 && Math.abs(py - b.y) <= b.h / 2,
    );
  }

  // -- choosing -----------------------------------------------------------------------------------

  select(index, { come = true } = {}) {
    this.selected = index;
    const box = this.layout.boxes[index];
    if (box && come) this.reveal(box);
    this.chosen?.(box);
    this.redraw();
  }

  // Brings a box into view, large enough to be read.
  reveal(box) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const [x, y] = this.onScreen(box);
    const inside = x > 60 && x < width - 60 && y > 40 && y < height - 40;
    if (this.scale >= 0.6 && inside) return;
    this.scale = Math.max(this.scale, 0.9);
    this.left = width / 2 - box.x * this.scale;
    this.top = height / 2 - box.y * this.scale;
    this.moved = true;
  }

  // The nearest box in a direction; the first one where none is chosen.
  step(dx, dy) {
    const { boxes } = this.layout;
    const from = boxes[this.selected];
    if (!from) return this.select(0);
    let best = -1;
    let least = Infinity;
    boxes.forEach((box, i) => {
      const along = (box.x - from.x) * dx + (box.y - from.y) * dy;
      const across = Math.abs((box.x - from.x) * dy) + Math.abs((box.y - from.y) * dx);
      if (along > 1 && along + 3 * across < least) [best, least] = [i, along + 3 * across];
    });
    if (best >= 0) this.select(best);
  }

  listen() {
    const { canvas } = this;
    let last = null;
    let travelled = 0;
    canvas.addEventListener("pointerdown", (event) => {
      last = [event.clientX, event.clientY];
      travelled = 0;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (last && event.buttons) {
        const [dx, dy] = [event.clientX - last[0], event.clientY - last[1]];
        travelled += Math.abs(dx) + Math.abs(dy);
        last = [event.clientX, event.clientY];
        this.pan(dx, dy);
        this.hover(-1);
      } else {
        this.hover(this.boxAt(event.offsetX, event.offsetY), event.clientX, event.clientY);
      }
    });
    canvas.addEventListener("pointerup", (event) => {
      last = null;
      const hit = this.boxAt(event.offsetX, event.offsetY);
      if (travelled < 4) this.select(hit, { come: false });
    });
    // The finger scrolls the page instead.
    canvas.addEventListener("pointercancel", () => { last = null; });
    canvas.addEventListener("pointerleave", () => this.hover(-1));
    canvas.addEventListener("dblclick", (event) => this.zoom(1.6, event.offsetX, event.offsetY));
    canvas.addEventListener("blur", () => this.hover(-1));
    // A page is scrolled across its pictures: the wheel is a picture's once it has the focus.
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return;
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.pressed(event));
  }

  pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = 80;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (move && event.shiftKey) this.pan(-move[0] * page, -move[1] * page);
    else if (move) this.step(...move);
    else if (event.key === "+" || event.key === "=") this.zoom(1.3);
    else if (event.key === "-") this.zoom(1 / 1.3);
    else if (event.key === "0") this.fit();
    else if (event.key === "Escape") this.select(-1, { come: false });
    else return;
    event.preventDefault();
    if (move && !event.shiftKey) this.tellSelected();
  }

  // What hovering shows with a mouse, choosing shows with the keyboard.
  tellSelected() {
    const box = this.layout.boxes[this.selected];
    if (!box || this.chosen) return;
    const [x, y] = this.onScreen(box);
    const frame = this.canvas.getBoundingClientRect();
    tip.show(this.describe(box), frame.left + x + 12, frame.top + y + 12);
  }

  hover(index, x, y) {
    const box = this.layout.boxes[index];
    if (box) tip.show(this.describe(box), x + 14, y + 14);
    else tip.hide();
    if (index !== this.hovered) {
      this.hovered = index;
      this.redraw();
    }
  }

  // -- drawing ------------------------------------------------------------------------------------

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  draw() {
    const { context: c, canvas, scale } = this;
    const ratio = window.devicePixelRatio || 1;
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.clearRect(0, 0, canvas.width, canvas.height);
    c.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * this.left, ratio * this.top);
    this.layout.groups.forEach((group) => this.drawGroup(group));
    this.drawEdges();
    this.layout.boxes.forEach((box, i) => this.isVisible(box) && this.drawBox(box, i));
    this.layout.groups.forEach((group) => this.drawTitle(group));
  }

  isVisible(box) {
    const [x, y] = this.onScreen(box);
    const [w, h] = [(box.w * this.scale) / 2 + 20, (box.h * this.scale) / 2 + 20];
    const { clientWidth: width, clientHeight: height } = this.canvas;
    return x + w > 0 && x - w < width && y + h > 0 && y - h < height;
  }

  drawGroup(group) {
    const { context: c } = this;
    c.fillStyle = theme.colour("group");
    c.strokeStyle = theme.colour("line");
    c.lineWidth = 1 / this.scale;
    c.beginPath();
    c.roundRect(group.x, group.y, group.w, group.h, 8);
    c.fill();
    c.stroke();
  }

  // At constant size on the screen, as far as the group has room for it.
  drawTitle(group) {
    const { context: c, scale } = this;
    const size = Math.max(12, 11 / scale);
    if (!group.title || group.w * scale < 40) return;
    c.font = `600 ${size}px system-ui, sans-serif`;
    const parts = group.title.split(".");
    let text = group.title;
    while (parts.length > 1 && c.measureText(text).width > group.w - 12) {
      parts.shift();
      text = `… ${parts.join(".")}`;
    }
    const [width, pad] = [c.measureText(text).width, size * 0.3];
    if (group.h * scale < 24) return;
    c.globalAlpha = 0.85;
    c.fillStyle = theme.colour("group");
    c.fillRect(group.x + 4, group.y + 3, width + 2 * pad, size * 1.4);
    c.globalAlpha = 1;
    c.fillStyle = theme.colour("quiet");
    c.textAlign = "left";
    c.textBaseline = "top";
    c.fillText(text, group.x + 4 + pad, group.y + 3 + size * 0.2);
  }

  drawEdges() {
    const { context: c, scale } = this;
    const strong = new Set([this.selected, this.hovered].filter((i) => i >= 0));
    c.strokeStyle = theme.colour("edge");
    c.lineWidth = Math.max(1, 0.7 / scale);
    const near = [];
    for (const far of [true, false]) {
      c.globalAlpha = far ? 0.45 : 0.9;
      c.beginPath();
      for (const edge of this.layout.edges) {
        if (strong.has(edge.from) || strong.has(edge.to)) near.push(edge);
        else if (Boolean(edge.far) === far) this.trace(edge.points);
      }
      c.stroke();
    }
    c.globalAlpha = 1;
    if (scale > 0.4) this.layout.edges.forEach((edge) => this.drawHead(edge, "edge"));
    c.strokeStyle = theme.colour("accent");
    c.lineWidth = Math.max(2, 1.5 / scale);
    c.beginPath();
    near.forEach((edge) => this.trace(edge.points));
    c.stroke();
    near.forEach((edge) => this.drawHead(edge, "accent"));
    if (scale * 10.5 > READABLE) this.layout.edges.forEach((edge) => this.drawLabel(edge));
  }

  trace(points) {
    const { context: c } = this;
    c.moveTo(points[0].x, points[0].y);
    if (points.length === 4 && points.bezier) {
      const [, a, b, end] = points;
      c.bezierCurveTo(a.x, a.y, b.x, b.y, end.x, end.y);
      return;
    }
    for (let i = 1; i < points.length - 1; i += 1) {
      const [p, next] = [points[i], points[i + 1]];
      const isLast = i === points.length - 2;
      c.quadraticCurveTo(p.x, p.y, isLast ? next.x : (p.x + next.x) / 2, isLast ? next.y : (p.y + next.y) / 2);
    }
    if (points.length === 2) c.lineTo(points[1].x, points[1].y);
  }

  drawHead(edge, colour) {
    const { context: c } = this;
    const end = edge.points.at(-1);
    const before = edge.points.at(-2);
    const angle = Math.atan2(end.y - before.y, end.x - before.x);
    c.fillStyle = theme.colour(colour);
    c.beginPath();
    c.moveTo(end.x, end.y);
    c.lineTo(end.x - 7 * Math.cos(angle - 0.4), end.y - 7 * Math.sin(angle - 0.4));
    c.lineTo(end.x - 7 * Math.cos(angle + 0.4), end.y - 7 * Math.sin(angle + 0.4));
    c.fill();
  }

  drawLabel(edge) {
    if (!edge.label) return;
    const { context: c } = this;
    c.font = MONO;
    c.textAlign = "center";
    c.textBaseline = "middle";
    const width = c.measureText(edge.label).width;
    c.fillStyle = theme.colour("page");
    c.globalAlpha = 0.8;
    c.fillRect(edge.x - width / 2 - 2, edge.y - 7, width + 4, 14);
    c.globalAlpha = 1;
    c.fillStyle = theme.colour("quiet");
    c.fillText(edge.label, edge.x, edge.y);
  }

  drawBox(box, index) {
    const { context: c, scale } = this;
    c.globalAlpha = this.keeps(box) ? 1 : 0.13;
    const [x, y] = [box.x - box.w / 2, box.y - box.h / 2];
    c.fillStyle = theme.colour(box.fill);
    c.strokeStyle = theme.colour(box.stroke);
    c.lineWidth = 1.3;
    c.setLineDash(box.kind === "bulk" ? [5, 4] : []);
    // Cards behind a card: branches that are drawn once.
    for (const shift of box.count > 1 && box.kind === "op" ? [8, 4, 0] : [0]) {
      c.beginPath();
      c.roundRect(x + shift, y - shift, box.w, box.h, box.kind === "op" || box.kind === "bulk" ? 5 : box.h / 2);
      c.fill();
      if (scale > 0.3) c.stroke();
    }
    c.setLineDash([]);
    if (index === this.selected || index === this.hovered || this.marked.has(index)) {
      c.strokeStyle = theme.colour(this.marked.has(index) && index !== this.selected ? "warning" : "accent");
      c.lineWidth = Math.max(3, 2 / scale);
      c.strokeRect(x - 2, y - 2, box.w + 4, box.h + 4);
    }
    if (12 * scale > READABLE) this.drawText(box, y);
    c.globalAlpha = 1;
  }

  drawText(box, y) {
    const { context: c } = this;
    c.textAlign = "center";
    c.textBaseline = "middle";
    c.fillStyle = theme.colour(box.ink);
    c.font = box.kind === "op" ? BOLD : FONT;
    c.fillText(box.title, box.x, box.lines.length ? y + 13 : box.y);
    c.font = MONO;
    box.lines.forEach((line, i) => c.fillText(line, box.x, y + 30 + 14 * i));
  }
}
