// Patching: the effect of every cell, zero white; a cell opens its prompts with what each run read.

function render(stage, header, buffers, emit) {
  const state = { ...header.state }, examples = header.clean.length, denoise = header.direction === "denoise";
  const starts = header.sites.map((_, i) => header.sites.slice(0, i).reduce((sum, s) => sum + s.cells, 0));
  const patched = denoise ? header.corrupted : header.clean;
  const mean = (values) => values.reduce((sum, v) => sum + v, 0) / (values.length || 1);
  const number = (x) => (Number.isFinite(x) ? (Math.abs(x) >= 100 ? x.toFixed(0) : x.toPrecision(3)).replace("-", "−") : "none");
  let site, strongest, pointed = null;

  const line = make("div", { class: "line", role: "status", "aria-live": "polite" });
  const place = make("div", {}), title = make("div", { class: "panel-title" });
  const detail = make("div", { class: "detail" });

  /** For each cell of the map, the patches behind it, the strongest first. */
  function gather() {
    const which = header.sites.findIndex((s) => s.name === state.site), from = starts[which];
    site = header.sites[which];
    strongest = Array.from({ length: site.layers.length * site.columns.length }, () => []);
    for (let i = from; i < from + site.cells; i++) strongest[buffers.row[i] * site.columns.length + buffers.column[i]].push(i);
    const size = (i) => (Number.isFinite(buffers.effect[i]) ? Math.abs(buffers.effect[i]) : -1);
    for (const behind of strongest) behind.sort((a, b) => size(b) - size(a));
  }

  const behind = (r, c) => strongest[r * site.columns.length + c];
  const columnName = (c) => {
    const at = site.columns[c];
    if (site.axis !== "pos") return String(at);
    return at < 0 ? "all" : visible(patched[0][at] ?? "");
  };
  const differs = (c) => site.axis === "pos" && header.clean[0][site.columns[c]] !== header.corrupted[0][site.columns[c]];
  const heldCell = () => {
    const r = site.layers.indexOf(state.layer), c = site.columns.indexOf(state.column);
    return r < 0 || c < 0 ? null : [r, c];
  };

  let map, spec;
  function lay() {
    gather();
    const n = site.columns.length, wide = () => Math.max(12, Math.min(44, 900 / n)) * state.zoom;
    const tall = Math.max(13, Math.min(26, 420 / site.layers.length));
    spec = {
      ground: true, map: DIVERGING, rows: site.layers.length, cols: n, cell: [wide(), tall], corner: ["layer"], rowWidth: 44,
      label: `${header.finding}; map of ${site.name}`,
      value: (r, c) => { const i = behind(r, c)[0]; return i === undefined || !buffers.shade[i] ? -1 : buffers.shade[i]; },
      rowLabel: (r) => String(site.layers[r]), colLabel: columnName, inside: writeEffects,
      colColor: (c) => (differs(c) ? color(stage, "--window") : null),
      headHeight: site.axis === "pos" ? undefined : 20,
      point: (cell) => { pointed = cell; show(); },
      pick: (cell) => { [state.layer, state.column] = cell ? [site.layers[cell[0]], site.columns[cell[1]]] : [null, null]; map.hold(heldCell()); show(); emit(state); },
    };
    map = grid(stage, spec);
    place.replaceChildren(map.node);
    map.hold(heldCell());
    map.draw();
  }

  function writeEffects(ink, at) {
    const [w, h] = spec.cell;
    if (w < 26 || h < 13) return;
    ink.font = "10px system-ui, sans-serif";
    ink.textAlign = "center";
    ink.textBaseline = "middle";
    for (let r = 0; r < spec.rows; r++) {
      for (let c = 0; c < spec.cols; c++) {
        const i = behind(r, c)[0], [x, y] = at(r, c);
        if (i === undefined || !buffers.shade[i]) continue;
        ink.fillStyle = DIVERGING.ink[buffers.shade[i]];
        ink.fillText(buffers.effect[i].toFixed(2).replace("-", "−"), x + w / 2 - 0.5, y + h / 2);
      }
    }
  }

  const called = (i) => (site.other ? ` ${site.other} ${buffers.behind[i]}` : "");
  const where = (r, c) => `layer ${site.layers[r]} · ${site.axis === "pos" ? "position" : site.axis} ${site.columns[c] < 0 ? "all" : site.columns[c]}${site.axis === "pos" ? ` “${columnName(c)}”` : ""}`;

  function show() {
    const cell = pointed ?? heldCell(), found = cell ? behind(...cell) : [];
    line.classList.toggle("idle", cell === null);
    foot.show(state);
    if (cell === null) line.textContent = header.finding;
    else if (!found.length) line.textContent = `${where(...cell)} · not patched`;
    else {
      const i = found[0], more = found.length > 1 ? ` · the strongest of ${found.length}, each of another ${site.other ?? "kind"}` : "";
      line.textContent = `${where(...cell)}${called(i)} · effect ${number(buffers.effect[i])} · ${header.metric} ${number(buffers.mean[i])} on average${more}`;
    }
    const held = heldCell();
    detail.hidden = held === null || !behind(...held).length;
    if (!detail.hidden) example(...held);
  }

  /** A prompt with the patched token marked, and those underlined in which the two prompts differ. */
  function prompt(name, tokens, other, at) {
    const text = make("div", { class: "text", dir: "auto" });
    tokens.forEach((token, p) => {
      const span = make("span", { class: `token${p === at || at === -1 ? " locked" : ""}${token !== other[p] ? " differs" : ""}` });
      write(span, token);
      text.append(span, make("wbr"));
    });
    return make("div", { class: "prompt" }, make("b", {}, name), text);
  }

  function example(r, c) {
    const found = behind(r, c), i = found[0], e = state.example, clean = buffers.clean[e], corrupted = buffers.corrupted[e];
    const value = buffers.value[i * examples + e], effect = (value - corrupted) / (clean - corrupted);
    const [into, from] = [buffers.pos[i], buffers.source[i]], [cleanAt, corruptedAt] = denoise ? [from, into] : [into, from];
    const step = (by, name) => {
      const button = make("button", { type: "button", "aria-label": name, disabled: examples < 2 }, by < 0 ? "‹" : "›");
      button.onclick = () => { state.example = (e + by + examples) % examples; show(); emit(state); };
      return button;
    };
    title.textContent = `${where(r, c)}${called(i)}: example ${e + 1} of ${header.examples}${header.examples > examples ? ` (the first ${examples} can be read here)` : ""}`;
    const numbers = [["clean", clean], ["corrupted", corrupted], ["patched", value], ["effect", effect]]
      .map(([name, x]) => make("span", { class: "fact" }, `${name} `, make("b", {}, number(x))));
    const others = found.length < 2 ? "" : make("div", { class: "note" }, `Here: ${found.slice(0, 8).map((x) => `${site.other ?? ""} ${buffers.behind[x]} ${number(buffers.effect[x])}`).join(" · ")}${found.length > 8 ? ` · ${found.length - 8} more` : ""}`);
    detail.replaceChildren(
      make("div", { class: "tools" }, title, make("span", { class: "choice" }, step(-1, "example before"), step(1, "next example"))),
      make("div", { class: "facts" }, ...numbers), others,
      prompt(denoise ? "clean: read here" : "clean: patched here", header.clean[e], header.corrupted[e], cleanAt),
      prompt(denoise ? "corrupted: patched here" : "corrupted: read here", header.corrupted[e], header.clean[e], corruptedAt));
  }

  function switchTo() {
    sites.show(state.site);
    lay();
    show();
  }

  const sites = choice("site", header.sites, state.site, (name) => {
    Object.assign(state, { site: name, layer: null, column: null });
    switchTo();
    emit(state);
  });
  const zoom = choice("zoom", [{ name: "−", meaning: "narrower" }, { name: "+", meaning: "wider" }], "", (sign) => {
    state.zoom = Math.max(0.25, Math.min(6, state.zoom * (sign === "+" ? 1.4 : 1 / 1.4)));
    switchTo();
    emit(state);
  });
  const foot = footer(header, "arrows move · Enter or click opens a cell's prompts · Esc lets go");
  const way = denoise ? "clean values into the corrupted run" : "corrupted values into the clean run";
  const base = make("div", { class: "note base" }, `${header.method}, ${way}. ${header.metric}: clean ${number(mean([...buffers.clean]))}, corrupted ${number(mean([...buffers.corrupted]))}, means of ${header.examples} examples. Orange columns: the prompts differ. ${header.notes.join(" ")}`);
  stage.append(
    make("div", { class: "tools" }, sites.node, zoom.node, colorBar("effect: 0 as corrupted (white), 1 as clean", -header.top, header.top, { map: DIVERGING })),
    base, place, line, detail, foot.node);
  switchTo();
  return {
    draw: () => map.draw(),
    set: (next) => { Object.assign(state, next); switchTo(); },
  };
}
