"use strict";
// Sorting and filtering. The page is whole without them: this file adds the controls, and moves or hides rows.

// -- sorting: within each group of rows, cells without a value last, equal ones as they were ----------------------------

function keyOf(row, column, kind) {
  const cell = row.cells[column];
  const text = cell.textContent.trim();
  if (kind === "text") return text;
  const number = parseFloat(text.replace(/[<,]/g, "").replace("−", "-"));
  return Number.isNaN(number) ? null : number;
}

const collator = new Intl.Collator("en", { numeric: true });

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  return sign * (typeof a === "string" ? collator.compare(a, b) : a - b);
}

function sort(table, th) {
  const next = { none: "ascending", ascending: "descending", descending: "none" }[th.getAttribute("aria-sort") || "none"];
  for (const other of table.tHead.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
  th.setAttribute("aria-sort", next);
  const sign = next === "descending" ? -1 : 1;
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => row.dataset.place !== undefined);
    rows.sort((a, b) => a.dataset.place - b.dataset.place);
    if (next !== "none") {
      const keys = new Map(rows.map((row) => [row, keyOf(row, th.cellIndex, th.dataset.kind)]));
      rows.sort((a, b) => compare(keys.get(a), keys.get(b), sign));
    }
    body.append(...rows);
  }
}

for (const table of document.querySelectorAll("table:not(.plain)")) {
  for (const body of table.tBodies) {
    [...body.rows].filter((row) => row.className !== "group").forEach((row, place) => (row.dataset.place = place));
  }
  for (const th of table.tHead.querySelectorAll("th[data-kind]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...th.childNodes);
    button.addEventListener("click", () => sort(table, th));
    th.append(button);
    th.setAttribute("aria-sort", "none");
  }
}

// -- filtering: shows or hides everything that belongs to a method or a source model -------------------------------------

const filter = document.getElementById("filter");
const form = filter.querySelector("form");
const parts = [...document.querySelectorAll("main [data-labels], main [data-model]")];
const texts = new Map(parts.map((part) => [part, `${part.textContent} ${part.dataset.model || ""}`.toLowerCase()]));

function off(name) {
  return new Set([...form.querySelectorAll(`[name="${name}"]:not(:checked)`)].map((box) => box.value));
}

function apply() {
  const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
  const models = off("model");
  const labels = off("label");
  for (const part of parts) {
    const own = JSON.parse(part.dataset.labels || "[]");
    const chosen = !own.some((label) => labels.has(label)) && !models.has(part.dataset.model);
    part.hidden = !chosen || !words.every((word) => texts.get(part).includes(word));
  }
  for (const table of document.querySelectorAll("main table:not(.plain)")) tidy(table);
  const rows = parts.filter((part) => part.tagName === "TR");
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("shown").textContent = shown < rows.length ? `(${shown} of ${rows.length} rows shown)` : "";
}

function tidy(table) {
  // groups without a row lose their head; a table without a row says why
  let any = false;
  for (const body of table.tBodies) {
    const some = [...body.rows].some((row) => row.dataset.place !== undefined && !row.hidden);
    body.hidden = !some;
    any ||= some;
  }
  let foot = table.tFoot;
  if (!any && !foot) {
    foot = table.createTFoot();
    foot.className = "empty";
    const cell = foot.insertRow().insertCell();
    cell.colSpan = table.tHead.rows[table.tHead.rows.length - 1].cells.length;
    cell.textContent = "no row matches the filter";
  }
  if (foot) foot.hidden = any;
}

form.addEventListener("input", apply);
form.addEventListener("reset", () => setTimeout(apply));
form.addEventListener("submit", (event) => event.preventDefault());
filter.hidden = false;
apply(); // a browser may keep the form as it was before a reload
