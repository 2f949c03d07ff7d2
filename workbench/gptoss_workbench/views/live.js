// The form a widget wants: the same renderer, fed by traits. Its state is the trait `selected`, and
// what is not sent at once is asked for with a message.

const SETTLED = 120; // milliseconds without a change until the kernel is told: questions go first

function attach({ model, el }) {
  const header = JSON.parse(model.get("header")), sent = model.get("payload");
  const raw = sent.buffer.slice(sent.byteOffset, sent.byteOffset + sent.byteLength);
  const root = make("div", { class: "gptoss-view", "data-kind": header.view, "data-live": "" });
  el.append(root);

  const waiting = new Map();
  const answered = ({ answer, part }, [sent]) => {
    const key = JSON.stringify(answer), told = waiting.get(key);
    if (!told || !sent) return;
    waiting.delete(key);
    const raw = sent.buffer.slice(sent.byteOffset, sent.byteOffset + sent.byteLength);
    told.resolve({ ...part, arrays: arrays(raw, part.buffers) });
  };
  const ask = (what) => {
    const key = JSON.stringify(what);
    if (!waiting.has(key)) {
      const told = {};
      told.promise = new Promise((resolve) => { told.resolve = resolve; });
      waiting.set(key, told);
      model.send({ ask: what });
    }
    return waiting.get(key).promise;
  };
  let told = null, later = 0, shown = null;
  const tell = (state) => {
    told = JSON.stringify(state);
    if (told === JSON.stringify(model.get("selected"))) return;
    model.set("selected", state);
    model.save_changes();
  };
  const emit = (state) => {
    clearTimeout(later);
    later = setTimeout(tell, SETTLED, state);
  };
  const moved = () => {
    if (JSON.stringify(model.get("selected")) !== told) {
      clearTimeout(later);
      shown?.set(model.get("selected"));
    }
    told = null;
  };
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
