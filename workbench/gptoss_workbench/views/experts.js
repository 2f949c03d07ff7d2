// Expert routing: one statistic over layers x tokens; a token opens layers x experts, an expert its tokens.

const CHOSEN = "expert chosen";

function render(stage, header, buffers, emit) {
  const { layers, experts: count, k } = header, n = header.tokens.id.length;
  const state = { ...header.state };
  let pointed = null;
  const slot = (row, token) => (row * n + token) * k;
  const rank = (row, token, expert) => {
    const from = slot(row, token);
    for (let j = 0; j < k; j++) if (buffers.experts[from + j] === expert) return j;
    return -1;
  };
  const weight = (row, token, expert) => {
    const j = rank(row, token, expert);
    return j < 0 ? -1 : buffers.weights[slot(row, token) + j];
  };
  const loads = layers.map((_, row) => {
    const taken = new Array(count).fill(0);
    for (let i = slot(row, 0); i < slot(row + 1, 0); i++) taken[buffers.experts[i]]++;
    return taken;
  });
  const mostTaken = Math.max(...loads.flat());
  const chosenRow = () => layers.indexOf(state.layer);

  const line = make("div", { class: "line", role: "status", "aria-live": "polite" });
  const barPlace = make("div", { class: "bar-place" });
  const room = Math.max(320, (stage.clientWidth || 900) - 90);
  const wide = () => Math.max(n > 900 ? 3 : 9, Math.min(24, room / n)) * state.zoom;
  const tall = Math.max(9, Math.min(26, 230 / layers.length));

  const heat = {
    ground: true, rows: layers.length, cols: n, cell: [wide(), tall], label: header.finding, corner: ["layer"], rowWidth: 44,
    value: (r, c) => {
      if (state.statistic !== CHOSEN) return buffers[state.statistic][r * n + c];
      return r === chosenRow() ? weight(r, c, state.expert) : -1;
    },
    rowLabel: (r) => String(layers[r]),
    colLabel: (c) => visible(header.tokens.text[c]),
    colColor: (c) => laneOf(header, messageOf(header, c)?.lane)?.color,
    point: (cell) => { pointed = cell; show(); },
    pick: (cell) => { hold(cell ? cell[1] : null); emit({ token: state.token }); show(); },
  };
  const map = grid(stage, heat);

  const panel = {
    ground: true, rows: layers.length, cols: count, cell: [Math.max(12, Math.min(26, (room - 60) / count)), Math.max(12, tall)],
    label: "experts of the token, or the load of all experts", corner: ["layer"], rowWidth: 44, headHeight: 20,
    value: (r, e) => {
      const token = current();
      return token === null ? Math.round((255 * loads[r][e]) / mostTaken) : weight(r, token, e);
    },
    rowLabel: (r) => String(layers[r]),
    colLabel: (e) => String(e),
    over: (ink, at) => {
      const token = current();
      ink.font = "10px system-ui, sans-serif";
      ink.textAlign = "center";
      ink.textBaseline = "middle";
      ink.strokeStyle = color(stage, "--line");
      for (let r = 0; r < layers.length; r++) {
        const [x, y, w, h] = at(r, 0);
        ink.strokeRect(x - 0.5, y - 0.5, w * count, h);
        for (let j = 0; token !== null && j < k; j++) {
          const i = slot(r, token) + j, [cx, cy, cw, ch] = at(r, buffers.experts[i]);
          ink.fillStyle = inkOn(buffers.weights[i]);
          ink.fillText(String(j + 1), cx + cw / 2 - 0.5, cy + ch / 2);
        }
      }
    },
    point: (cell) => (cell ? tellExpert(cell) : show()),
    pick: (cell) => {
      if (!cell) state.layer = state.expert = null;
      else [state.layer, state.expert] = [layers[cell[0]], cell[1]];
      if (cell) state.statistic = CHOSEN;
      else if (state.statistic === CHOSEN) state.statistic = header.statistics[0].name;
      switchTo();
    },
  };
  const side = grid(stage, panel);
  const panelTitle = make("div", { class: "panel-title" });
  const expertTitle = make("div", { class: "panel-title" });
  const text = strip(header, {
    label: "tokens of the selected expert",
    point: (i) => { pointed = i === null ? null : [Math.max(0, chosenRow()), i]; show(false); },
    pick: (i) => { hold(i); emit({ token: i }); show(); },
  });
  const takes = make("div", { class: "takes" }, expertTitle, text.node);

  const current = () => (pointed ? pointed[1] : state.token);
  const hold = (token) => {
    state.token = token;
    map.hold(token === null ? null : [null, token]);
    text.lock(token);
  };

  function tellExpert([r, e]) {
    const token = current(), w = token === null ? -1 : weight(r, token, e);
    const told = w < 0 ? "" : ` · rank ${rank(r, token, e) + 1} here, weight ${(w / 255).toFixed(2)}`;
    line.textContent = `layer ${layers[r]} · expert ${e} · takes ${loads[r][e]} of ${n} tokens (${percent(loads[r][e] / n)})${told}`;
  }

  function tellToken(r, i) {
    const from = slot(r, i), parts = [];
    for (let j = 0; j < k; j++) parts.push(`${buffers.experts[from + j]} (${(buffers.weights[from + j] / 255).toFixed(2)})`);
    const scale = header.statistics.find((s) => s.name === state.statistic);
    const value = buffers[state.statistic] ? ` · ${scale.name} ${(scale.low + (buffers[state.statistic][r * n + i] / 255) * (scale.top - scale.low)).toFixed(2)}` : "";
    line.textContent = `layer ${layers[r]} · ${describe(header, i)} · experts ${parts.join(", ")}${value}`;
  }

  function show(redraw = true) {
    const token = current(), row = pointed ? pointed[0] : Math.max(0, chosenRow());
    line.classList.toggle("idle", token === null);
    if (token === null) line.textContent = header.finding;
    else tellToken(row, token);
    panelTitle.textContent = token === null
      ? `Load: share of the tokens each expert takes (brightest: ${percent(mostTaken / n)})`
      : `Experts of token ${header.tokens.position[token]} “${visible(header.tokens.text[token])}”: colour is the weight, the number is the rank`;
    if (redraw || token !== null) side.draw();
    foot.show(state);
  }

  /** Where the selected expert's tokens are: its share in each lane. */
  function shares(row) {
    return header.lanes.map((lane) => {
      let all = 0, taken = 0;
      for (const message of header.messages.filter((m) => m.lane === lane.name)) {
        for (let i = message.start; i < message.stop; i++) { all++; taken += rank(row, i, state.expert) >= 0; }
      }
      return `${lane.name} ${percent(taken / all)}`;
    }).join(" · ");
  }

  function switchTo() {
    const row = chosenRow(), scale = header.statistics.find((s) => s.name === state.statistic);
    chooser.show(state.statistic);
    barPlace.replaceChildren(colorBar(scale.meaning, scale.low, scale.top));
    side.hold(row < 0 ? null : [row, state.expert]);
    takes.hidden = row < 0;
    if (row >= 0) {
      const taken = loads[row][state.expert];
      expertTitle.textContent = `Layer ${state.layer}, expert ${state.expert} takes ${taken} of ${n} tokens (${percent(taken / n)}; an even share is ${percent(k / count)}). ${shares(row)}`;
      text.paint((i) => { const w = weight(row, i, state.expert); return w < 0 ? null : w; });
    }
    map.draw();
    show();
  }

  const chooser = choice("statistic", header.statistics, state.statistic, (name) => {
    state.statistic = name;
    if (name === CHOSEN && state.expert === null) {
      const best = loads[0].indexOf(Math.max(...loads[0]));
      [state.layer, state.expert] = [layers[0], best];
    }
    switchTo();
  });
  const zoom = choice("zoom", [{ name: "−", meaning: "narrower" }, { name: "+", meaning: "wider" }], "", (sign) => {
    state.zoom = Math.max(0.25, Math.min(8, state.zoom * (sign === "+" ? 1.5 : 1 / 1.5)));
    heat.cell = [wide(), tall];
    map.draw();
    foot.show(state);
  });
  const foot = footer(header, "arrows move · Enter or click holds · click an expert for its tokens · Esc lets go");
  stage.append(make("div", { class: "tools" }, chooser.node, zoom.node, barPlace), map.node, line, panelTitle, side.node, takes, foot.node);
  hold(state.token);
  switchTo();
  return {
    draw: () => { map.draw(); side.draw(); },
    select: (token) => { hold(token); show(); },
  };
}

export default { render };
