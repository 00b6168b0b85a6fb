// The page of sweeps: lists them, shows one, launches and stops them; looks again while one runs.
import { ask, askForKey } from "./key.js";
import { current, learn, say, speak } from "./language.js";
import { $ } from "./nodes.js";
import { explain } from "./service.js";
import { drawCharts, forgetTrials, showDetail } from "./sweep_detail.js";
import { readSpace, showFields } from "./sweep_form.js";
import { nameOf, showList } from "./sweep_list.js";
import { SWEEP_WORDS } from "./sweep_words.js";

learn(SWEEP_WORDS);
const SOON_MS = 2000; // while a sweep waits or runs
const LATER_MS = 20000;
const GOING = ["waiting", "running"];

const state = {
  sweeps: [],
  states: new Map(), // id → state, as it was told last
  kinds: [],
  launching: null, // {allowed, reason}
  detail: null, // the sweep that is shown, with its trials
  timer: 0,
};

const chosenId = () => decodeURIComponent(location.hash.slice(1));
const kindNamed = (name) => state.kinds.find((kind) => kind.name === name);
const announce = (words) => ($("announce").textContent = words);

function showProblem(node, words) {
  $(node).textContent = words ?? "";
  $(node).hidden = !words;
}

// Runs what replaces nodes, and puts the focus back on what has the same key.
function keepingFocus(show) {
  const key = document.activeElement?.dataset?.key;
  show();
  if (key && !document.activeElement?.dataset?.key) document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

// ------------------------------------------------------------ reading

async function read(path) {
  const response = await ask(path);
  if (!response.ok) throw new Error(await explain(response));
  return response.json();
}

async function look() {
  clearTimeout(state.timer);
  try {
    const told = await read("v1/sweeps");
    state.sweeps = told.sweeps;
    state.launching = told.launching;
    showProblem("problem", told.problem);
    tellChanges();
    keepingFocus(() => showList(state.sweeps, chosenId()));
    showLaunching();
    await lookAtChosen();
  } catch (error) {
    showProblem("problem", error.message);
  }
  const going = state.sweeps.some((sweep) => GOING.includes(sweep.state));
  state.timer = setTimeout(look, going && !document.hidden ? SOON_MS : LATER_MS);
}

// Says what has come to another state, for those who do not see the table.
function tellChanges() {
  for (const sweep of state.sweeps) {
    const before = state.states.get(sweep.id);
    if (before && before !== sweep.state) announce(say("nowState", { sweep: nameOf(sweep), state: say(`state_${sweep.state}`) }));
    state.states.set(sweep.id, sweep.state);
  }
}

async function lookAtChosen() {
  const id = chosenId();
  if (!id) return hideDetail();
  const before = state.detail;
  const listed = state.sweeps.find((sweep) => sweep.id === id);
  if (before?.id === id && before.state === listed?.state && !GOING.includes(before.state)) return undefined;
  const response = await ask(`v1/sweeps/${encodeURIComponent(id)}`);
  if (response.status === 404) {
    hideDetail();
    return showProblem("problem", say("gone"));
  }
  if (!response.ok) throw new Error(await explain(response));
  const found = await response.json();
  if (chosenId() !== id) return undefined; // another was chosen meanwhile
  state.detail = found;
  $("detail").hidden = false;
  return keepingFocus(() => showDetail(found));
}

function hideDetail() {
  state.detail = null;
  $("detail").hidden = true;
}

async function choose() {
  forgetTrials();
  showProblem("stop-error", "");
  showProblem("problem", "");
  showList(state.sweeps, chosenId());
  try {
    await lookAtChosen();
  } catch (error) {
    showProblem("problem", error.message);
  }
  if (!state.detail) return;
  $("detail-title").focus({ preventScroll: true });
  $("detail").scrollIntoView({ block: "start" });
}

// ------------------------------------------------------------ launching and stopping

async function readKinds() {
  try {
    state.kinds = (await read("v1/sweeps/kinds")).kinds;
  } catch {
    return; // told by look()
  }
  const chosen = $("kind").value;
  $("kind").replaceChildren(...state.kinds.map((kind) => new Option(say(`kind_${kind.name}`), kind.name)));
  if (chosen) $("kind").value = chosen;
  showKind();
}

function showKind() {
  const kind = kindNamed($("kind").value);
  if (!kind) return;
  showFields(kind);
  showLaunching();
}

function showLaunching() {
  const { allowed, reason } = state.launching ?? { allowed: false, reason: "" };
  showProblem("launching", allowed || !reason ? "" : say("launchOff", { reason }));
  $("launch-form").hidden = !allowed;
  const kind = kindNamed($("kind").value);
  const lacking = kind && !kind.corpora.length;
  $("send").disabled = !kind || lacking;
  if (lacking) showProblem("error", say("noCorpus", { needs: kind.needs.join(", ") }));
}

async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  const response = await ask(path, { method: "POST", headers, body: JSON.stringify(body) });
  if (!response.ok) throw new Error(await explain(response));
  return response.json();
}

async function launch(event) {
  event.preventDefault();
  const kind = kindNamed($("kind").value);
  showProblem("error", "");
  $("send").disabled = true;
  try {
    const found = await post("v1/sweeps", { sweep: kind.name, corpus: $("corpus").value, space: readSpace(kind) });
    announce(say("launched", { sweep: nameOf(found) }));
    $("launch").open = false;
    location.hash = found.id;
    await look();
  } catch (error) {
    showProblem("error", error.message);
  }
  $("send").disabled = false;
}

async function stop() {
  const sweep = state.detail;
  if (!sweep || !confirm(say("stopSure"))) return;
  showProblem("stop-error", "");
  try {
    await post(`v1/sweeps/${sweep.id}/stop`, {});
    announce(say("stopping", { sweep: nameOf(sweep) }));
    await look();
  } catch (error) {
    showProblem("stop-error", error.message);
  }
}

// ------------------------------------------------------------ beginning

function setLanguage(language) {
  speak(language, "sweepsTab");
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", say(node.dataset.label));
  for (const option of $("kind").options) option.textContent = say(`kind_${option.value}`);
  showProblem("error", "");
  const kind = kindNamed($("kind").value);
  if (kind) $("kind-words").textContent = say(`about_${kind.name}`);
  showLaunching();
  showList(state.sweeps, chosenId());
  if (state.detail) showDetail(state.detail);
}

function begin() {
  $("language").value = current();
  $("language").addEventListener("change", () => setLanguage($("language").value));
  $("kind").addEventListener("change", () => {
    showProblem("error", "");
    showKind();
  });
  $("launch-form").addEventListener("submit", launch);
  $("stop").addEventListener("click", stop);
  $("close").addEventListener("click", () => {
    location.hash = "";
    $("list").focus();
  });
  addEventListener("hashchange", choose);
  addEventListener("resize", () => state.detail && drawCharts(state.detail));
  document.addEventListener("visibilitychange", () => !document.hidden && look());
  askForKey(() => {
    look();
    readKinds();
  });
  setLanguage(current());
  look();
  readKinds();
}

begin();
