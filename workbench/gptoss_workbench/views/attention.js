// One head's attention: sink column, query x key map with its window, and the weights on the text.
// Heads that were not sent are asked for when they are chosen.

const KEPT = 6e7; // bytes of heads kept, so that going back is at once

const SORTS = [
  { name: "number", meaning: "heads by number" },
  { name: "entropy", meaning: "lowest entropy first: the most pointed heads" },
  { name: "sink", meaning: "largest share of the sink first" },
];

function render(stage, header, buffers, emit, ask) {
  const { heads, window: reach, sinkShare, entropy } = header, n = header.tokens.id.length, front = header.lead.length;
  const place = header.tokens.position, half = (n * (n + 1)) / 2;
  const state = { ...header.state };
  const held = new Map(header.sent.map((head, i) => [head, buffers.weights.subarray(i * half, (i + 1) * half)]));
  let row = null, wanted = state.head, weights = held.get(state.head);
  const head = () => heads.indexOf(state.head);
  const unseen = (q, key) => key > q || (reach !== null && place[q] - place[key] >= reach);
  const seen = (q, key) => (unseen(q, key) ? -1 : weights[(q * (q + 1)) / 2 + key]);
  const lead = (i, q) => buffers.lead[(i * heads.length + head()) * n + q];
  const share = (v) => (v / 255) ** 2;

  const line = make("div", { class: "line", role: "status", "aria-live": "polite" });
  const size = () => Math.max(2, Math.min(16, Math.floor(600 / n))) * state.zoom;
  const lane = (i) => laneOf(header, messageOf(header, i)?.lane)?.color;
  const spec = {
    rows: n, cols: n + front, cell: [size(), size()], lead: front, label: header.finding, rowWidth: 76,
    value: (q, c) => (c < front ? lead(c, q) : seen(q, c - front)),
    rowLabel: (q) => visible(header.tokens.text[q]),
    colLabel: (c) => (c < front ? header.lead[c] : visible(header.tokens.text[c - front])),
    rowColor: lane,
    colColor: (c) => (c < front ? null : lane(c - front)),
    corner: ["query ↓", "key →"],
    over: band,
    point: (cell) => show(cell),
    pick: (cell) => { hold(cell ? cell[0] : null); emit(state, state.query); },
  };
  const map = grid(stage, spec);
  const text = strip(header, {
    label: "the text, coloured by the weights of the query",
    point: (i) => show(i === null ? null : [i, 0]),
    pick: (i) => { hold(i); emit(state, i); },
  });

  /** The line behind which the window ends. */
  function band(ink, at) {
    if (reach === null || n <= reach) return;
    ink.strokeStyle = color(stage, "--window");
    ink.lineWidth = 1.5;
    ink.beginPath();
    for (let q = reach; q < n; q++) {
      const [x, y, w, h] = at(q, q - reach + 1 + front);
      if (q === reach) ink.moveTo(x - w, y);
      ink.lineTo(x, y);
      ink.lineTo(x, y + h);
    }
    ink.stroke();
  }

  function strongest(q) {
    const keys = Array.from({ length: q + 1 }, (_, key) => [seen(q, key), key]).filter(([v]) => v > 0);
    return keys.sort((a, b) => b[0] - a[0]).slice(0, 4)
      .map(([v, key]) => `“${visible(header.tokens.text[key])}” ${percent(share(v))}`).join(", ");
  }

  function tell(q, cell) {
    const { position, text: texts } = header.tokens;
    const name = (i) => `${position[i]} “${visible(texts[i])}”`;
    let told = "";
    if (cell && cell[1] >= front) {
      const key = cell[1] - front, v = seen(q, key);
      told = ` → key ${name(key)} ${v >= 0 ? percent(share(v)) : key > q ? "comes later" : "is outside the window"}`;
    }
    const outside = header.lead.map((name, i) => ` · ${name} ${percent(share(lead(i, q)))}`).join("");
    line.textContent = `query ${name(q)}${told}${outside} · most on ${strongest(q)}`;
  }

  function show(cell) {
    row = cell ? cell[0] : state.query;
    line.classList.toggle("idle", row === null);
    text.lock(row);
    if (row === null) {
      line.textContent = `layer ${header.layer} head ${state.head}: the sink takes ${percent(sinkShare[head()])} on average. Point at a row to see its weights on the text.`;
      text.paint(() => null);
    } else {
      tell(row, cell);
      text.paint((i) => { const v = seen(row, i); return v > 0 ? v : null; });
    }
    foot.show(state);
  }

  function hold(q) {
    state.query = q;
    map.hold(q === null ? null : [q, null]);
    show(q === null ? null : [q, 0]);
  }

  function thumb(h) {
    const side = Math.sqrt(buffers.thumbs.length / heads.length), ink = make("canvas", { width: side, height: side }).getContext("2d");
    const image = ink.createImageData(side, side), pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < side * side; i++) {
      const v = buffers.thumbs[h * side * side + i];
      if (v > 0) pixels[i] = RAMP.words[v];
    }
    ink.putImageData(image, 0, 0);
    const told = `head ${heads[h]}: the sink takes ${percent(sinkShare[h])} on average, entropy ${entropy[h].toFixed(2)} bits`;
    const button = make("button", { type: "button", class: "thumb", title: told, "aria-label": told }, ink.canvas, make("span", {}));
    button.onclick = () => choose(heads[h], true);
    return button;
  }

  const thumbs = heads.map((_, h) => thumb(h));
  const shelf = make("div", { class: "thumbs", role: "group", "aria-label": "heads" });
  const cutNote = header.leftOut ? make("span", { class: "note" }, `${header.leftOut} more heads in the trace: heads=[...] or .live() shows others`) : "";
  const sorter = choice("sort heads", SORTS, state.sort, (name) => { state.sort = name; arrange(); emit(state); });
  const zoom = choice("zoom", [{ name: "−", meaning: "smaller" }, { name: "+", meaning: "larger" }], "", (sign) => {
    state.zoom = Math.max(0.5, Math.min(8, state.zoom * (sign === "+" ? 1.25 : 0.8)));
    enlarge();
    emit(state);
  });

  function enlarge() {
    spec.cell = [size(), size()];
    map.draw();
    foot.show(state);
  }

  /** Puts the heads in order; each says what it is sorted by. */
  function arrange() {
    const key = { number: (h) => heads[h], entropy: (h) => entropy[h], sink: (h) => -sinkShare[h] }[state.sort];
    const order = heads.map((_, h) => h).sort((a, b) => key(a) - key(b) || a - b);
    for (const h of order) {
      const told = state.sort === "entropy" ? `${entropy[h].toFixed(1)} b` : percent(sinkShare[h]);
      thumbs[h].lastChild.replaceChildren(`${heads[h]} `, make("small", {}, told));
    }
    shelf.replaceChildren(...order.map((h) => thumbs[h]), cutNote);
    sorter.show(state.sort);
    shelfTitle.textContent = `Layer ${header.layer}, ${told}. Heads, with ${state.sort === "entropy" ? "their mean entropy in bits" : "the sink's mean share"}:`;
    foot.show(state);
  }

  function keep(head, sent) {
    held.set(head, sent);
    if (held.size > 1 && held.size * half > KEPT) held.delete(held.keys().next().value);
  }

  /** Shows a head, at once where its weights are here; `mine`: the reader chose it, others are told. */
  function choose(head, mine) {
    wanted = head;
    if (held.has(head)) { use(head, mine); return; }
    ask({ head }).then((sent) => {
      keep(head, sent);
      if (head === wanted) use(head, mine);
    });
  }

  function use(head, mine) {
    [state.head, weights] = [head, held.get(head)];
    thumbs.forEach((button, h) => button.setAttribute("aria-pressed", String(heads[h] === head)));
    map.draw();
    show(state.query === null ? null : [state.query, 0]);
    stage.dataset.head = head;
    if (mine) emit(state);
  }

  const told = reach === null ? "full attention" : `window of ${reach} tokens (orange line)`;
  const foot = footer(header, "arrows move · Enter or click holds a query · Esc lets go");
  const shelfTitle = make("span", { class: "panel-title" });
  stage.append(
    make("div", { class: "tools" }, shelfTitle, sorter.node), shelf,
    make("div", { class: "tools" }, zoom.node, colorBar("attention weight", 0, 1, { root: true })),
    make("div", { class: "pair" }, map.node, make("div", { class: "reading" }, line, text.node)), foot.node);
  arrange();
  hold(state.query);
  use(state.head);
  return {
    draw: map.draw,
    select: (token) => { hold(token); emit(state); },
    set: (next) => {
      Object.assign(state, next, { head: state.head });
      arrange();
      enlarge();
      hold(state.query);
      choose(next.head, false);
    },
  };
}
