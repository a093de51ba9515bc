// Charts: each one follows the page's light or dark colours.
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function look() {
  const ink = dark.matches ? "#d7dbe2" : "#2b303a";
  const line = dark.matches ? "#3a404b" : "#e2e5ea";
  const axis = { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line };
  const text = { labelColor: ink, titleColor: ink };
  return { background: "transparent", axis, legend: text, header: text, view: { stroke: null }, font: "system-ui, sans-serif" };
}

async function drawCharts() {
  for (const chart of document.querySelectorAll("figure.chart")) {
    const spec = JSON.parse(chart.querySelector("script").textContent);
    const tooltip = { theme: dark.matches ? "dark" : "light" };
    // ast: expressions are interpreted, because the content security policy forbids compiling them.
    const options = { mode: "vega-lite", ast: true, actions: false, renderer: "svg", config: look(), tooltip };
    await window.vegaEmbed(chart.querySelector(".plot"), spec, options);
  }
  document.documentElement.dataset.ready = "true";
}

// Tables: a heading sorts by its column, a second press the other way round; the filter keeps rows with all its words.
function key(cell) {
  if (!("value" in cell.dataset)) return cell.textContent.trim().toLowerCase();
  return cell.dataset.value === "" ? null : Number(cell.dataset.value);
}

function compare(a, b) {
  if (a === null || b === null) return null;
  return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
}

function sortBy(table, heading) {
  const column = [...heading.parentNode.children].indexOf(heading);
  const way = heading.ariaSort === "ascending" ? -1 : 1;
  for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
  heading.ariaSort = way === 1 ? "ascending" : "descending";
  const rows = [...table.tBodies[0].rows].map((row) => [key(row.cells[column]), row]);
  rows.sort(([a], [b]) => {
    const order = compare(a, b);
    return order === null ? (a === null) - (b === null) : way * order; // empty cells come last, either way
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

function filterRows(box) {
  const words = box.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of box.querySelector("tbody").rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  box.querySelector(".count").textContent = `${shown} rows`;
}

for (const box of document.querySelectorAll(".tablebox")) {
  const table = box.querySelector("table");
  for (const heading of table.querySelectorAll("th")) {
    heading.querySelector("button").addEventListener("click", () => sortBy(table, heading));
  }
  box.querySelector("input")?.addEventListener("input", () => filterRows(box));
}

dark.addEventListener("change", drawCharts);
drawCharts();
