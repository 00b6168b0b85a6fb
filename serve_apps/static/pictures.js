// Pictures that a person adds: read, scaled down where they are larger than any model looks at, shown small.
import { make } from "./nodes.js";
import { say } from "./language.js";
import { readLimits } from "./service.js";

const LARGE_BYTES = 1.5 * 2 ** 20; // above this a picture is scaled down before it is sent
const SIDES_PX = [1600, 1024, 640, 400]; // longer side; 1600 keeps a screenshot's small print readable
const QUALITY = 0.88; // of JPEG

// Why a file cannot be added, in words.
export class PictureError extends Error {}

// Returns {name, url} of a file.
export async function readPicture(file) {
  const name = file.name || "1";
  const limits = await readLimits();
  if (!limits.media_types.includes(file.type)) throw new PictureError(say("kind", { name }));
  const most = { bytes: limits.max_image_mb * 2 ** 20, pixels: mostPixels(limits) };
  const bitmap = await createImageBitmap(file).catch(() => null); // null: this browser cannot read it
  const large = file.size > Math.min(LARGE_BYTES, most.bytes) || (bitmap && pixelsOf(bitmap) > most.pixels);
  const url = bitmap && large ? scaledDown(bitmap, most) : null;
  bitmap?.close();
  if (!url && file.size > most.bytes) throw new PictureError(say("tooLarge", { name, mb: limits.max_image_mb }));
  return { name, url: url ?? (await dataUrl(file, name)) };
}

// Of one picture: with its share, as many as a request takes fit in together, those of older turns included.
function mostPixels(limits) {
  return Math.min(limits.max_image_megapixels, limits.max_request_megapixels / limits.max_images) * 1e6;
}

const pixelsOf = ({ width, height }) => width * height;

// A JPEG of at most so many bytes and pixels as a data URL; null where none is small enough.
function scaledDown(bitmap, most) {
  for (const side of SIDES_PX) {
    const url = drawn(bitmap, side, most.pixels).toDataURL("image/jpeg", QUALITY);
    if (url.length * 0.75 <= most.bytes) return url;
  }
  return null;
}

function drawn(bitmap, side, pixels) {
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height), Math.sqrt(pixels / pixelsOf(bitmap)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.floor(bitmap.width * scale)); // rounded up they could be too many
  canvas.height = Math.max(1, Math.floor(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // JPEG has no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

function dataUrl(file, name) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(new PictureError(say("kind", { name }))));
    reader.readAsDataURL(file);
  });
}

// A small picture, with a button that removes it where `onRemove` is given.
export function thumbnail(picture, onRemove = null) {
  const item = make("li");
  const image = make("img");
  image.src = picture.url;
  image.alt = say("picture", { name: picture.name });
  item.append(image);
  if (!onRemove) return item;
  const remove = make("button", "", "✕");
  remove.type = "button";
  remove.setAttribute("aria-label", say("removePicture", { name: picture.name }));
  remove.addEventListener("click", onRemove);
  item.append(remove);
  return item;
}

// Calls `add` with files that are dropped on or pasted into a node; it has the class `dropping` while one hovers.
export function acceptFiles(node, add) {
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  node.addEventListener("dragover", (event) => {
    event.preventDefault();
    if (holdsFiles(event)) node.classList.add("dropping");
  });
  node.addEventListener("dragleave", (event) => {
    if (!node.contains(event.relatedTarget)) node.classList.remove("dropping");
  });
  node.addEventListener("drop", (event) => {
    event.preventDefault(); // a picture dropped anywhere must not replace the page
    event.stopPropagation();
    node.classList.remove("dropping");
    if (event.dataTransfer.files.length) add(event.dataTransfer.files);
  });
  node.addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return;
    event.preventDefault();
    event.stopPropagation();
    add(event.clipboardData.files);
  });
}
