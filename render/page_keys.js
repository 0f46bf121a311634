// What can be done, by pointer and keys, and the address that keeps it: stacks as hashes of their frames,
// so that it means the same in a window of another width, or in another profile of the same program.

let anchor = null, found = [], foundAt = -1; // the matches that n and N go through, and in which view

function runSearch() {
  const regexp = input.value ? regexpFrom(input.value, find("case").classList.contains("on") ? "" : "i") : null;
  input.classList.toggle("wrong", regexp === undefined);
  searchFor(regexp);
  anchorSearch();
  markAll();
  fillTable();
}
function regexpFrom(text, flags) {
  for (const more of ["u", ""]) // some take escapes that Unicode's form does not know
    try { return new RegExp(text, flags + more); } catch { continue; }
}
function anchorSearch() {
  anchor = { tops: shownTops(), part: view.node !== view.root || !!view.only };
  found = hits ? hitsBelow(anchor.tops) : [];
  foundAt = -1;
}
function showMatched() {
  let text = input.classList.contains("wrong") ? "not a regular expression" : "";
  if (hits) {
    const whole = sum(anchor.tops, (v) => v.ticks), ticks = sum(anchor.tops, matchedTicks);
    const of = number(found.length) + (found.length >= HIT_LIMIT ? "+" : "");
    text = `${foundAt < 0 ? "" : number(foundAt + 1) + " of "}${of} · matched ${share(ticks, whole)} (${number(ticks)} ${unit})` +
      (anchor.part ? " of this view" : "");
  }
  find("matched").textContent = text;
  find("matched").title = text;
}
function step(by) {
  if (!found.length) return;
  foundAt = foundAt < 0 ? (by > 0 ? 0 : found.length - 1) : (foundAt + by + found.length) % found.length;
  select(found[foundAt]);
}
function select(v) {
  selected = v;
  let block = blocks.find((b) => isCode(b) && b.v === v);
  if (!block) { // too small to be drawn, or out of the view
    view = { ...view, node: v, only: null };
    draw();
    block = blocks.find((b) => isCode(b) && b.v === v);
  } else markAll();
  showDetails(null);
  showMatched();
  reveal(block);
  keepState();
}
// Scrolls no more than it takes; the head covers the upper edge.
function reveal(block) {
  const at = block?.element.getBoundingClientRect();
  if (at) window.scrollBy(0, at.bottom > window.innerHeight ? at.bottom - window.innerHeight + PAD : Math.min(0, at.top - headHeight));
}
function clearSearch() { input.value = ""; input.blur(); runSearch(); keepState(); }

function look(next) { // at something else: what was found is found anew there
  view = next;
  anchorSearch();
  draw();
  reveal(blocks.find((b) => b.v === view.node && !b.folded));
  keepState();
}
function zoom(block) {
  selected = null;
  if (block.v) return look({ root: view.root, node: block.v, only: null });
  const { parent, kids } = group(block);
  if (block.deeper) return look({ root: view.root, node: parent, only: null });
  look({ root: view.root, node: parent, only: kids.some((k) => k.frame !== REST) ? kids : null });
}
function reset() { selected = null; look({ root: view.root, node: view.root, only: null }); }

// The views of a tree that has changed: the same place, as far as it is still there.
function again(reverse = view.root.reverse, path = hashesOf(view.node)) {
  recount();
  rowsOf = null;
  selected = null;
  const root = rootView(reverse);
  view = { root, node: follow(root, path), only: null };
  runSearch();
  draw();
}
function turn() { upward = !upward; draw(); keepState(); }
function reverse() { again(!view.root.reverse, []); keepState(); }
function splitThreads() {
  splitByThread = !splitByThread;
  tree = plantTree();
  const before = removals;
  removals = [];
  recount();
  removals = before.map(({ key }) => removalFrom(key)).filter(Boolean);
  again(view.root.reverse, []);
  keepState();
}

// Removals: the places in the tree whose samples are left out, and a key to find them by again.
function removal(v, everywhere) {
  const nodes = [], below = (node) => { for (let at = node; at < tree.end[node]; at++) nodes.push(at); };
  if (everywhere) {
    for (let node = 1; node < tree.n; node++) if (tree.frame[node] === v.frame) { below(node); node = tree.end[node] - 1; }
    return { nodes, key: "f." + hashes[v.frame] };
  }
  if (v.reverse) nodes.push(...v.src);
  else v.src.forEach(below);
  return { nodes, key: (v.reverse ? "r." : "c.") + hashesOf(v).join(".") };
}
function removalFrom(key) {
  const [kind, ...path] = key.split(".");
  if (kind === "f") {
    const frame = hashes.indexOf(path[0]);
    return frame < 0 ? null : removal({ frame }, true);
  }
  const root = rootView(kind === "r");
  if (kind === "c" && splitByThread && !kidsOf(root).some((kid) => hashOf(kid) === path[0])) { // of all threads
    const found = kidsOf(root).map((kid) => follow(kid, path)).filter((v) => v.depth === path.length + 1);
    return found.length ? { nodes: found.flatMap((v) => removal(v, false).nodes), key } : null;
  }
  const v = follow(root, path);
  return v.depth === path.length && v.depth ? removal(v, false) : null;
}
function remove(everywhere) {
  if (!shown || !isCode(shown) || !shown.v.parent || everywhere && kinds[shown.v.frame] === "b") return;
  removals.push(removal(shown.v, everywhere));
  again();
  keepState();
}
function undo() {
  if (!removals.pop()) return;
  again();
  keepState();
}

function stackText(v) {
  const path = pathOf(v).slice(1).map(frameName);
  return (v.reverse ? path.reverse() : path).join("\n");
}
async function copy(stack) {
  if (!shown) return;
  const text = shown.v && stack ? stackText(shown.v) : nameOf(shown);
  const said = find("details");
  try {
    await navigator.clipboard.writeText(text);
    said.textContent = stack ? "The stack is in the clipboard." : "The name is in the clipboard.";
  } catch { // no clipboard for this page: a text to take it from
    window.prompt("Copy:", text.replaceAll("\n", ";"));
  }
}

// A view narrowed down to some children: their hashes, or with a "-" those of the others if these are fewer.
function onlyText() {
  if (!view.only) return "";
  const others = kidsOf(view.node).filter((kid) => !view.only.includes(kid)), few = others.length < view.only.length;
  return (few ? "-" : "") + (few ? others : view.only).map(hashOf).join(".");
}
function onlyFrom(text) {
  const listed = new Set(text.replace("-", "").split(".")), without = text.startsWith("-");
  const only = text ? kidsOf(view.node).filter((kid) => listed.has(hashOf(kid)) !== without) : [];
  return only.some((kid) => kid.frame !== REST) ? only : null;
}

// The address.
let restoring = false;
function keepState() {
  if (restoring) return;
  const state = [["v", (view.root.reverse === picture.reverse ? "" : "r") + (upward === !picture.inverted ? "" : "i") + (splitByThread === picture.threads ? "" : "t")],
    ["z", hashesOf(view.node).join(".")], ["o", onlyText()], ["s", input.value], ["case", find("case").classList.contains("on") ? "1" : ""],
    ["x", removals.map(({ key }) => key).join("~")], ["f", tableOpen() ? (chosenFrame === null ? "-" : hashes[chosenFrame]) : ""],
    ["sort", sortBy === "self" ? "" : sortBy]];
  const text = new URLSearchParams(state.filter(([, value]) => value)).toString();
  if (text !== location.hash.slice(1)) history.replaceState(null, "", "#" + text);
}
function restoreState() {
  const state = new URLSearchParams(location.hash.slice(1)), flags = state.get("v") ?? "";
  restoring = true;
  upward = flags.includes("i") ? picture.inverted : !picture.inverted;
  splitByThread = flags.includes("t") !== picture.threads;
  tree = plantTree();
  removals = [];
  recount();
  removals = (state.get("x") ?? "").split("~").filter(Boolean).map(removalFrom).filter(Boolean);
  input.value = state.get("s") ?? "";
  find("case").classList.toggle("on", state.get("case") === "1");
  sortBy = state.get("sort") === "total" ? "total" : "self";
  const chosen = state.get("f");
  chosenFrame = chosen && chosen !== "-" && hashes.includes(chosen) ? hashes.indexOf(chosen) : null;
  const reversed = flags.includes("r") !== picture.reverse;
  view = { root: null };
  const path = (state.get("z") ?? "").split(".").filter(Boolean);
  again(reversed, path);
  const only = view.node.depth === path.length ? onlyFrom(state.get("o") ?? "") : null;
  if (only) look({ ...view, only });
  if (!!chosen !== tableOpen()) toggleTable();
  restoring = false;
}

// One listener for all frames; a tooltip is made when it is first needed.
const blockAt = (event) => blocks[event.target.closest?.("g.frame")?.getAttribute("data-block")] ?? null;
function listen() {
  svg.addEventListener("click", (event) => {
    const block = blockAt(event);
    if (!block) return;
    if (event.altKey || event.ctrlKey || event.metaKey) { showDetails(block); remove(false); } else zoom(block);
  });
  svg.addEventListener("mouseover", (event) => {
    const block = blockAt(event);
    if (!block) { if (event.target === svg || event.target.classList?.contains("bg")) showDetails(null); return; }
    showDetails(block);
    if (!block.element.querySelector("title")) block.element.prepend(make("title", {}, null, tooltip(block)));
  });
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", restoreState);
  window.addEventListener("scroll", () => { find("head-box").setAttribute("y", window.scrollY); moveTable(); });
  let pending = 0;
  window.addEventListener("resize", () => { cancelAnimationFrame(pending); pending = requestAnimationFrame(draw); });
}
const KEYS = { "?": toggleHelp, i: turn, r: reverse, t: () => find("split") && splitThreads(), f: () => { toggleTable(); keepState(); },
  n: () => step(1), N: () => step(-1), x: () => remove(false), X: () => remove(true), u: undo, c: () => copy(false),
  C: () => copy(true), Enter: () => (found.length ? step(1) : choose()), " ": () => selected && zoom({ v: selected }),
  ArrowUp: () => move("up"), ArrowDown: () => move("down"), ArrowLeft: () => move(-1), ArrowRight: () => move(1) };
function move(where) {
  const v = selected ?? view.node, towards = where === "up" ? upward : !upward;
  if (typeof where === "number") {
    const row = v.parent && kidsOf(v.parent).filter((k) => k.frame !== REST), next = row?.[row.indexOf(v) + where];
    if (next) select(next);
  } else if (!towards) { if (v.parent) select(v.parent); }
  else {
    const heaviest = kidsOf(v).filter((k) => k.frame !== REST).sort((a, b) => b.ticks - a.ticks)[0];
    if (heaviest) select(heaviest);
  }
}
function onKey(event) {
  const typing = document.activeElement === input, key = event.key;
  if ((event.ctrlKey || event.metaKey) && key === "f" || key === "/" && !typing || key === "F3") {
    input.focus();
    input.select();
  } else if (key === "Escape") {
    if (find("help")) toggleHelp();
    else if (input.value || typing) clearSearch();
    else reset();
  } else if (key === "Enter" && typing) step(event.shiftKey ? -1 : 1);
  else if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  else if (key === "Enter" && event.shiftKey) step(-1);
  else if ((key === "Enter" || key === " ") && document.activeElement?.localName === "button") return;
  else if (KEYS[key]) KEYS[key]();
  else return;
  event.preventDefault();
}

async function start() {
  make("style", {}, svg, STYLE); // page.css
  readDocument(await unpacked(find("profile").textContent));
  if (!doc.samples.ticks.length) return svg.setAttribute("data-ready", ""); // the picture says why it is empty
  for (const id of ["still-head", "still-foot"]) find(id)?.remove();
  svg.removeAttribute("viewBox");
  svg.setAttribute("width", "100%");
  svg.style.minWidth = LEAST_WIDTH + "px";
  makeFoot();
  makeHead(); // last: the others are scrolled below it
  restoreState();
  listen();
  svg.setAttribute("data-ready", "");
  performance.mark("pyattach-drawn");
}
start();
