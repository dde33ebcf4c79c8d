// Sends files one by one to routes of this server, a few at a time. The server decides what it takes; what is checked here only spares
// a useless transfer. Everything is shown as text.

const AT_ONCE = 3;
const NAMED = 5; // files that are named before "…"

export default function ({ parentElement, data, setTriggerValue }) {
  const find = (name) => parentElement.querySelector("." + name);
  const root = find("upload");
  const state = (root.state ??= { busy: false, requests: new Set(), id: null });
  state.data = data; // this function runs again whenever the server draws the page; an upload goes on
  state.tell = setTriggerValue;

  for (const name of ["files", "folder", "cancel", "drop"]) find(name).textContent = data.labels[name];
  if (root.ready) return;
  root.ready = true;

  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
  const say = (name, values = {}, wrong = false) => {
    find("said").textContent = fill(state.data.labels[name] ?? name, values);
    find("said").classList.toggle("wrong", wrong);
  };
  const names = (list) => list.slice(0, NAMED).join(", ") + (list.length > NAMED ? " …" : "");
  const show = (busy) => {
    state.busy = busy;
    find("going").hidden = !busy;
    find("files").disabled = find("folder").disabled = busy;
  };

  const ask = (method, path, { body = null, progress = null } = {}) =>
    new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open(method, path);
      request.setRequestHeader("X-Upload-Token", state.data.token);
      if (progress) request.upload.onprogress = (event) => progress(event.loaded);
      const ended = (act) => () => (state.requests.delete(request), act());
      request.onload = ended(() => {
        let answer = {};
        try {
          answer = JSON.parse(request.responseText || "{}");
        } catch {
          answer = { error: request.responseText.slice(0, 200) };
        }
        request.status < 400 ? resolve(answer) : reject(new Error(answer.error || String(request.status)));
      });
      request.onerror = ended(() => reject(new Error(state.data.labels.failed)));
      request.onabort = ended(() => reject(new Error(state.data.labels.cancelled)));
      state.requests.add(request);
      request.send(body);
    });

  const stop = () => {
    state.stopped = true;
    for (const request of [...state.requests]) request.abort();
  };
  const forget = () => {
    if (!state.id) return;
    fetch("/uploads/" + state.id, { method: "DELETE", keepalive: true, headers: { "X-Upload-Token": state.data.token } }).catch(() => {});
    state.id = null;
  };

  const send = async (chosen) => {
    if (state.busy) return;
    const { suffixes, most, labels } = state.data;
    const taken = chosen.filter(({ name }) => suffixes.some((suffix) => name.toLowerCase().endsWith(suffix)) && !name.split("/").some((part) => part.startsWith(".")));
    const left_out = chosen.filter((one) => !taken.includes(one)).map(({ name }) => name);
    const large = taken.filter(({ file }) => file.size > most.file);
    if (!taken.length) return say("nothing", { names: names(left_out) }, true);
    if (large.length) return say("too_large", { names: names(large.map(({ name }) => name)), most: state.data.most_in_words }, true);
    if (taken.length > most.files) return say("too_many", { count: taken.length, most: most.files }, true);
    const total = taken.reduce((sum, { file }) => sum + file.size, 0);
    const sent = new Map();
    let done = 0;
    const tell = () => {
      const bytes = [...sent.values()].reduce((sum, count) => sum + count, 0);
      find("going").querySelector("progress").value = total ? Math.min(bytes / total, 1) : 0;
      say("sending", { done, count: taken.length, percent: total ? Math.floor((100 * Math.min(bytes, total)) / total) : 0 });
    };
    state.stopped = false;
    show(true);
    tell();
    try {
      state.id = (await ask("POST", "/uploads")).id;
      const waiting = [...taken];
      const work = async () => {
        while (waiting.length && !state.stopped) {
          const { name, file } = waiting.shift();
          const path = "/uploads/" + state.id + "?name=" + encodeURIComponent(name);
          const answer = await ask("PUT", path, { body: file, progress: (loaded) => (sent.set(name, Math.min(loaded, file.size)), tell()) });
          left_out.push(...answer.left_out);
          sent.set(name, file.size);
          done += 1;
          tell();
        }
      };
      await Promise.all(Array.from({ length: AT_ONCE }, work));
      if (state.stopped) throw new Error(labels.cancelled);
      const kept = await ask("POST", "/uploads/" + state.id);
      state.id = null;
      say("done", { count: kept.files });
      if (left_out.length) find("said").textContent += " " + fill(labels.left_out, { count: left_out.length, names: names(left_out) });
      state.tell("arrived", { id: kept.id });
    } catch (failure) {
      const stopped = state.stopped;
      stop();
      forget();
      say(stopped ? labels.cancelled : failure.message, {}, !stopped);
    }
    show(false);
  };

  const listed = (input) => [...input.files].map((file) => ({ name: file.webkitRelativePath || file.name, file }));
  for (const kind of ["files", "folder"]) {
    const input = find(kind + "-input");
    find(kind).onclick = () => input.click();
    input.onchange = () => {
      const chosen = listed(input);
      input.value = "";
      send(chosen);
    };
  }
  find("cancel").onclick = stop;
  addEventListener("pagehide", forget);

  const entriesOf = async (entry, above = "") => {
    if (entry.isFile) return [{ name: above + entry.name, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) }];
    const reader = entry.createReader();
    const found = [];
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
      if (!some.length) break;
      for (const inner of some) found.push(...(await entriesOf(inner, above + entry.name + "/")));
    }
    return found;
  };
  const place = find("place");
  place.ondragover = (event) => (event.preventDefault(), place.classList.add("over"));
  place.ondragleave = () => place.classList.remove("over");
  place.ondrop = async (event) => {
    event.preventDefault();
    place.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    send((await Promise.all(entries.map((entry) => entriesOf(entry)))).flat());
  };
}
