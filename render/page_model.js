// The profile as the page works with it.  A tree of calls, nodes in preorder in typed arrays (node 0 is
// the root of everything); and views of it, whose nodes are made when they are first looked at:
// callers first, where a view node stands for nodes of the tree, or callees first, where it stands for
// samples, each with the place on its stack up to which the view has got.
const REST = -1, HIT_LIMIT = 50000;
let doc, picture, names, modules, kinds, hashes, unit; // of each frame: name, module, colour class, 32 bits
let lines; // of each frame: path:line, or nothing
let tree = null; // frame, parent, end, self, total, and in a diff baseSelf and baseTotal, by node
let removals = [], splitByThread = false;

async function unpacked(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

function readDocument(packed) {
  doc = unpackedColumns(packed.profile);
  unit = doc.meta.unit ?? "samples";
  picture = packed.picture;
  const threads = doc.threads.map(([tid, name]) => (name ? `${name}-${tid}` : String(tid)));
  names = doc.frames.map((f) => f[0]).concat(threads);
  modules = doc.frames.map((f) => doc.modules[f[1]]).concat(threads.map(() => ""));
  lines = doc.frames.map((f) => f[3] ?? "").concat(threads.map(() => ""));
  kinds = picture.colours.concat(threads.map(() => "b"));
  hashes = names.map((name, i) => hash(name + "\0" + modules[i]));
}

// As packing.py has packed them.
function unpackedColumns(stored) {
  const column = (text) => typeof text !== "string" ? text
    : Array.from(text, (c) => c.codePointAt(0)).map((code) => code - 36 - (code > 0xdfff ? 0x800 : 0));
  const { order, frame, up } = stored.nodes, { thread, node, ticks } = stored.samples;
  const frameAt = column(order), frames = column(frame).map((rank) => frameAt[rank]);
  const counts = column(stored.rest), rest = {};
  let blocks = 0;
  frames.forEach((index, at) => { if (index === REST) rest[at] = counts[blocks++]; });
  const samples = { thread: column(thread), node: column(node), ticks: column(ticks) };
  return { ...stored, nodes: { frame: frames, up: column(up) }, samples, rest };
}

function hash(text) { // FNV-1a over UTF-16 units
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  return (h >>> 0).toString(36);
}

// What is stored: for each node its frame, and how many levels its parent is above the node before it.
function plantTree() {
  const { frame: frames, up } = doc.nodes, n = frames.length, parent = new Int32Array(n).fill(-1);
  for (let node = 1; node < n; node++) {
    let above = node - 1;
    for (let i = up[node]; i > 0; i--) above = parent[above];
    parent[node] = above;
  }
  const samples = { thread: doc.samples.thread, node: [], ticks: doc.samples.ticks };
  for (let i = 0, node = 0; i < doc.samples.node.length; i++) samples.node.push(node += doc.samples.node[i]);
  return splitByThread ? split(frames, parent, samples) : finished(Int32Array.from(frames), parent, samples, null);
}

// A copy of the tree for each thread, with a level of threads below the root.
function split(frames, parent, samples) {
  const frame = [frames[0]], above = [-1], from = [0], node = [];
  const places = doc.threads.map(() => []);
  samples.thread.forEach((t, i) => (t < 0 ? (node[i] = 0) : places[t].push(i)));
  places.forEach((mine, thread) => {
    if (!mine.length) return;
    const wanted = new Map();
    for (const i of mine)
      for (let at = samples.node[i]; at > 0 && !wanted.has(at); at = parent[at]) wanted.set(at, 0);
    wanted.set(0, frame.push(doc.frames.length + thread) - 1);
    above.push(0);
    from.push(0);
    for (const at of [...wanted.keys()].filter((k) => k).sort((x, y) => x - y)) {
      above.push(wanted.get(parent[at]));
      from.push(at);
      wanted.set(at, frame.push(frames[at]) - 1);
    }
    for (const i of mine) node[i] = wanted.get(samples.node[i]);
  });
  return finished(Int32Array.from(frame), Int32Array.from(above), { ...samples, node }, from);
}

function finished(frame, parent, samples, from) {
  const n = frame.length, end = new Int32Array(n), made = { n, frame, parent, end, samples, from };
  for (let node = n - 1; node >= 0; node--) {
    end[node] ||= node + 1;
    const above = parent[node];
    if (above >= 0 && end[above] < end[node]) end[above] = end[node];
  }
  for (const column of ["self", "total", "baseSelf", "baseTotal"]) made[column] = new Float64Array(n);
  return made;
}

// Sums anew, without what has been removed.  Thread -1 holds the samples that a diff compares with.
function recount() {
  const { n, parent, self, total, baseSelf, baseTotal, samples } = tree;
  self.fill(0);
  baseSelf.fill(0);
  samples.thread.forEach((t, i) => { (t < 0 ? baseSelf : self)[samples.node[i]] += samples.ticks[i]; });
  for (const { nodes } of removals) for (const node of nodes) self[node] = baseSelf[node] = 0;
  total.set(self);
  baseTotal.set(baseSelf);
  for (let node = n - 1; node > 0; node--) {
    total[parent[node]] += total[node];
    baseTotal[parent[node]] += baseTotal[node];
  }
}

const nameOfFrame = (frame, count) => (frame === REST ? `(${number(count)} smaller)` : names[frame]);
const restCount = (node) => doc.rest[tree.from ? tree.from[node] : node] ?? 1;
const sum = (list, of) => list.reduce((total, item) => total + of(item), 0);

// Views.

function rootView(reverse) {
  const v = { reverse, frame: 0, parent: null, depth: 0, count: 1, src: [0], kids: null, ends: false };
  if (reverse) {
    v.src = [];
    for (let node = 0; node < tree.n; node++) if (tree.self[node] || tree.baseSelf[node]) v.src.push(node);
    v.at = v.src; // where each sample's stack is looked at; of the root: before its leaf
  }
  return weighed(v);
}

function weighed(v) {
  const { self, total, baseSelf, baseTotal } = tree;
  v.ticks = sum(v.src, (node) => (v.reverse ? self : total)[node]);
  v.base = sum(v.src, (node) => (v.reverse ? baseSelf : baseTotal)[node]);
  v.self = v.reverse ? 0 : sum(v.src, (node) => self[node]);
  return v;
}

function kidsOf(v) {
  if (v.kids) return v.kids;
  const groups = new Map(), put = (frame, src, at) => {
    let group = groups.get(frame);
    if (!group) groups.set(frame, group = { src: [], at: [] });
    group.src.push(src);
    group.at.push(at);
  };
  v.src.forEach((node, i) => {
    if (!v.reverse) {
      for (let kid = node + 1; kid < tree.end[node]; kid = tree.end[kid]) put(tree.frame[kid], kid, kid);
      return;
    }
    const at = v.parent ? tree.parent[v.at[i]] : v.at[i];
    if (at > 0) put(tree.frame[at], node, at);
  });
  const order = [...groups.keys()].sort((a, b) => a - b);
  v.kids = order.map((frame) => {
    const { src, at } = groups.get(frame), count = frame === REST ? sum(at, restCount) : 1;
    return weighed({ reverse: v.reverse, frame, parent: v, depth: v.depth + 1, count, src, at, kids: null });
  }).filter((kid) => kid.ticks > 0);
  return v.kids;
}

const pathOf = (v) => { const path = []; for (let at = v; at; at = at.parent) path.unshift(at); return path; };
const hashOf = (v) => (v.frame === REST ? "0" : hashes[v.frame]);
const hashesOf = (v) => pathOf(v).slice(1).map(hashOf);

function follow(root, path) { // as far down as the hashes lead
  let v = root;
  for (const part of path) {
    const next = kidsOf(v).find((kid) => hashOf(kid) === part);
    if (!next) break;
    v = next;
  }
  return v;
}

// Functions: self and total ticks, each sample once however often a function recurs on its stack.
function functionTable() {
  const rows = new Map(), open = new Map(), path = [];
  for (let node = 1; node < tree.n; node++) {
    while (path.length && tree.end[path[path.length - 1]] <= node) {
      const frame = tree.frame[path.pop()];
      open.set(frame, open.get(frame) - 1);
    }
    const frame = tree.frame[node];
    if (frame !== REST && kinds[frame] !== "b") {
      let row = rows.get(frame);
      if (!row) rows.set(frame, row = { frame, self: 0, total: 0 });
      row.self += tree.self[node];
      if (!open.get(frame)) row.total += tree.total[node];
    }
    open.set(frame, (open.get(frame) ?? 0) + 1);
    path.push(node);
  }
  return [...rows.values()].filter((row) => row.total > 0);
}

// Ticks of the samples with a call from or to `frame` on their stack, by the function at the other end.
function neighbours(frame, callers) {
  const found = new Map();
  for (let node = 1; node < tree.n; node++) {
    const above = tree.parent[node], mine = callers ? node : above, other = callers ? above : node;
    if (tree.frame[mine] !== frame || other <= 0 || !tree.total[node]) continue;
    let again = false; // the same call further up: counted there
    for (let at = above; at > 0 && !again; at = tree.parent[at])
      again = tree.frame[at] === tree.frame[node] && tree.frame[tree.parent[at]] === tree.frame[above];
    if (!again) found.set(tree.frame[other], (found.get(tree.frame[other]) ?? 0) + tree.total[node]);
  }
  return [...found].map(([frame, ticks]) => ({ frame, ticks })).sort((a, b) => b.ticks - a.ticks || a.frame - b.frame);
}

// Search.  A sample is matched once, however many of its frames are.
let hits = null, hitsBefore = null, hitAbove = null;

function searchFor(regexp) {
  hits = hitsBefore = hitAbove = null;
  if (!regexp) return;
  hits = Uint8Array.from(names, (name, i) => kinds[i] !== "b" && (regexp.test(name) || regexp.test(modules[i])));
  hitsBefore = new Int32Array(tree.n + 1);
  hitAbove = new Uint8Array(tree.n);
  for (let node = 0; node < tree.n; node++) {
    const hit = tree.frame[node] >= 0 && hits[tree.frame[node]];
    hitsBefore[node + 1] = hitsBefore[node] + hit;
    hitAbove[node] = hit || node && hitAbove[tree.parent[node]];
  }
}

const isHit = (v) => !!hits && v.frame >= 0 && !!hits[v.frame];
function holdsHit(v) { // itself, or what is drawn beyond it
  if (!hits) return false;
  return v.reverse ? v.at.some((at) => hitAbove[at]) : v.src.some((node) => hitsBefore[tree.end[node]] > hitsBefore[node]);
}

function matchedTicks(v) {
  if (v.reverse) return sum(v.src.filter((_, i) => hitAbove[v.at[i]]), (node) => tree.self[node]);
  return sum(v.src, (top) => {
    let ticks = 0;
    for (let node = top; node < tree.end[top];) {
      const hit = tree.frame[node] >= 0 && hits[tree.frame[node]];
      if (hit) ticks += tree.total[node];
      node = hit ? tree.end[node] : node + 1;
    }
    return ticks;
  });
}

function hitsBelow(tops) { // the matching frames, in the order in which they are drawn
  const found = [], todo = [...tops].reverse();
  while (todo.length && found.length < HIT_LIMIT) {
    const v = todo.pop();
    if (!holdsHit(v)) continue;
    if (isHit(v)) found.push(v);
    todo.push(...[...kidsOf(v)].reverse());
  }
  return found;
}
