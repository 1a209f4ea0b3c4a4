// Draws the charts and lets tables be sorted and shortened. Without it, every table is there in full.
"use strict";

const {charts, config, datasets} = JSON.parse(document.getElementById("charts").textContent);

// `ast`: expressions are interpreted, so that the page needs no eval.
const options = {mode: "vega-lite", ast: true, actions: false, renderer: "svg", defaultStyle: false, config,
                 tooltip: {disableDefaultStyle: true}};

async function draw() {
  for (const [name, spec] of Object.entries(charts)) {
    await vegaEmbed(document.getElementById(name), {...spec, datasets}, options);
  }
  document.documentElement.dataset.drawn = Object.keys(charts).length;
}

function valueOf(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  return text !== "" && isFinite(text) ? Number(text) : text;
}

function compare(a, b) {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b, undefined, {numeric: true});
}

function sortBy(table, header, column) {
  const down = header.getAttribute("aria-sort") === "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((a, b) => compare(valueOf(a, column), valueOf(b, column)) * (down ? 1 : -1));
  body.append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortBy(table, header, column));
    header.append(button);
  });
}

const SHORT = 20; // rows that report.css leaves of a short table

for (const table of document.querySelectorAll("table.long")) {
  if (table.tBodies[0].rows.length <= SHORT + 5) continue;
  const button = document.createElement("button");
  const shorten = (on) => {
    table.classList.toggle("short", on);
    button.textContent = on ? `Show all ${table.tBodies[0].rows.length}` : "Show fewer";
  };
  button.className = "more";
  button.addEventListener("click", () => shorten(!table.classList.contains("short")));
  table.closest(".scroll").after(button);
  shorten(true);
}

draw();
