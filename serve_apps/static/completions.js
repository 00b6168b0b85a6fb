// POST /v1/chat/completions as a stream, and what of a conversation fits into one request.
import { readEvents } from "./events.js";
import { ask } from "./key.js";
import { say } from "./language.js";
import { explain } from "./service.js";

const ITEMS_ASKED = 5;
const BODY_SHARE = 0.9; // of the largest body; the rest is for JSON around words and pictures
const BYTES_A_CHARACTER = 3;

// A reply that did not come, or broke off. `again`: the same request may do better later.
export class ReplyError extends Error {
  constructor(message, again) {
    super(message);
    this.again = again;
  }
}

// Says a reply: yields {text, item} for words and named products as they come; returns what the last chunk tells.
export async function* complete(messages, language, signal) {
  const response = await send(messages, language, signal);
  let last = null;
  for await (const { data } of readEvents(response.body)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ReplyError(chunk.error.message, true);
    const choice = chunk.choices?.[0];
    const text = choice?.delta?.content;
    if (text) yield { text, item: chunk.mmd?.span ?? null };
    if (choice?.finish_reason) last = { id: chunk.id, model: chunk.model, ...chunk.mmd };
  }
  if (!last) throw new ReplyError(say("brokeOff"), true);
  return last;
}

async function send(messages, language, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ messages, stream: true, mmd: { k: ITEMS_ASKED, language } }),
    signal,
  });
  if (response.ok) return response;
  const again = response.status >= 500 || [401, 408, 429].includes(response.status);
  throw new ReplyError(await explain(response), again);
}

// The newest turns that one request holds, as OpenAI's messages, and whether something older had to be left out.
export function toMessages(turns, limits) {
  const room = {
    turns: limits.max_turns,
    characters: limits.max_text_chars,
    pictures: limits.max_images,
    bytes: limits.max_body_mb * 2 ** 20 * BODY_SHARE,
  };
  const messages = [];
  let shortened = false;
  for (const turn of turns.filter(isSaid).reverse()) {
    room.turns -= 1;
    room.characters -= turn.text.length;
    room.bytes -= turn.text.length * BYTES_A_CHARACTER;
    // the newest turn goes as it is: what is wrong with it, the service tells
    if (messages.length && (room.turns < 0 || room.characters < 0 || room.bytes < 0)) return { messages, shortened: true };
    const pictures = turn.pictures.filter((picture) => takePicture(picture, room));
    shortened ||= pictures.length < turn.pictures.length;
    if (turn.text.trim() || pictures.length) messages.unshift({ role: turn.role, content: contentOf(turn.text, pictures) });
  }
  return { messages, shortened };
}

// What was refused for good would be refused with every later message, too.
const isSaid = (turn) => !turn.refused && (turn.text.trim() || turn.pictures.length);

function takePicture(picture, room) {
  if (room.pictures < 1 || room.bytes < picture.url.length) return false;
  room.pictures -= 1;
  room.bytes -= picture.url.length;
  return true;
}

function contentOf(text, pictures) {
  if (!pictures.length) return text;
  const words = text.trim() ? [{ type: "text", text }] : [];
  return [...words, ...pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }))];
}
