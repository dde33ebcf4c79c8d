// A card is made anew only when what it says has changed; a sound that plays and the place of the focus outlive everything else.

function element(name, attributes = {}, text = "") {
  const made = document.createElement(name);
  made.textContent = text;
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  return made;
}

// A button that plays and stops its sound; of all cards one sounds at a time.
function player(src, name, labels) {
  const sound = element("audio", { src, preload: "none" });
  const button = element("button", { type: "button", class: "play", "aria-label": `${labels.play}: ${name}`, title: name });
  const sign = element("span");
  const show = () => (sign.textContent = sound.paused ? "\u25b6" : "\u25a0");
  button.onclick = () => {
    if (!sound.paused) return sound.pause();
    button.getRootNode().querySelectorAll("audio").forEach((other) => other.pause());
    sound.currentTime = 0;
    sound.play();
  };
  sound.onplay = sound.onpause = sound.onended = show;
  show();
  button.append(sign, sound);
  return button;
}

function drawn(card, labels, frozen) {
  const made = element("article", { class: "card", "aria-label": card.name });
  made.append(element("button", { class: "name", type: "button", title: card.name }, card.name));
  const told = element("div", { class: "told" }, card.told);
  if (card.verdict) told.append(" · ", element("b", {}, labels.verdicts[card.verdict]));
  made.append(told);
  const pictures = element("div", { class: "pictures" });
  pictures.append(...card.pictures.map(([src, alt]) => element("img", { src, alt, loading: "lazy" })));
  if (card.pictures.length) made.append(pictures);
  const players = element("div", { class: "players" });
  players.append(...card.sounds.map(([src, name]) => player(src, name, labels)));
  if (card.sounds.length) made.append(players);
  made.append(...card.texts.map((text) => element("pre", {}, text)));
  const verdicts = element("div", { class: "verdicts", role: "group", "aria-label": labels.decide });
  verdicts.append(
    ...Object.entries(labels.verdicts).map(([verdict, name]) => {
      const says = `${name} (${labels.keys[verdict]}): ${card.name}`;
      const button = element("button", { type: "button", title: frozen || `${name} (${labels.keys[verdict]})`, "aria-label": says });
      button.textContent = labels.signs[verdict];
      button.dataset.verdict = verdict;
      button.disabled = Boolean(frozen);
      button.setAttribute("aria-pressed", card.verdict === verdict);
      return button;
    }),
  );
  made.append(verdicts);
  return made;
}

function bind(made, card, { labels, frozen, current }, setTriggerValue) {
  const decide = (verdict) => !frozen && setTriggerValue("verdict", { id: card.id, verdict });
  made.classList.toggle("current", card.id === current);
  made.querySelector(".name").setAttribute("aria-current", card.id === current);
  made.onclick = (event) => {
    const button = event.target.closest("[data-verdict]");
    if (button) decide(button.dataset.verdict);
    else if (event.target.closest(".name, img")) setTriggerValue("look", card.id);
  };
}

export default function ({ parentElement, data, setTriggerValue }) {
  const root = parentElement.querySelector(".deck");
  const before = root.cards ?? new Map();
  const focus = parentElement.activeElement ?? document.activeElement;
  const held = [...before].find(([, { made }]) => made.contains(focus))?.[0];
  root.cards = new Map();
  data.sides.flatMap(({ cards }) => cards).forEach((card) => {
    const says = JSON.stringify([card, data.labels, data.frozen]);
    const old = before.get(card.id);
    const made = old?.says === says ? old.made : drawn(card, data.labels, data.frozen);
    if (old && old.made !== made) old.made.replaceWith(made);
    bind(made, card, data, setTriggerValue);
    root.cards.set(card.id, { says, made });
  });
  const layout = JSON.stringify(data.sides.map(({ title, cards }) => [title, cards.map(({ id }) => id)]));
  if (root.layout !== layout) {
    root.layout = layout;
    root.replaceChildren(
      ...data.sides.flatMap(({ title, cards }) => {
        const row = element("div", { class: "cards" });
        row.append(...cards.map(({ id }) => root.cards.get(id).made));
        return title ? [element("h4", {}, title), row] : [row];
      }),
    );
  }
  const again = root.cards.get(held)?.made;
  if (again && !again.contains(parentElement.activeElement)) {
    const place = focus.dataset?.verdict ? `[data-verdict=${focus.dataset.verdict}]` : ".name";
    again.querySelector(place).focus({ preventScroll: true });
  }
}
