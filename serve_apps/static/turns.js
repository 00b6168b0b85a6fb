// One turn of the conversation: what was said, the cards, and what can be done with it.
import { cardNodes } from "./cards.js";
import { say } from "./language.js";
import { make, name } from "./nodes.js";
import { thumbnail } from "./pictures.js";
import { productNode } from "./recommended.js";

// `actions`: {onWhy(turn, button), onAgain(turn), onEdit(turn)}; the last two are of the last turn alone: they take
// back what comes after.
export function turnNode(turn, actions, isLast) {
  const node = make("li", `message ${turn.role} ${turn.status}`);
  node.append(make("span", "hidden", say(turn.role === "user" ? "you" : "assistant")));
  if (turn.pictures.length) node.append(picturesNode(turn.pictures));
  if (turn.role === "user") {
    if (turn.text) node.append(make("p", "said", turn.text));
    return node;
  }
  node.append(...saidNodes(turn), ...cardList(turn), ...problemNodes(turn, actions, isLast));
  if (turn.mmd) node.append(footNode(turn, actions));
  return node;
}

function picturesNode(pictures) {
  const list = make("ul", "pictures");
  list.append(...pictures.map((picture) => thumbnail(picture)));
  return list;
}

function saidNodes(turn) {
  if (turn.status === "waiting") {
    const dots = make("p", "said dots");
    dots.append(make("span", "hidden", say("thinking")), ...[1, 2, 3].map(() => make("span", "dot")));
    return [dots];
  }
  if (!turn.text.trim() || isCardAlone(turn)) return [];
  const words = make("p", "said");
  words.append(...turn.pieces.map(({ text, item }) => (item ? productNode({ text, item: item.item_id }) : text)));
  return [words];
}

// A reply that is a picture or a product and nothing else has its title as words; the card shows it already.
function isCardAlone(turn) {
  const parts = turn.mmd?.parts ?? [];
  return parts.length > 0 && parts.every((part) => part.kind !== "text");
}

function cardList(turn) {
  const named = turn.pieces.filter((piece) => piece.item).map(({ item }) => ({ kind: "item", ...item }));
  const cards = cardNodes(turn.mmd ? turn.mmd.parts : named);
  if (!cards.length) return [];
  const list = make("ul", "cards");
  list.append(...cards);
  return [list];
}

function problemNodes(turn, actions, isLast) {
  const rows = isLast ? [actionsNode(turn, actions)] : [];
  if (turn.status === "stopped") return [problemNode("problem", make("p", "hint", say("stopped")), ...rows)];
  if (turn.status !== "failed") return [];
  const words = make("p", "", turn.error);
  words.setAttribute("role", "alert");
  return [problemNode("problem bad", words, ...rows)];
}

function problemNode(className, ...content) {
  const node = make("div", className);
  node.append(...content);
  return node;
}

function actionsNode(turn, { onAgain, onEdit }) {
  const row = make("div", "row");
  if (turn.again) row.append(action("again", () => onAgain(turn)));
  row.append(action("edit", () => onEdit(turn)));
  return row;
}

function footNode(turn, { onWhy }) {
  const node = make("div", "foot");
  const button = action("why", () => onWhy(turn, button));
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-controls", "why");
  button.className += " why";
  node.append(button, ...turn.mmd.intents.map((intent) => make("span", "badge", name(intent.label))));
  if (turn.mmd.degraded.length) node.append(make("span", "badge lacking", say("lacking")));
  if (turn.shortened) node.append(make("span", "hint", say("shortened")));
  return node;
}

function action(key, onClick) {
  const button = make("button", "small", say(key));
  button.type = "button";
  button.addEventListener("click", onClick);
  return button;
}
