// Product and picture cards of a reply.
import { make } from "./nodes.js";
import { say } from "./language.js";

// An address that may be shown: of this service, or a picture's own bytes; null for any other.
export function safeUrl(url) {
  if (!url) return null;
  if (url.toLowerCase().startsWith("data:image/")) return url;
  try {
    const found = new URL(url, document.baseURI);
    return found.origin === location.origin ? found.href : null;
  } catch {
    return null;
  }
}

// The pictures and products among a reply's parts, each once.
export function cardNodes(parts) {
  const seen = new Set();
  const shown = parts.filter((part) => {
    const key = part.item_id ?? part.image_id;
    return key && !seen.has(key) && seen.add(key);
  });
  return shown.map((part) => (part.kind === "image" ? pictureCard(part) : productCard(part)));
}

function pictureCard(part) {
  const node = make("li", "card picture");
  const figure = make("figure");
  const url = safeUrl(part.url);
  // the caption says what it shows
  if (url) figure.append(pictureNode(url, say("modality_image")));
  figure.append(make("figcaption", "", part.title || (url ? "" : say("noPicture"))));
  node.append(figure);
  return node;
}

function productCard(part) {
  const node = make("li", "card product-card");
  const url = safeUrl(part.url);
  const body = make("div", "card-body");
  body.append(make("span", "card-kind", say("modality_product")), make("span", "card-title", part.title));
  if (part.price != null) body.append(make("span", "card-price", String(part.price)));
  node.append(url ? pictureNode(url, "") : letterNode(part.title), body); // the title stands beside it
  return node;
}

function pictureNode(url, alt) {
  const image = make("img");
  image.src = url;
  image.alt = alt;
  image.loading = "lazy";
  return image;
}

// Stands for a product that has no picture.
function letterNode(title) {
  const node = make("span", "letter", [...title][0]?.toUpperCase() ?? "?");
  node.setAttribute("aria-hidden", "true");
  return node;
}
