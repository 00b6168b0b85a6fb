// The answer of /v1/recommend: the reply with its products, how it came about, and which other products were likely.
import { make, percent } from "./nodes.js";
import { say } from "./language.js";
import { moreNodes } from "./answer.js";
import { traceNodes } from "./trace.js";

export const ITEMS_ASKED = 5;
export const MODES = ["rec", "gen"];

// What is known of a reply after one more event.
export function grown(result, event) {
  if (event.kind === "end") return event.response;
  if (event.kind === "mode") return { ...result, mode: event.mode };
  return event.part ? { ...result, parts: [...result.parts, event.part] } : result;
}

export const beginning = () => ({ parts: [], mode: null });

// `result` is a whole response or, while it is being said, what came so far.
export function recommendedNodes(result, onContinue) {
  const whole = Boolean(result.reply);
  const nodes = [make("h2", "", say("reply")), replyNode(whole ? result.reply.parts : result.parts, whole)];
  if (result.mode) nodes.push(modeNode(result.mode));
  if (!whole) return nodes;
  const button = make("button", "quiet", say("continue"));
  button.type = "button";
  button.addEventListener("click", () => onContinue(result.reply));
  const items = [make("h3", "", say(`items_${result.items_from}`)), itemsNode(result.items)];
  const steps = result.item_mass.map((step) => ({ ...step, mass: step.item_mass }));
  return [...nodes, button, ...items, ...traceNodes(steps), ...moreNodes(result)];
}

function replyNode(parts, whole) {
  const node = make("p", whole ? "reply" : "reply speaking");
  node.append(...parts.map((part) => (part.item ? productNode(part) : part.text)));
  return node;
}

export function productNode(part) {
  const node = make("mark", "product", part.text);
  node.title = part.item;
  return node;
}

export function modeNode(mode) {
  const node = make("p", "who");
  const share = mode.probability === null ? "" : ` ${percent(mode.probability)}`;
  node.append(make("span", mode.name === "rec" ? "badge agrees" : "badge", say(`mode_${mode.name}`) + share));
  return node;
}

export function itemsNode(items) {
  const list = make("ol", "items");
  list.append(...items.map(itemNode));
  return list;
}

function itemNode(item) {
  const node = make("li", item.named ? "item named" : "item");
  if (item.image) {
    const image = make("img");
    image.src = item.image;
    image.loading = "lazy";
    image.alt = ""; // the title stands beside it
    node.append(image);
  }
  const track = make("div", "track");
  const fill = make("div", "fill");
  fill.style.width = `${item.score * 100}%`;
  track.append(fill);
  const body = make("div", "item-body");
  body.append(make("span", "item-title", item.title), track);
  node.append(body, make("span", "number", `${(item.score * 100).toFixed(1)} %`));
  return node;
}
