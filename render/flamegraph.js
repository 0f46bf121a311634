// What makes the flame graph interactive.  It draws everything anew from the tree in #data, so that
// frames too small for the static picture can be zoomed to.  Text of the target only ever goes through
// textContent and setAttribute.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg", HTML = "http://www.w3.org/1999/xhtml";
  const PAD = 10, TOP = 88, ROW = 18, CHAR = 6.63, LEAST = 1 / 1000, REST = -1, LEAST_WIDTH = 640;
  const svg = document.currentScript?.ownerSVGElement ?? document.documentElement;
  const find = (id) => svg.querySelector("#" + id);
  const data = JSON.parse(find("data").textContent);

  // The tree: [frame, ticks, number of children] for each node in preorder; for REST the third is the
  // number of siblings it stands for.
  function decode(flat) {
    const nodes = [], open = [];
    for (let i = 0; i < flat.length; i += 3) {
      const frame = flat[i], ticks = flat[i + 1], rest = frame === REST;
      const parent = open.length ? open[open.length - 1] : null;
      const node = { id: nodes.length, frame, ticks, self: ticks, parent, kids: [], depth: open.length,
                     count: rest ? flat[i + 2] : 1, missing: rest ? 0 : flat[i + 2], end: 0 };
      nodes.push(node);
      if (parent) {
        parent.kids.push(node);
        parent.self -= ticks;
        parent.missing--;
      }
      if (!rest) open.push(node);
      while (open.length && !open[open.length - 1].missing) open.pop().end = nodes.length;
      if (rest) node.end = node.id + 1;
    }
    return nodes;
  }

  const nodes = decode(data.nodes), all = nodes[0];
  const sum = (list, of) => list.reduce((total, item) => total + of(item), 0);
  const number = (n) => n.toLocaleString("en-US");
  const share = (part, whole) => (whole ? (100 * part / whole).toFixed(2) : "0.00") + "%";

  // A view: `node` over the full width, its ancestors above it; `only`, where set, are the children it
  // is narrowed down to.
  let view = { node: all, only: null };
  let width = 1200, blocks = [], upward = false, hits = null, hitsBefore = null;

  function layout() {
    const out = [], path = [];
    for (let node = view.node; node; node = node.parent) path.unshift(node);
    path.forEach((node) => out.push({ node, x: 0, w: 1, depth: node.depth, above: node !== view.node || !!view.only }));
    const kids = view.only ?? view.node.kids;
    const scale = 1 / (view.only ? sum(kids, (k) => k.ticks) : view.node.ticks || 1);
    // Of very many equal siblings none has the least share: then the first are drawn all the same.
    const forced = new Set();
    if (view.only && !kids.some((k) => k.frame !== REST && k.ticks * scale >= LEAST))
      [...kids].filter((k) => k.frame !== REST).sort((a, b) => b.ticks - a.ticks).slice(0, 500).forEach((k) => forced.add(k));
    const todo = [[view.node, kids, 0]];
    while (todo.length) {
      const [parent, some, start] = todo.pop();
      let x = start, small = [];
      for (const kid of some) {
        if (kid.frame === REST || kid.ticks * scale < LEAST && !forced.has(kid)) { small.push(kid); continue; }
        out.push({ node: kid, x, w: kid.ticks * scale, depth: kid.depth });
        todo.push([kid, kid.kids, x]);
        x += kid.ticks * scale;
      }
      if (!small.length) continue;
      const rest = { parent, kids: small, ticks: sum(small, (k) => k.ticks), count: sum(small, (k) => k.count) };
      out.push({ rest, x, w: rest.ticks * scale, depth: parent.depth + 1 });
    }
    return out;
  }

  // Text that fits.
  const MAYBE_WIDE = /[\u1100-\u1fff\u2300-\ufffc\u{10000}-\u{10ffff}]/u; // as in names.py
  const cells = (text) => { let n = 0; for (const c of text) n += MAYBE_WIDE.test(c) ? 2 : 1; return n; };
  function fitting(text, room) {
    let out = "";
    for (const c of text) { if ((room -= cells(c)) < 0) break; out += c; }
    return out;
  }
  function crop(name, room) { // as names.crop in Python
    if (cells(name) <= room) return name;
    let bare = name.replace(/\([^()]*\)( const)?( \[clone [^\]]*\])?$/, "");
    for (let inner; (inner = bare.replace(/<[^<>]*>/g, "")) !== bare;) bare = inner;
    bare = bare || name;
    if (cells(bare) <= room) return bare;
    const last = bare.slice(bare.lastIndexOf("::") < 0 ? 0 : bare.lastIndexOf("::") + 2) || bare;
    if (bare.includes("::") && cells(last) < room)
      return "…" + [...fitting([...bare].reverse(), room - 1)].reverse().join("").replace(/^:+/, "");
    return room > 0 ? fitting(last, room - 1) + "…" : "";
  }

  const nameOf = (block) => block.rest ? `(${number(block.rest.count)} smaller)` : data.frames[block.node.frame][0];
  const moduleOf = (block) => block.rest ? "" : data.modules[data.frames[block.node.frame][1]];
  const classOf = (block) => block.rest ? "r" : data.frames[block.node.frame][2];

  function figures(block) {
    const ticks = block.rest ? block.rest.ticks : block.node.ticks;
    const parent = block.rest ? block.rest.parent : block.node.parent;
    const parts = [`${number(ticks)} ${data.unit ?? "samples"}`, `${share(ticks, all.ticks)} of all`];
    if (parent) parts.push(`${share(ticks, parent.ticks)} of parent`);
    if (!block.rest) parts.push(`self ${number(block.node.self)} (${share(block.node.self, all.ticks)})`);
    return parts;
  }

  function make(tag, attributes, parent, text) {
    const element = document.createElementNS(SVG, tag);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    parent?.append(element);
    return element;
  }

  const isHit = (block) => !!hits && !block.rest && !!hits[block.node.frame];
  const holdsHit = (block) => !!hits && !!block.rest && block.rest.kids.some((k) => hitsBefore[k.end] > hitsBefore[k.id]);

  function draw() {
    width = Math.max(LEAST_WIDTH, svg.getBoundingClientRect().width || 1200);
    blocks = layout();
    const inner = width - 2 * PAD, deepest = blocks.reduce((d, b) => Math.max(d, b.depth), 0);
    const group = make("g", { id: "frames", class: hits ? "searching" : "" });
    blocks.forEach((block, index) => {
      const x = PAD + block.x * inner, w = Math.max(block.w * inner - .6, .6);
      const y = TOP + ROW * (upward ? deepest - block.depth : block.depth);
      const state = (block.above ? " above" : "") + (isHit(block) ? " hit" : "") + (holdsHit(block) ? " holds-hit" : "");
      const name = nameOf(block), g = make("g", {
        class: "frame" + state, "data-block": index, "data-name": name, "data-module": moduleOf(block),
        "data-samples": block.rest ? block.rest.ticks : block.node.ticks }, group);
      make("rect", { class: classOf(block), x: x.toFixed(2), y, width: w.toFixed(2), height: ROW - 1, rx: 1.5 }, g);
      const room = Math.floor((w - 5) / CHAR), text = room < 3 ? "" : crop(name, room);
      if (text) make("text", { x: (x + 3).toFixed(2), y: y + 12.5 }, g, text);
    });
    find("frames").replaceWith(group);
    frameLines(TOP + ROW * (deepest + 1) + 8);
    tools();
    showDetails(null);
    showMatched();
  }

  // Legend and footer, wrapped to the width.
  function frameLines(y) {
    const foot = find("foot");
    foot.setAttribute("transform", `translate(0 ${y})`);
    foot.querySelectorAll("text.wrapped").forEach((line) => line.remove());
    let x = PAD, down = 0;
    for (const key of foot.querySelectorAll(".key")) {
      const w = +key.getAttribute("data-width");
      if (x + w > width) { x = PAD; down += 22; }
      key.setAttribute("transform", `translate(${x} ${down})`);
      x += w;
    }
    down += 44;
    for (const [index, paragraph] of data.foot.entries()) {
      let line = "";
      const put = () => { make("text", { class: index ? "wrapped" : "wrapped truth", x: PAD, y: down }, foot, line); down += 17; };
      for (const word of paragraph.split(" ")) {
        if (line && cells(line + " " + word) * 6.4 > width - 2 * PAD) { put(); line = ""; }
        line += (line ? " " : "") + fitting(word, Math.floor((width - 2 * PAD) / 6.4));
      }
      put();
    }
    svg.setAttribute("height", y + down);
  }

  // The buttons and the search box; made once, then only moved.
  let input = null;
  function button(id, label, w, hint, act) {
    const g = make("g", { id, class: "button", "data-width": w }, find("tools"));
    make("title", {}, g, hint);
    make("rect", { width: w, height: 24, rx: 4 }, g);
    make("text", { x: w / 2, y: 16 }, g, label);
    g.addEventListener("click", act);
  }
  function makeTools() {
    make("g", { id: "tools" }, svg);
    button("reset", "Reset zoom", 86, "Show everything again (Esc)", reset);
    const box = make("foreignObject", { id: "box", "data-width": 230, width: 230, height: 24 }, find("tools"));
    input = document.createElementNS(HTML, "input");
    for (const [key, value] of [["id", "search"], ["type", "text"], ["placeholder", "Search, regular expression ( / )"],
      ["spellcheck", "false"], ["autocomplete", "off"], ["aria-label", "Search functions"]]) input.setAttribute(key, value);
    box.append(input);
    input.addEventListener("input", search);
    button("case", "Aa", 30, "Match upper and lower case as written", () => { find("case").classList.toggle("on"); search(); });
    button("keys", "?", 26, "Keys", toggleHelp);
    make("text", { id: "matched" }, svg);
  }
  function tools() {
    let x = width - PAD;
    for (const tool of [...find("tools").children].reverse()) {
      x -= +tool.getAttribute("data-width");
      if (tool.localName === "g") tool.setAttribute("transform", `translate(${x} 12)`);
      else { tool.setAttribute("x", x); tool.setAttribute("y", 12); }
      x -= 6;
    }
    find("reset").classList.toggle("off", view.node === all && !view.only);
    find("title").textContent = crop(data.title, Math.floor((width - 410) / 9.8));
    find("matched").setAttribute("x", width - PAD);
    find("matched").setAttribute("y", 54);
  }

  function showDetails(block) {
    const focus = blocks.find((b) => b.node === view.node);
    if (!block && (view.node === all && !view.only || !focus)) {
      find("details").textContent = all.ticks ? "Point at a frame for its figures; click to zoom; ? for the keys." : "";
      return;
    }
    const shown = block ?? focus, tail = "   " + figures(shown).join("  ");
    const label = nameOf(shown) + (moduleOf(shown) ? `  [${moduleOf(shown)}]` : "");
    const room = Math.max(12, Math.floor((width - 2 * PAD) / CHAR) - cells(tail));
    find("details").textContent = (cells(label) <= room ? label : crop(nameOf(shown), room)) + tail;
  }

  // Search: nested matches count once, as part of the outermost one.
  function search() {
    const pattern = input.value;
    let regexp = null;
    input.classList.remove("wrong");
    try {
      if (pattern) regexp = new RegExp(pattern, find("case").classList.contains("on") ? "" : "i");
    } catch { input.classList.add("wrong"); }
    hits = regexp && data.frames.map(([name, module, kind]) => kind !== "b" && (regexp.test(name) || regexp.test(data.modules[module])));
    hitsBefore = hits && [0];
    if (hits) for (const node of nodes) hitsBefore.push(hitsBefore[node.id] + (hits[node.frame] ? 1 : 0));
    find("frames").classList.toggle("searching", !!hits);
    for (const g of find("frames").children) {
      const block = blocks[g.getAttribute("data-block")];
      g.classList.toggle("hit", isHit(block));
      g.classList.toggle("holds-hit", holdsHit(block));
    }
    showMatched();
  }
  function matchedTicks(tops) {
    let ticks = 0;
    for (const top of tops)
      for (let id = top.id; id < top.end;) {
        if (hits[nodes[id].frame]) { ticks += nodes[id].ticks; id = nodes[id].end; } else id++;
      }
    return ticks;
  }
  function showMatched() {
    const tops = view.only ?? [view.node], whole = sum(tops, (n) => n.ticks);
    let text = input.classList.contains("wrong") ? "not a regular expression" : "";
    if (hits) {
      const ticks = matchedTicks(tops);
      text = `Matched: ${share(ticks, whole)} (${number(ticks)} ${data.unit ?? "samples"})` + (view.node === all && !view.only ? "" : " of this view");
    }
    find("matched").textContent = text;
  }
  function clearSearch() { input.value = ""; input.blur(); search(); }

  function zoom(block) {
    if (block.node) view = { node: block.node, only: null };
    else view = { node: block.rest.parent, only: block.rest.kids.some((k) => k.frame !== REST) ? block.rest.kids : null };
    draw();
  }
  function reset() { view = { node: all, only: null }; draw(); }

  const HELP = ["click: zoom to a frame, or back to one above it", "Esc: clear the search, then reset the zoom",
    "/ or Ctrl-F: search by regular expression", "i: turn upside down", "?: show or hide this"];
  function toggleHelp() {
    if (find("help")) return find("help").remove();
    const g = make("g", { id: "help", transform: `translate(${width - PAD - 330} 44)` }, svg);
    make("rect", { width: 330, height: HELP.length * 20 + 18, rx: 4 }, g);
    HELP.forEach((line, i) => make("text", { x: 14, y: 26 + 20 * i }, g, line));
  }

  // One listener for all frames; a tooltip is made when it is first needed.
  function blockAt(event) {
    const g = event.target.closest?.("g.frame");
    return g && svg.contains(g) ? [blocks[g.getAttribute("data-block")], g] : [null, null];
  }
  svg.addEventListener("click", (event) => { const [block] = blockAt(event); if (block && all.ticks) zoom(block); });
  svg.addEventListener("mouseover", (event) => {
    const [block, g] = blockAt(event);
    showDetails(block);
    if (block && !g.querySelector("title")) {
      const lines = [nameOf(block), ...(moduleOf(block) ? [moduleOf(block)] : []), ...figures(block)];
      g.prepend(make("title", {}, null, lines.join("\n")));
    }
  });
  svg.addEventListener("mouseleave", () => showDetails(null));
  document.addEventListener("keydown", (event) => {
    const typing = document.activeElement === input, key = event.key;
    if ((event.ctrlKey || event.metaKey) && key === "f" || key === "/" && !typing || key === "F3") {
      input.focus();
      input.select();
    } else if (key === "Escape") {
      if (find("help")) toggleHelp();
      else if (input.value || typing) clearSearch();
      else reset();
    } else if (key === "Enter" && typing) input.blur();
    else if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    else if (key === "?") toggleHelp();
    else if (key === "i") { upward = !upward; draw(); }
    else return;
    event.preventDefault();
  });

  svg.removeAttribute("viewBox");
  svg.setAttribute("width", "100%");
  svg.style.minWidth = LEAST_WIDTH + "px";
  makeTools();
  if (all.ticks) draw(); else { tools(); find("box").remove(); find("case").remove(); find("keys").remove(); }
  let pending = 0;
  window.addEventListener("resize", () => { cancelAnimationFrame(pending); if (all.ticks) pending = requestAnimationFrame(draw); });
})();
