// One sweep: what it is, its best trials, its pictures, its trials, and what is searched.
import { $, facts, fold, make } from "./nodes.js";
import { say } from "./language.js";
import { curvesNode, overTimeNode, parallelNode, ranked, settingWords, short } from "./sweep_charts.js";
import { lasted, nameOf, stateNode, whenNode } from "./sweep_list.js";

const FEW = 10;
const MANY = 200;
let shownTrials = FEW;

export function showDetail(sweep) {
  $("detail-title").textContent = `${nameOf(sweep)} · ${sweep.corpus}`;
  $("stop").hidden = !sweep.stoppable;
  $("summary").replaceChildren(summaryNode(sweep));
  $("best").replaceChildren(...bestNodes(sweep));
  drawCharts(sweep);
  $("trials").replaceChildren(...trialNodes(sweep));
  $("space").replaceChildren(fold(say("spaceTitle"), facts(spacePairs(sweep))));
}

export const forgetTrials = () => (shownTrials = FEW);

export function drawCharts(sweep) {
  const width = Math.max(320, Math.floor($("charts").clientWidth) - 2);
  const kept = [...$("charts").querySelectorAll(".scroller")].map((node) => node.scrollLeft);
  const nodes = [parallelNode, curvesNode, overTimeNode].map((draw) => draw(sweep, width)).filter(Boolean);
  $("charts").replaceChildren(...nodes);
  [...$("charts").querySelectorAll(".scroller")].forEach((node, i) => (node.scrollLeft = kept[i] ?? 0));
}

function summaryNode(sweep) {
  const node = make("div");
  const line = make("p", "who");
  line.append(stateNode(sweep), whenNode(sweep), make("span", "hint", lasted(sweep.seconds)));
  const told = [
    [say("progress"), progressWords(sweep)],
    [say("factMetric"), say(sweep.mode === "max" ? "higher" : "lower", { metric: sweep.metric })],
    [say("factArtifact"), sweep.artifact],
    [say("factNote"), sweep.note],
    [say("factId"), sweep.id],
  ];
  node.append(line, facts(told.filter(([, value]) => value)));
  return node;
}

export const progressWords = ({ done, total }) => (total ? say("ofTotal", { done, total }) : say("notKnown", { done }));

function bestNodes(sweep) {
  const best = ranked(sweep.trials.filter((trial) => trial.best), sweep.metric, sweep.mode);
  if (!best.length) return [make("p", "hint", say("noTrials"))];
  const single = best.length === 1;
  const hint = make("p", "hint", say("bestHint", { n: sweep.trials.length }));
  return [make("h3", "", say(single ? "bestTrial" : "bestTrials")), tableOf(best, sweep, say("bestTrials")), hint];
}

function trialNodes(sweep) {
  const all = ranked(sweep.trials, sweep.metric, sweep.mode);
  if (!all.length) return [];
  const shown = all.slice(0, shownTrials);
  const nodes = [make("h3", "", say("trialsTitle"))];
  if (all.length > shown.length) nodes.push(make("p", "hint", say("trialsShown", { n: shown.length, all: all.length })));
  nodes.push(tableOf(shown, sweep, say("trialsTitle")));
  if (all.length > shown.length && shownTrials < MANY) nodes.push(moreButton(sweep));
  return nodes;
}

function moreButton(sweep) {
  const button = make("button", "quiet", say("showAll"));
  button.type = "button";
  button.dataset.key = "more-trials";
  button.addEventListener("click", () => {
    shownTrials = MANY;
    $("trials").replaceChildren(...trialNodes(sweep));
    $("trials").querySelector(".scroller").focus();
  });
  return button;
}

// A table of trials: a column a setting, then the metrics, the sweep's own first.
function tableOf(trials, sweep, title) {
  const settings = [...new Set(trials.flatMap((trial) => Object.keys(trial.setting)))];
  const others = [...new Set(trials.flatMap((trial) => Object.keys(trial.metrics)))].filter((key) => key !== sweep.metric);
  const table = make("table");
  const head = make("tr");
  head.append(...[...settings, sweep.metric, ...others].map((key) => headNode(key)));
  const body = make("tbody");
  body.append(...trials.map((trial) => trialNode(trial, settings, [sweep.metric, ...others])));
  const top = make("thead");
  top.append(head);
  table.append(make("caption", "hidden", title), top, body);
  const scroller = make("div", "scroller");
  scroller.tabIndex = 0;
  scroller.setAttribute("role", "group");
  scroller.setAttribute("aria-label", title);
  scroller.append(table);
  return scroller;
}

function headNode(text) {
  const node = make("th", "", text);
  node.scope = "col";
  return node;
}

function trialNode(trial, settings, metrics) {
  const row = make("tr", trial.best ? "best" : "");
  row.append(...settings.map((key) => make("td", "", key in trial.setting ? short(trial.setting[key]) : "–")));
  row.append(...metrics.map((key) => make("td", "number", key in trial.metrics ? short(trial.metrics[key]) : "–")));
  if (!trial.done) row.lastChild.append(" ", make("span", "badge", say("going")));
  row.title = settingWords(trial);
  return row;
}

const spacePairs = (sweep) =>
  Object.entries(sweep.space).map(([key, value]) => [key, Array.isArray(value) ? value.map(short).join(", ") : short(value)]);

