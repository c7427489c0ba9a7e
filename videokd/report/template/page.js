"use strict";
const sortKey = cell => cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
  : typeof a === typeof b ? a.localeCompare(b, "en", { numeric: true })
  : typeof a === "number" ? -1 : 1;
for (const button of document.querySelectorAll("table.sortable thead button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, place = head.cellIndex, body = head.closest("table").tBodies[0];
    const rows = [...body.rows], keys = new Map(rows.map(row => [row, sortKey(row.cells[place])]));
    // Numbers begin with the largest, names with the first; what is unknown, or a word among numbers, stays at the end.
    const numbers = rows.some(row => typeof keys.get(row) === "number"), first = numbers ? "descending" : "ascending";
    const other = { ascending: "descending", descending: "ascending" };
    const order = head.ariaSort === "none" || head.ariaSort === null ? first : other[head.ariaSort];
    for (const one of head.parentElement.cells) one.ariaSort = "none";
    head.ariaSort = order;
    const unknown = row => keys.get(row) === "–" || numbers && typeof keys.get(row) !== "number";
    rows.sort((a, b) => unknown(a) - unknown(b)
      || compare(keys.get(a), keys.get(b)) * (order === "ascending" ? 1 : -1));
    body.append(...rows);
  });
}
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", () => {
    const text = button.nextElementSibling;
    const done = () => { button.textContent = "Copied"; };
    const select = () => getSelection().selectAllChildren(text);
    navigator.clipboard ? navigator.clipboard.writeText(text.textContent).then(done, select) : select();
  });
}
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
  const seen = new IntersectionObserver(entries => {
    for (const { target, isIntersecting } of entries) isIntersecting ? target.play().catch(() => {}) : target.pause();
  });
  for (const video of document.querySelectorAll("video.loop")) seen.observe(video);
}
