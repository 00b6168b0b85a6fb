// The page: builds a dialogue, asks /v1/intent, shows the answer and why. No framework, no other host.
import { WORDS } from "./words.js";

const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
const RULES_SHOWN = 3;
const WITHOUT_POOL = ["rules", "default", "mllm"]; // arms in which no pool of models had a say
const $ = (id) => document.getElementById(id);

const state = {
  language: readLanguage(),
  turns: [{ speaker: "user", text: "", pictures: [] }], // picture: {name, url}
  answer: null, // the last response
  gold: {}, // task → label of the example on show, while it is unchanged
};

// ---------------------------------------------------------------- words

function readLanguage() {
  let saved = null;
  try {
    saved = localStorage.getItem("mmd.language");
  } catch {
    // storage is switched off; the choice then lasts as long as the page
  }
  return saved ?? (navigator.language.startsWith("zh") ? "zh" : "en");
}

function say(key, values = {}) {
  return WORDS[state.language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function setLanguage(language) {
  state.language = language;
  try {
    localStorage.setItem("mmd.language", language);
  } catch {
    // see readLanguage
  }
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  document.title = say("page");
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = say(node.dataset.text);
  showTurns();
  showAnswer();
}

// ---------------------------------------------------------------- small helpers

function make(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

const percent = (value) => `${Math.round(value * 100)} %`;
const name = (id) => id.replaceAll("_", " ");

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
  state.gold = {};
  showError("");
  showTurns();
  showAnswer();
  focusTurn(0, "textarea");
}

// ---------------------------------------------------------------- asking

function requestBody() {
  const turns = state.turns
    .filter((turn) => turn.text.trim() || turn.pictures.length)
    .map((turn) => ({
      speaker: turn.speaker,
      text: turn.text,
      images: turn.pictures.map((p) => p.url),
      item_ids: turn.items ?? [], // of an example
    }));
  return { task: $("task").value || null, turns };
}

async function explain(response) {
  if (response.status === 429 || response.status === 503) {
    return say("busy", { s: response.headers.get("Retry-After") ?? 1 });
  }
  try {
    return (await response.json()).error.message;
  } catch {
    return `HTTP ${response.status}`;
  }
}

async function ask() {
  const body = requestBody();
  showError("");
  if (!body.turns.some((turn) => turn.speaker === "user")) {
    showError(say("empty"));
    focusTurn(0, "textarea");
    return;
  }
  setBusy(true);
  try {
    const response = await fetch("v1/intent", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    if (response.ok) {
      state.answer = await response.json();
      showAnswer();
      if ($("result").getBoundingClientRect().top > innerHeight / 2) $("result").scrollIntoView();
    } else showError(await explain(response));
  } catch {
    showError(say("offline"));
  } finally {
    setBusy(false);
  }
}

function setBusy(busy) {
  $("send").disabled = busy;
  $("send").textContent = say(busy ? "sending" : "send");
  $("result").classList.toggle("busy", busy);
  $("result").setAttribute("aria-busy", String(busy));
}

// ---------------------------------------------------------------- the answer

function showAnswer() {
  const answer = state.answer;
  $("status").classList.toggle("hidden", Boolean(answer)); // the answer speaks for itself, except to screen readers
  if (!answer) {
    $("status").textContent = say("nothing");
    $("predictions").replaceChildren();
    $("more").replaceChildren();
    return;
  }
  const labels = answer.predictions.map((p) => name(p.label)).join(", ");
  $("status").textContent = say("done", { labels });
  $("predictions").replaceChildren(...answer.predictions.map(predictionNode));
  $("more").replaceChildren(...moreNodes(answer));
}

function predictionNode(prediction) {
  const node = make("article", "prediction");
  const who = make("div", "who");
  who.append(make("span", `badge ${prediction.arm}`, say(prediction.arm in WORDS.en ? prediction.arm : "classifier")));
  const gold = state.gold[prediction.task];
  if (gold) {
    const agrees = gold === prediction.label;
    who.append(make("span", agrees ? "badge agrees" : "badge", `${agrees ? "✓" : "≠"} ${say("gold", { label: name(gold) })}`));
  }
  node.append(
    make("h3", "", name(prediction.task)),
    make("p", "label", name(prediction.label)),
    who,
    ...shareNodes(prediction),
    make("h3", "", say("confidence")),
    bar(say("confidence"), prediction.confidence, true),
    make("h3", "", say("fired")),
    ...ruleNodes(prediction),
  );
  if (prediction.alternatives.length) {
    node.append(make("h3", "", say("alternatives")));
    for (const { label, probability } of prediction.alternatives.slice(0, 5)) node.append(bar(name(label), probability));
  }
  return node;
}

function shareNodes(prediction) {
  if (WITHOUT_POOL.includes(prediction.arm)) return [];
  const share = prediction.mllm_share;
  const key = share === 0 ? "probeAlone" : share === 1 ? "mllmAlone" : "shares";
  return [make("p", "hint shares", say(key, { mllm: percent(share), probe: percent(1 - share) }))];
}

function bar(label, value, whole = false) {
  const node = make("div", whole ? "bar whole" : "bar");
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", `${label}: ${percent(value)}`);
  const track = make("div", "track");
  const fill = make("div", "fill");
  fill.style.width = `${value * 100}%`;
  track.append(fill);
  if (!whole) node.append(make("span", "name", label));
  node.append(track, make("span", "number", percent(value)));
  return node;
}

function ruleNodes(prediction) {
  if (!prediction.fired.length) return [make("p", "hint", say("noRules"))];
  const nodes = prediction.fired.map((rule) => ruleNode(rule, prediction.label));
  if (nodes.length <= RULES_SHOWN) return nodes;
  const rest = make("details");
  rest.append(make("summary", "", say("otherRules", { n: nodes.length - RULES_SHOWN })), ...nodes.slice(RULES_SHOWN));
  return [...nodes.slice(0, RULES_SHOWN), rest];
}

function ruleNode(rule, label) {
  const node = make("div", rule.label === label ? "rule same" : "rule");
  const record = { precision: percent(rule.precision), support: rule.support, low: percent(rule.wilson_lower) };
  node.append(
    make("span", "", rule.words[state.language]),
    make("span", "hint", rule.support ? say("record", record) : say("unmeasured")),
  );
  node.title = rule.id;
  return node;
}

function facts(pairs) {
  const list = make("dl", "facts");
  for (const [key, value] of pairs) list.append(make("dt", "", key), make("dd", "", value));
  return list;
}

function fold(title, content) {
  const node = make("details");
  node.append(make("summary", "", title), content);
  return node;
}

function moreNodes(answer) {
  const notes = answer.degraded.map((part) => make("p", "note", say("degraded") + part));
  const times = Object.entries(answer.timings_ms);
  const total = answer.timings_ms.total.toFixed(0);
  return [
    ...notes,
    fold(say("timings", { total }), facts(times.map(([stage, ms]) => [say(stage), `${ms.toFixed(1)} ms`]))),
    fold(say("used"), facts(Object.entries(answer.artifacts))),
    fold(say("json"), make("pre", "", JSON.stringify(answer, null, 2))),
  ];
}

// ---------------------------------------------------------------- start

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
  $("language").value = state.language;
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
  setLanguage(state.language);
  Promise.all([loadTasks(), loadExamples()]).catch(() => showError(say("offline")));
}

start();
