// The heads that are here. A live view has one at first and asks for the others: the chosen one at
// once, the rest in idle time, nearest first, in small batches so that a choice never waits for long.

const KEPT = 6e7, AHEAD = 1.6e7, BATCH = 1e6; // bytes of weights kept, fetched before they are wanted, fetched at once

const CALM = 250; // milliseconds after a choice (and at first) in which nothing else is fetched

const idle = window.requestIdleCallback ? (act) => requestIdleCallback(act, { timeout: 250 }) : (act) => setTimeout(act, 20);

/** What is known of a head without its weights; copies, so that the message they came in can go. */
function faceOf(part, i, n) {
  const count = part.known.length, { lead, thumbs } = part.arrays, cells = thumbs.length / count;
  return {
    sink: part.sinkShare[i],
    entropy: part.entropy[i],
    lead: Array.from({ length: lead.length / (count * n) }, (_, c) => lead.slice((c * count + i) * n, (c * count + i + 1) * n)),
    thumb: thumbs.slice(i * cells, (i + 1) * cells),
  };
}

/** `came(head, first)` is called for each head that comes later; first: its face was not known. */
function headStore(header, arrays, ask, came) {
  const n = header.tokens.id.length, half = (n * (n + 1)) / 2, reach = Math.floor(AHEAD / half);
  const most = Math.max(1, Math.floor(BATCH / half));
  const faces = new Map(), held = new Map();
  let order = header.heads, near = header.state.head, busy = false, closed = !ask, calm = performance.now() + CALM;

  function keep(head, weights) {
    held.delete(head);
    held.set(head, weights);
    for (const oldest of held.keys()) {
      if (held.size === 1 || held.size * half <= KEPT) break;
      held.delete(oldest);
    }
  }

  function take(part) {
    part.known.forEach((head, i) => faces.set(head, faceOf(part, i, n)));
    part.sent.forEach((head, i) => keep(head, part.arrays.weights.subarray(i * half, (i + 1) * half)));
  }

  const bring = (heads, weights) => ask({ heads, weights }).then((part) => {
    const first = heads.filter((head) => !faces.has(head));
    take(part);
    if (!closed) heads.forEach((head) => came(head, first.includes(head)));
  });

  /** The nearest heads that lack their face or, where they are near enough, their weights. */
  function next() {
    const from = order.indexOf(near), far = (head) => Math.abs(order.indexOf(head) - from);
    const unread = (head) => far(head) < reach && !held.has(head);
    const wanted = order.filter((head) => !faces.has(head) || unread(head)).sort((a, b) => far(a) - far(b));
    if (closed || !wanted.length) return null;
    const weights = unread(wanted[0]);
    return { heads: wanted.filter((head) => unread(head) === weights).slice(0, most), weights };
  }

  function more() {
    if (busy || !next()) return;
    busy = true;
    setTimeout(() => idle(() => {
      const wanted = next();
      busy = false;
      if (!wanted) return;
      if (performance.now() < calm) { more(); return; }
      busy = true;
      bring(wanted.heads, wanted.weights).then(() => { busy = false; more(); });
    }), Math.max(0, calm - performance.now()));
  }

  take({ ...header, arrays });
  return {
    face: (head) => faces.get(head),
    has: (head) => held.has(head),
    known: () => faces.size,
    /** The weights of a head that is here; it is then the last to be dropped. */
    weights: (head) => { keep(head, held.get(head)); return held.get(head); },
    want: (head) => { [near, calm] = [head, performance.now() + CALM]; if (!held.has(head)) bring([head], true); more(); },
    /** Fetches this head and those beside it next; `beside`: the heads in the order shown. */
    toward: (head, beside = order) => { near = head; order = beside; more(); },
    close: () => { closed = true; },
  };
}
