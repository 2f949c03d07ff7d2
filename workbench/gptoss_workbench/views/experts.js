// Expert routing: one statistic over layers x tokens; a token opens layers x experts, an expert its tokens.
// With another run beside it: what that run chose instead.

const CHOSEN = "expert chosen", CHANGED = "experts changed", MOVED = "weight moved";

/** Experts and weights by slot (layer, token, rank), and one array of 0..255 a statistic; -1 is blank. */
function readChoices(header, buffers) {
  const { k, layers } = header, n = header.tokens.id.length, cells = layers.length * n;
  const experts = new Uint16Array(cells * k), weights = new Uint8Array(cells * k), other = buffers.other && new Int32Array(cells * k);
  const stats = { "top weight": new Int16Array(cells), entropy: new Int16Array(cells), ...(buffers.margin && { margin: buffers.margin }) };
  if (other) Object.assign(stats, { [CHANGED]: new Int16Array(cells), [MOVED]: new Int16Array(cells) });
  const low = 1 / k, bits = Math.log2(k) || 1, sent = header.implied ? k - 1 : k;
  for (let i = 0; i < cells; i++) {
    let rest = 255, entropy = 0;
    for (let j = 0; j < k; j++) {
      const w = j < sent ? buffers.weights[j * cells + i] : Math.max(0, rest), at = i * k + j;
      rest -= w;
      weights[at] = w;
      experts[at] = buffers.experts[j * cells + i];
      if (other) other[at] = buffers.paired[i % n] ? experts[at] ^ buffers.other[j * cells + i] : -1;
      if (w) entropy -= (w / 255) * Math.log2(w / 255);
    }
    stats["top weight"][i] = Math.round(255 * Math.max(0, Math.min(1, (weights[i * k] / 255 - low) / (1 - low || 1))));
    stats.entropy[i] = Math.round(255 * Math.min(1, entropy / bits));
    if (!other) continue;
    const there = other.subarray(i * k, i * k + k);
    const changed = experts.subarray(i * k, i * k + k).reduce((sum, e) => sum + !there.includes(e), 0);
    stats[CHANGED][i] = there[0] < 0 ? -1 : Math.round((255 * changed) / k);
    stats[MOVED][i] = there[0] < 0 ? -1 : buffers[MOVED][i];
  }
  return { experts, weights, other, stats };
}

function render(stage, header, buffers, emit) {
  const { layers, experts: count, k, compared } = header, n = header.tokens.id.length;
  const { experts, weights, other, stats } = readChoices(header, buffers);
  const state = { ...header.state };
  let pointed = null;
  const slot = (row, token) => (row * n + token) * k;
  const chosen = (row, token, from = experts) => from.subarray(slot(row, token), slot(row, token) + k);
  const rank = (row, token, expert) => chosen(row, token).indexOf(expert);
  const weight = (row, token, expert) => {
    const j = rank(row, token, expert);
    return j < 0 ? -1 : weights[slot(row, token) + j];
  };
  const loads = layers.map((_, row) => {
    const taken = new Array(count).fill(0);
    for (let i = slot(row, 0); i < slot(row + 1, 0); i++) taken[experts[i]]++;
    return taken;
  });
  const mostTaken = loads.reduce((most, load) => Math.max(most, ...load), 0);
  const chosenRow = () => layers.indexOf(state.layer);
  const scaleOf = (name) => header.statistics.find((s) => s.name === name);

  const line = make("div", { class: "line", role: "status", "aria-live": "polite" });
  const barPlace = make("div", { class: "bar-place" });
  const room = Math.max(320, (stage.clientWidth || 900) - 90);
  const wide = () => Math.max(n > 900 ? 3 : 9, Math.min(24, room / n)) * state.zoom;
  const tall = Math.max(9, Math.min(26, 230 / layers.length));

  const heat = {
    ground: true, rows: layers.length, cols: n, cell: [wide(), tall], label: header.finding, corner: ["layer"], rowWidth: 44,
    value: (r, c) => {
      if (state.statistic !== CHOSEN) return stats[state.statistic][r * n + c];
      return r === chosenRow() ? weight(r, c, state.expert) : -1;
    },
    rowLabel: (r) => String(layers[r]),
    colLabel: (c) => visible(header.tokens.text[c]),
    colColor: (c) => laneOf(header, messageOf(header, c)?.lane)?.color,
    point: (cell) => { pointed = cell; show(); },
    pick: (cell) => { hold(cell ? cell[1] : null); show(); emit(state, state.token); },
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
    over: drawRanks,
    point: (cell) => (cell ? tellExpert(cell) : show()),
    pick: (cell) => {
      if (!cell) state.layer = state.expert = null;
      else [state.layer, state.expert] = [layers[cell[0]], cell[1]];
      if (cell) state.statistic = CHOSEN;
      else if (state.statistic === CHOSEN) state.statistic = header.statistics[0].name;
      switchTo();
      emit(state);
    },
  };
  const side = grid(stage, panel);
  const panelTitle = make("div", { class: "panel-title" });
  const expertTitle = make("div", { class: "panel-title" });
  const lensLine = make("div", { class: "promoted" });
  const text = strip(header, {
    label: "tokens of the selected expert",
    point: (i) => { pointed = i === null ? null : [Math.max(0, chosenRow()), i]; show(false); },
    pick: (i) => { hold(i); show(); emit(state, i); },
  });
  const takes = make("div", { class: "takes" }, expertTitle, lensLine, text.node);

  const current = () => (pointed ? pointed[1] : state.token);
  const hold = (token) => {
    state.token = token;
    map.hold(token === null ? null : [null, token]);
    text.lock(token);
  };

  /** Ranks in the token's cells; against another run, + is what only that one chose, a frame what only this one did. */
  function drawRanks(ink, at) {
    const token = current();
    ink.font = "10px system-ui, sans-serif";
    ink.textAlign = "center";
    ink.textBaseline = "middle";
    ink.strokeStyle = color(stage, "--line");
    for (let r = 0; r < layers.length; r++) ink.strokeRect(at(r, 0)[0] - 0.5, at(r, 0)[1] - 0.5, at(r, 0)[2] * count, at(r, 0)[3]);
    if (token === null) return;
    const soft = color(stage, "--ink"), frame = color(stage, "--window");
    for (let r = 0; r < layers.length; r++) {
      const here = chosen(r, token), there = other ? chosen(r, token, other) : here;
      here.forEach((e, j) => {
        const [x, y, w, h] = at(r, e);
        ink.fillStyle = RAMP.ink[weights[slot(r, token) + j]];
        ink.fillText(String(j + 1), x + w / 2 - 0.5, y + h / 2);
        if (there[0] < 0 || there.includes(e)) return;
        ink.strokeStyle = frame;
        ink.lineWidth = 2;
        ink.strokeRect(x + 1, y + 1, w - 3, h - 3);
      });
      ink.fillStyle = soft;
      there.forEach((e) => { if (e >= 0 && !here.includes(e)) ink.fillText("+", at(r, e)[0] + at(r, e)[2] / 2 - 0.5, at(r, e)[1] + at(r, e)[3] / 2); });
    }
  }

  const promoted = (layer, e) => {
    const tokens = header.lens[`${layer}:${e}`];
    return tokens ? `writes ${tokens.map((t) => `“${visible(t)}”`).join(" ")}` : "";
  };

  function tellExpert([r, e]) {
    const token = current(), w = token === null ? -1 : weight(r, token, e), lens = promoted(layers[r], e);
    const told = w < 0 ? "" : ` · rank ${rank(r, token, e) + 1} here, weight ${(w / 255).toFixed(2)}`;
    line.textContent = `layer ${layers[r]} · expert ${e} · takes ${loads[r][e]} of ${n} tokens (${percent(loads[r][e] / n)})${told}${lens ? ` · ${lens}` : ""}`;
  }

  /** What the other run chose at a token instead. */
  function change(r, i) {
    if (!other) return "";
    const here = [...chosen(r, i)], there = [...chosen(r, i, other)];
    if (there[0] < 0) return " · not in the other run";
    const lost = here.filter((e) => !there.includes(e)), won = there.filter((e) => !here.includes(e));
    return lost.length ? ` · other run: ${won.join(", ")} instead of ${lost.join(", ")}` : " · other run: the same experts";
  }

  function tellToken(r, i) {
    const parts = [...chosen(r, i)].map((e, j) => `${e} (${(weights[slot(r, i) + j] / 255).toFixed(2)})`);
    const scale = scaleOf(state.statistic), v = stats[state.statistic]?.[r * n + i] ?? -1;
    const value = v < 0 ? "" : ` · ${scale.name} ${(scale.low + (v / 255) * (scale.top - scale.low)).toFixed(state.statistic === CHANGED ? 0 : 2)}`;
    line.textContent = `layer ${layers[r]} · ${describe(header, i)} · experts ${parts.join(", ")}${value}${change(r, i)}`;
  }

  function show(redraw = true) {
    const token = current(), row = pointed ? pointed[0] : Math.max(0, chosenRow());
    line.classList.toggle("idle", token === null);
    if (token === null) line.textContent = header.finding;
    else tellToken(row, token);
    const marks = other ? "; + only in the other run, framed only in this one" : "";
    panelTitle.textContent = token === null
      ? `Load: share of the tokens each expert takes (brightest: ${percent(mostTaken / n)})`
      : `Experts of token ${header.tokens.position[token]} “${visible(header.tokens.text[token])}”: colour is the weight, the number is the rank${marks}`;
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
    const row = chosenRow(), scale = scaleOf(state.statistic);
    chooser.show(state.statistic);
    barPlace.replaceChildren(colorBar(scale.meaning, scale.low, scale.top));
    side.hold(row < 0 ? null : [row, state.expert]);
    takes.hidden = row < 0;
    if (row >= 0) {
      const taken = loads[row][state.expert];
      expertTitle.textContent = `Layer ${state.layer}, expert ${state.expert} takes ${taken} of ${n} tokens (${percent(taken / n)}; an even share is ${percent(k / count)}). ${shares(row)}`;
      lensLine.textContent = promoted(state.layer, state.expert);
      text.paint((i) => { const w = weight(row, i, state.expert); return w < 0 ? null : w; });
    }
    map.draw();
    show();
  }

  function enlarge() {
    heat.cell = [wide(), tall];
    map.draw();
    foot.show(state);
  }

  const chooser = choice("statistic", header.statistics, state.statistic, (name) => {
    state.statistic = name;
    if (name === CHOSEN && state.expert === null) {
      const best = loads[0].indexOf(Math.max(...loads[0]));
      [state.layer, state.expert] = [layers[0], best];
    }
    switchTo();
    emit(state);
  });
  const zoom = choice("zoom", [{ name: "−", meaning: "narrower" }, { name: "+", meaning: "wider" }], "", (sign) => {
    state.zoom = Math.max(0.25, Math.min(8, state.zoom * (sign === "+" ? 1.5 : 1 / 1.5)));
    enlarge();
    emit(state);
  });
  const foot = footer(header, "arrows move · Enter or click holds · click an expert for its tokens · Esc lets go");
  const counts = compared ? make("div", { class: "note" }, `Compared with another run: ${compared.both} tokens in both, ${compared.here} only here, ${compared.there} only there.`) : "";
  stage.append(make("div", { class: "tools" }, chooser.node, zoom.node, barPlace), counts, map.node, line, panelTitle, side.node, takes, foot.node);
  hold(state.token);
  switchTo();
  return {
    draw: () => { map.draw(); side.draw(); },
    select: (token) => { hold(token); show(); emit(state); },
    set: (next) => {
      Object.assign(state, next);
      heat.cell = [wide(), tall];
      hold(state.token);
      switchTo();
    },
  };
}
