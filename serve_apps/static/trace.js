// How much the student leans towards naming a product, a small bar for each token of its reply.
import { make, percent } from "./nodes.js";
import { say } from "./language.js";

// `steps`: [{token, mass, is_item}], mass in [0, 1].
export function traceNodes(steps) {
  const list = make("ol", "trace");
  list.append(...steps.map(stepNode));
  return [make("h3", "", say("trace")), list, make("p", "hint", say("traceHint"))];
}

function stepNode({ token, mass, is_item: isItem }) {
  const node = make("li", isItem ? "step names" : "step");
  const track = make("span", "mass");
  const fill = make("span", "fill");
  fill.style.height = `${mass * 100}%`;
  track.append(fill);
  node.append(track, make("span", "token", token), make("span", "hidden", ` ${percent(mass)}`));
  node.title = `${token}: ${percent(mass)}`;
  return node;
}
