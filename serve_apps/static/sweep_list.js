// The table of sweeps, and what is said of one in few words.
import { $, make } from "./nodes.js";
import { current, say } from "./language.js";
import { short } from "./sweep_charts.js";

const HEADS = ["sweep", "corpus", "stateHead", "progress", "bestHead", "started", "took"];

export const nameOf = (sweep) => say(`kind_${sweep.sweep}`);

export function stateNode(sweep) {
  return make("span", `badge state ${sweep.state}`, say(`state_${sweep.state}`));
}

export function whenNode(sweep) {
  const when = new Date(sweep.started_unix_s * 1000);
  const node = make("time", "hint", when.toLocaleString(current() === "zh" ? "zh-CN" : "en-GB", { dateStyle: "medium", timeStyle: "short" }));
  node.dateTime = when.toISOString();
  return node;
}

export function lasted(seconds) {
  const s = Math.round(seconds);
  if (s >= 3600) return say("h", { h: Math.floor(s / 3600), m: Math.floor((s % 3600) / 60) });
  return s >= 60 ? say("m", { m: Math.floor(s / 60), s: s % 60 }) : say("s", { s });
}

export function showList(sweeps, chosen) {
  $("sweeps").hidden = !sweeps.length;
  $("empty").hidden = sweeps.length > 0;
  $("empty").textContent = say("noSweeps");
  $("heads").replaceChildren(...HEADS.map(headNode));
  $("rows").replaceChildren(...sweeps.map((sweep) => rowNode(sweep, sweep.id === chosen)));
}

function headNode(key) {
  const node = make("th", "", say(key));
  node.scope = "col";
  return node;
}

function rowNode(sweep, chosen) {
  const row = make("tr", chosen ? "chosen" : "");
  const link = make("a", "", nameOf(sweep));
  link.href = `#${sweep.id}`;
  link.dataset.key = sweep.id;
  if (chosen) link.setAttribute("aria-current", "true");
  const best = sweep.best === null ? "–" : `${short(sweep.best)} ${sweep.metric}`;
  const cells = [link, sweep.corpus, stateNode(sweep), progressNode(sweep), best, whenNode(sweep), lasted(sweep.seconds)];
  row.append(...cells.map((content, i) => cellNode(content, say(HEADS[i]))));
  return row;
}

function cellNode(content, head) {
  const node = make("td");
  node.dataset.head = head; // shown beside the value where the table is too narrow for columns
  node.append(content);
  return node;
}

function progressNode({ done, total }) {
  if (!total) return String(done);
  const node = make("span", "progress");
  const bar = make("progress");
  bar.max = total;
  bar.value = done;
  bar.setAttribute("aria-label", say("progress"));
  node.append(bar, make("span", "", say("ofTotal", { done, total })));
  return node;
}
