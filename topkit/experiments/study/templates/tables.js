// Tables of a page: a click on a head sorts, a field filters, and each keeps its first column in view.
"use strict";
(() => {
  const number = (text) => {
    const found = /^[+\-−]?\d[\d,]*(\.\d+)?/.exec(text);
    return found ? parseFloat(found[0].replace("−", "-").replaceAll(",", "")) : NaN;
  };
  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    if (Number.isNaN(x) && Number.isNaN(y)) return a.localeCompare(b);
    return Number.isNaN(x) ? 1 : Number.isNaN(y) ? -1 : x - y;
  };
  const shown = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };

  function sort(table, head) {
    const column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    const texts = new Map(rows.map((row) => [row, shown(row, column)]));
    rows.sort((a, b) => {
      const [one, other] = [texts.get(a), texts.get(b)];
      // What is not there stands last, whichever way.
      if (!one || !other) return !one - !other;
      return down ? compare(other, one) : compare(one, other);
    });
    table.tBodies[0].append(...rows);
  }

  function filter(table, words) {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
  }

  for (const frame of document.querySelectorAll(".table[data-sorts]")) {
    const table = frame.querySelector("table");
    for (const head of table.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, head));
    }
    if (table.tBodies[0].rows.length < 6) continue;
    const field = document.createElement("input");
    field.type = "search";
    field.placeholder = "filter rows";
    field.setAttribute("aria-label", "filter rows");
    field.addEventListener("input", () => filter(table, field.value));
    frame.before(field);
  }
})();
