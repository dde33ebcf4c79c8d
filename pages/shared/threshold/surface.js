// The cells are drawn when the counts change; a moved line moves its mark only. Row 0, the fewest occurrences, is at the bottom.

const SVG = "http://www.w3.org/2000/svg";

function labelled(text, name, place) {
  const made = document.createElement("span");
  made.textContent = text;
  made.style[name] = 100 * place + "%";
  return made;
}

function drawCells(find, data) {
  const [rows, columns, most] = [data.rows.length, data.columns.length, Math.max(...data.counts, 1)];
  find("cells").setAttribute("viewBox", `0 0 ${columns} ${rows}`);
  find("cells").replaceChildren(
    ...data.counts.map((count, i) => {
      const cell = document.createElementNS(SVG, "rect");
      const box = { x: i % columns, y: rows - 1 - Math.floor(i / columns), width: 0.94, height: 0.94 };
      Object.entries(box).forEach(([name, value]) => cell.setAttribute(name, value));
      cell.style.setProperty("--share", (100 * Math.log1p(count)) / Math.log1p(most) + "%");
      return cell;
    }),
  );
  find("rows").replaceChildren(...data.rows.map((row, i) => labelled(row, "bottom", (i + 0.5) / rows)));
  find("columns").replaceChildren(...data.ticks.map((column) => labelled(data.columns[column], "left", (column + 0.5) / columns)));
  find("most").textContent = data.most;
}

export default function ({ parentElement, data, setTriggerValue }) {
  const find = (name) => parentElement.querySelector("." + name);
  const [root, field] = ["surface", "field"].map(find);
  const [rows, columns] = [data.rows.length, data.columns.length];
  const drawn = JSON.stringify([data.counts, data.columns, data.rows]);
  if (root.drawn !== drawn) {
    root.drawn = drawn;
    drawCells(find, data);
  }
  field.setAttribute("aria-label", data.labels.picture);
  find("rows-name").textContent = data.labels.rows;
  find("columns-name").textContent = data.labels.columns;
  find("marks").replaceChildren(
    ...data.marks.map(({ kind, column, row }) => {
      const mark = document.createElement("div");
      mark.className = "mark " + kind;
      mark.style.left = (100 * (column + 0.5)) / columns + "%";
      mark.style.bottom = (100 * (row + 0.5)) / rows + "%";
      return mark;
    }),
  );
  find("marks-legend").replaceChildren(
    ...data.marks.map(({ kind, name }) => {
      const told = document.createElement("span");
      told.className = "name " + kind;
      told.textContent = name;
      return told;
    }),
  );

  const under = (event) => {
    const box = field.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    const row = rows - 1 - Math.floor(((event.clientY - box.top) / box.height) * rows);
    return column >= 0 && column < columns && row >= 0 && row < rows ? row * columns + column : -1;
  };
  field.onpointermove = (event) => {
    const cell = under(event);
    const values = { occurrences: data.rows[Math.floor(cell / columns)], threshold: data.columns[cell % columns] };
    const told = { ...values, n: new Intl.NumberFormat("en-US").format(data.counts[cell]) };
    find("reading").textContent = cell < 0 ? "" : data.labels.cell.replace(/\{(\w+)\}/g, (whole, name) => told[name] ?? whole);
  };
  field.onpointerleave = () => (find("reading").textContent = "");
  field.onclick = (event) => {
    const cell = under(event);
    if (cell >= 0) setTriggerValue("cell", cell);
  };
}
