// The conversation coloured by channel; the line below tells what the pointer is on.

function render(stage, header, buffers, emit) {
  let locked = header.state.token;
  const line = make("div", { class: "line", role: "status", "aria-live": "polite" });
  const foot = footer(header, "← → ↑ ↓ move · Enter or click holds · Esc lets go");
  const say = (i) => {
    line.textContent = i === null ? header.finding : describe(header, i);
    line.classList.toggle("idle", i === null);
  };
  const hold = (i) => {
    locked = i;
    text.lock(i);
    say(i);
    foot.show({ token: i });
  };
  const text = strip(header, {
    label: header.finding,
    point: (i) => say(i ?? locked),
    pick: (i) => { hold(i); emit({ token: i }, i); },
  });
  text.node.classList.add("by-lane");
  stage.append(legend(header), text.node, line, foot.node);
  hold(locked);
  return { select: (i) => { hold(i); emit({ token: i }); }, set: (state) => hold(state.token) };
}
