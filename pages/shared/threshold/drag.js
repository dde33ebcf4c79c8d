// Draws bars and cells once, then only moves the line, recolours and rewrites the counts while the threshold is dragged.
// Every number comes from the tables in `data`; the server hears of the threshold once, when it is let go.

const KEYBOARD_PAUSE_MS = 300; // arrow keys fire one `change` each; a held key is one move
const FINE = 10000; // places on the axis from 0 to 1 come as whole numbers up to this
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

// The counts behind the letters of their increases: five bits a letter, lowest first, 32 added where another follows.
function unpacked(text, falling) {
  const counts = [];
  let count = 0;
  let scale = 1;
  for (const letter of text) {
    const part = LETTERS.indexOf(letter);
    count += scale * (part % 32);
    scale *= 32;
    if (part < 32) {
      counts.push(count);
      scale = 1;
    }
  }
  return falling ? counts.reverse() : counts;
}

function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  return made;
}

// One row per smaller angle and one column per larger; or one row per group. Gives back the data cells in the order of `cells`.
function drawCells(table, cells) {
  const distinct = (place) => [...new Set(cells.map((cell) => cell[place]))];
  const ofGroups = cells.every(([row]) => row === "");
  const [columns, rows] = ofGroups ? [[], distinct(1)] : [distinct(1), distinct(0)];
  const made = cells.map(() => element("td", "", { class: "cell" }));
  const order = (names) => (ofGroups ? names : names.sort((one, other) => parseFloat(one) - parseFloat(other)));
  order(columns);
  order(rows);
  const head = element("tr");
  head.append(element("td"), ...columns.map((name) => element("th", name, { scope: "col" })));
  table.classList.toggle("groups", ofGroups);
  table.querySelector("thead").replaceChildren(...(ofGroups ? [] : [head]));
  table.querySelector("tbody").replaceChildren(
    ...rows.map((name) => {
      const row = element("tr");
      const at = (column) => cells.findIndex((cell) => (ofGroups ? cell[1] === name : cell[0] === name && cell[1] === column));
      row.append(element("th", name, { scope: "row" }));
      row.append(...(ofGroups ? [made[at()]] : columns.map((column) => made[at(column)] ?? element("td"))));
      return row;
    }),
  );
  return made;
}

export default function ({ parentElement, data, setTriggerValue }) {
  const find = (name) => parentElement.querySelector("." + name);
  const [root, scores, line, slider] = ["drag", "scores", "line", "slider"].map(find);
  const format = new Intl.NumberFormat("en-US").format;
  const formatScore = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 6 }).format;
  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
  const last = data.thresholds.length - 1;
  const [pairs, samples] = [data.pairs, data.samples].map((text) => unpacked(text, data.above));
  const cells = data.cells.map(([row, column, name, n, text]) => ({ name, n, lost: unpacked(text, data.above) }));
  const boxes = drawCells(parentElement.querySelector("table"), data.cells);
  parentElement.querySelector("caption").textContent = data.labels.cells;
  find("cells").hidden = cells.length === 0;

  const showCells = (step) => {
    let [worst, share, halved] = [null, 0, 0];
    cells.forEach((cell, i) => {
      const lost = cell.lost[step];
      const half = 2 * lost > cell.n;
      halved += half;
      if (lost / cell.n > share) [worst, share] = [cell, lost / cell.n];
      boxes[i].textContent = (half ? "\u26a0 " : "") + format(lost) + "/" + format(cell.n);
      boxes[i].style.setProperty("--lost", 45 * (lost / Math.max(cell.n, 1)) + "%");
      boxes[i].classList.toggle("half", half);
    });
    const told = worst && { cell: worst.name, lost: format(worst.lost[step]), n: format(worst.n), halved: format(halved) };
    find("worst").textContent = worst ? fill(data.labels.worst, told) : data.labels.none_lost;
  };

  const places = unpacked(data.places, false).map((place) => place / FINE);
  const width = 1 / data.bars.length;
  const bars = data.bars.map((count, i) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = count === 0 ? 0 : Math.max((100 * count) / data.highest, 0.7); // a single example must be seen
    const box = { x: 1000 * width * i, width: Math.max(1000 * width - 1, 1), y: 100 - height, height };
    Object.entries(box).forEach(([name, value]) => bar.setAttribute(name, value));
    return bar;
  });
  find("bars").replaceChildren(...bars);
  find("bars").setAttribute("aria-label", data.labels.picture);
  find("ticks").replaceChildren(
    ...data.ticks.map(([place, text]) => {
      const tick = document.createElement("span");
      tick.style.left = 100 * place + "%";
      tick.textContent = text;
      return tick;
    }),
  );
  const zeros = fill(data.labels.zeros, { count: format(data.zeros), total: format(data.all) });
  find("zeros").setAttribute("aria-label", zeros);
  find("zeros-count").textContent = format(data.zeros);
  find("zeros-name").textContent = zeros;
  find("zeros-bar").style.height = Math.min(data.zeros / data.highest, 1) * 85 + "%";
  find("hint").textContent = data.labels.hint;
  slider.max = last;
  slider.setAttribute("aria-label", data.labels.name);

  const show = (step) => {
    const values = {
      threshold: formatScore(data.thresholds[step]),
      count: format(pairs[step]),
      total: format(data.total),
      percent: ((100 * pairs[step]) / Math.max(data.total, 1)).toFixed(1),
      samples: format(samples[step]),
    };
    const place = places[step];
    const sentence = fill(data.labels.count, values);
    slider.value = step;
    slider.setAttribute("aria-valuetext", sentence);
    find("count").textContent = sentence;
    find("flag").textContent = values.threshold;
    line.style.left = 100 * place + "%";
    line.classList.toggle("far", place > 0.8);
    bars.forEach((bar, i) => {
      const middle = width * (i + 0.5);
      bar.classList.toggle("excluded", data.above ? middle > place : middle < place);
    });
    showCells(step);
    root.dataset.step = step;
  };

  // State of the gesture lives on the element: this function runs again whenever the server draws the page.
  const gesture = (root.gesture ??= { busy: false, timer: 0, told: data.start });
  const release = () => {
    clearTimeout(gesture.timer);
    gesture.busy = false;
    const step = Number(slider.value);
    if (step === gesture.told || !root.isConnected) return;
    gesture.told = step;
    setTriggerValue("threshold", data.thresholds[step]);
  };
  const nearest = (event) => {
    const box = scores.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width;
    let best = 0;
    places.forEach((other, i) => {
      if (Math.abs(other - place) < Math.abs(places[best] - place)) best = i;
    });
    return best;
  };

  scores.onpointerdown = (event) => {
    scores.setPointerCapture(event.pointerId);
    gesture.busy = true;
    show(nearest(event));
  };
  scores.onpointermove = (event) => gesture.busy && scores.hasPointerCapture(event.pointerId) && show(nearest(event));
  scores.onpointerup = release;
  scores.onpointercancel = () => {
    // a finger that scrolls the page has not moved the line
    gesture.busy = false;
    show(gesture.told);
  };
  slider.oninput = () => {
    gesture.busy = true;
    show(Number(slider.value));
  };
  slider.onkeydown = (event) => {
    // A letter means nothing to a slider: it is one of the page's keys, which are not heard from within a field.
    const { key, code, ctrlKey, metaKey, altKey } = event;
    if (!/^[a-z]$/i.test(key) || ctrlKey || metaKey || altKey) return;
    for (const name of ["keydown", "keyup"]) root.dispatchEvent(new KeyboardEvent(name, { key, code, bubbles: true, composed: true }));
  };
  slider.onchange = () => {
    clearTimeout(gesture.timer);
    gesture.timer = setTimeout(release, KEYBOARD_PAUSE_MS);
  };

  if (!gesture.busy) {
    gesture.told = data.start;
    show(data.start);
  }
}
