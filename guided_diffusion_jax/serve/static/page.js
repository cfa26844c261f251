// The page asks what the run offers (/run), sends the values of its widgets (/images/ACTION) and shows the answer.
import { Pad } from "./pad.js";

const $ = (id) => document.getElementById(id);
const UPLOAD = 4 * 2 ** 20;
const SMALL = 64 * 64;
let offered, timer;
const sliders = {}, pads = {};
const state = { action: "generate", busy: false, again: null };

function options(select, names, value) {
  select.replaceChildren(...names.map(([key, text]) => new Option(text, key, false, key === value)));
}

function slider(element, [least, most], value, step) {
  const name = element.dataset.slider, text = element.firstChild.textContent.trim();
  const row = document.createElement("div");
  row.innerHTML = `<input type="range"><input type="number">`;
  const [range, number] = row.children;
  for (const input of row.children) Object.assign(input, { min: least, max: most, step, value, ariaLabel: text });
  range.id = name;
  range.oninput = () => ((number.value = range.value), changed());
  number.oninput = () => number.value !== "" && ((range.value = number.value), changed());
  element.append(row);
  sliders[name] = { get: () => Number(number.value === "" ? range.value : number.value), set: (v) => ((range.value = v), (number.value = v)), element };
}

function build() {
  const first = offered.defaults, [height, width, channels] = offered.image_shape;
  $("name").textContent = offered.name;
  document.title = offered.name;
  const colour = channels === 1 ? "grey" : channels === 3 ? "RGB" : `${channels} channels`;
  $("about").textContent = `${height}x${width}, ${colour}` + (offered.step ? `, trained for ${offered.step} steps` : "");
  const all = offered.classes.length > 1 ? [["*", "all, in turn"]] : [];
  options($("label"), [["", "none"], ...all, ...offered.classes.map((name) => [name, name])], first.label);
  for (const [name, values] of offered.attributes) {
    const label = document.createElement("label");
    label.append(name, " ", Object.assign(document.createElement("select"), { id: `attribute-${name}` }));
    options(label.lastChild, [["", "any"], ...values.map((value) => [value, value])], "");
    $("attributes").append(label);
  }
  for (const name of ["sampler", "spacing", "rule"]) {
    options($(name), offered[`${name}s`].map((key) => [key, key]), first[name]);
  }
  const limits = { ...offered.limits, interval_first: [0, offered.last_time], interval_last: [0, offered.last_time] };
  const values = { ...first, interval_first: first.interval[0], interval_last: first.interval[1] };
  for (const element of document.querySelectorAll("[data-slider]")) {
    const name = element.dataset.slider;
    slider(element, limits[name], values[name], element.dataset.step);
  }
  for (const element of document.querySelectorAll("[data-pad]")) {
    const name = element.dataset.pad;
    if (offered.images[name]) pads[name] = new Pad(element, name, offered.images[name], { masked: name === "image", changed, limit: UPLOAD });
  }
  const shown = {
    label: offered.classes.length, prompt: offered.prompt, classifier: offered.classifier,
    control_image: offered.images.control_image, reference_image: offered.images.reference_image, image: offered.images.image,
  };
  for (const element of document.querySelectorAll("[data-for]")) element.hidden = !shown[element.dataset.for];
  sliders.weight.element.hidden = !offered.free_guidance;
  sliders.classifier_weight.element.hidden = !offered.classifier;
  $("classifier").checked = first.classifier;
  $("seed").value = first.seed;
  $("follow").checked = offered.follow;
  const axes = offered.axes.map((name) => [name, name.replace("_", " ")]);
  options($("axis0"), axes, offered.axes.includes("weight") ? "weight" : "steps");
  options($("axis1"), [["", "nothing"], ...axes], "");
  for (const i of [0, 1]) {
    $(`axis${i}`).onchange = () => ($(`values${i}`).value = SWEEPS[$(`axis${i}`).value] ?? "");
    $(`axis${i}`).onchange();
  }
}

const SWEEPS = {
  weight: "0, 1, 2, 4", classifier_weight: "0, 2, 5, 10", steps: "2, 5, 10, 20", sampler: "ddim, dpmpp_2m, unipc", eta: "0, 0.5, 1",
  interval: "0-999, 300-999, 0-600", seed: "0, 1, 2", "": "",
};

function swept(name, text) {
  const parts = text.split(",").map((part) => part.trim()).filter(Boolean);
  if (name === "sampler") return parts;
  if (name === "interval") return parts.map((part) => part.split("-").map((time) => Math.min(Number(time), offered.last_time)));
  return parts.map(Number);
}

function values() {
  const found = { interval: [sliders.interval_first.get(), sliders.interval_last.get()] };
  for (const name of ["weight", "classifier_weight", "strength", "steps", "eta", "count"]) found[name] = sliders[name].get();
  for (const name of ["label", "prompt", "negative", "sampler", "spacing", "rule"]) found[name] = $(name).value;
  if (!offered.prompt) delete found.prompt, delete found.negative;
  found.classifier = $("classifier").checked;
  found.seed = Number($("seed").value);
  found.attributes = Object.fromEntries(
    offered.attributes.map(([name]) => [name, $(`attribute-${name}`).value]).filter(([, value]) => value));
  for (const pad of Object.values(pads)) Object.assign(found, pad.values());
  return found;
}

function update() {
  $("scale").textContent = `guidance_scale = 1 + w = ${+(1 + sliders.weight.get()).toFixed(3)}`;
  sliders.eta.element.hidden = !offered.with_eta.includes($("sampler").value);
  sliders.strength.element.hidden = !pads.image || !!pads.image.marked;
}

function changed(message) {
  update();
  if (message) return say(message, true);
  if ($("follow").checked && state.action !== "sweep") {
    clearTimeout(timer);
    timer = setTimeout(() => ask(state.action), 40);
  }
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

async function ask(action) {
  state.action = action;
  if (state.busy) return (state.again = action); // the newest values, once this answer is here
  state.busy = true;
  const asked = values();
  if (action === "sweep") {
    asked.sweep = Object.fromEntries([0, 1].map((i) => [$(`axis${i}`).value, $(`values${i}`).value])
      .filter(([name]) => name).map(([name, text]) => [name, swept(name, text)]));
  }
  const slow = setTimeout(() => say("working; the first time a setting is used, its program is compiled ..."), 700);
  const begun = performance.now();
  try {
    const response = await fetch(`images/${action}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked),
    });
    let film;
    for await (const part of lines(response)) {
      if (part.message) say(part.message, true);
      else if (part.frame) film ? film.add(part.frame) : (film = play(part.frame));
      else show(part, (performance.now() - begun) / 1000, film);
    }
  } catch {
    say("the server does not answer; is it still running?", true);
  }
  clearTimeout(slow);
  state.busy = false;
  if (state.again) {
    const next = state.again;
    state.again = null;
    ask(next);
  }
}

async function* lines(response) {
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    const parts = (rest + read.value).split("\n");
    rest = parts.pop();
    yield* parts.map(JSON.parse);
  }
  if (rest) yield JSON.parse(rest); // a message has no end of line
}

function cell(urls) {
  const box = Object.assign(document.createElement("div"), { className: "cell" });
  box.style.setProperty("--count", urls.length);
  urls.forEach((url, i) => {
    const button = Object.assign(document.createElement("button"), { type: "button", title: "use this image" });
    button.append(Object.assign(document.createElement("img"), { src: url, alt: `image ${i + 1}` }));
    button.onclick = () => {
      $("inpainting").open = true;
      pads.image.show(button.firstChild.src);
    };
    box.append(button);
  });
  return box;
}

function named(row) {
  const name = Object.assign(document.createElement("p"), { className: "named", textContent: row.name });
  return [...(row.name ? [name] : []), ...row.cells.map(cell)];
}

let player;
function clear() {
  clearInterval(player);
  const results = $("results");
  results.classList.toggle("large", offered.image_shape[0] * offered.image_shape[1] > SMALL);
  results.replaceChildren();
  return results;
}

function show(answer, seconds, film) {
  $("player").hidden = !film;
  if (film) film.end();
  else if (state.action === "sweep") clear().append(table(answer));
  else clear().append(...answer.rows.flatMap(named));
  $("texts").hidden = false;
  $("python").textContent = answer.python;
  $("command").textContent = answer.command;
  $("inputs").replaceChildren(...Object.entries(answer.inputs).flatMap(([name, href]) => [
    Object.assign(document.createElement("a"), { href, download: `${name}.png`, textContent: `save ${name}.png` }), " "]));
  const waited = seconds - answer.seconds > 1 ? [`after ${(seconds - answer.seconds).toFixed(0)} s in the queue`] : [];
  say([`${answer.seconds.toFixed(2)} s`, ...waited, ...answer.notes].join("; "));
}

function table(answer) {
  const made = document.createElement("table");
  const head = (text) => Object.assign(document.createElement("th"), { textContent: text });
  if (answer.columns.length) {
    const row = made.insertRow();
    row.append(head(""), ...answer.columns.map(head));
  }
  for (const { name, cells } of answer.rows) {
    const row = made.insertRow();
    row.append(head(name));
    cells.forEach((urls) => row.insertCell().append(cell(urls)));
  }
  return made;
}

// Frames are shown as they come, each for a moment, and again afterwards.
function play(first) {
  const frames = [first], box = cell(first), moment = $("moment"), images = box.querySelectorAll("img");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let complete = false;
  clear().append(box);
  $("player").hidden = false;
  moment.max = 0;
  const at = (i) => {
    moment.value = i;
    images.forEach((image, n) => (image.src = frames[i][n]));
  };
  const stop = () => {
    clearInterval(player);
    player = null;
    $("play").textContent = "Play";
  };
  const start = () => {
    if (complete && Number(moment.value) === frames.length - 1) at(0);
    $("play").textContent = "Pause";
    player = setInterval(() => {
      if (Number(moment.value) < frames.length - 1) at(Number(moment.value) + 1);
      else if (complete) stop();
    }, 160);
  };
  moment.oninput = () => (stop(), at(Number(moment.value)));
  $("play").onclick = () => (player ? stop() : start());
  at(0);
  if (!still) start();
  return {
    add(frame) {
      frames.push(frame);
      moment.max = frames.length - 1;
      if (still) at(frames.length - 1);
    },
    end: () => (complete = true),
  };
}

async function begin() {
  offered = await (await fetch("run")).json();
  build();
  update();
  $("controls").addEventListener("submit", (event) => (event.preventDefault(), ask("generate")));
  for (const name of ["ways", "trajectory", "sweep"]) $(name).onclick = () => ask(name);
  for (const select of $("controls").querySelectorAll("select")) select.addEventListener("change", () => select.id.startsWith("axis") || select.closest(".pad") || changed());
  for (const id of ["prompt", "negative", "seed", "classifier"]) $(id).addEventListener("change", () => changed());
  $("dice").onclick = () => (($("seed").value = Math.floor(Math.random() * 2 ** 31)), changed(), $("follow").checked || ask("generate"));
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.onclick = async () => {
      const text = $(button.dataset.copy).textContent;
      try {
        await navigator.clipboard.writeText(text);
        say("copied");
      } catch {
        getSelection().selectAllChildren($(button.dataset.copy));
        say("selected: copy it with Ctrl-C");
      }
    };
  }
  ask("generate");
}

begin().catch(() => say("the server does not answer; is it still running?", true));
