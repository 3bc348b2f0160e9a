/* Table of buildings beside the map. Rows come once from a route; grades follow the threshold while it is dragged, by
   three stored values a building. Shares need the server and are fetched when the threshold is let go. A row that is
   chosen here is shown on the map, a building that is clicked there is chosen here. */

const ROW = 28; // height of a row in pixels, as in buildings.css
const SPARE = 6; // rows drawn above and below the visible ones
const UNKNOWN = "–";
const BROKEN = { message: "The buildings cannot be read.", hint: "Reload the page, or look into the app's messages." };
const panels = new WeakMap();

export default function ({ parentElement, data }) {
  let panel = panels.get(parentElement);
  if (!panel) panels.set(parentElement, (panel = mount(parentElement, data)));
  return () => {
    panel.close();
    panels.delete(parentElement);
  };
}

function mount(root, data) {
  const part = (id) => root.querySelector(`#${id}`);
  const [state, totals, grid, head, scroll, body, reason] =
    ["state", "totals", "grid", "head", "scroll", "rows", "reason"].map(part);
  const number = (digits) => (value) => (value === null || value === undefined ? UNKNOWN
    : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  const percent = (value) => (value === null || value === undefined ? UNKNOWN : `${Math.round(100 * value)} %`);
  const columns = [
    { name: "Building", value: (row) => row.id, text: String },
    { name: "Grade", value: (row) => rank(row), text: (_, row) => data.grades[gradeOf(row)].name },
    { name: "Changed", value: (row) => shares?.[row.id] ?? null, text: percent, numeric: true },
    { name: "Mean", value: (row) => row.mean, text: number(2), numeric: true },
    { name: "Max", value: (row) => row.max, text: number(2), numeric: true },
    { name: data.unit, value: (row) => row.area, text: number(0), numeric: true },
  ];
  let [all, shown, threshold, shares, chosen, only] = [[], [], data.value, null, data.selected, null];
  let sort = { column: columns[1], descending: true };
  let channel = new BroadcastChannel(data.channel);

  /** Grade at the present threshold: 0 not assessed, else 1 plus the cuts that the building still reaches. */
  const gradeOf = (row) => (row.cuts ? 1 + row.cuts.filter((cut) => cut >= threshold).length : 0);
  /** Grades in order, the more changed building first among equals. */
  const rank = (row) => gradeOf(row) + (shares?.[row.id] ?? row.mean ?? 0) / 2;

  channel.onmessage = ({ data: message }) => {
    if (message.type === "building") choose(message.id, false);
    if (message.type !== "style") return;
    threshold = message.threshold;
    if (message.released) fetchShares();
    else shares = null;
    refresh(message.released);
  };

  async function load() {
    const answer = await fetch(data.url);
    if (!answer.ok) {
      const { message, hint } = await answer.json().catch(() => BROKEN);
      state.textContent = `${message} ${hint}`;
      return;
    }
    all = (await answer.json()).features.map(({ properties }) => properties);
    state.hidden = all.length > 0;
    state.textContent = "There is no building in this scene.";
    grid.hidden = !all.length;
    grid.setAttribute("aria-rowcount", all.length + 1);
    await fetchShares();
    refresh(true);
    if (chosen !== null) choose(chosen, false);
    channel?.postMessage({ type: "hello" });
  }

  async function fetchShares() {
    const asked = threshold;
    const answer = await fetch(`${data.shares}?value=${asked}`);
    if (!answer.ok || asked !== threshold) return;
    shares = await answer.json();
    refresh(true);
  }

  function refresh(sorted) {
    drawTotals();
    if (sorted) arrange();
    draw();
  }

  function arrange() {
    const { column, descending } = sort;
    const sign = descending ? -1 : 1;
    const keys = new Map(all.map((row) => [row, column.value(row)]));
    shown = all.filter((row) => only === null || gradeOf(row) === only);
    shown.sort((a, b) => compare(keys.get(a), keys.get(b), sign));
    body.style.height = `${shown.length * ROW}px`;
  }

  /** Order with the unknown last, whichever way. */
  function compare(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  }

  function draw() {
    const first = Math.max(0, Math.floor(scroll.scrollTop / ROW) - SPARE);
    const last = Math.min(shown.length, first + Math.ceil(scroll.clientHeight / ROW) + 2 * SPARE);
    body.replaceChildren(...shown.slice(first, last).map((row, i) => line(row, first + i)));
  }

  function line(row, index) {
    const made = document.createElement("div");
    made.setAttribute("role", "row");
    made.setAttribute("aria-rowindex", index + 2);
    made.setAttribute("aria-selected", row.id === chosen);
    made.style.top = `${index * ROW}px`;
    for (const column of columns) {
      const cell = document.createElement("span");
      cell.setAttribute("role", "gridcell");
      if (column.numeric) cell.className = "number";
      cell.textContent = column.text(column.value(row), row);
      if (column === columns[1]) cell.prepend(sign(data.grades[gradeOf(row)]));
      made.append(cell);
    }
    made.addEventListener("click", () => choose(row.id, true));
    return made;
  }

  /** The mark of a grade as the map draws it: colour, line and cross. */
  function sign({ colour, weight, dash, crossed }) {
    const holder = document.createElement("span");
    holder.innerHTML =
      '<svg class="sign" width="16" height="12" aria-hidden="true"><path d="M2 2 H14 V10 H2 Z" fill="none"/>' +
      `${crossed ? '<path d="M2 2 L14 10 M2 10 L14 2"/>' : ""}</svg>`;
    for (const path of holder.querySelectorAll("path")) {
      path.setAttribute("stroke", colour);
      path.setAttribute("stroke-width", Math.min(weight, 2.5));
      path.setAttribute("stroke-dasharray", dash ?? "");
    }
    return holder.firstChild;
  }

  /* How many buildings have each grade; a press shows those alone. */
  function drawTotals() {
    const counts = data.grades.map(() => 0);
    for (const row of all) counts[gradeOf(row)]++;
    for (const { button, text, grade } of chips) {
      text.textContent = `${data.grades[grade].name} ${counts[grade].toLocaleString("en")}`;
      button.hidden = !counts[grade] && only !== grade;
      button.setAttribute("aria-pressed", only === grade);
    }
  }

  const chips = data.grades.map((look, grade) => {
    const button = document.createElement("button");
    const text = document.createElement("span");
    button.type = "button";
    button.append(sign(look), text);
    button.addEventListener("click", () => {
      only = only === grade ? null : grade;
      scroll.scrollTop = 0;
      refresh(true);
    });
    totals.prepend(button);
    return { button, text, grade };
  });

  /** Choose a building; the map goes there when it was chosen here. */
  function choose(id, tell) {
    chosen = id;
    const index = shown.findIndex((row) => row.id === id);
    const row = shown[index];
    reason.textContent = row?.reason ? `${row.id}: ${row.reason}` : "";
    if (index >= 0) {
      const top = index * ROW;
      if (top < scroll.scrollTop || top + ROW > scroll.scrollTop + scroll.clientHeight) {
        scroll.scrollTop = top - scroll.clientHeight / 2;
      }
    }
    draw();
    if (tell) channel?.postMessage({ type: "building", id });
  }

  for (const column of columns) {
    const cell = document.createElement("span");
    const button = document.createElement("button");
    cell.setAttribute("role", "columnheader");
    if (column.numeric) cell.className = "number";
    cell.append(button);
    column.cell = cell;
    button.addEventListener("click", () => {
      sort = { column, descending: sort.column === column ? !sort.descending : column !== columns[0] };
      drawHead();
      arrange();
      draw();
    });
    head.append(cell);
  }

  function drawHead() {
    for (const column of columns) {
      const sorted = sort.column === column;
      column.cell.firstChild.textContent = `${column.name}${sorted ? (sort.descending ? " ▾" : " ▴") : ""}`;
      column.cell.setAttribute("aria-sort", sorted ? (sort.descending ? "descending" : "ascending") : "none");
    }
  }

  grid.addEventListener("keydown", (event) => {
    const page = Math.floor(scroll.clientHeight / ROW);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || !shown.length) return;
    event.preventDefault();
    const now = shown.findIndex((row) => row.id === chosen);
    choose(shown[Math.min(Math.max(now + steps[event.key], 0), shown.length - 1)].id, true);
  });
  scroll.addEventListener("scroll", () => requestAnimationFrame(draw));
  const observer = new ResizeObserver(() => draw());
  observer.observe(scroll);
  drawHead();
  load();

  return {
    close() {
      observer.disconnect();
      channel.close();
      channel = null; // the outlines may still be on their way
    },
  };
}
