for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, place) => row.cells[place].dataset.v ?? row.cells[place].textContent.trim();
  const compared = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  const sort = (head, place) => {
    const turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const rows = [...body.rows].map(row => [key(row, place), row]);
    rows.sort(([a], [b]) => (a === "–") - (b === "–") || turn * compared(a, b));
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", turn > 0 ? "ascending" : "descending");
    body.append(...rows.map(([, row]) => row));
  };
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(head, place));
    head.append(button);
  });
}
