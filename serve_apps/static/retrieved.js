// The answer of /v1/retrieve: ranked texts, pictures and product cards.
import { bar, fold, make, name } from "./nodes.js";
import { has, say } from "./language.js";
import { moreNodes } from "./answer.js";

export const HITS_ASKED = 10;
const HITS_SHOWN = 5;

export const modalityName = (modality) => (has(`modality_${modality}`) ? say(`modality_${modality}`) : name(modality));

export function retrievedNodes(result) {
  const title = make("h2", "", say("retrieved"));
  return [title, ...predictedNodes(result.predicted), ...hitNodes(result.hits), ...moreNodes(result)];
}

// The best few, the rest folded away.
export function hitNodes(hits) {
  if (!hits.length) return [make("p", "hint", say("noHits"))];
  const nodes = hits.map(hitNode);
  const rest = nodes.slice(HITS_SHOWN);
  const folded = rest.length ? [fold(say("otherHits", { n: rest.length }), listOf(rest))] : [];
  return [listOf(nodes.slice(0, HITS_SHOWN)), ...folded];
}

// Two-step methods say which modality they take the next turn to have.
function predictedNodes(predicted) {
  if (!predicted) return [];
  const shares = Object.entries(predicted.probabilities).sort((a, b) => b[1] - a[1]);
  const node = make("div", "predicted");
  node.append(make("h3", "", say("predicted")), ...shares.map(([modality, share]) => bar(modalityName(modality), share)));
  return [node];
}

function listOf(nodes) {
  const list = make("ol", "hits");
  list.append(...nodes);
  return list;
}

function hitNode(hit) {
  const node = make("li", `hit ${hit.modality}`);
  if (hit.image) {
    const image = make("img");
    image.src = hit.image;
    image.loading = "lazy";
    image.alt = hit.modality === "image" ? hit.title || modalityName("image") : ""; // a product's title stands beside it
    node.append(image);
  }
  const body = make("div", "hit-body");
  const head = make("div", "hit-head");
  head.append(
    make("span", "badge", modalityName(hit.modality)),
    make("span", "score", say("score", { score: hit.score.toFixed(3) })),
  );
  body.append(head, make("p", "hit-title", hit.title || hit.text));
  const details = detailsOf(hit);
  if (details) body.append(make("p", "hint hit-text", details));
  node.append(body);
  return node;
}

// Words of a response that its title does not say already.
function detailsOf(hit) {
  const text = hit.text.startsWith(hit.title) ? hit.text.slice(hit.title.length) : hit.text;
  return text.replace(/^[\s.:;,]+/, "");
}
