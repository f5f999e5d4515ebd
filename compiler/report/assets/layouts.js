// Where boxes and edges go: dagre lays out a drawing, and each group of the map by itself.

const measure = document.createElement("canvas").getContext("2d");

function widthOf(text, font) {
  measure.font = font;
  return measure.measureText(text).width;
}

function laidOut(direction, sizes, edges, spacing) {
  const graph = new dagre.graphlib.Graph({ multigraph: true });
  graph.setGraph({ rankdir: direction, marginx: 10, marginy: 12, ...spacing });
  graph.setDefaultEdgeLabel(() => ({}));
  sizes.forEach(([width, height], i) => graph.setNode(String(i), { width, height }));
  edges.forEach(([from, to, label], i) => {
    const room = label ? { width: widthOf(label, MONO) + 6, height: 14, labelpos: "c" } : {};
    graph.setEdge(String(from), String(to), room, String(i));
  });
  dagre.layout(graph);
  const places = sizes.map((_, i) => graph.node(String(i)));
  const lines = edges.map(([from, to], i) => graph.edge(String(from), String(to), String(i)));
  return { places, lines, width: graph.graph().width, height: graph.graph().height };
}

// A rewrite's region, top to bottom, with shapes on the edges. Parts that hang together are laid out
// one by one, and placed like words.
function drawingLayout({ boxes, edges }, side, aspect) {
  const titled = boxes.map((box) => drawnBox(box, side === "before" ? "removed" : "added"));
  const parts = connected(titled.length, edges);
  const groups = parts.map((members) => layOutPart(members, titled, edges));
  const size = placeInLines(groups, aspect);
  return { boxes: titled, edges: groups.flatMap((group) => placePart(group, titled)), groups: [], ...size };
}

function drawnBox([kind, op, count, lines, members], colour) {
  const title = { op: count > 1 ? `${op} × ${count}` : op, bulk: `${op}, ${count} nodes` }[kind] ?? op;
  const width = Math.max(widthOf(title, BOLD), ...lines.map((line) => widthOf(line, MONO)));
  return {
    kind, op, count, title, lines, members,
    w: width + 22, h: lines.length ? 28 + 14 * lines.length : kind === "bulk" ? 44 : 26,
    fill: kind === "op" ? "surface" : "group", ink: "text",
    stroke: kind === "op" ? colour : "edge",
  };
}

// Lists of positions that edges connect, in order of their first.
function connected(count, edges) {
  const root = Array.from({ length: count }, (_, i) => i);
  const find = (i) => (root[i] === i ? i : (root[i] = find(root[i])));
  edges.forEach(([from, to]) => { root[find(from)] = find(to); });
  const parts = new Map();
  root.forEach((_, i) => parts.set(find(i), [...(parts.get(find(i)) ?? []), i]));
  return [...parts.values()];
}

function layOutPart(members, boxes, edges) {
  const place = new Map(members.map((member, i) => [member, i]));
  const own = edges.filter(([from]) => place.has(from));
  const local = own.map(([from, to, label]) => [place.get(from), place.get(to), label]);
  const sizes = members.map((member) => [boxes[member].w, boxes[member].h]);
  const inner = laidOut("TB", sizes, local, { nodesep: 26, ranksep: 22, edgesep: 14 });
  return { members, edges: own, inner, w: inner.width, h: inner.height };
}

function placePart({ x: left, y: top, members, edges, inner }, boxes) {
  const moved = ({ x, y }) => ({ x: x + left, y: y + top });
  members.forEach((member, i) => Object.assign(boxes[member], moved(inner.places[i])));
  return edges.map(([from, to, label], i) => {
    const line = inner.lines[i];
    return { from, to, label, points: line.points.map(moved), ...moved(line) };
  });
}

const ROW = { h: 24, gap: 40, title: 20 };

// The whole model: each group is laid out by itself, left to right (equal groups once), and the
// groups follow each other like words in lines, as wide as the canvas is for its height.
function mapLayout(stage, nodes, aspect) {
  const boxes = stage.nodes.map((row) => mapBox(nodes[row]));
  const producer = new Map();
  boxes.forEach((box, i) => box.node.outputs.forEach((tensor) => producer.set(tensor, i)));
  const groups = stage.clusters.map((title) => ({ title, members: [], edges: [] }));
  boxes.forEach((box, i) => {
    box.group = groups[stage.cluster[i]];
    box.place = box.group.members.push(i) - 1;
  });
  const between = [];
  boxes.forEach((box, to) => {
    for (const from of new Set(box.node.inputs.map((tensor) => producer.get(tensor)))) {
      if (from === undefined) continue;
      const source = boxes[from];
      if (source.group === box.group) box.group.edges.push([source.place, box.place]);
      else between.push([from, to]);
    }
  });
  const known = new Map();
  groups.forEach((group) => layOutGroup(group, boxes, known));
  const size = placeInLines(groups, aspect);
  const edges = groups.flatMap((group) => placeGroup(group, boxes));
  between.forEach(([from, to]) => edges.push(farEdge(boxes, from, to)));
  return { boxes, edges, groups: groups.filter((group) => group.members.length > 1), ...size };
}

function mapBox(node) {
  const colour = node.madeBy < 0 ? "source" : `pass-${node.madeBy % 8}`;
  return {
    kind: "op", title: node.op, lines: [], count: 1, members: [node], node,
    w: widthOf(node.op, BOLD) + 16, h: ROW.h,
    fill: colour, stroke: colour, ink: node.madeBy < 0 ? "text" : "on-pass",
  };
}

function layOutGroup(group, boxes, known) {
  const sizes = group.members.map((i) => [boxes[i].w, boxes[i].h]);
  const key = JSON.stringify([group.members.map((i) => boxes[i].title), group.edges]);
  if (!known.has(key)) {
    const spacing = { ranker: "tight-tree", nodesep: 8, ranksep: 26, edgesep: 6 };
    known.set(key, laidOut("LR", sizes, group.edges, spacing));
  }
  group.inner = known.get(key);
  group.w = group.inner.width;
  group.h = group.inner.height + (group.members.length > 1 ? ROW.title : 0);
}

// Breaks lines so that the whole appears as large as it can on a canvas of this aspect.
function placeInLines(groups, aspect) {
  let best = { scale: 0 };
  let limit = 0;
  for (const group of groups) {
    limit += group.w + ROW.gap;
    const { width, height } = breakLines(groups, limit);
    const scale = Math.min(aspect / width, 1 / height);
    if (scale > best.scale) best = { scale, limit };
  }
  return breakLines(groups, best.limit);
}

function breakLines(groups, limit) {
  let [x, y, width, line] = [0, 0, 0, []];
  const finish = () => {
    const height = Math.max(0, ...line.map((group) => group.h));
    line.forEach((group) => { group.y = y + (height - group.h) / 2; });
    y += height + ROW.gap;
    [x, line] = [0, []];
  };
  for (const group of groups) {
    if (line.length && x + group.w > limit) finish();
    group.x = x;
    x += group.w + ROW.gap;
    width = Math.max(width, x - ROW.gap);
    line.push(group);
  }
  finish();
  return { width, height: y - ROW.gap };
}

function placeGroup(group, boxes) {
  const [dx, dy] = [group.x, group.y + group.h - group.inner.height];
  group.members.forEach((i, place) => {
    const { x, y } = group.inner.places[place];
    Object.assign(boxes[i], { x: x + dx, y: y + dy });
  });
  return group.edges.map(([from, to], i) => ({
    from: group.members[from], to: group.members[to],
    points: group.inner.lines[i].points.map(({ x, y }) => ({ x: x + dx, y: y + dy })),
  }));
}

// Between groups: out on the right, in on the left.
function farEdge(boxes, from, to) {
  const start = { x: boxes[from].x + boxes[from].w / 2, y: boxes[from].y };
  const end = { x: boxes[to].x - boxes[to].w / 2, y: boxes[to].y };
  const reach = Math.max(40, Math.min(300, Math.abs(end.x - start.x) / 2));
  const points = [start, { x: start.x + reach, y: start.y }, { x: end.x - reach, y: end.y }, end];
  points.bezier = true;
  return { from, to, points, far: true };
}
