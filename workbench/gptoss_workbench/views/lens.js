// A lens: the most likely next token over layers x positions; a cell opens its k tokens, pinned ones
// are followed over the layers.

const NO_TOKEN = 65535, MOST_PINS = 8;
const PIN_INKS = ["#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#b3a516", "#8a8f98"];

/** The name of SVG's elements, as the browser gives it. */
const SVG = document.createRange().createContextualFragment("<svg></svg>").firstChild.namespaceURI;

function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function render(stage, header, buffers, emit) {
  const { layers, sites, positions, k, step, ids, texts } = header, rows = layers.length, n = positions.length;
  const state = { ...header.state, pins: [...header.state.pins] };
  const several = new Set(sites).size > 1;
  let pointed = null;
  const at = (r, c) => r * n + c;
  const top = (r, c, j = 0) => buffers.tokens[j * rows * n + at(r, c)];
  const logProb = (r, c, j = 0) => -buffers.log_probs[j * rows * n + at(r, c)] / step;
  const name = (place) => visible(texts[place]);
  const scaleOf = (which) => header.statistics.find((s) => s.name === which);
  const rowName = (r) => (several ? `${layers[r]} ${sites[r].replace("resid_", "")}` : String(layers[r]));
  const next = (c) => (c + 1 < n ? buffers.prompt[c + 1] : NO_TOKEN);

  function shade(r, c) {
    if (state.colour === "probability") return Math.round(255 * Math.exp(logProb(r, c)));
    if (state.colour !== "target") return buffers[state.colour][at(r, c)];
    return buffers.target[c] === NO_TOKEN ? -1 : Math.round(255 * Math.exp(-buffers.target_log_prob[at(r, c)] / step));
  }

  const heldRow = () => (state.layer === null ? -1 : layers.findIndex((layer, r) => layer === state.layer && (state.site === null || sites[r] === state.site)));
  const heldColumn = () => (state.position === null ? -1 : positions.indexOf(state.position));
  const heldCell = () => (heldRow() < 0 || heldColumn() < 0 ? null : [heldRow(), heldColumn()]);
  const current = () => pointed ?? heldCell();

  const line = make("div", { class: "line", role: "status", "aria-live": "polite" });
  const barPlace = make("div", { class: "bar-place" });
  const wide = () => (n > 240 ? 8 : 62) * state.zoom;
  const tall = Math.max(13, Math.min(20, 480 / rows));
  const spec = {
    ground: true, rows, cols: n, cell: [wide(), tall], label: header.finding, corner: ["layer"], rowWidth: several ? 76 : 44,
    value: shade, rowLabel: rowName, colLabel: (c) => name(buffers.prompt[c]), inside: writeTops,
    point: (cell) => { pointed = cell; show(); },
    pick: (cell) => { hold(cell); show(); emit(state); },
  };
  const map = grid(stage, spec);
  const list = make("div", { class: "topk", role: "group", "aria-label": "most likely tokens of the cell" });
  const chart = make("div", { class: "paths" });
  const title = make("div", { class: "panel-title" });

  /** Tokens in the cells that have room; underlined where it is the token that really comes next. */
  function writeTops(ink, place) {
    const [w, h] = spec.cell;
    if (w < 30) return;
    ink.font = `${Math.min(11, h - 3)}px ui-monospace, "DejaVu Sans Mono", monospace`;
    ink.textAlign = "center";
    ink.textBaseline = "middle";
    const plain = color(stage, "--ink");
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < n; c++) {
        const [x, y] = place(r, c), token = top(r, c), text = name(token), most = Math.floor((w - 4) / 6.7), v = shade(r, c);
        ink.fillStyle = v < 0 ? plain : RAMP.ink[v];
        ink.fillText(text.length > most ? `${text.slice(0, most - 1)}…` : text, x + w / 2 - 0.5, y + h / 2, w - 3);
        if (token === next(c)) ink.fillRect(x + 8, y + h - 4, w - 17, 1.5);
      }
    }
  }

  function hold(cell) {
    [state.layer, state.site, state.position] = cell ? [layers[cell[0]], several ? sites[cell[0]] : null, positions[cell[1]]] : [null, null, null];
    map.hold(cell);
  }

  const togglePin = (id) => {
    state.pins = state.pins.includes(id) ? state.pins.filter((x) => x !== id) : [...state.pins, id].slice(-MOST_PINS);
    show();
    emit(state);
  };
  const inkOf = (id) => PIN_INKS[state.pins.indexOf(id)];

  function row(r, c, j) {
    const place = top(r, c, j), id = ids[place], p = Math.exp(logProb(r, c, j)), pinned = state.pins.includes(id);
    const pin = make("button", { type: "button", class: "pin", "aria-pressed": String(pinned), "aria-label": `pin “${name(place)}”`, style: pinned ? `--pin:${inkOf(id)}` : "" }, pinned ? "●" : "○");
    pin.onclick = () => togglePin(id);
    return make("div", { class: "top-row" }, pin, make("code", {}, name(place)),
      make("span", { class: "meter" }, make("i", { style: `width:${(100 * p).toFixed(1)}%` })), make("span", { class: "p" }, p >= 0.001 ? p.toFixed(3) : p.toExponential(0)));
  }

  /** log-probability of a token over the rows at position c; null where it is not among the k. */
  function path(id, c) {
    const place = ids.indexOf(id);
    return layers.map((_, r) => {
      for (let j = 0; j < k; j++) if (top(r, c, j) === place) return logProb(r, c, j);
      return place === buffers.target[c] && place >= 0 ? -buffers.target_log_prob[at(r, c)] / step : null;
    });
  }

  function drawPaths(c) {
    const width = 430, height = 190, left = 40, low = -10, x = (r) => left + ((width - left - 12) * r) / Math.max(1, rows - 1);
    const y = (v) => 10 + ((height - 36) * Math.max(low, v)) / low;
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "log-probability of the pinned tokens over layers", class: "chart" });
    for (const v of [0, -2.5, -5, -7.5, -10]) {
      picture.append(svg("line", { x1: left, x2: width - 12, y1: y(v), y2: y(v), class: "rule" }), svg("text", { x: left - 6, y: y(v) + 3.5, "text-anchor": "end" }, v === -10 ? "≤ −10" : String(v).replace("-", "−")));
    }
    const every = Math.ceil(rows / 12);
    layers.forEach((_, r) => r % every === 0 && picture.append(svg("text", { x: x(r), y: height - 8, "text-anchor": "middle" }, rowName(r))));
    const follow = (values, ink, dash) => {
      let run = [];
      const close = () => { if (run.length) picture.append(svg("polyline", { points: run.join(" "), fill: "none", stroke: ink, "stroke-width": 2, "stroke-dasharray": dash })); run = []; };
      values.forEach((v, r) => {
        if (v === null) return close();
        run.push(`${x(r).toFixed(1)},${y(v).toFixed(1)}`);
        picture.append(svg("circle", { cx: x(r), cy: y(v), r: 2.8, fill: ink }));
      });
      close();
    };
    const target = buffers.target[c];
    if (target !== NO_TOKEN) follow(layers.map((_, r) => -buffers.target_log_prob[at(r, c)] / step), color(stage, "--ink-soft"), "4 3");
    for (const id of state.pins) follow(path(id, c), inkOf(id), "none");
    const names = state.pins.map((id) => {
      const button = make("button", { type: "button", title: "unpin", style: `--pin:${inkOf(id)}`, class: "pinned" }, `● ${name(ids.indexOf(id))}`);
      button.onclick = () => togglePin(id);
      return button;
    });
    const dashed = target === NO_TOKEN ? "" : make("span", { class: "note" }, `dashed: target “${name(target)}”`);
    chart.replaceChildren(make("div", { class: "panel-title" }, `Pinned tokens over layers, log-probability at position ${positions[c]}`),
      picture, make("div", { class: "pins" }, ...names, dashed),
      make("div", { class: "note" }, state.pins.length ? `gaps: not among the ${k} most likely` : "pin tokens on the left to follow them"));
  }

  function show() {
    const cell = current();
    line.classList.toggle("idle", cell === null);
    foot.show(state);
    detail.hidden = cell === null;
    if (cell === null) { line.textContent = header.finding; return; }
    const [r, c] = cell, target = buffers.target[c], told = [];
    for (const which of ["KL to final", "entropy"]) {
      const scale = scaleOf(which);
      if (scale) told.push(`${which} ${(scale.low + (buffers[which][at(r, c)] / 255) * (scale.top - scale.low)).toFixed(2)}`);
    }
    if (target !== NO_TOKEN) told.push(`target “${name(target)}” rank ${buffers.rank[at(r, c)] + 1}, p ${Math.exp(-buffers.target_log_prob[at(r, c)] / step).toFixed(3)}`);
    line.textContent = `layer ${rowName(r)} · after ${positions[c]} “${name(buffers.prompt[c])}” · “${name(top(r, c))}” ${Math.exp(logProb(r, c)).toFixed(3)} · ${told.join(" · ")}`;
    title.textContent = `Layer ${rowName(r)} after position ${positions[c]} “${name(buffers.prompt[c])}”: ${k} most likely`;
    list.replaceChildren(...Array.from({ length: k }, (_, j) => row(r, c, j)));
    drawPaths(c);
  }

  function switchTo() {
    const scale = scaleOf(state.colour);
    chooser.show(state.colour);
    barPlace.replaceChildren(colorBar(scale.meaning, scale.low, scale.top));
    spec.cell = [wide(), tall];
    spec.headHeight = spec.cell[0] >= 40 ? 20 : undefined; // labels lie flat where they fit
    map.draw();
    show();
  }

  const chooser = choice("colour", header.statistics, state.colour, (which) => { state.colour = which; switchTo(); emit(state); });
  const zoom = choice("zoom", [{ name: "−", meaning: "narrower" }, { name: "+", meaning: "wider" }], "", (sign) => {
    state.zoom = Math.max(0.125, Math.min(4, state.zoom * (sign === "+" ? 1.5 : 1 / 1.5)));
    switchTo();
    emit(state);
  });
  const foot = footer(header, "arrows move · Enter or click holds a cell · ○ pins a token · Esc lets go");
  const detail = make("div", { class: "pair detail" }, make("div", {}, title, list), chart);
  const note = make("div", { class: "note" }, "A cell's token is what the layer would say after the column's token; underlined where that is what comes next.");
  stage.append(make("div", { class: "tools" }, chooser.node, zoom.node, barPlace), map.node, note, line, detail, foot.node);
  map.hold(heldCell());
  switchTo();
  return {
    draw: () => { map.draw(); show(); },
    set: (given) => {
      Object.assign(state, given, { pins: [...given.pins] });
      map.hold(heldCell());
      switchTo();
    },
  };
}
