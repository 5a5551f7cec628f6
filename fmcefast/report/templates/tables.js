"use strict";
// Tables whose columns sort by a click on their heads: numbers by value, anything else by its letters.

function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  if (table.tBodies[0].rows.length < 3) return;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      const key = (row) => valueOf(row.cells[column]);
      rows.sort((a, b) => (ascending ? 1 : -1) * compareValues(key(a), key(b)));
      table.tBodies[0].append(...rows);
    });
  });
}

function valueOf(cell) {
  const text = cell.dataset.value ?? cell.textContent.trim();
  const number = parseFloat(text.replaceAll(",", "").replace("\u2212", "-"));
  return Number.isNaN(number) ? text : number;
}

function compareValues(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === typeof b) return a.localeCompare(b);
  return typeof a === "number" ? -1 : 1; // cells without a number come last
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
