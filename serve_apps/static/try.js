// The page to try each part: builds a dialogue, asks what the customer wants and what to answer.
import { answerNodes, moreNodes } from "./answer.js";
import { exampleNode, picturesOf } from "./examples.js";
import { current, say, speak } from "./language.js";
import { $, make, name } from "./nodes.js";
import { acceptFiles, readPicture, thumbnail } from "./pictures.js";
import { ITEMS_ASKED, MODES, beginning, grown, recommendedNodes } from "./recommended.js";
import { readEvents } from "./events.js";
import { HITS_ASKED, modalityName, retrievedNodes } from "./retrieved.js";
import { ask as send, askForKey } from "./key.js";
import { explain, readExamples, readReady, readTasks } from "./service.js";

const state = {
  turns: [{ speaker: "user", text: "", pictures: [] }], // picture: {name, url}
  serves: { intent: true, retrieval: false, recommendation: false }, // what /readyz says is answered
  answer: null, // the last response of /v1/intent
  retrieved: null, // the last response of /v1/retrieve
  recommended: null, // the last response of /v1/recommend, or what has come of it
  gold: {}, // task → label of the example on show, while it is unchanged
};

// ---------------------------------------------------------------- words

function setLanguage(language) {
  speak(language, "page");
  for (const option of $("modality").options) if (option.value) option.textContent = modalityName(option.value);
  for (const option of $("mode").options) if (option.value) option.textContent = say(`mode_${option.value}`);
  showTurns();
  showAnswer();
}

// ---------------------------------------------------------------- small helpers

function showError(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

// ---------------------------------------------------------------- the dialogue

function showTurns() {
  $("turns").replaceChildren(...state.turns.map(turnNode));
}

function turnNode(turn, index) {
  const node = $("turn-template").content.firstElementChild.cloneNode(true);
  const n = index + 1;
  node.classList.add(turn.speaker);
  node.querySelector(".speaker").textContent = say(turn.speaker);

  const text = node.querySelector("textarea");
  text.value = turn.text;
  text.placeholder = say(turn.speaker === "user" ? "userHint" : "agentHint");
  text.setAttribute("aria-label", say("turnText", { speaker: say(turn.speaker), n }));
  text.addEventListener("input", () => {
    turn.text = text.value;
    state.gold = {};
  });

  const swap = node.querySelector(".swap");
  swap.textContent = say(turn.speaker === "user" ? "swapUser" : "swapAgent");
  swap.addEventListener("click", () => {
    turn.speaker = turn.speaker === "user" ? "agent" : "user";
    showTurns();
    focusTurn(index, ".swap");
  });

  const remove = node.querySelector(".remove");
  remove.setAttribute("aria-label", say("removeTurn", { n }));
  remove.hidden = state.turns.length === 1;
  remove.addEventListener("click", () => {
    state.turns.splice(index, 1);
    showTurns();
    focusTurn(Math.min(index, state.turns.length - 1), "textarea");
  });

  const attach = node.querySelector("input[type=file]");
  node.querySelector(".attach span").textContent = say("attach");
  attach.setAttribute("aria-label", say("attachTo", { n }));
  attach.addEventListener("change", () => addPictures(turn, index, attach.files));
  node.querySelector(".pictures").replaceChildren(...turn.pictures.map((p, k) => pictureNode(turn, index, p, k)));
  acceptFiles(node, (files) => addPictures(turn, index, files));
  return node;
}

function pictureNode(turn, index, picture, number) {
  return thumbnail(picture, () => {
    turn.pictures.splice(number, 1);
    showTurns();
    focusTurn(index, "input[type=file]");
  });
}

function focusTurn(index, selector) {
  $("turns").children[index]?.querySelector(selector)?.focus();
}

async function addPictures(turn, index, files) {
  showError("");
  state.gold = {};
  for (const file of files) {
    await readPicture(file).then((picture) => turn.pictures.push(picture), (err) => showError(err.message));
  }
  showTurns();
  focusTurn(index, "textarea");
}

function addTurn(speaker) {
  state.turns.push({ speaker, text: "", pictures: [] });
  state.gold = {};
  showTurns();
  focusTurn(state.turns.length - 1, "textarea");
}

function clearAll() {
  state.turns = [{ speaker: "user", text: "", pictures: [] }];
  state.answer = null;
  state.retrieved = null;
  state.recommended = null;
  state.gold = {};
  showError("");
  showTurns();
  showAnswer();
  focusTurn(0, "textarea");
}

// ---------------------------------------------------------------- asking

function dialogueTurns() {
  return state.turns
    .filter((turn) => turn.text.trim() || turn.pictures.length)
    .map((turn) => ({
      speaker: turn.speaker,
      text: turn.text,
      images: turn.pictures.map((p) => p.url),
      item_ids: turn.items ?? [], // of an example
    }));
}

async function request(path, body) {
  const response = await send(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (response.ok) return response;
  showError(await explain(response));
  return null;
}

async function post(path, body) {
  return (await request(path, body))?.json() ?? null;
}

// Shows a reply while it is being said; returns the whole, or null where it broke off.
async function recommend(turns) {
  const mode = $("mode").value || null;
  const response = await request("v1/recommend", { turns, mode, k: ITEMS_ASKED, stream: true });
  if (!response) return null;
  let result = beginning();
  let last = null;
  for await (const { event, data } of readEvents(response.body)) {
    last = { kind: event, ...JSON.parse(data) };
    result = grown(result, last);
    showRecommended(result);
  }
  if (last?.kind === "end") return result;
  showError(last?.error?.message ?? say("offline"));
  return null;
}

async function ask() {
  const turns = dialogueTurns();
  showError("");
  // an intent is the customer's; an answer can be found to whatever was said
  if (!turns.some((turn) => turn.speaker === "user" || !state.serves.intent)) {
    showError(say("empty"));
    focusTurn(0, "textarea");
    return;
  }
  setBusy(true);
  const modality = $("modality").value || null;
  try {
    [state.answer, state.retrieved, state.recommended] = await Promise.all([
      state.serves.intent ? post("v1/intent", { task: $("task").value || null, turns }) : null,
      state.serves.retrieval ? post("v1/retrieve", { turns, modality, k: HITS_ASKED }) : null,
      state.serves.recommendation ? recommend(turns) : null,
    ]);
    showAnswer();
    if (answered() && $("result").getBoundingClientRect().top > innerHeight / 2) $("result").scrollIntoView();
  } catch {
    showError(say("offline"));
  } finally {
    setBusy(false);
  }
}

const answered = () => Boolean(state.answer || state.retrieved || state.recommended);

function setBusy(busy) {
  $("send").disabled = busy;
  $("send").textContent = say(busy ? "sending" : "send");
  $("result").classList.toggle("busy", busy);
  $("result").setAttribute("aria-busy", String(busy));
}

// ---------------------------------------------------------------- the answer

function showAnswer() {
  const { answer, retrieved, recommended } = state;
  $("status").classList.toggle("hidden", answered()); // the answer speaks for itself, except to screen readers
  $("status").textContent = answered() ? summary(answer, retrieved, recommended) : say("nothing");
  $("predictions").replaceChildren(...(answer ? answerNodes(answer, state.gold) : []));
  $("more").replaceChildren(...(answer ? moreNodes(answer) : []));
  $("retrieved").replaceChildren(...(retrieved ? retrievedNodes(retrieved) : []));
  showRecommended(recommended);
}

function showRecommended(result) {
  $("recommended").replaceChildren(...(result ? recommendedNodes(result, goOn) : []));
}

// The reply becomes the agent's turn, its products with it; the customer is next.
function goOn(reply) {
  const items = reply.parts.flatMap((part) => (part.item ? [part.item] : []));
  state.turns.push({ speaker: "agent", text: reply.text, pictures: [], items });
  addTurn("user");
}

function summary(answer, retrieved, recommended) {
  const labels = answer?.predictions.map((p) => name(p.label)).join(", ");
  const told = [
    answer ? say("done", { labels }) : "",
    retrieved ? say("found", { n: retrieved.hits.length }) : "",
    recommended ? say("replied", { text: recommended.reply.text }) : "",
  ];
  return told.filter(Boolean).join(" ");
}

// ---------------------------------------------------------------- start

async function loadServed() {
  const ready = await readReady();
  if (!ready.answers) return showError(ready.error.message);
  for (const part of ["intent", "retrieval", "recommendation"]) state.serves[part] = ready.answers.includes(part);
  $("task-row").hidden = !state.serves.intent;
  $("modality-row").hidden = !state.serves.retrieval;
  $("mode-row").hidden = !state.serves.recommendation;
  for (const mode of MODES) {
    const option = make("option", "", say(`mode_${mode}`));
    option.value = mode;
    $("mode").append(option);
  }
  for (const modality of ready.modalities) {
    const option = make("option", "", modalityName(modality));
    option.value = modality;
    $("modality").append(option);
  }
}

async function loadTasks() {
  for (const task of await readTasks()) {
    const option = make("option", "", name(task.name));
    option.value = task.name;
    $("task").append(option);
  }
}

async function loadExamples() {
  const examples = await readExamples();
  $("examples").hidden = !examples.length;
  $("examples").querySelector("ul").replaceChildren(...examples.map((example) => exampleNode(example, tryExample)));
}

function tryExample(example) {
  state.turns = example.turns.map((turn, n) => ({
    speaker: turn.speaker,
    text: turn.text,
    pictures: picturesOf(turn, n),
    items: turn.item_ids,
  }));
  state.gold = example.labels;
  $("task").value = "";
  showTurns();
  ask();
}

function start() {
  $("language").value = current();
  $("language").addEventListener("change", () => setLanguage($("language").value));
  $("add-user").addEventListener("click", () => addTurn("user"));
  $("add-agent").addEventListener("click", () => addTurn("agent"));
  $("clear").addEventListener("click", clearAll);
  $("dialogue").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  $("dialogue").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
  });
  // A picture dropped beside a turn goes to the last customer turn instead of replacing the page.
  acceptFiles(document.body, (files) => {
    const index = state.turns.findLastIndex((turn) => turn.speaker === "user");
    if (index >= 0) addPictures(state.turns[index], index, files);
  });
  setLanguage(current());
  askForKey(() => Promise.all([loadTasks(), loadExamples()]));
  Promise.all([loadServed(), loadTasks(), loadExamples()]).catch(() => showError(say("offline")));
}

start();
