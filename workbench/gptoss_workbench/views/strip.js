// The text of a trace, token by token: one block a message, each with the letter of its lane.

/** Writes a token so that spaces, line ends and tabs are seen. */
function write(node, text) {
  const signs = { " ": "·", "\n": "⏎", "\t": "⇥" };
  if (text === "") node.append(make("i", { class: "ws" }, "∅"));
  for (const part of text.split(/([ \n\t])/)) {
    if (signs[part]) node.append(make("i", { class: "ws" }, signs[part]));
    else if (part) node.append(part);
  }
}

function visible(text) {
  return text.replaceAll(" ", "·").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}

function laneOf(header, name) {
  return header.lanes.find((lane) => lane.name === name);
}

function messageOf(header, i) {
  return header.messages.find((message) => i >= message.start && i < message.stop);
}

/** Everything known about token i, in one line. */
function describe(header, i) {
  const { position, id, text, part, sentence } = header.tokens, message = messageOf(header, i);
  const who = [message.role, message.channel].filter(Boolean).join(" · ") || "no message";
  const to = message.recipient ? ` → ${message.recipient}` : "";
  const told = sentence[i] >= 0 ? ` · sentence ${sentence[i]}` : "";
  return `token ${position[i]} “${visible(text[i])}” · ${who}${to} · ${part[i]}${told} · id ${id[i]}`;
}

function legend(header) {
  const items = header.lanes.map((lane) =>
    make("span", { class: "lane-name", style: `--lane:${lane.color}` }, make("b", {}, lane.letter), ` ${lane.name} `, make("small", {}, String(lane.count))));
  return make("div", { class: "legend" }, ...items);
}

function block(header, message, spans) {
  const lane = laneOf(header, message.lane), { text, part, sentence } = header.tokens;
  const body = make("div", { class: "text", dir: "auto" });
  for (let i = message.start; i < message.stop; i++) {
    const first = sentence[i] >= 0 && sentence[i] !== sentence[i - 1];
    if (first) body.append(make("sup", { "aria-hidden": "true", title: `sentence ${sentence[i]}` }, String(sentence[i])));
    const token = make("span", { class: `token ${part[i]}`, role: "option", "data-i": i });
    write(token, text[i]);
    spans.push(token);
    body.append(token, make("wbr"));
  }
  const to = message.recipient ? make("small", {}, `→ ${message.recipient}`) : "";
  const name = make("div", { class: "who" }, make("b", {}, lane.letter), make("span", {}, lane.name), to);
  return make("div", { class: `message ${message.lane}`, style: `--lane:${lane.color}` }, name, body);
}

/** The whole text. point(i) follows the pointer and the arrows, pick(i) a click or Enter; null means none. */
function strip(header, { label, point, pick }) {
  const spans = [];
  const node = make("div", { class: "strip", role: "listbox", tabindex: 0, "aria-label": label });
  for (const message of header.messages) node.append(block(header, message, spans));
  let at = null, locked = null;
  const mark = (was, now, name) => {
    if (was !== null) spans[was].classList.remove(name);
    if (now !== null) spans[now].classList.add(name);
  };
  const move = (i) => { mark(at, i, "at"); at = i; };
  const lock = (i) => {
    mark(locked, i, "locked");
    if (locked !== null) spans[locked].removeAttribute("aria-selected");
    if (i !== null) spans[i].setAttribute("aria-selected", "true");
    locked = i;
  };
  const index = (event) => {
    const token = event.target.closest?.("[data-i]");
    return token ? Number(token.dataset.i) : null;
  };
  node.addEventListener("mouseover", (event) => { const i = index(event); if (i !== null) { move(i); point(i); } });
  node.addEventListener("mouseleave", () => { move(null); point(locked); });
  node.addEventListener("click", (event) => { const i = index(event); if (i !== null) pick(i === locked ? null : i); });
  const step = (by) => () => {
    const next = Math.max(0, Math.min(spans.length - 1, (at ?? locked ?? -1) + by));
    move(next);
    spans[next].scrollIntoView({ block: "nearest" });
    point(next);
  };
  const line = (by) => () => {
    const from = spans[at ?? locked ?? 0].getBoundingClientRect();
    const far = spans.map((s, i) => [i, s.getBoundingClientRect()]).filter(([, b]) => by * (b.top - from.top) > 4);
    if (!far.length) return;
    const row = by > 0 ? Math.min(...far.map(([, b]) => b.top)) : Math.max(...far.map(([, b]) => b.top));
    const near = far.filter(([, b]) => Math.abs(b.top - row) < 4).sort((a, b) => Math.abs(a[1].left - from.left) - Math.abs(b[1].left - from.left));
    step(near[0][0] - (at ?? locked ?? 0))();
  };
  onKeys(node, {
    ArrowRight: step(1), ArrowLeft: step(-1), ArrowDown: line(1), ArrowUp: line(-1),
    Home: () => step(-spans.length)(), End: () => step(spans.length)(),
    Enter: () => pick(at === locked ? null : at), Escape: () => { move(null); pick(null); },
  });
  /** Tints tokens by value 0..255, deeper for more; null leaves one plain. */
  const painted = spans.map(() => null);
  const paint = (value) => spans.forEach((span, i) => {
    const v = value(i);
    if (v === painted[i]) return;
    painted[i] = v;
    span.classList.toggle("painted", v !== null);
    span.style.setProperty("--paint", v === null ? "" : `${Math.round((100 * v) / 255)}%`);
  });
  return { node, spans, lock, paint };
}
