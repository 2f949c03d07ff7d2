// The form a widget wants: the same renderer, fed by traits. Its state is the trait `selected`, and
// what is not sent at once is asked for with a message.

function attach({ model, el }) {
  const header = JSON.parse(model.get("header")), sent = model.get("payload");
  const raw = sent.buffer.slice(sent.byteOffset, sent.byteOffset + sent.byteLength);
  const root = make("div", { class: "gptoss-view", "data-kind": header.view, "data-live": "" });
  el.append(root);

  const waiting = new Map();
  const answered = (message, parts) => {
    const key = JSON.stringify(message.answer), part = parts[0];
    if (!waiting.has(key) || !part) return;
    waiting.get(key)(new Uint8Array(part.buffer, part.byteOffset, part.byteLength));
    waiting.delete(key);
  };
  const ask = (what) => new Promise((resolve) => {
    waiting.set(JSON.stringify(what), resolve);
    model.send({ ask: what });
  });
  let told = null;
  const emit = (state) => {
    told = JSON.stringify(state);
    if (told === JSON.stringify(model.get("selected"))) return;
    model.set("selected", state);
    model.save_changes();
  };
  let shown = null;
  const moved = () => { if (JSON.stringify(model.get("selected")) !== told) shown?.set(model.get("selected")); told = null; };
  const placed = new ResizeObserver(() => {  // before it has a place in the page there is no size and no colour
    if (shown || !root.clientWidth) return;
    placed.disconnect();
    shown = mount(root, { ...header, state: model.get("selected") }, arrays(raw, header.buffers), render, { emit, ask });
  });
  placed.observe(root);
  model.on("msg:custom", answered);
  model.on("change:selected", moved);
  return () => {
    model.off("msg:custom", answered);
    model.off("change:selected", moved);
    placed.disconnect();
    shown?.close();
  };
}

export default { render: attach };
