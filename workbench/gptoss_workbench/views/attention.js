// One head's attention: sink column, query x key map with its window, and the weights on the text.
// Heads that were not sent are asked for; choosing another redraws the map and leaves the text.

function render(stage, header, buffers, emit, ask) {
  const { heads, window: reach } = header, n = header.tokens.id.length, front = header.lead.length;
  const place = header.tokens.position;
  const state = { ...header.state };
  const store = headStore(header, buffers, ask, arrived);
  let row = null, wanted = state.head, mine = false, face = null, weights = null;
  const unseen = (q, key) => key > q || (reach !== null && place[q] - place[key] >= reach);
  const seen = (q, key) => (unseen(q, key) ? -1 : weights[(q * (q + 1)) / 2 + key]);
  const lead = (i, q) => face.lead[i][q];
  const share = (v) => (v / 255) ** 2;

  const line = make("div", { class: "line", role: "status", "aria-live": "polite" });
  const size = () => Math.max(2, Math.min(16, Math.floor(600 / n))) * state.zoom;
  const lane = (i) => laneOf(header, messageOf(header, i)?.lane)?.color;
  const spec = {
    rows: n, cols: n + front, cell: [size(), size()], lead: front, label: header.finding, rowWidth: 84,
    value: (q, c) => (c < front ? lead(c, q) : seen(q, c - front)),
    fill,
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

  /** All cells of the map, row by row from the first key that is seen. */
  function fill(pixels, words) {
    for (let q = 0, first = 0, at = 0; q < n; q++, at += n + front) {
      while (unseen(q, first)) first++;
      for (let c = 0; c < front; c++) pixels[at + c] = words[lead(c, q)];
      const row = (q * (q + 1)) / 2;
      for (let key = first; key <= q; key++) pixels[at + front + key] = words[weights[row + key]];
    }
  }

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
      line.textContent = `layer ${header.layer} head ${state.head}: the sink takes ${percent(face.sink)} on average. Point at a row to see its weights on the text.`;
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

  const cutNote = header.leftOut ? make("span", { class: "note" }, `${header.leftOut} more heads in the trace: heads=[...] or .live() shows others`) : "";
  const thumbs = shelf(heads, cutNote, { face: store.face, pick: (head) => choose(head, true), point: store.toward });
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
    thumbs.arrange(state.sort);
    store.toward(wanted, thumbs.order());
    sorter.show(state.sort);
    entitle();
    foot.show(state);
  }

  function entitle() {
    const what = state.sort === "entropy" ? "their mean entropy in bits" : "the sink's mean share";
    const part = store.known() < heads.length ? ` (${store.known()} of ${heads.length} measured)` : "";
    shelfTitle.textContent = `Layer ${header.layer}, ${told}. Heads, with ${what}${part}:`;
  }

  /** A head has come from the kernel. */
  function arrived(head, first) {
    if (first) thumbs.name(head, state.sort);
    if (first && store.known() === heads.length) arrange();
    else entitle();
    if (head === wanted && state.head !== head && store.has(head)) use(head);
  }

  /** Shows a head, at once where its weights are here; `own`: the reader chose it, others are told. */
  function choose(head, own) {
    thumbs.wait(wanted, false);
    [wanted, mine] = [head, own];
    if (store.has(head)) use(head);
    else thumbs.wait(head, true);
    store.want(head);
  }

  function use(head) {
    take(head);
    map.repaint();
    stage.dataset.head = head;
    show(state.query === null ? null : [state.query, 0]);
    if (mine) emit(state);
  }

  function take(head) {
    [state.head, face, weights] = [head, store.face(head), store.weights(head)];
    thumbs.wait(head, false);
    thumbs.press(head);
  }

  const told = reach === null ? "full attention" : `window of ${reach} tokens (orange line)`;
  const foot = footer(header, "arrows move · Enter or click holds a query · Esc lets go");
  const shelfTitle = make("span", { class: "panel-title" });
  stage.append(
    make("div", { class: "tools" }, shelfTitle, sorter.node), thumbs.node,
    make("div", { class: "tools" }, zoom.node, colorBar("attention weight", 0, 1, { root: true })),
    make("div", { class: "pair" }, map.node, make("div", { class: "reading" }, line, text.node)), foot.node);
  take(store.has(wanted) ? wanted : header.sent[0]);
  arrange();
  map.draw();
  stage.dataset.head = state.head;
  hold(state.query);
  if (state.head !== wanted) choose(wanted, false);
  return {
    draw: map.draw,
    close: store.close,
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
