// Pictures of a sweep, drawn as SVG: parallel coordinates, curves, and what was best over time.
import { $, make } from "./nodes.js";
import { say } from "./language.js";

const NS = $("pen").namespaceURI; // of the page's own empty drawing: no page names another host
const LINES = 300; // more cannot be told apart
const CURVES = 40;
const BUCKETS = 5; // shades from the worst to the best
const HEIGHT = 260;
const PAD = { left: 56, right: 24, top: 28, bottom: 44 };

export function draw(tag, attributes = {}, text = "") {
  const node = document.createElementNS(NS, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  return node;
}

// ------------------------------------------------------------ numbers

const nonsense = (value) => typeof value !== "number" || !Number.isFinite(value);

// At most four digits that matter.
export function short(value) {
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
}

// A scale from values to [0, 1]: numbers by size, anything else by its place among the values. An axis of settings has
// its very values as ticks, and orders of magnitude are spread evenly.
function scaleOf(values, even = false) {
  const known = values.filter((value) => value !== undefined);
  if (known.some(nonsense)) {
    const places = [...new Set(known.map(String))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    const at = (value) => (places.length > 1 ? places.indexOf(String(value)) / (places.length - 1) : 0.5);
    return { at, ticks: places.map((place) => ({ at: at(place), text: place })) };
  }
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const logs = !even && low > 0 && high / low >= 50;
  const size = (value) => (logs ? Math.log(value) : value);
  const at = (value) => (high > low ? (size(value) - size(low)) / (size(high) - size(low)) : 0.5);
  const distinct = [...new Set(known)].sort((a, b) => a - b);
  const ticks = (!even && distinct.length <= 6) || high === low ? distinct : roundTicks(low, high);
  return { at, ticks: apart(ticks.map((value) => ({ at: at(value), text: short(value) }))) };
}

// A few round numbers between two.
function roundTicks(low, high) {
  const rough = (high - low) / 5;
  const ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * ten).find((size) => size >= rough);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
}

// Ticks without those whose words would lie over the ones before.
function apart(ticks) {
  const kept = [];
  for (const tick of ticks) if (!kept.length || tick.at - kept.at(-1).at >= 0.07) kept.push(tick);
  return kept;
}

// Trials with the metric, best first.
export function ranked(trials, metric, mode) {
  const sign = mode === "max" ? -1 : 1;
  return trials.filter((t) => metric in t.metrics).sort((a, b) => sign * (a.metrics[metric] - b.metrics[metric]));
}

export const settingWords = (trial) =>
  Object.entries(trial.setting)
    .map(([key, value]) => `${key} ${short(value)}`)
    .join(", ");

export const trialWords = (trial, metric) => `${settingWords(trial)}: ${metric} ${short(trial.metrics[metric])}`;

// ------------------------------------------------------------ frame

// A picture with a title, what it shows in words, and room to scroll sideways where it is wide.
function frame(title, words, hint, svg) {
  const figure = make("figure", "chart");
  const scroller = make("div", "scroller");
  scroller.tabIndex = 0;
  scroller.setAttribute("role", "group");
  scroller.setAttribute("aria-label", title);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", words);
  scroller.append(svg);
  figure.append(make("h3", "", title), scroller);
  if (hint) figure.append(make("p", "hint", hint));
  return figure;
}

const picture = (width) => draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT });
const ABSENT = 0.14; // of an axis, for trials that do not have its setting
const inside = (at) => PAD.top + (1 - at) * (HEIGHT - PAD.top - PAD.bottom);

function lineOf(points, className, title) {
  const node = draw("polyline", { points: points.map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" "), class: className });
  node.append(draw("title", {}, title));
  return node;
}

const shade = (place, count) => `q${count > 1 ? Math.floor(((count - 1 - place) / count) * BUCKETS) : BUCKETS - 1}`;

// ------------------------------------------------------------ parallel coordinates

// Null where fewer than two settings differ: there is nothing to compare.
export function parallelNode({ trials, metric, mode }, width) {
  const all = ranked(trials, metric, mode);
  const keys = [...new Set(all.flatMap((trial) => Object.keys(trial.setting)))];
  const varied = keys.filter((key) => new Set(all.map((trial) => trial.setting[key])).size > 1);
  if (!all.length || !varied.length) return null;
  const shown = all.slice(0, LINES);
  const axes = [...varied.map((key) => ({ name: key, of: (t) => t.setting[key] })), { name: metric, of: (t) => t.metrics[metric] }];
  const wide = Math.max(width, axes.length * 110);
  const svg = picture(wide);
  const x = (i) => PAD.left + (i * (wide - PAD.left - PAD.right - 40)) / (axes.length - 1);
  for (const axis of axes) axis.scale = withAbsent(all.map(axis.of), axis.name === metric);
  const lines = shown.map((trial, place) => {
    const points = axes.map((axis, i) => [x(i), inside(axis.scale.at(axis.of(trial)))]);
    const classes = ["line", shade(place, shown.length), trial.best ? "best" : "", trial.done ? "" : "going"];
    return lineOf(points, classes.filter(Boolean).join(" "), trialWords(trial, metric));
  });
  svg.append(...lines.filter((line) => !line.classList.contains("best")).reverse());
  svg.append(...lines.filter((line) => line.classList.contains("best")));
  axes.forEach((axis, i) => svg.append(axisNode(axis, x(i), i === axes.length - 1)));
  const words = say("parallelLabel", { n: all.length, axes: axes.map((a) => a.name).join(", "), best: trialWords(all[0], metric) });
  const cut = all.length > shown.length ? ` ${say("shownOf", { n: shown.length, all: all.length })}` : "";
  return frame(say("parallel"), words, say("parallelHint") + cut, svg);
}

// A scale whose foot is for those without a value, if there are any.
function withAbsent(values, even) {
  const { at, ticks } = scaleOf(values, even);
  if (!values.includes(undefined)) return { at, ticks };
  const raised = (place) => ABSENT + (1 - ABSENT) * place;
  return {
    at: (value) => (value === undefined ? 0 : raised(at(value))),
    ticks: [{ at: 0, text: "–" }, ...ticks.map((tick) => ({ ...tick, at: raised(tick.at) }))],
  };
}

function axisNode(axis, x, last) {
  const node = draw("g", { class: last ? "axis result" : "axis" });
  node.append(draw("line", { x1: x, x2: x, y1: inside(1), y2: inside(0) }));
  for (const tick of axis.scale.ticks.slice(0, 12)) {
    const y = inside(tick.at);
    node.append(draw("line", { x1: x - 4, x2: x + 4, y1: y, y2: y }));
    const text = tick.text.length > 14 ? `${tick.text.slice(0, 13)}…` : tick.text;
    node.append(draw("text", { x: x + 7, y: y + (last ? 4 : -6), class: "tick" }, text));
  }
  node.append(draw("text", { x, y: HEIGHT - 16, "text-anchor": "middle", class: "name" }, axis.name));
  return node;
}

// ------------------------------------------------------------ curves

export function curvesNode({ trials, metric, mode, axis }, width) {
  const all = ranked(trials, metric, mode).filter((trial) => trial.curve.length > 1);
  if (!axis || !all.length) return null;
  const shown = all.slice(0, CURVES);
  const svg = picture(width);
  const { px, py } = plane(svg, width, shown.flatMap((t) => t.curve), axis);
  shown.forEach((trial, place) => {
    const classes = ["line", shade(place, shown.length), trial.best ? "best" : "", trial.done ? "" : "going"];
    const points = trial.curve.map(([at, value]) => [px(at), py(value)]);
    svg.append(lineOf(points, classes.filter(Boolean).join(" "), trialWords(trial, metric)));
  });
  svg.append(...[...svg.querySelectorAll(".best")]); // on top
  const words = say("curvesLabel", { n: all.length, metric, axis, best: trialWords(all[0], metric) });
  const cut = all.length > shown.length ? say("shownOf", { n: shown.length, all: all.length }) : "";
  return frame(say("curves", { metric, axis }), words, cut, svg);
}

// ------------------------------------------------------------ over time

export function overTimeNode({ trials, metric, mode }, width) {
  const told = trials.filter((t) => metric in t.metrics).sort((a, b) => a.at_s - b.at_s);
  if (told.length < 2) return null;
  const best = new Map();
  const better = (a, b) => (mode === "max" ? a > b : a < b);
  const steps = told.map((trial) => {
    const value = trial.metrics[metric];
    if (!best.has(trial.group) || better(value, best.get(trial.group))) best.set(trial.group, value);
    return [trial.at_s, [...best.values()].reduce((sum, one) => sum + one, 0) / best.size];
  });
  const svg = picture(width);
  const points = told.map((trial) => [trial.at_s, trial.metrics[metric]]);
  const { px, py } = plane(svg, width, [...points, ...steps, [0, steps[0][1]]], say("seconds"));
  told.forEach((trial, i) => {
    const dot = draw("circle", { cx: px(points[i][0]).toFixed(1), cy: py(points[i][1]).toFixed(1), r: 3, class: "dot-trial" });
    dot.append(draw("title", {}, trialWords(trial, metric)));
    svg.append(dot);
  });
  const stairs = steps.flatMap(([at, value], i) => (i ? [[px(at), py(steps[i - 1][1])], [px(at), py(value)]] : [[px(at), py(value)]]));
  const last = steps.at(-1)[1];
  svg.append(lineOf(stairs, "line best", short(last)));
  const words = say("overTimeLabel", { n: told.length, metric, best: short(last) });
  return frame(say("overTime", { metric }), words, say("overTimeHint"), svg);
}

// A plane with both axes; returns where its values lie.
function plane(svg, width, points, axis) {
  const across = scaleOf(points.map(([at]) => at), true);
  const up = scaleOf(points.map(([, value]) => value), true);
  const px = (at) => PAD.left + across.at(at) * (width - PAD.left - PAD.right);
  const py = (value) => inside(up.at(value));
  const node = draw("g", { class: "axis" });
  node.append(draw("line", { x1: PAD.left, x2: width - PAD.right, y1: inside(0), y2: inside(0) }));
  for (const tick of up.ticks) {
    node.append(draw("line", { x1: PAD.left, x2: width - PAD.right, y1: inside(tick.at), y2: inside(tick.at), class: "grid" }));
    node.append(draw("text", { x: PAD.left - 6, y: inside(tick.at) + 4, "text-anchor": "end", class: "tick" }, tick.text));
  }
  for (const tick of across.ticks) {
    const x = PAD.left + tick.at * (width - PAD.left - PAD.right);
    node.append(draw("text", { x, y: HEIGHT - PAD.bottom + 16, "text-anchor": "middle", class: "tick" }, tick.text));
  }
  node.append(draw("text", { x: (PAD.left + width - PAD.right) / 2, y: HEIGHT - 8, "text-anchor": "middle", class: "name" }, axis));
  svg.append(node);
  return { px, py };
}
