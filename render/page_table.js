// The table of functions beside the picture; callers and callees of the one that is chosen.
const MOST_ROWS = 300, NEIGHBOURS = 30;
let sortBy = "self", chosenFrame = null, table = null, rowsOf = null, tableTop = null; // where in the window it is beside the picture

const tableOpen = () => !!table;

function toggleTable() {
  if (table) {
    table.remove();
    table = null;
  } else {
    table = make("foreignObject", { id: "table-box" });
    find("head-box").before(table);
    html("div", { id: "side" }, table);
    fillTable();
  }
  draw();
}

function placeTable(beside, page, top, bottom) {
  if (!table) return 0;
  tableTop = beside ? top : null;
  const high = Math.max(320, beside ? Math.min(window.innerHeight - top - PAD, 900) : 420);
  const place = beside ? { x: page - SIDE, y: window.scrollY + top, width: SIDE - PAD } : { x: PAD, y: bottom + 10, width: page - 2 * PAD };
  for (const key in place) table.setAttribute(key, place[key]);
  table.setAttribute("height", high);
  if (beside) return top + high + PAD;
  const foot = +find("foot-box").getAttribute("height");
  find("foot-box").setAttribute("y", bottom + high + 20);
  return bottom + high + foot + 30;
}

// Beside the picture it stays where it is in the window.
function moveTable() { if (table && tableTop !== null) table.setAttribute("y", window.scrollY + tableTop); }

function functionRow(body, frame, columns, title) {
  const row = html("tr", { "data-name": names[frame] ?? "", title }, body);
  for (const text of columns) html("td", { class: "n" }, row, text);
  const cell = html("td", {}, row);
  make("rect", { class: frame === REST ? "r" : kinds[frame], width: 9, height: 9, rx: 2 }, make("svg", { width: 9, height: 9 }, cell));
  const name = frame === REST ? "(smaller ones)" : nameOfFrame(frame, 0);
  html("span", {}, cell, " " + (name.length > 200 ? name.slice(0, 200) + "…" : name));
  if (frame !== REST && kinds[frame] !== "b") row.addEventListener("click", () => { chosenFrame = frame; fillTable(); keepState(); });
  return row;
}

function fillTable() {
  if (!table) return;
  const side = table.firstChild, whole = tree.total[0];
  const scrolled = side.querySelector(".list")?.scrollTop ?? 0;
  side.replaceChildren();
  rowsOf ??= functionTable();
  const all = hits ? rowsOf.filter((row) => hits[row.frame]) : rowsOf;
  const other = sortBy === "self" ? "total" : "self";
  all.sort((a, b) => b[sortBy] - a[sortBy] || b[other] - a[other] || a.frame - b.frame);
  const list = html("div", { class: "list" }, side), tab = html("table", { id: "functions" }, list);
  const head = html("tr", {}, html("thead", {}, tab)), body = html("tbody", {}, tab);
  for (const key of ["self", "total"]) {
    const cell = html("th", { "data-sort": key, class: sortBy === key ? "on" : "", title: `Sort by ${key}` }, head, key);
    cell.addEventListener("click", () => { sortBy = key; fillTable(); keepState(); });
  }
  html("th", { class: "name" }, head, `function${hits ? " (those that match)" : ""}`);
  for (const row of all.slice(0, MOST_ROWS)) {
    const figures = [share(row.self, whole), share(row.total, whole)];
    const title = `${names[row.frame]}\n${modules[row.frame]}\nself ${number(row.self)}, total ${number(row.total)} ${unit}`;
    functionRow(body, row.frame, figures, title).classList.toggle("on", row.frame === chosenFrame);
  }
  if (all.length > MOST_ROWS) html("p", {}, list, `and ${number(all.length - MOST_ROWS)} more; search to narrow them down`);
  list.scrollTop = scrolled;
  if (chosenFrame !== null) sandwich(side, rowsOf.find((row) => row.frame === chosenFrame));
}

function sandwich(side, row) {
  const part = html("div", { id: "sandwich" }, side), total = row?.total ?? 0;
  for (const [callers, label] of [[true, "called by"], [false, "calls"]]) {
    const found = neighbours(chosenFrame, callers), tab = html("table", { id: callers ? "callers" : "callees" }, part);
    const head = html("tr", {}, html("thead", {}, tab)), body = html("tbody", {}, tab);
    for (const text of ["of it", unit]) html("th", {}, head, text);
    const title = callers ? `${crop(names[chosenFrame], 30)} is called by` : "and calls";
    html("th", { class: "name", title: names[chosenFrame] }, head, found.length ? title : `${title} nothing`);
    for (const { frame, ticks } of found.slice(0, NEIGHBOURS))
      functionRow(body, frame, [share(ticks, total), number(ticks)], names[frame] ?? "");
    if (found.length > NEIGHBOURS) html("p", {}, part, `and ${number(found.length - NEIGHBOURS)} more ${label}`);
  }
}

function choose() {
  if (!shown || !isCode(shown) || kinds[shown.v.frame] === "b") return;
  chosenFrame = shown.v.frame;
  if (table) fillTable(); else toggleTable();
  keepState();
}
