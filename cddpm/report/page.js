"use strict";
// A click on a heading sorts its table: numbers downwards first, names upwards first; what has no value stays last.
function valueOf(row, column) {
  const cell = row.cells[column];
  if ("value" in cell.dataset) return Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return text === "" || text === "-" ? null : text;
}
function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a.localeCompare(b, "en", { numeric: true });
}
function sortBy(heading) {
  const table = heading.closest("table");
  const body = table.tBodies[0];
  const column = heading.cellIndex;
  const rows = Array.from(body.rows, (row) => ({ row, value: valueOf(row, column) }));
  const numeric = rows.some((entry) => typeof entry.value === "number");
  const before = heading.getAttribute("aria-sort");
  const upwards = before ? before === "descending" : !numeric;
  rows.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
    return upwards ? compare(a.value, b.value) : compare(b.value, a.value);
  });
  for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", upwards ? "ascending" : "descending");
  body.append(...rows.map((entry) => entry.row));
}
for (const button of document.querySelectorAll("table.sortable thead button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}
