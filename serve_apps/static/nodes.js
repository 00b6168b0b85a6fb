// Small pieces that pages are put together from.

export const $ = (id) => document.getElementById(id);

export function make(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

export const percent = (value) => `${Math.round(value * 100)} %`;
export const name = (id) => id.replaceAll("_", " ");

export function bar(label, value, whole = false) {
  const node = make("div", whole ? "bar whole" : "bar");
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", `${label}: ${percent(value)}`);
  const track = make("div", "track");
  const fill = make("div", "fill");
  fill.style.width = `${value * 100}%`;
  track.append(fill);
  if (!whole) node.append(make("span", "name", label));
  node.append(track, make("span", "number", percent(value)));
  return node;
}

export function facts(pairs) {
  const list = make("dl", "facts");
  for (const [key, value] of pairs) list.append(make("dt", "", key), make("dd", "", value));
  return list;
}

export function fold(title, ...content) {
  const node = make("details");
  node.append(make("summary", "", title), ...content);
  return node;
}
