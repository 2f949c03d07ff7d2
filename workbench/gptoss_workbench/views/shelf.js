// The heads of a layer as a row of small pictures: one is chosen, arrows go to those beside it.

const SORTS = [
  { name: "number", meaning: "heads by number" },
  { name: "entropy", meaning: "lowest entropy first: the most pointed heads" },
  { name: "sink", meaning: "largest share of the sink first" },
];

const MANY = 24; // heads from which the pictures are smaller and scroll, so that the map stays in sight

/** A small picture as an image: each canvas would be a layer of its own, and every frame weighs them all. */
function drawThumb(image, values) {
  const side = Math.sqrt(values.length), canvas = make("canvas", { width: side, height: side });
  const ink = canvas.getContext("2d"), cells = ink.createImageData(side, side), pixels = new Uint32Array(cells.data.buffer);
  values.forEach((v, i) => { if (v > 0) pixels[i] = RAMP.words[v]; });
  ink.putImageData(cells, 0, 0);
  image.src = canvas.toDataURL();
}

/** face(head): what is known of a head, or nothing yet; pick(head): it is chosen, point(head): it may be next. */
function shelf(heads, note, { face, pick, point }) {
  const node = make("div", { class: heads.length > MANY ? "thumbs many" : "thumbs", role: "group", "aria-label": "heads, arrows choose" });
  const buttons = new Map(heads.map((head) => [head, button(head)]));
  let order = [], pressed = null;

  function button(head) {
    const made = make("button", { type: "button", class: "thumb", tabindex: -1 }, make("img", { alt: "" }), make("span", {}));
    made.onclick = () => pick(head);
    made.onpointerenter = () => point(head);
    return made;
  }

  function name(head, sort) {
    const known = face(head), [picture, label] = buttons.get(head).children;
    const told = known ? `head ${head}: the sink takes ${percent(known.sink)} on average, entropy ${known.entropy.toFixed(2)} bits` : `head ${head}`;
    const value = known ? (sort === "entropy" ? `${known.entropy.toFixed(1)} b` : percent(known.sink)) : "…";
    label.replaceChildren(`${head} `, make("small", {}, value));
    buttons.get(head).title = told;
    buttons.get(head).setAttribute("aria-label", told);
    if (known && !picture.src) drawThumb(picture, known.thumb);
  }

  /** Heads by what they are sorted by; by number as long as some are not measured. */
  function sorted(sort) {
    const key = { number: (h) => h, entropy: (h) => face(h).entropy, sink: (h) => -face(h).sink };
    const by = heads.every(face) ? key[sort] : key.number;
    return [...heads].sort((a, b) => by(a) - by(b) || a - b);
  }

  function arrange(sort) {
    heads.forEach((head) => name(head, sort));
    const next = sorted(sort), focused = document.activeElement;
    if (String(next) === String(order)) return;
    order = next;
    node.replaceChildren(...order.map((head) => buttons.get(head)), note);
    if (node.contains(focused)) focused.focus({ preventScroll: true });
  }

  function press(head) {
    for (const [each, down] of [[pressed, false], [head, true]]) {
      buttons.get(each)?.setAttribute("aria-pressed", String(down));
      buttons.get(each)?.setAttribute("tabindex", down ? 0 : -1);
    }
    pressed = head;
    requestAnimationFrame(() => reveal(buttons.get(head)));
  }

  /** Scrolls the shelf, not the page. */
  function reveal({ offsetTop, offsetHeight }) {
    const above = offsetTop < node.scrollTop, below = offsetTop + offsetHeight > node.scrollTop + node.clientHeight;
    if (above || below) node.scrollTop = offsetTop - (node.clientHeight - offsetHeight) / 2;
  }

  const go = (to) => () => {
    const at = order.findIndex((head) => buttons.get(head) === document.activeElement);
    const head = order[Math.max(0, Math.min(order.length - 1, to(at)))];
    pick(head);
    buttons.get(head).focus();
  };
  const [back, on] = [go((at) => at - 1), go((at) => at + 1)];
  onKeys(node, { ArrowLeft: back, ArrowUp: back, ArrowRight: on, ArrowDown: on, Home: go(() => 0), End: go(() => heads.length - 1) });
  heads.forEach((head) => buttons.get(head).setAttribute("aria-pressed", "false"));
  return {
    node, name, arrange, press, order: () => order,
    wait: (head, waits) => buttons.get(head).toggleAttribute("aria-busy", waits),
  };
}
