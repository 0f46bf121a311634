// Which blocks are drawn where, and their texts.  Everything is in shares of the width (0 to 1).
const ROW = 18, CHAR = 6.63, LEAST_PX = 1, MOST_BLOCKS = 8000, DEEPEST = 80, ABOVE = 12, FORCED = 500;

// A view: `node` over the full width, its ancestors above it; `only`, where set, are the children it is
// narrowed down to.
let view = null;

const shownTops = () => view.only ?? [view.node];

function layout(width) {
  for (let least = LEAST_PX / width; ; least *= 2) {
    const blocks = layoutFrom(least);
    if (blocks) return blocks;
  }
}

// Null where that would be too many for a page to stay quick.
function layoutFrom(least) {
  const out = [], path = pathOf(view.node), left = Math.max(0, path.length - 1 - ABOVE);
  let row = 0;
  path.forEach((v, i) => {
    if (i > 0 && i < left) return;
    if (i > 0 && i === left) return out.push({ v, folded: left, x: 0, w: 1, row: row++, above: true });
    out.push({ v, x: 0, w: 1, row: row++, above: v !== view.node || !!view.only });
  });
  const kids = view.only ?? kidsOf(view.node), whole = view.only ? sum(kids, (k) => k.ticks) : view.node.ticks;
  const scale = 1 / (whole || 1), forced = new Set();
  // Of very many equal siblings none has the least share: then the first are drawn all the same.
  if (view.only && !kids.some((k) => k.frame !== REST && k.ticks * scale >= least))
    kids.filter((k) => k.frame !== REST).sort((a, b) => b.ticks - a.ticks).slice(0, FORCED).forEach((k) => forced.add(k));
  const todo = [{ v: view.node, kids, x: 0, row }];
  while (todo.length) {
    const { v: parent, kids: some, x: start, row: at } = todo.pop(), small = [];
    let x = start;
    if (at - row >= DEEPEST && some.length) {
      const ticks = sum(some, (k) => k.ticks);
      out.push({ deeper: { parent, kids: some, ticks, count: 1 }, x, w: ticks * scale, row: at });
      continue;
    }
    for (const kid of some) {
      const w = kid.ticks * scale;
      if (kid.frame === REST || w < least && !forced.has(kid)) { small.push(kid); continue; }
      out.push({ v: kid, x, w, row: at });
      if (tree.n > 1) todo.push({ v: kid, kids: kidsOf(kid), x, row: at + 1 });
      x += w;
    }
    if (small.length) {
      const rest = { parent, kids: small, ticks: sum(small, (k) => k.ticks), count: sum(small, (k) => k.count) };
      if (rest.ticks) out.push({ rest, x, w: rest.ticks * scale, row: at });
    }
    if (out.length > MOST_BLOCKS && forced.size < FORCED) return null;
  }
  return out;
}

// Text that fits.
const MAYBE_WIDE = /[\u1100-\u1fff\u2300-\ufffc\u{10000}-\u{10ffff}]/u; // as in names.py
const ASCII = /^[\x20-\x7e]*$/;
const cells = (text) => { if (ASCII.test(text)) return text.length; let n = 0; for (const c of text) n += MAYBE_WIDE.test(c) ? 2 : 1; return n; };
function fitting(text, room) {
  if (typeof text === "string" && ASCII.test(text)) return text.slice(0, Math.max(0, room));
  let out = "";
  for (const c of text) { if ((room -= cells(c)) < 0) break; out += c; }
  return out;
}
function crop(name, room) { // as names.crop in Python
  if (name.length <= room && cells(name) <= room) return name;
  let bare = name.slice(0, 1000).replace(/\([^()]*\)( const)?( \[clone [^\]]*\])?$/, "");
  for (let inner; (inner = bare.replace(/<[^<>]*>/g, "")) !== bare;) bare = inner;
  bare = bare || name;
  if (cells(bare) <= room) return bare;
  const last = bare.slice(bare.lastIndexOf("::") < 0 ? 0 : bare.lastIndexOf("::") + 2) || bare;
  if (bare.includes("::") && cells(last) < room)
    return "…" + [...fitting([...bare].reverse(), room - 1)].reverse().join("").replace(/^:+/, "");
  return room > 0 ? fitting(last, room - 1) + "…" : "";
}

const digits = new Intl.NumberFormat("en-US");
const number = (n) => digits.format(Math.round(n));
const share = (part, whole) => (whole ? (100 * part / whole).toFixed(2) : "0.00") + "%";

const group = (block) => block.rest ?? block.deeper;
const ticksOf = (block) => (group(block) ?? block.v).ticks;
const frameName = (v) => nameOfFrame(v.frame, v.count);
function nameOf(block) {
  if (block.rest) return nameOfFrame(REST, block.rest.count);
  if (block.deeper) return "⋯ deeper";
  return block.folded ? `⋯ ${number(block.folded)} frames above` : frameName(block.v);
}
const isCode = (block) => !group(block) && !block.folded && block.v.frame !== REST;
const moduleOf = (block) => (isCode(block) ? modules[block.v.frame] : "");
const lineOf = (block) => (isCode(block) ? lines[block.v.frame] : "");
const classOf = (block) => (!isCode(block) ? "r" : picture.diff ? diffClass(block.v) : kinds[block.v.frame]);

// A diff: how much a frame's share has changed, as far as that is beyond what sampling alone makes of it.
const periods = (meta) => (meta?.mode === "cpu" && meta.ticks ? Math.max(1, meta.samples / meta.ticks) : 1); // that a tick stood for
function change(v) {
  const whole = tree.total[0], wholeBefore = tree.baseTotal[0];
  const now = whole ? v.ticks / whole : 0, before = wholeBefore ? v.base / wholeBefore : 0;
  const both = (v.ticks + v.base) / (whole + wholeBefore || 1);
  const noise = Math.sqrt(both * (1 - both) * (periods(doc.meta) / (whole || 1) + periods(doc.base) / (wholeBefore || 1)));
  return { now, before, noise, sure: Math.abs(now - before) > 2 * noise };
}
function diffClass(v) {
  if (kinds[v.frame] === "b") return "b";
  const { now, before, sure } = change(v);
  if (!sure || now === before) return "same";
  if (!v.base) return "new";
  const ratio = Math.abs(now - before) / Math.max(now, before), step = ratio < .1 ? 0 : ratio < .33 ? 1 : 2;
  return (now > before ? "more" : "less") + step;
}

function figures(block) {
  const ticks = ticksOf(block), v = block.v, parent = (group(block) ?? v).parent, whole = view.root.ticks;
  const parts = [`${number(ticks)} ${unit}`, `${share(ticks, whole)} of all`];
  if (parent) parts.push(`${share(ticks, parent.ticks)} of parent`);
  if (v && !v.reverse) parts.push(`self ${number(v.self)} (${share(v.self, whole)})`);
  if (v && picture.diff) {
    const { now, before, sure } = change(v), delta = (100 * (now - before)).toFixed(2);
    parts.push(`was ${share(before, 1)}`, `${delta >= 0 ? "+" : ""}${delta} points${sure ? "" : ", within the noise of sampling"}`);
    if (!v.base) parts.push("new");
  }
  return parts;
}
