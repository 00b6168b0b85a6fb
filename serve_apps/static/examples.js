// Dialogues to try, as buttons.
import { make, name } from "./nodes.js";

export function exampleNode(example, onPick) {
  const button = make("button");
  button.type = "button";
  const picture = example.turns.flatMap((turn) => turn.images)[0];
  if (picture) {
    const image = make("img");
    image.src = picture;
    image.alt = "";
    button.append(image);
  }
  const last = example.turns.filter((turn) => turn.speaker === "user" && turn.text).at(-1);
  button.append(make("span", "", last?.text ?? Object.values(example.labels).map(name).join(", ")));
  button.addEventListener("click", () => onPick(example));
  const item = make("li");
  item.append(button);
  return item;
}

export const picturesOf = (turn, n) => turn.images.map((url, k) => ({ name: `${n + 1}.${k + 1}`, url }));
