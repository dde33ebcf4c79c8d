// Draws the bars once, then only moves the line, recolours bars and rewrites the counts while the threshold is dragged.
// Every number comes from the tables in `data`; the server hears of the threshold once, when it is let go.

const KEYBOARD_PAUSE_MS = 300; // arrow keys fire one `change` each; a held key is one move

export default function ({ parentElement, data, setTriggerValue }) {
  const find = (name) => parentElement.querySelector("." + name);
  const [root, scores, line, slider] = ["drag", "scores", "line", "slider"].map(find);
  const format = new Intl.NumberFormat("en-US").format;
  const formatScore = new Intl.NumberFormat("en-US", { maximumSignificantDigits: 6 }).format;
  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
  const last = data.thresholds.length - 1;

  const bars = data.bars.map(([left, right, count]) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = count === 0 ? 0 : Math.max((100 * count) / data.highest, 0.7); // a single example must be seen
    const box = { x: 1000 * left, width: Math.max(1000 * (right - left) - 1, 1), y: 100 - height, height };
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
      count: format(data.pairs[step]),
      total: format(data.total),
      percent: ((100 * data.pairs[step]) / Math.max(data.total, 1)).toFixed(1),
      samples: format(data.samples[step]),
    };
    const place = data.places[step];
    const sentence = fill(data.labels.count, values);
    slider.value = step;
    slider.setAttribute("aria-valuetext", sentence);
    find("count").textContent = sentence;
    find("flag").textContent = values.threshold;
    line.style.left = 100 * place + "%";
    line.classList.toggle("far", place > 0.8);
    bars.forEach((bar, i) => bar.classList.toggle("excluded", (data.bars[i][0] + data.bars[i][1]) / 2 < place));
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
    data.places.forEach((other, i) => {
      if (Math.abs(other - place) < Math.abs(data.places[best] - place)) best = i;
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
  scores.onpointercancel = release;
  slider.oninput = () => {
    gesture.busy = true;
    show(Number(slider.value));
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
