// The chat page: a conversation over /v1/chat/completions. No framework, no other host.
import { Composer } from "./composer.js";
import { ReplyError, complete, toMessages } from "./completions.js";
import { exampleNode, picturesOf } from "./examples.js";
import { askForKey } from "./key.js";
import { current, say, speak } from "./language.js";
import { $ } from "./nodes.js";
import { acceptFiles } from "./pictures.js";
import { readExamples, readLimits, readReady } from "./service.js";
import { turnNode } from "./turns.js";
import { WhyDrawer } from "./why.js";

const NEAR_END_PX = 120; // who is further up reads, and is not scrolled away from it

const state = {
  // {role: "user" | "assistant", text, pictures, status}; messages also refused; replies pieces, mmd, error, again
  turns: [],
  before: [], // the conversation before the last "new conversation"
  follows: true, // the end is in sight, and is to stay so while the conversation grows
  stop: null, // AbortController of the reply that is being said
};

const composer = new Composer(send, stop);
const why = new WhyDrawer();

// ---------------------------------------------------------------- the conversation on show

function show() {
  $("log").replaceChildren(...state.turns.map(nodeOf));
  $("welcome").hidden = state.turns.length > 0;
  $("new").disabled = !state.turns.length;
  $("back").hidden = !state.before.length;
}

const nodeOf = (turn) => turnNode(turn, { onWhy, onAgain, onEdit }, turn === state.turns.at(-1));

// Shows what has become of one turn.
function showTurn(turn) {
  $("log").children[state.turns.indexOf(turn)]?.replaceWith(nodeOf(turn));
}

const isAtEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - NEAR_END_PX;

function toEnd() {
  state.follows = true;
  scrollTo({ top: document.documentElement.scrollHeight });
}

function onScroll() {
  state.follows = isAtEnd();
  $("latest").hidden = state.follows;
}

function announce(words) {
  $("announce").textContent = words;
}

function onWhy(turn, button) {
  why.toggle(turn, button);
}

// ---------------------------------------------------------------- saying

async function send(text, pictures) {
  state.turns.push({ role: "user", text, pictures, status: "done" });
  await reply();
}

async function onAgain(turn) {
  leave();
  state.turns.splice(state.turns.indexOf(turn));
  composer.focus();
  await reply();
}

// Takes the last message back into the composer.
function onEdit(turn) {
  leave();
  const asked = state.turns.findLastIndex((t, n) => t.role === "user" && n < state.turns.indexOf(turn));
  const [message] = state.turns.splice(asked);
  composer.fill(message.text, message.pictures);
  show();
}

async function reply() {
  const turn = { role: "assistant", text: "", pieces: [], pictures: [], status: "waiting", started: performance.now() };
  const asked = [...state.turns];
  const stopping = new AbortController();
  state.stop = stopping;
  state.turns.push(turn);
  composer.setBusy(true);
  show();
  toEnd();
  announce(say("thinking"));
  try {
    const { messages, shortened } = toMessages(asked, await readLimits());
    turn.shortened = shortened;
    await hear(turn, complete(messages, current(), stopping.signal));
  } catch (err) {
    failed(turn, err, stopping.signal.aborted);
    asked.at(-1).refused = !turn.again;
  }
  if (state.stop !== stopping) return; // the conversation has gone on without it
  state.stop = null;
  composer.setBusy(false);
  showTurn(turn);
  announce(summary(turn));
}

async function hear(turn, pieces) {
  for (;;) {
    const { value, done } = await pieces.next();
    if (done) {
      turn.mmd = value;
      turn.status = "done";
      return;
    }
    turn.status = "speaking";
    turn.text += value.text;
    turn.pieces.push(value);
    showTurn(turn);
  }
}

function failed(turn, err, stopped) {
  turn.status = stopped ? "stopped" : "failed";
  turn.error = err instanceof ReplyError ? err.message : say("offline");
  turn.again = err.again ?? true;
}

function stop() {
  state.stop?.abort();
}

// Stops the reply that is being said, and no longer waits for it.
function leave() {
  stop();
  state.stop = null;
  composer.setBusy(false);
}

function summary(turn) {
  if (turn.status === "failed") return ""; // an alert has told it
  if (turn.status === "stopped") return say("stopped");
  return say("replySaid", { text: turn.text });
}

// ---------------------------------------------------------------- beginning anew

function newConversation() {
  leave();
  state.before = state.turns;
  state.turns = [];
  composer.fill("", []);
  why.close();
  show();
  announce(say("began"));
}

function goBack() {
  [state.turns, state.before] = [state.before.filter((turn) => turn.status === "done" || turn.text), []];
  show();
  toEnd();
  composer.focus();
}

// The dialogue up to its last customer turn, which is then asked.
function tryExample(example) {
  const last = example.turns.findLastIndex((turn) => turn.speaker === "user");
  state.turns = example.turns.slice(0, last + 1).map((turn, n) => ({
    role: turn.speaker === "user" ? "user" : "assistant",
    text: turn.text,
    pieces: [{ text: turn.text, item: null }],
    pictures: picturesOf(turn, n),
    status: "done",
  }));
  composer.focus();
  reply();
}

// ---------------------------------------------------------------- start

function setLanguage(language) {
  speak(language, "chatPage");
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", say(node.dataset.label));
  composer.show();
  why.show();
  show();
}

async function loadExamples() {
  const examples = await readExamples();
  const list = document.querySelector("#welcome .examples");
  list.hidden = !examples.length;
  list.replaceChildren(...examples.map((example) => exampleNode(example, tryExample)));
}

async function checkServed() {
  const ready = await readReady();
  if (ready.answers) return;
  $("problem").textContent = ready.error.message;
  $("problem").hidden = false;
}

function start() {
  $("language").value = current();
  $("language").addEventListener("change", () => setLanguage($("language").value));
  $("new").addEventListener("click", newConversation);
  $("back").addEventListener("click", goBack);
  $("latest").addEventListener("click", toEnd);
  addEventListener("scroll", onScroll, { passive: true });
  new ResizeObserver(() => state.follows && toEnd()).observe($("log")); // words come, pictures load
  acceptFiles(document.body, (files) => composer.add(files));
  setLanguage(current());
  askForKey(() => loadExamples().then(() => composer.focus()));
  composer.focus();
  Promise.all([readLimits().then(() => composer.show()), loadExamples(), checkServed()]).catch(() => {
    $("problem").textContent = say("offline");
    $("problem").hidden = false;
  });
}

start();
