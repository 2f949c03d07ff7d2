// One head's attention: sink column, query x key map with its window, and the weights on the text.

const THUMB = 46;

function render(stage, header, buffers, emit) {
  const { heads, window: reach } = header, n = header.tokens.id.length, front = header.lead.length;
  const place = header.tokens.position;
  const state = { ...header.state };
  let row = null;
  const head = () => heads.indexOf(state.head);
  const unseen = (q, key) => key > q || (reach !== null && place[q] - place[key] >= reach);
  const seen = (h, q, key) => (unseen(q, key) ? -1 : buffers.weights[(h * n + q) * n + key]);
  const lead = (i, h, q) => buffers.lead[(i * heads.length + h) * n + q];
  const share = (v) => (v / 255) ** 2;
  const meanSink = heads.map((_, h) => {
    let total = 0;
    for (let q = 0; q < n; q++) total += share(lead(0, h, q));
    return total / n;
  });

  const line = make("div", { class: "line", role: "status", "aria-live": "polite" });
  const size = () => Math.max(2, Math.min(16, Math.floor(600 / n))) * state.zoom;
  const lane = (i) => laneOf(header, messageOf(header, i)?.lane)?.color;
  const spec = {
    rows: n, cols: n + front, cell: [size(), size()], lead: front, label: header.finding, rowWidth: 76,
    value: (q, c) => (c < front ? lead(c, head(), q) : seen(head(), q, c - front)),
    rowLabel: (q) => visible(header.tokens.text[q]),
    colLabel: (c) => (c < front ? header.lead[c] : visible(header.tokens.text[c - front])),
    rowColor: lane,
    colColor: (c) => (c < front ? null : lane(c - front)),
    corner: ["query ↓", "key →"],
    over: band,
    point: (cell) => show(cell),
    pick: (cell) => { hold(cell ? cell[0] : null); emit({ token: state.query }); },
  };
  const map = grid(stage, spec);
  const text = strip(header, {
    label: "the text, coloured by the weights of the query",
    point: (i) => show(i === null ? null : [i, 0]),
    pick: (i) => { hold(i); emit({ token: i }); },
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
    const keys = Array.from({ length: q + 1 }, (_, key) => [seen(head(), q, key), key]).filter(([v]) => v > 0);
    return keys.sort((a, b) => b[0] - a[0]).slice(0, 4)
      .map(([v, key]) => `“${visible(header.tokens.text[key])}” ${percent(share(v))}`).join(", ");
  }

  function tell(q, cell) {
    const { position, text: texts } = header.tokens;
    const name = (i) => `${position[i]} “${visible(texts[i])}”`;
    let told = "";
    if (cell && cell[1] >= front) {
      const key = cell[1] - front, v = seen(head(), q, key);
      told = ` → key ${name(key)} ${v >= 0 ? percent(share(v)) : key > q ? "comes later" : "is outside the window"}`;
    }
    const outside = header.lead.map((name, i) => ` · ${name} ${percent(share(lead(i, head(), q)))}`).join("");
    line.textContent = `query ${name(q)}${told}${outside} · most on ${strongest(q)}`;
  }

  function show(cell) {
    row = cell ? cell[0] : state.query;
    line.classList.toggle("idle", row === null);
    text.lock(row);
    if (row === null) {
      line.textContent = `layer ${header.layer} head ${state.head}: the sink takes ${percent(meanSink[head()])} on average. Point at a row to see its weights on the text.`;
      text.paint(() => null);
    } else {
      tell(row, cell);
      text.paint((i) => { const v = seen(head(), row, i); return v > 0 ? v : null; });
    }
    foot.show(state);
  }

  function hold(q) {
    state.query = q;
    map.hold(q === null ? null : [q, null]);
    show(q === null ? null : [q, 0]);
  }

  function thumb(h) {
    const side = Math.min(n, THUMB), canvas = make("canvas", { width: side, height: side }), ink = canvas.getContext("2d");
    const most = new Int16Array(side * side).fill(-1);
    for (let q = 0; q < n; q++) {
      for (let key = 0; key <= q; key++) {
        const i = Math.floor((q * side) / n) * side + Math.floor((key * side) / n);
        most[i] = Math.max(most[i], seen(h, q, key));
      }
    }
    const image = ink.createImageData(side, side);
    most.forEach((v, i) => v >= 0 && image.data.set([...RAMP[v], 255], 4 * i));
    ink.putImageData(image, 0, 0);
    const told = make("span", {}, `${heads[h]} `, make("small", {}, percent(meanSink[h])));
    const button = make("button", { type: "button", class: "thumb", title: `head ${heads[h]}: the sink takes ${percent(meanSink[h])} on average` }, canvas, told);
    button.onclick = () => { state.head = heads[h]; switchTo(); };
    return button;
  }

  const thumbs = heads.map((_, h) => thumb(h));
  const cutNote = header.leftOut ? make("span", { class: "note" }, `${header.leftOut} more heads in the trace: heads=[...] shows others`) : "";
  const zoom = choice("zoom", [{ name: "−", meaning: "smaller" }, { name: "+", meaning: "larger" }], "", (sign) => {
    state.zoom = Math.max(0.5, Math.min(8, state.zoom * (sign === "+" ? 1.25 : 0.8)));
    spec.cell = [size(), size()];
    map.draw();
    foot.show(state);
  });
  function switchTo() {
    thumbs.forEach((button, h) => button.setAttribute("aria-pressed", String(heads[h] === state.head)));
    map.draw();
    show(state.query === null ? null : [state.query, 0]);
  }
  const window_ = reach === null ? "full attention" : `window of ${reach} tokens (orange line)`;
  const foot = footer(header, "arrows move · Enter or click holds a query · Esc lets go");
  const title = make("div", { class: "panel-title" }, `Layer ${header.layer}, ${window_}. Heads, with the sink's mean share:`);
  stage.append(
    title, make("div", { class: "thumbs", role: "group", "aria-label": "heads" }, ...thumbs, cutNote),
    make("div", { class: "tools" }, zoom.node, colorBar("attention weight", 0, 1, true)),
    make("div", { class: "pair" }, map.node, make("div", { class: "reading" }, line, text.node)), foot.node);
  hold(state.query);
  switchTo();
  return { draw: map.draw, select: (token) => hold(token) };
}

export default { render };
