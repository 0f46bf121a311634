// The page: head, picture and foot.  Text of the target only ever goes through textContent and
// setAttribute.
const SVG = "http://www.w3.org/2000/svg", HTML = "http://www.w3.org/1999/xhtml";
const PAD = 10, LEAST_WIDTH = 300, SIDE = 420;
const svg = document.currentScript?.ownerSVGElement ?? document.documentElement;
const find = (id) => svg.querySelector("#" + id);
let blocks = [], upward = true, selected = null, width = 1200, headHeight = 0;

function make(tag, attributes, parent, text) {
  const element = document.createElementNS(SVG, tag);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}
function html(tag, attributes, parent, text) {
  const element = document.createElementNS(HTML, tag);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  parent?.append(element);
  return element;
}
function button(parent, id, label, hint, act) {
  const made = html("button", { id, type: "button", title: hint }, parent, label);
  made.addEventListener("click", (event) => { act(); if (event.detail) made.blur(); });
  return made;
}

let input = null;
function makeHead() {
  const head = html("div", { id: "head" }, make("foreignObject", { id: "head-box", x: 0, y: 0 }, svg));
  html("h1", { id: "title", title: picture.title }, head, picture.title);
  html("div", { id: "subtitle" }, head, picture.subtitle);
  const tools = html("div", { id: "tools" }, head), set = (id) => html("span", { id, class: "set" }, tools);
  const search = set("searching");
  input = html("input", { id: "search", type: "text", placeholder: "Search by regular expression   /",
    spellcheck: "false", autocomplete: "off", "aria-label": "Search functions" }, search);
  input.addEventListener("input", () => { runSearch(); keepState(); });
  button(search, "case", "Aa", "Match upper and lower case as written", () => { find("case").classList.toggle("on"); runSearch(); keepState(); });
  button(search, "previous", "↑", "Previous match (N, Shift-Enter)", () => step(-1));
  button(search, "next", "↓", "Next match (n, Enter)", () => step(1));
  html("span", { id: "matched" }, search);
  const look = set("look");
  button(look, "turn", "Icicle", "Root above or below (i)", turn);
  button(look, "reverse", "Callees first", "Merge from the leaves on (r)", reverse);
  if (doc.threads.length > 1 && !picture.diff) button(look, "split", "Threads", "Each thread by itself (t)", splitThreads);
  button(look, "table", "Functions", "Table of functions, callers and callees (f)", toggleTable);
  const back = set("back");
  button(back, "undo", "Undo", "Bring back what was removed last (u)", undo);
  button(back, "reset", "Reset zoom", "Show everything again (Esc)", reset);
  button(back, "keys", "?", "Keys", toggleHelp);
  const line = html("div", { id: "line" }, head);
  html("span", { id: "details" }, line);
  const acts = html("span", { id: "acts", class: "set" }, line);
  button(acts, "copy-name", "Copy name", "c", () => copy(false));
  button(acts, "copy-stack", "Copy stack", "Shift-C", () => copy(true));
  button(acts, "remove", "Remove", "Take these samples out of the picture (x)", () => remove(false));
  button(acts, "remove-all", "Remove function", "Take out all samples with this function on the stack (Shift-X)", () => remove(true));
  button(acts, "choose", "Callers, callees", "In the table of functions (Enter)", choose);
}

function makeFoot() {
  const foot = html("div", { id: "footer" }, make("foreignObject", { id: "foot-box", x: 0 }, svg));
  const legend = html("div", { id: "legend" }, foot);
  for (const [kind, label] of picture.legend) {
    const key = html("span", { class: "key" }, legend);
    make("rect", { class: kind, width: 13, height: 13, rx: 2 }, make("svg", { width: 13, height: 13 }, key));
    html("span", {}, key, label);
  }
  html("p", { class: "truth" }, foot, picture.truth);
  const facts = html("dl", {}, foot);
  for (const [label, value] of picture.facts) {
    if (label.endsWith("command")) {
      facts.before(html("p", { title: value }, null, `${label}: ${value}`));
      continue;
    }
    const pair = html("div", {}, facts);
    html("dt", {}, pair, label);
    html("dd", { title: value }, pair, value);
  }
  for (const note of picture.notes) html("p", {}, foot, note);
}

function draw() {
  drawAt(pageWidth());
  if (pageWidth() !== pageDrawn) drawAt(pageWidth()); // a scroll bar has come or gone
}
const pageWidth = () => Math.max(LEAST_WIDTH, svg.getBoundingClientRect().width || 1200);
let pageDrawn = 0;
function drawAt(page) {
  pageDrawn = page;
  const beside = tableOpen() && page >= 2 * SIDE;
  width = beside ? page - SIDE : page;
  headHeight = fitBox("head", page, window.scrollY);
  blocks = view.root.ticks ? layout(width - 2 * PAD) : [];
  const inner = width - 2 * PAD, rows = blocks.reduce((n, b) => Math.max(n, b.row + 1), 1);
  const frames = make("g", { id: "frames", class: hits ? "searching" : "" });
  frames.setAttribute("transform", `translate(0 ${headHeight})`);
  blocks.forEach((block, index) => {
    const x = PAD + block.x * inner, w = Math.max(block.w * inner - .6, .6);
    const y = ROW * (upward ? rows - 1 - block.row : block.row), name = nameOf(block);
    const g = make("g", { class: "frame", "data-block": index, "data-name": name,
      "data-module": moduleOf(block), "data-samples": ticksOf(block) }, frames);
    block.element = g;
    make("rect", { class: classOf(block), x: x.toFixed(2), y, width: w.toFixed(2), height: ROW - 1, rx: 1.5 }, g);
    const room = Math.floor((w - 5) / CHAR), text = room < 3 ? "" : crop(name, room);
    if (text) make("text", { x: (x + 3).toFixed(2), y: y + 12.5 }, g, text);
    mark(block);
  });
  if (!blocks.length) make("text", { class: "why", x: PAD, y: 24 }, frames, "Nothing is left to be shown; Undo brings it back.");
  find("frames").replaceWith(frames);
  const bottom = headHeight + ROW * rows;
  const footHeight = fitBox("foot", width, bottom + 10);
  const sideHeight = placeTable(beside, page, headHeight, bottom);
  svg.setAttribute("height", Math.max(bottom + footHeight + 10, sideHeight));
  find("reset").classList.toggle("off", view.node === view.root && !view.only);
  find("undo").classList.toggle("off", !removals.length);
  find("turn").textContent = upward ? "Icicle" : "Flames";
  find("reverse").classList.toggle("on", view.root.reverse);
  find("split")?.classList.toggle("on", splitByThread);
  find("table").classList.toggle("on", tableOpen());
  showDetails(null);
  showMatched();
}

// A box of HTML gets the height that it takes at this width.
function fitBox(which, wide, y) {
  const box = find(which + "-box");
  for (const [key, value] of [["width", wide], ["y", y], ["height", 10]]) box.setAttribute(key, value);
  const high = Math.ceil(box.firstChild.getBoundingClientRect().height);
  box.setAttribute("height", high);
  return high;
}

function mark(block) {
  const held = hits && group(block) && group(block).kids.some(holdsHit);
  const states = { above: block.above, hit: isCode(block) && isHit(block.v), "holds-hit": held, selected: isCode(block) && block.v === selected };
  block.element.setAttribute("class", ["frame", ...Object.keys(states).filter((state) => states[state])].join(" "));
}

function markAll() {
  find("frames").classList.toggle("searching", !!hits);
  blocks.forEach(mark);
  showMatched();
}

let shown = null; // what the line of details and the keys c, x and Enter are about
function showDetails(block) {
  const focus = blocks.find((b) => isCode(b) && b.v === selected) ?? blocks.find((b) => b.v === view.node && !b.folded);
  const chosen = selected || view.node !== view.root;
  shown = block ?? (chosen ? focus : null);
  find("acts").classList.toggle("off", !shown || !isCode(shown) || !shown.v.parent);
  const details = find("details");
  if (!shown) {
    details.textContent = "Point at a frame for its figures; click to zoom; ? for the keys.";
    details.removeAttribute("title");
    return;
  }
  const module = moduleOf(shown), name = nameOf(shown);
  details.replaceChildren();
  html("b", {}, details, name.length > 300 ? name.slice(0, 300) + "…" : name);
  if (module) html("i", {}, details, ` [${module}]`);
  if (lineOf(shown)) html("i", {}, details, ` ${lineOf(shown)}`);
  html("span", {}, details, "  " + figures(shown).join("  "));
  details.setAttribute("title", tooltip(shown));
}
const tooltip = (block) => [nameOf(block), moduleOf(block), lineOf(block), ...figures(block)].filter(Boolean).join("\n");

const HELP = [["click", "zoom to a frame, or back to one above it"], ["Esc", "clear the search, then reset the zoom"],
  ["/  Ctrl-F", "search by regular expression"], ["Enter  n", "next match; Shift-Enter, N: the one before"],
  ["arrows", "select a frame; Space: zoom to it"], ["i", "root above or below (icicle, flames)"],
  ["r", "callers first or callees first"], ["t", "each thread by itself"], ["f", "table of functions"],
  ["Enter", "callers and callees of the selected frame"], ["x  Alt-click", "remove these samples"],
  ["X", "remove the function wherever it is"], ["u", "undo a removal"], ["c  C", "copy the name, the whole stack"],
  ["?", "show or hide this"]];
function toggleHelp() {
  if (find("help")) return find("help").parentNode.remove();
  const box = make("foreignObject", { width: Math.min(400, svg.clientWidth - 2 * PAD), height: 400 }, svg);
  const help = html("div", { id: "help" }, box);
  for (const [keys, what] of HELP) {
    const row = html("div", {}, help);
    html("kbd", {}, row, keys);
    html("span", {}, row, what);
  }
  const wide = +box.getAttribute("width");
  box.setAttribute("x", Math.max(PAD, (svg.clientWidth - wide) / 2));
  box.setAttribute("y", window.scrollY + headHeight);
  box.setAttribute("height", Math.ceil(help.getBoundingClientRect().height) + 20);
}
