// One large viewer of whatever maps the page holds: zoom, pan, wipe, fade, and drawing an outline.
// Run by Gradio when the component is there; "element" is the component, "trigger" tells the server.
const SOURCES = ["dl-overlay", "dl-explained", "dl-compared"];
const one = (where) => element.querySelector(where);
const stage = one(".dl-stage"), inner = one(".dl-inner"), root = document.documentElement;
const buttons = Object.fromEntries(
  [...element.querySelectorAll("[data-do]")].map((button) => [button.dataset.do, button]));
const pointers = new Map();
let k = 1, x = 0, y = 0, chosen = null, line = null;

const views = () => SOURCES.flatMap((id) =>
  [...document.querySelectorAll(`#${id} .dl-view`)].map((view, n) =>
    ({ view, name: view.dataset.name, key: `${id}/${n}` })));

const place = () => {
  x = Math.min(0, Math.max(stage.clientWidth * (1 - k), x));
  y = Math.min(0, Math.max(inner.offsetHeight * (1 - k), y));
  inner.style.transform = `translate(${x}px, ${y}px) scale(${k})`;
  one(".dl-zoom").value = `${Math.round(100 * k)} %`;
  stage.classList.toggle("dl-zoomed", k > 1);
};
const zoom = (factor, px = stage.clientWidth / 2, py = stage.clientHeight / 2) => {
  const to = Math.min(16, Math.max(1, k * factor));
  [x, y, k] = [px - ((px - x) * to) / k, py - ((py - y) * to) / k, to];
  place();
};
const fit = () => { [x, y, k] = [0, 0, 1]; place(); };
const press = (name, on) => { buttons[name].setAttribute("aria-pressed", on); };
const large = (on) => {
  one(".dl-viewer").classList.toggle("dl-large", on);
  document.body.classList.toggle("dl-behind", on);
  press("large", on);
  buttons.large.textContent = on ? "Close" : "Large";
  fit();
};
const draw = (on) => {
  line = on ? [] : null;
  stage.classList.toggle("dl-drawing", on);
  press("draw", on);
};

const show = (entry) => {
  chosen = entry.key;
  const copy = entry.view.querySelector(".dl-layers").cloneNode(true);
  const sharpest = document.querySelector("#dl-overlay .dl-photo");
  if (sharpest) copy.querySelector(".dl-photo").src = sharpest.src;
  inner.replaceChildren(copy);
  one(".dl-title").textContent = entry.name;
  const rest = [...entry.view.children].filter((part) => !part.matches(".dl-layers"));
  one(".dl-legend").replaceChildren(...rest.map((part) => part.cloneNode(true)));
  for (const thumb of one(".dl-thumbs").children)
    thumb.setAttribute("aria-pressed", thumb.dataset.key === chosen);
};
const refresh = () => {
  const all = views();
  one(".dl-viewer").classList.toggle("dl-none", !all.length);
  one(".dl-thumbs").replaceChildren(...all.map((entry) => {
    const thumb = document.createElement("button"), words = document.createElement("span");
    thumb.type = "button";
    thumb.dataset.key = entry.key;
    words.textContent = entry.name;
    thumb.append(entry.view.querySelector(".dl-layers").cloneNode(true), words);
    thumb.querySelectorAll("img").forEach((image) => { image.alt = ""; });
    thumb.onclick = () => show(entry);
    return thumb;
  }));
  if (!all.length) { inner.replaceChildren(); chosen = null; return; }
  if (!all.some((entry) => entry.key === chosen)) fit();
  show(all.find((entry) => entry.key === chosen) || all[0]);
};

element.addEventListener("click", (event) => {
  const what = event.target.closest("[data-do]")?.dataset.do;
  if (what === "in") zoom(1.5);
  if (what === "out") zoom(1 / 1.5);
  if (what === "fit") fit();
  if (what === "large") large(!one(".dl-large"));
  if (what === "draw") draw(line === null);
});
element.addEventListener("input", (event) => {
  const name = event.target.dataset.set, value = event.target.value;
  if (name === "opacity") root.style.setProperty("--dl-opacity", value);
  if (name === "wipe") root.style.setProperty("--dl-wipe", `${value}%`);
  if (name === "contour")
    root.style.setProperty("--dl-contour", event.target.checked ? "block" : "none");
});
stage.addEventListener("keydown", (event) => {
  const step = stage.clientWidth / 10;
  const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
  if (event.key === "+" || event.key === "=") zoom(1.5);
  else if (event.key === "-") zoom(1 / 1.5);
  else if (event.key === "0") fit();
  else if (k > 1 && moves[event.key]) { x += moves[event.key][0]; y += moves[event.key][1]; place(); }
  else return;
  event.preventDefault();
});
stage.addEventListener("wheel", (event) => {
  // The page scrolls on, unless the viewer is large or was clicked into.
  if (!event.ctrlKey && !one(".dl-large") && document.activeElement !== stage) return;
  event.preventDefault();
  const box = stage.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
}, { passive: false });
stage.addEventListener("dblclick", (event) => {
  const box = stage.getBoundingClientRect();
  if (k > 1) fit(); else zoom(3, event.clientX - box.left, event.clientY - box.top);
});

const share = (event) => {
  const box = inner.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
};
const trace = () => {
  let drawn = one(".dl-line");
  if (!drawn) {
    inner.insertAdjacentHTML("beforeend",
      '<svg class="dl-line" viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true"><path></path></svg>');
    drawn = one(".dl-line");
  }
  drawn.firstChild.setAttribute("d", `M${line.map((point) => point.join(" ")).join("L")}Z`);
};
stage.addEventListener("pointerdown", (event) => {
  stage.focus({ preventScroll: true });
  stage.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
  if (line) line = [share(event)];
});
stage.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const others = [...pointers.values()].filter((other) => other.pointerId !== event.pointerId);
  pointers.set(event.pointerId, event);
  if (line) { line.push(share(event)); trace(); return; }
  if (others.length) {
    const apart = (a, b) => Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
    const box = stage.getBoundingClientRect();
    zoom(apart(event, others[0]) / Math.max(1, apart(before, others[0])),
      (event.clientX + others[0].clientX) / 2 - box.left, (event.clientY + others[0].clientY) / 2 - box.top);
    return;
  }
  x += event.clientX - before.clientX;
  y += event.clientY - before.clientY;
  place();
});
const lift = (event) => {
  pointers.delete(event.pointerId);
  if (!line || line.length < 8) return;
  const every = Math.ceil(line.length / 400);
  trigger("submit", { points: line.filter((_, n) => n % every === 0) });
  draw(false);
};
stage.addEventListener("pointerup", lift);
stage.addEventListener("pointercancel", lift);

document.addEventListener("click", (event) => {
  const view = event.target.closest?.(".dl-view");
  const entry = view && views().find((candidate) => candidate.view === view);
  if (!entry) return;
  show(entry);
  if (window.innerWidth < 768) large(true);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && one(".dl-large")) large(false);
});
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files || [])].find((each) => each.type.startsWith("image/"));
  const input = document.querySelector("#dl-upload input[type=file]");
  if (!file || !input) return;
  const given = new DataTransfer();
  given.items.add(file);
  input.files = given.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});

let waiting = null;
const tidy = () => {
  // Gradio names some buttons otherwise than they read.
  document.querySelectorAll("button.upload-container[aria-label], button.thumbnail-item[aria-label]")
    .forEach((button) => button.removeAttribute("aria-label"));
};
new MutationObserver((changes) => {
  tidy();
  const ours = changes.some((change) => SOURCES.some((id) =>
    change.target.closest?.(`#${id}`) || change.target.querySelector?.(`#${id}`)));
  if (!ours || changes.every((change) => element.contains(change.target))) return;
  clearTimeout(waiting);
  waiting = setTimeout(refresh, 30);
}).observe(document.body, { childList: true, subtree: true });
tidy();
refresh();
