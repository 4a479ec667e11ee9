// The desk of a review: shows a photo under its label, paints the label, and hands on what is decided.
// Names are set as text; the label is kept as class numbers, so that what is painted is exact.
const find = (name) => element.querySelector(`[data-${name}]`);
const IGNORED = 255, UNDO = 20;
let view = null, label = null, width = 0, height = 0, brush = -1, last = null, hidden = false, history = [];

function image(address) {
  return new Promise((done, failed) => {
    const picture = new Image();
    picture.onload = () => done(picture);
    picture.onerror = failed;
    picture.src = address;
  });
}

async function open(next) {
  element.querySelector(".desk").hidden = !next || next.place === undefined;
  view = label = null;
  if (!next || next.place === undefined) return;
  const picture = await image(next.label), canvas = find("canvas");
  [width, height] = [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
  const pen = canvas.getContext("2d", {willReadFrequently: true});
  pen.drawImage(picture, 0, 0);
  const pixels = pen.getImageData(0, 0, width, height).data;
  label = Uint8Array.from({length: width * height}, (_, i) => pixels[4 * i]);
  [view, history, hidden] = [next, [], false];
  find("photo").src = view.photo;
  find("title").textContent = view.title;
  find("about").textContent = view.about;
  find("decision").textContent = view.decision;
  const stage = element.querySelector(".stage");
  stage.dataset.place = view.place;
  stage.style.maxWidth = `calc(62vh * ${width / height})`;
  offerBrushes();
  draw();
}

function offerBrushes() {
  const own = [0, ...view.tags, IGNORED], others = props.names.map((_, i) => i).filter((i) => !own.includes(i));
  brush = own.includes(brush) ? brush : view.tags[0] ?? 0;
  find("brushes").replaceChildren(...own.map(brushButton), ...(others.length ? [otherBrushes(others)] : []));
}

function brushButton(value) {
  const button = document.createElement("button"), chip = document.createElement("i");
  button.dataset.brush = value;
  button.setAttribute("role", "radio");
  button.setAttribute("aria-checked", value === brush);
  chip.style.background = value === IGNORED ? "" : `rgb(${props.colours[value]})`;
  chip.className = `l${value}`;
  button.append(chip, value === IGNORED ? "ignored" : props.names[value]);
  return button;
}

function otherBrushes(values) {
  const select = document.createElement("select");
  select.append(new Option("other class…", ""), ...values.map((i) => new Option(props.names[i], i)));
  select.onchange = () => {
    if (select.value === "") return;
    view.tags = [...view.tags, Number(select.value)];
    brush = Number(select.value);
    offerBrushes();
  };
  return select;
}

function draw() {
  const pen = find("canvas").getContext("2d"), picture = pen.createImageData(width, height);
  for (let i = 0; i < label.length; i++) {
    const value = label[i], stripe = ((i % width) + Math.floor(i / width)) % 8 < 4 ? 255 : 60;
    const edge = value !== (label[i + 1] ?? value) && (i + 1) % width || value !== (label[i + width] ?? value);
    const colour = edge ? [255, 255, 255] : value === IGNORED ? [stripe, stripe, stripe] : props.colours[value];
    picture.data.set([...colour, hidden || (value === 0 && !edge) ? 0 : 150], 4 * i);
  }
  pen.putImageData(picture, 0, 0);
  find('act="paint"').disabled = find('act="undo"').disabled = !history.length;
}

function dab(from, to) {
  const radius = Number(find("size").value) * Math.max(width, height) / 640;
  const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / Math.max(1, radius / 2)));
  for (let step = 1; step <= steps; step++) {
    const [x, y] = [0, 1].map((k) => from[k] + (to[k] - from[k]) * step / steps);
    for (let row = Math.max(0, Math.ceil(y - radius)); row <= Math.min(height - 1, y + radius); row++) {
      const half = Math.sqrt(Math.max(0, radius ** 2 - (row - y) ** 2));
      const [left, right] = [Math.max(0, Math.round(x - half)), Math.min(width - 1, Math.round(x + half))];
      if (left <= right) label.fill(brush, row * width + left, row * width + right + 1);
    }
  }
  draw();
}

function place(event) {
  const box = find("canvas").getBoundingClientRect();
  return [(event.clientX - box.left) * width / box.width, (event.clientY - box.top) * height / box.height];
}

function asPng() {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext("2d"), picture = pen.createImageData(width, height);
  label.forEach((value, i) => picture.data.set([value, value, value, 255], 4 * i));
  pen.putImageData(picture, 0, 0);
  return canvas.toDataURL("image/png");
}

function act(what) {
  if (!view) return;
  if (what === "undo" || what === "hide") {
    if (what === "hide") hidden = !hidden;
    else if (history.length) label = history.pop();
    return draw();
  }
  if (what === "accept" && history.length) what = "paint";  // what is seen is what is accepted
  if (what === "paint" && !history.length) return;
  const message = {what, place: view.place, label: what === "paint" ? asPng() : null};
  view = null;  // a second key press waits for the next photo
  trigger("act", message);
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  event.preventDefault();
  if (button.dataset.act) act(button.dataset.act);
  if (button.dataset.brush) { brush = Number(button.dataset.brush); offerBrushes(); }
});
element.addEventListener("pointerdown", (event) => {
  if (!view || event.target !== find("canvas")) return;
  event.preventDefault();
  event.target.setPointerCapture(event.pointerId);
  history = [...history.slice(1 - UNDO), label.slice()];
  last = place(event);
  dab(last, last);
});
element.addEventListener("pointermove", (event) => {
  if (!view || !last) return;
  const next = place(event);
  dab(last, next);
  last = next;
});
for (const end of ["pointerup", "pointercancel"]) element.addEventListener(end, () => { last = null; });

const KEYS = {a: "accept", r: "reject", s: "paint", u: "undo", h: "hide", p: "previous", n: "next"};
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input:not([type=range]), textarea, select, [contenteditable=true]");
  const seen = element.isConnected && element.offsetParent !== null;
  if (typing || !seen || event.ctrlKey || event.metaKey || event.altKey) return;
  if (KEYS[event.key]) { event.preventDefault(); act(KEYS[event.key]); }
  if (event.key === "e") { brush = 0; offerBrushes(); }
  if (/^[1-9]$/.test(event.key)) element.querySelectorAll("[data-brush]")[event.key - 1]?.click();
});

watch("value", () => open(props.value));
open(props.value);
