// Shared by every view: payload, theme, colour map, keys, footer. Python appends the view's own
// file, whose render(stage, header, buffers, emit) draws and may return { select(token) }.

const RAMP_STOPS = [
  [0, 34, 78], [0, 46, 106], [26, 56, 111], [50, 67, 109], [67, 78, 108], [83, 90, 109],
  [97, 101, 111], [111, 112, 115], [125, 124, 120], [140, 136, 120], [155, 148, 118], [171, 160, 114],
  [188, 174, 108], [205, 187, 99], [222, 201, 88], [240, 216, 70], [254, 232, 56],
];

/** Cividis as 256 colours: cell values are its indices. */
const RAMP = Array.from({ length: 256 }, (_, i) => {
  const at = (i / 255) * (RAMP_STOPS.length - 1), low = Math.min(Math.floor(at), RAMP_STOPS.length - 2);
  return RAMP_STOPS[low].map((c, j) => Math.round(c + (at - low) * (RAMP_STOPS[low + 1][j] - c)));
});

const inkOn = (i) => (i > 140 ? "#14171a" : "#ffffff");
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

async function inflate(text, layout) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const raw = await new Response(stream).arrayBuffer();
  const types = { uint8: Uint8Array, uint16: Uint16Array, int16: Int16Array, float32: Float32Array };
  const entries = layout.map((b) => [b.name, new types[b.dtype](raw, b.offset, b.length)]);
  return Object.fromEntries(entries);
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

function followTheme(root, redraw) {
  const apply = () => {
    if (root.dataset.theme === hostTheme()) return;
    root.dataset.theme = hostTheme();
    redraw();
  };
  root.dataset.theme = hostTheme();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
  const watch = new MutationObserver(apply);
  watch.observe(document.body, { attributes: true });
  watch.observe(document.documentElement, { attributes: true });
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

/** Colour bar with numbers; root: the scale is a square root. */
function colorBar(name, low, top, root = false) {
  const stops = RAMP.filter((_, i) => i % 15 === 0).map((c) => `rgb(${c.join()})`);
  const number = (x) => (x === 0 ? "0" : x.toFixed(x >= 10 ? 0 : 2).replace(/\.?0+$/, ""));
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

/** Puts the live view in the place of the inert one, in every copy of it on the page. */
async function boot(name, render) {
  for (const root of document.querySelectorAll(`[data-gptoss="${name}"]:not([data-live])`)) {
    root.dataset.live = "";
    const inert = root.querySelector(".gptoss-inert");
    const header = JSON.parse(root.querySelector(".gptoss-header").textContent);
    const stage = make("div", { class: "stage", role: "group", "aria-label": header.finding });
    root.append(stage);
    try {
      const buffers = await inflate(root.querySelector(".gptoss-payload").textContent, header.buffers);
      inert.hidden = true;
      stage.addEventListener("keydown", (event) => event.stopPropagation());
      const tell = (token) => window.dispatchEvent(new CustomEvent("gptoss-token", { detail: { trace: header.trace, token, from: stage } }));
      const emit = (change) => "token" in change && tell(change.token);
      const live = render(stage, header, buffers, emit);
      followTheme(root, () => live.draw?.());
      live.draw?.();
      window.addEventListener("gptoss-token", ({ detail }) => {
        if (detail.trace === header.trace && detail.from !== stage) live.select?.(detail.token);
      });
    } catch (error) {
      inert.hidden = false;
      stage.replaceChildren(make("p", { class: "note" }, `This browser shows the still picture only: ${error.message}`));
    }
  }
}
