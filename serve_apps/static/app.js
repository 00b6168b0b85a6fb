// The page: builds a dialogue, asks what the customer wants and what to answer. No framework, no other host.
import { answerNodes, moreNodes } from "./answer.js";
import { choose, current, say } from "./language.js";
import { make, name } from "./nodes.js";
import { ITEMS_ASKED, MODES, beginning, grown, readEvents, recommendedNodes } from "./recommended.js";
import { HITS_ASKED, modalityName, retrievedNodes } from "./retrieved.js";

const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
const $ = (id) => document.getElementById(id);

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
  choose(language);
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  document.title = say("page");
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = say(node.dataset.text);
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
  acceptDrops(node, turn, index);
  return node;
}

function pictureNode(turn, index, picture, number) {
  const item = make("li");
  const image = make("img");
  image.src = picture.url;
  image.alt = say("picture", { name: picture.name });
  const remove = make("button", "", "✕");
  remove.type = "button";
  remove.setAttribute("aria-label", say("removePicture", { name: picture.name }));
  remove.addEventListener("click", () => {
    turn.pictures.splice(number, 1);
    showTurns();
    focusTurn(index, "input[type=file]");
  });
  item.append(image, remove);
  return item;
}

function acceptDrops(node, turn, index) {
  node.addEventListener("dragover", (event) => {
    event.preventDefault();
    node.classList.add("dropping");
  });
  node.addEventListener("dragleave", () => node.classList.remove("dropping"));
  node.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    node.classList.remove("dropping");
    addPictures(turn, index, event.dataTransfer.files);
  });
  node.addEventListener("paste", (event) => {
    const files = event.clipboardData.files;
    if (!files.length) return;
    event.preventDefault();
    addPictures(turn, index, files);
  });
}

function focusTurn(index, selector) {
  $("turns").children[index]?.querySelector(selector)?.focus();
}

function readFile(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}

async function addPictures(turn, index, files) {
  showError("");
  state.gold = {};
  for (const file of files) {
    const bad = () => showError(say("kind", { name: file.name }));
    if (!KINDS.includes(file.type)) bad();
    else await readFile(file).then((url) => turn.pictures.push({ name: file.name || "1", url }), bad);
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

async function explain(response) {
  const wait = response.headers.get("Retry-After");
  if (wait) return say("busy", { s: wait });
  try {
    return (await response.json()).error.message;
  } catch {
    return `HTTP ${response.status}`;
  }
}

async function request(path, body) {
  const response = await fetch(path, {
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
  const last = await readEvents(response.body, (event) => {
    result = grown(result, event);
    showRecommended(result);
  });
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
  const ready = await (await fetch("readyz")).json();
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
  const { tasks } = await (await fetch("v1/tasks")).json();
  for (const task of tasks) {
    const option = make("option", "", name(task.name));
    option.value = task.name;
    $("task").append(option);
  }
}

async function loadExamples() {
  const { examples } = await (await fetch("v1/examples")).json();
  $("examples").hidden = !examples.length;
  $("examples").querySelector("ul").replaceChildren(...examples.map(exampleNode));
}

function exampleNode(example) {
  const labels = Object.values(example.labels).map(name).join(", ");
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
  button.append(make("span", "", last?.text ?? labels));
  button.addEventListener("click", () => {
    state.turns = example.turns.map((turn, n) => ({
      speaker: turn.speaker,
      text: turn.text,
      pictures: turn.images.map((url, k) => ({ name: `${n + 1}.${k + 1}`, url })),
      items: turn.item_ids,
    }));
    state.gold = example.labels;
    $("task").value = "";
    showTurns();
    ask();
  });
  const item = make("li");
  item.append(button);
  return item;
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
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    const index = state.turns.findLastIndex((turn) => turn.speaker === "user");
    if (index >= 0) addPictures(state.turns[index], index, event.dataTransfer.files);
  });
  setLanguage(current());
  Promise.all([loadServed(), loadTasks(), loadExamples()]).catch(() => showError(say("offline")));
}

start();
