// Tables are sorted by a click on a column's name; those that are cut off say that they scroll.
"use strict";
function sort(table, head) {
  const descending = head.ariaSort !== "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const sign = descending ? -1 : 1;
  const text = row => row.cells[head.cellIndex].textContent;
  const number = row => parseFloat(text(row).replaceAll(",", ""));
  const lacks = row => isNaN(number(row)) ? 1 : 0;
  const order = head.classList.contains("number")
    ? (a, b) => lacks(a) - lacks(b) || sign * (number(a) - number(b)) || 0
    : (a, b) => -sign * text(a).localeCompare(text(b), "en", { numeric: true });
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
}
for (const table of document.querySelectorAll(".results table")) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.title = "sort by this column";
    button.append(...head.childNodes);
    button.onclick = () => sort(table, head);
    head.append(button);
  }
}
const width = new ResizeObserver(entries => {
  for (const { target } of entries)
    target.classList.toggle("cut", target.scrollWidth > target.clientWidth + 1);
});
for (const area of document.querySelectorAll(".scroll")) {
  width.observe(area);
}
