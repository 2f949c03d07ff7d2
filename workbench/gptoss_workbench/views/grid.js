// A map of cells on a canvas: labels, a cursor, a held cell, keys. Values are 0..255, -1 is blank.

const LABEL = 82, GUTTER = 6, ADVANCE = 0.605; // ADVANCE: width of a letter, in font sizes

/**
 * spec: rows, cols, cell [width, height], lead (columns set apart in front), value(r, c), rowLabel(r),
 * colLabel(c), rowColor(r), colColor(c), label, point(r, c) or point(null), pick(r, c) or pick(null),
 * headHeight makes room for column labels, which lie flat
 * where it is small; ground: blank cells are tinted; map: RAMP or DIVERGING; inside(ink, at)
 * writes into cells, over(ink, at) draws marks, at(r, c) giving a cell's [x, y, width, height].
 */
function grid(stage, spec) {
  const side = make("canvas", { class: "side" }), main = make("canvas"), top = make("canvas", {
    class: "top", tabindex: 0, role: "application", "aria-roledescription": "map", "aria-label": spec.label,
  });
  const sheet = make("div", { class: "sheet" }, main, top);
  const node = make("div", { class: "grid" }, side, sheet);
  let cursor = null, held = null;
  const lead = spec.lead ?? 0;
  const leadWidth = () => (lead ? lead * Math.max(14, spec.cell[0]) + GUTTER : 0);
  const head = () => (spec.headHeight ?? LABEL) + (spec.colColor ? 8 : 0);
  const at = (r, c) => {
    const [w, h] = spec.cell, wide = Math.max(14, w);
    return c < lead ? [c * wide, head() + r * h, wide, h] : [leadWidth() + (c - lead) * w, head() + r * h, w, h];
  };
  const width = () => leadWidth() + (spec.cols - lead) * spec.cell[0];
  const height = () => head() + spec.rows * spec.cell[1] + 2;

  function size(canvas, w, h) {
    const scale = Math.min(window.devicePixelRatio || 1, 16000 / Math.max(w, h));
    canvas.width = Math.ceil(w * scale);
    canvas.height = Math.ceil(h * scale);
    canvas.style.width = `${w}px`;
    canvas.style.height = `${h}px`;
    const ink = canvas.getContext("2d");
    ink.setTransform(scale, 0, 0, scale, 0, 0);
    ink.clearRect(0, 0, w, h);
    return ink;
  }

  const picture = make("canvas", { width: spec.cols, height: spec.rows }), brush = picture.getContext("2d");

  function cells(ink) {
    const image = brush.createImageData(spec.cols, spec.rows), pixels = new Uint32Array(image.data.buffer);
    const words = (spec.map ?? RAMP).words;
    if (spec.fill) spec.fill(pixels, words);
    else for (let r = 0, i = 0; r < spec.rows; r++) {
      for (let c = 0; c < spec.cols; c++, i++) {
        const v = spec.value(r, c);
        if (v >= 0) pixels[i] = words[v];
      }
    }
    brush.putImageData(image, 0, 0);
    ink.imageSmoothingEnabled = false;
    const [w, h] = spec.cell, rest = spec.cols - lead;
    for (let c = 0; c < lead; c++) ink.drawImage(picture, c, 0, 1, spec.rows, at(0, c)[0], head(), at(0, c)[2], spec.rows * h);
    ink.drawImage(picture, lead, 0, rest, spec.rows, leadWidth(), head(), rest * w, spec.rows * h);
    if (h >= 12) for (let r = 1; r < spec.rows; r++) ink.clearRect(0, head() + r * h - 1, width(), 1);
    if (w >= 12) for (let c = lead + 1; c < spec.cols; c++) ink.clearRect(at(0, c)[0] - 1, head(), 1, spec.rows * h);
  }

  /** Columns from one label to the next: numbers that lie flat in narrow cells are not all written. */
  function stride(size) {
    if (!spec.headHeight || spec.cell[0] >= 40) return 1;
    return Math.ceil((spec.colLabel(spec.cols - 1).length * ADVANCE * size + 3) / spec.cell[0]);
  }

  function columnLabels(ink, muted) {
    const size = Math.min(11, spec.cell[0]), every = spec.colLabel ? stride(size) : 1;
    for (let c = 0; c < spec.cols; c++) {
      const [x, , w] = at(0, c), shade = spec.colColor?.(c);
      if (shade) { ink.fillStyle = shade; ink.fillRect(x, head() - 7, w, 5); }
      if (!spec.colLabel || (size < 7 && c >= lead) || (c - lead) % every) continue;
      ink.save();
      ink.translate(x + w / 2, head() - (spec.colColor ? 10 : 4));
      if (spec.headHeight) ink.textAlign = "center";
      else ink.rotate(-Math.PI / 2);
      const letter = c < lead ? 11 : size, room = spec.headHeight ? every * w - 2 : LABEL - 8;
      ink.font = `${letter}px ui-monospace, "DejaVu Sans Mono", monospace`;
      ink.textBaseline = spec.headHeight ? "bottom" : "middle";
      ink.fillStyle = muted;
      ink.fillText(cut(spec.colLabel(c), room, letter), 0, 0, room);
      ink.restore();
    }
  }

  function rowLabels(muted) {
    const size = Math.min(11, spec.cell[1]), wide = spec.rowWidth ?? 64;
    const ink = sizeSide(wide);
    ink.font = `${size}px ui-monospace, "DejaVu Sans Mono", monospace`;
    ink.textAlign = "right";
    ink.textBaseline = "middle";
    for (let r = 0; r < spec.rows; r++) {
      const y = at(r, 0)[1], h = spec.cell[1], shade = spec.rowColor?.(r);
      if (shade) { ink.fillStyle = shade; ink.fillRect(wide - 6, y, 4, h); }
      ink.fillStyle = muted;
      if (size >= 7) ink.fillText(cut(spec.rowLabel(r), wide - 10, size), wide - (shade ? 10 : 5), y + h / 2 + 0.5, wide - 10);
    }
    ink.font = "11px system-ui, sans-serif";
    (spec.corner ?? []).forEach((text, i) => ink.fillText(text, wide - 6, head() - 10 - 14 * i));
  }

  const sizeSide = (wide) => size(side, wide, height());
  const cut = (text, room, size) => {
    const most = Math.max(1, Math.floor(room / (ADVANCE * size)));
    return text.length > most ? `${text.slice(0, most - 1)}…` : text;
  };

  function marks() {
    const ink = size(top, width(), height());
    spec.over?.(ink, at);
    const frame = ([r, c], shade, thick) => {
      let [x, y, w, h] = at(r ?? 0, c ?? 0);
      if (r === null) h = spec.rows * spec.cell[1];
      if (c === null) w = width() - x;
      ink.strokeStyle = shade;
      ink.lineWidth = thick;
      ink.strokeRect(x + thick / 2 - 1, y + thick / 2 - 1, Math.max(w, 3) + 2 - thick, Math.max(h, 3) + 2 - thick);
    };
    if (held) frame(held, color(stage, "--held"), 2.5);
    if (cursor) {
      const [x, y, w, h] = at(...cursor);
      ink.fillStyle = color(stage, "--cross");
      ink.fillRect(0, y, width(), h);
      ink.fillRect(x, head(), w, spec.rows * spec.cell[1]);
      frame(cursor, color(stage, "--ink"), 1.5);
    }
  }

  function body(ink) {
    if (spec.ground) {
      ink.fillStyle = color(stage, "--wash");
      ink.fillRect(0, head(), width(), spec.rows * spec.cell[1]);
    }
    cells(ink);
    ink.save();
    spec.inside?.(ink, at);
    ink.restore();
  }

  /** New values in the same cells: labels and marks stay. */
  function repaint() {
    const ink = main.getContext("2d");
    ink.clearRect(0, head(), width(), spec.rows * spec.cell[1]);
    body(ink);
  }

  function draw() {
    const muted = color(stage, "--ink-soft"), ink = size(main, width(), height());
    body(ink);
    columnLabels(ink, muted);
    rowLabels(muted);
    marks();
  }

  const cellOf = (event) => {
    const box = top.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top - head();
    const r = Math.floor(y / spec.cell[1]), front = leadWidth();
    const c = x < front ? Math.min(lead - 1, Math.floor(x / Math.max(14, spec.cell[0]))) : lead + Math.floor((x - front) / spec.cell[0]);
    return r >= 0 && r < spec.rows && c >= 0 && c < spec.cols ? [r, c] : null;
  };
  const move = (cell) => {
    cursor = cell;
    marks();
    spec.point(cell);
  };
  const same = (a, b) => a && b && a.every((x, i) => x === null || b[i] === null || x === b[i]);
  top.addEventListener("mousemove", (event) => { const cell = cellOf(event); if (!same(cell, cursor) && (cell || cursor)) move(cell); });
  top.addEventListener("mouseleave", () => move(null));
  top.addEventListener("click", (event) => { const cell = cellOf(event); if (cell) spec.pick(same(cell, held) ? null : cell); });
  const step = (dr, dc) => () => {
    const [r, c] = cursor ?? held ?? [0, 0];
    move([Math.max(0, Math.min(spec.rows - 1, (r ?? 0) + dr)), Math.max(0, Math.min(spec.cols - 1, (c ?? 0) + dc))]);
    const [x, , w] = at(...cursor);
    if (x < node.scrollLeft || x + w > node.scrollLeft + node.clientWidth - 70) node.scrollLeft = x - node.clientWidth / 2;
  };
  onKeys(top, {
    ArrowRight: step(0, 1), ArrowLeft: step(0, -1), ArrowDown: step(1, 0), ArrowUp: step(-1, 0),
    Home: step(0, -spec.cols), End: step(0, spec.cols),
    Enter: () => cursor && spec.pick(same(cursor, held) ? null : cursor),
    Escape: () => { cursor = null; spec.pick(null); },
  });
  return { node, draw, repaint, marks, focus: () => top.focus(), hold: (cell) => { held = cell; marks(); } };
}
