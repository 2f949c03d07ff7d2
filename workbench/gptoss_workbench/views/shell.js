// Shared by every view: payload, theme, colour maps, keys, footer. Python appends the view's own file,
// whose render(stage, header, buffers, emit, ask) draws and gives { draw(), select(token), set(state),
// close() }. It tells every new state with emit(state), and with emit(state, token) when a token was picked.

const RAMP_STOPS = [
  [0, 34, 78], [0, 46, 106], [26, 56, 111], [50, 67, 109], [67, 78, 108], [83, 90, 109],
  [97, 101, 111], [111, 112, 115], [125, 124, 120], [140, 136, 120], [155, 148, 118], [171, 160, 114],
  [188, 174, 108], [205, 187, 99], [222, 201, 88], [240, 216, 70], [254, 232, 56],
];

const DIVERGING_STOPS = [
  [16, 60, 115], [45, 116, 181], [119, 172, 211], [193, 219, 235], [247, 247, 247],
  [250, 211, 190], [238, 149, 118], [199, 62, 67], [121, 10, 33],
];

/** A colour map over the values `from` to 255: as rgb, as the words a canvas is written with, and the ink that reads on it. */
function colorMap(stops, from = 0) {
  const rgb = Array.from({ length: 256 }, (_, i) => {
    const at = (Math.max(0, i - from) / (255 - from)) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((c, j) => Math.round(c + (at - low) * (stops[low + 1][j] - c)));
  });
  const words = Uint32Array.from(rgb, ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0);
  const ink = rgb.map(([r, g, b]) => (0.3 * r + 0.59 * g + 0.11 * b > 130 ? "#14171a" : "#ffffff"));
  return { rgb, words, ink };
}

/** Cividis: cell values 0 to 255 are its indices. */
const RAMP = colorMap(RAMP_STOPS);

/** Blue, white, red: cell values 1 to 255, zero is 128 and white. */
const DIVERGING = colorMap(DIVERGING_STOPS, 1);
const percent = (x) => (x >= 0.0995 ? `${Math.round(100 * x)}%` : `${(100 * x).toFixed(1)}%`);

/** Makes an element; text goes in as text, never as markup. */
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const KINDS = { uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array, int32: Int32Array, float32: Float32Array };

/** The arrays that lie in raw bytes, by name. */
function arrays(raw, layout) {
  return Object.fromEntries(layout.map((b) => [b.name, new KINDS[b.dtype](raw, b.offset, b.length)]));
}

async function inflate(text) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

/** Light or dark, from whoever hosts the page: Lab, VS Code, Colab, else the reader's system. */
function hostTheme() {
  const body = document.body, lab = body.dataset.jpThemeLight;
  if (lab) return lab === "true" ? "light" : "dark";
  if (/vscode-(dark|high-contrast)(?!-light)/.test(body.className)) return "dark";
  if (body.classList.contains("vscode-light")) return "light";
  const colab = document.documentElement.getAttribute("theme");
  if (colab) return colab;
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

function followTheme(root, redraw, signal) {
  const apply = () => {
    if (root.dataset.theme === hostTheme()) return;
    root.dataset.theme = hostTheme();
    redraw();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply, { signal });
  const watch = new MutationObserver(apply);
  watch.observe(document.body, { attributes: true });
  watch.observe(document.documentElement, { attributes: true });
  signal.addEventListener("abort", () => watch.disconnect());
}

/** What a theme variable is now, as a colour a canvas understands. */
function color(root, name) {
  const probe = make("i", { style: `color:var(${name});display:none` });
  root.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** Calls actions by key name; no key leaves the view, since notebooks have their own use for them. */
function onKeys(node, actions) {
  node.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (actions[event.key]) {
      actions[event.key](event);
      event.preventDefault();
    }
  });
}

/** A row of mutually exclusive buttons. */
function choice(label, options, current, pick) {
  const group = make("span", { class: "choice", role: "group", "aria-label": label });
  for (const option of options) {
    const button = make("button", { type: "button", title: option.meaning }, option.name);
    button.onclick = () => pick(option.name);
    group.append(button);
  }
  const show = (name) => [...group.children].forEach((b) => b.setAttribute("aria-pressed", b.textContent === name));
  show(current);
  return { node: group, show };
}

/** Colour bar with numbers; root: the scale is a square root; map: RAMP or DIVERGING. */
function colorBar(name, low, top, { root = false, map = RAMP } = {}) {
  const stops = map.rgb.filter((_, i) => i % 15 === 0).map((c) => `rgb(${c.join()})`);
  const far = Math.max(Math.abs(low), Math.abs(top)), digits = far >= 10 ? 0 : far >= 0.1 ? 2 : 4;
  const number = (x) => (Math.abs(x) < 1e-12 ? "0" : x.toFixed(digits).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, ""));
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((x) => make("span", {}, number(low + (root ? x * x : x) * (top - low))));
  return make("div", { class: "bar" },
    make("span", { class: "bar-name" }, root ? `${name} (√ scale)` : name),
    make("div", { class: "bar-body" },
      make("div", { class: "bar-ramp", style: `background:linear-gradient(90deg,${stops})` }),
      make("div", { class: "bar-ticks" }, ...ticks)));
}

function footer(header, help) {
  const text = make("code", {});
  const copy = make("button", { type: "button", title: "copy the state: state= opens the view like this" }, "copy state");
  copy.onclick = async () => {
    const done = await navigator.clipboard?.writeText(text.textContent).then(() => true, () => false);
    if (!done) getSelection().selectAllChildren(text);
    copy.textContent = done ? "copied" : "press Ctrl+C";
    setTimeout(() => (copy.textContent = "copy state"), 1200);
  };
  const show = (state) => (text.textContent = JSON.stringify({ view: header.view, ...state }));
  show(header.state);
  const node = make("div", { class: "foot" }, make("span", { class: "help" }, help), make("span", { class: "state" }, text, copy));
  return { node, show };
}

/** Draws a view into root and joins it to its host: theme, keys, the other views of the page. */
function mount(root, header, buffers, render, { emit = () => {}, ask } = {}) {
  const stage = make("div", { class: "stage", role: "group", "aria-label": header.finding });
  const ending = new AbortController(), { signal } = ending;
  root.dataset.theme = hostTheme();
  root.append(stage);
  stage.addEventListener("keydown", (event) => event.stopPropagation());
  const told = (state, token) => {
    emit({ ...state });
    if (token === undefined || !header.trace) return;
    window.dispatchEvent(new CustomEvent("gptoss-token", { detail: { trace: header.trace, token, from: stage } }));
  };
  const shown = render(stage, header, buffers, told, ask);
  followTheme(root, () => shown.draw?.(), signal);
  window.addEventListener("gptoss-token", ({ detail }) => {
    if (header.trace && detail.trace === header.trace && detail.from !== stage) shown.select?.(detail.token);
  }, { signal });
  const close = () => { ending.abort(); shown.close?.(); stage.remove(); };
  return { set: (state) => shown.set?.(state), close };
}

/** Puts the view that answers in the place of the inert one, in every copy of it on the page. */
async function boot(name, render) {
  for (const root of document.querySelectorAll(`[data-gptoss="${name}"]:not([data-live])`)) {
    root.dataset.live = "";
    const inert = root.querySelector(".gptoss-inert");
    try {
      const header = JSON.parse(root.querySelector(".gptoss-header").textContent);
      const raw = await inflate(root.querySelector(".gptoss-payload").textContent);
      inert.hidden = true;
      mount(root, header, arrays(raw, header.buffers), render);
    } catch (error) {
      inert.hidden = false;
      root.querySelector(".stage")?.remove();
      root.append(make("p", { class: "note" }, `This browser shows the still picture only: ${error.message}`));
    }
  }
}
