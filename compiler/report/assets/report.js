// Wires the page: the data, the pictures, the map, search, and light or dark.

const data = JSON.parse(document.getElementById("data").textContent);
const tensors = data.tensors.map(([name, type, values]) => ({ name, type, values }));
const nodes = data.nodes.map(
  ([name, op, madeBy, rewrite, sources, scope, attributes, inputs, outputs]) => ({
    name, op, madeBy, rewrite, sources, scope, attributes,
    inputs: inputs.map((i) => tensors[i]), outputs: outputs.map((i) => tensors[i]),
  }),
);
const byId = (id) => document.getElementById(id);

function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  return made;
}

// -- what is told about a node ----------------------------------------------------------------------

const typed = (tensor) => {
  const isConstant = tensor.values !== null;
  const values = tensor.values ? ` = ${tensor.values}` : "";
  return `${tensor.name}${values}  ${tensor.type || "?"}${isConstant ? ", constant" : ""}`;
};

function facts(node) {
  const list = element("dl", "", { class: "facts" });
  const add = (term, values) => {
    if (!values.length) return;
    list.append(element("dt", term), ...values.map((value) => element("dd", value)));
  };
  add("made by", node.madeBy < 0 ? ["the source model"] : [`${data.passes[node.madeBy]}, rewrite ${node.rewrite}`]);
  add("from", node.sources);
  add("module", node.scope ? [node.scope] : []);
  add("inputs", node.inputs.map(typed));
  add("outputs", node.outputs.map(typed));
  add("attributes", node.attributes);
  return list;
}

// Any box: an operator with its facts (of one of equal ones), a tensor, or a mass of nodes.
function described(box) {
  const part = document.createDocumentFragment();
  part.append(element("h3", box.title));
  const first = box.members[0];
  if (!first) return part;
  part.append(element("code", first.name + (box.count > 1 ? `, and ${box.count - 1} like it` : "")), facts(first));
  return part;
}

const tip = {
  box: byId("tip"),
  show(content, x, y) {
    this.box.replaceChildren(content);
    this.box.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = this.box;
    this.box.style.left = `${Math.max(4, Math.min(x, window.innerWidth - width - 8))}px`;
    this.box.style.top = `${Math.max(4, Math.min(y, window.innerHeight - height - 8))}px`;
  },
  hide() {
    this.box.hidden = true;
  },
};

// -- the pictures of rewrites -----------------------------------------------------------------------

const pictures = new Map();
// Laid out when they are about to be seen.
const drawer = new IntersectionObserver((entries) => {
  entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => drawRewrite(target));
}, { rootMargin: "400px" });

// Before and after are as high as the higher one needs.
function drawRewrite(pair) {
  drawer.unobserve(pair);
  const canvases = [...pair.querySelectorAll("canvas")];
  const highest = 0.8 * window.innerHeight;
  const layouts = canvases.map((canvas) => {
    const { boxes, edges } = data.drawings[canvas.dataset.drawing];
    const known = boxes.map((box) => [...box.slice(0, 4), box[4].map((i) => nodes[i])]);
    return drawingLayout({ boxes: known, edges }, canvas.dataset.side, canvas.clientWidth / highest);
  });
  const height = Math.max(...layouts.map((layout) => layout.height)) + 24;
  pair.style.setProperty("--height", `${Math.min(height, highest)}px`);
  canvases.forEach((canvas, i) => {
    const picture = new Picture(canvas, described);
    picture.show(layouts[i]);
    pictures.set(canvas, picture);
    canvas.dataset.drawn = layouts[i].boxes.length;
  });
}

document.querySelectorAll(".pair").forEach((pair) => drawer.observe(pair));

// -- the map ----------------------------------------------------------------------------------------

const mapCanvas = byId("map-canvas");
const map = new Picture(mapCanvas, described, (box) => showDetails(box));
const shown = { stage: -1, places: new Map() };

function showStage(number) {
  if (shown.stage === number) return;
  shown.stage = number;
  byId("stage").value = String(number);
  const stage = data.stages[number];
  map.show(mapLayout(stage, nodes, mapCanvas.clientWidth / mapCanvas.clientHeight));
  shown.places = new Map(map.layout.boxes.map((box, i) => [box.node.name, i]));
  showLegend(stage);
  mapCanvas.dataset.drawn = stage.nodes.length;
}

function showLegend(stage) {
  const counts = new Map();
  stage.nodes.forEach((row) => counts.set(nodes[row].madeBy, (counts.get(nodes[row].madeBy) ?? 0) + 1));
  const buttons = [...counts].sort(([a], [b]) => a - b).map(([pass, count]) => {
    const name = pass < 0 ? "source" : data.passes[pass];
    const button = element("button", `${name} ${count}`, { type: "button", "aria-pressed": "false" });
    button.prepend(swatch(pass));
    button.addEventListener("click", () => only(button, pass));
    return button;
  });
  map.keeps = () => true;
  byId("legend").replaceChildren(...buttons);
}

function swatch(pass) {
  const made = element("span", "", { class: "swatch" });
  made.style.background = pass < 0 ? "var(--source)" : `var(--pass-${pass % 8})`;
  return made;
}

function only(button, pass) {
  const isOn = button.getAttribute("aria-pressed") === "true";
  byId("legend").querySelectorAll("button").forEach((other) => other.setAttribute("aria-pressed", "false"));
  button.setAttribute("aria-pressed", String(!isOn));
  map.keeps = isOn ? () => true : (box) => box.node.madeBy === pass;
  map.redraw();
}

function showDetails(box) {
  if (!box) return;
  const { node } = box;
  const part = document.createDocumentFragment();
  part.append(element("h3", node.op), element("code", node.name), facts(node));
  part.append(neighbours("computed from", map.layout.edges.filter((e) => map.layout.boxes[e.to] === box).map((e) => e.from)));
  part.append(neighbours("read by", map.layout.edges.filter((e) => map.layout.boxes[e.from] === box).map((e) => e.to)));
  byId("details").replaceChildren(part);
}

function neighbours(term, indices) {
  const list = element("dl", "", { class: "facts" });
  if (indices.length) list.append(element("dt", term));
  for (const i of indices) {
    const { node } = map.layout.boxes[i];
    const button = element("button", `${node.op}  ${node.name}`, { type: "button" });
    button.addEventListener("click", () => map.select(i));
    const item = element("dd");
    item.append(button);
    list.append(item);
  }
  return list;
}

// A node on the map of a stage, chosen and in view.
function goTo(stage, name, marked = []) {
  showStage(stage);
  map.marked = new Set(marked.map((other) => shown.places.get(other)).filter((i) => i !== undefined));
  mapCanvas.scrollIntoView({ block: "center" });
  map.select(shown.places.get(name) ?? -1);
  mapCanvas.focus({ preventScroll: true });
}

byId("stage").addEventListener("change", (event) => showStage(Number(event.target.value)));
document.querySelectorAll("[data-zoom]").forEach((button) => button.addEventListener("click", () => {
  if (button.dataset.zoom === "fit") map.fit();
  else map.zoom(button.dataset.zoom === "in" ? 1.4 : 1 / 1.4);
}));
document.querySelectorAll(".place").forEach((button) => button.addEventListener("click", () => {
  const stage = data.stages.findIndex(({ name }) => name === button.dataset.stage);
  goTo(stage, button.dataset.node);
}));
document.querySelectorAll(".swatch[data-pass]").forEach((mark) => {
  const pass = data.passes.indexOf(mark.dataset.pass);
  if (pass >= 0) mark.style.background = `var(--pass-${pass % 8})`;
});

// -- search -----------------------------------------------------------------------------------------

const MOST_HITS = 40;
const found = { hits: [], chosen: -1 };

// Every node at the last stage that has it, and every place of a rewrite.
function searchable() {
  const entries = new Map();
  data.stages.forEach((stage, number) => stage.nodes.forEach((row) => {
    const node = nodes[row];
    entries.set(node.name, { node, stage: number, text: [node.name, node.op, node.scope, ...node.outputs.map((t) => t.name)].join(" ").toLowerCase() });
  }));
  const places = [...document.querySelectorAll(".place")].map((button) => (
    { button, text: `${button.textContent} ${button.title}`.toLowerCase() }
  ));
  return [...places, ...entries.values()];
}

let entries = null;

function matches(query) {
  entries ??= searchable();
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const rank = ({ node, button, stage }) => {
    const name = (node ? node.name : button.textContent).toLowerCase();
    const isExact = name === words[0] || node?.op.toLowerCase() === words[0];
    const isGone = node && stage < data.stages.length - 1;
    return 4 * isGone + (isExact ? 0 : name.startsWith(words[0]) ? 1 : 2);
  };
  const hits = words.length ? entries.filter(({ text }) => words.every((word) => text.includes(word))) : [];
  return hits.sort((a, b) => rank(a) - rank(b));
}

function showHits(query) {
  found.hits = matches(query);
  found.chosen = found.hits.length ? 0 : -1;
  const list = byId("hits");
  const items = found.hits.slice(0, MOST_HITS).map((hit, i) => {
    const item = element("li", hit.node ? `${hit.node.op}  ${hit.node.name}` : `rewrite at ${hit.button.textContent}`, { role: "option", id: `hit-${i}` });
    item.append(element("small", hit.node ? data.stages[hit.stage].name : hit.button.title));
    item.addEventListener("pointerdown", (event) => { event.preventDefault(); take(i); });
    return item;
  });
  const more = found.hits.length - items.length;
  if (query && !items.length) items.push(element("li", "nothing found"));
  if (more > 0) items.push(element("li", `… and ${more} more`));
  list.replaceChildren(...items);
  list.hidden = !query;
  byId("search").setAttribute("aria-expanded", String(Boolean(query)));
  choose(found.chosen);
}

function choose(index) {
  found.chosen = index;
  byId("hits").querySelectorAll("[role=option]").forEach((item, i) => {
    item.setAttribute("aria-selected", String(i === index));
    if (i === index) item.scrollIntoView({ block: "nearest" });
  });
  byId("search").setAttribute("aria-activedescendant", index >= 0 ? `hit-${index}` : "");
}

function take(index) {
  const hit = found.hits[index];
  if (!hit) return;
  closeHits();
  if (hit.node) {
    goTo(hit.stage, hit.node.name, found.hits.filter((h) => h.node).map((h) => h.node.name));
    return;
  }
  hit.button.closest("details").open = true;
  hit.button.closest("details").scrollIntoView({ block: "start" });
  hit.button.focus({ preventScroll: true });
}

function closeHits() {
  byId("hits").hidden = true;
  byId("search").setAttribute("aria-expanded", "false");
}

byId("search").addEventListener("input", (event) => showHits(event.target.value));
byId("search").addEventListener("blur", closeHits);
byId("search").addEventListener("keydown", (event) => {
  const count = Math.min(found.hits.length, MOST_HITS);
  if (event.key === "ArrowDown") choose((found.chosen + 1) % Math.max(1, count));
  else if (event.key === "ArrowUp") choose((found.chosen + count - 1) % Math.max(1, count));
  else if (event.key === "Enter") take(found.chosen);
  else if (event.key === "Escape") { event.target.value = ""; showHits(""); event.target.blur(); }
  else return;
  event.preventDefault();
});
document.addEventListener("keydown", (event) => {
  const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName);
  if (event.key === "Escape") tip.hide();
  if (event.key !== "/" || isTyping) return;
  event.preventDefault();
  byId("search").focus();
});

// -- light and dark ---------------------------------------------------------------------------------

byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  theme.forget();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme.forget());

showStage(data.stages.length - 1);
performance.mark("map-ready");
