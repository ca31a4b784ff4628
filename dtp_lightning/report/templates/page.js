"use strict";
// Sorting and filtering; the address can ask for it: #sort=cells:knn:desc&filter=dtp
const valueOf = (row, column) => {
  const cell = row.cells[column];
  const value = cell.dataset.value ?? cell.textContent.trim();
  if (value === "–") return null; // nothing there: last, whichever way
  return value !== "" && !Number.isNaN(Number(value)) ? Number(value) : value;
};

function sort(table, column, direction) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? direction : "none"));
  const sign = direction === "ascending" ? 1 : -1;
  const compare = (a, b) => {
    const [x, y] = [valueOf(a, column), valueOf(b, column)];
    if (x === null || y === null) return (x === null) - (y === null);
    if (typeof x === "number" && typeof y === "number") return sign * (x - y);
    return sign * String(x).localeCompare(String(y), "en", { numeric: true });
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}

for (const table of document.querySelectorAll("table[id]")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      // numbers begin with the largest, words with the first
      const first = head.classList.contains("number") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      sort(table, column, head.getAttribute("aria-sort") === first ? other : first);
    });
  });
}

const box = document.getElementById("filter");
function filter() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...document.querySelectorAll("#cells tbody tr")];
  rows.forEach((row) => { row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word)); });
  const shown = rows.filter((row) => !row.hidden).length;
  document.getElementById("shown").textContent = words.length ? `${shown} of ${rows.length} rows` : "";
}
box.addEventListener("input", filter);
box.parentElement.hidden = false;

function obeyAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const [name, title, direction] = (asked.get("sort") ?? "").split(":");
  const table = name && document.getElementById(name);
  if (table?.tHead) {
    const column = [...table.tHead.rows[0].cells].findIndex((head) => head.textContent.trim() === title);
    if (column >= 0) sort(table, column, direction === "desc" ? "descending" : "ascending");
  }
  if (asked.has("filter")) { box.value = asked.get("filter"); filter(); }
}
window.addEventListener("hashchange", obeyAddress);
obeyAddress();

// pictures stay in the run folders: where those are gone, so is the picture's place
const drop = (image) => image.closest("a").remove();
for (const image of document.querySelectorAll(".thumbnails img")) {
  image.addEventListener("error", () => drop(image));
  if (image.complete && !image.naturalWidth && image.loading !== "lazy") drop(image);
}
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => { d.open = true; }));
