// The answer of /v1/intent: labels, who decided, the rules that fired.
import { bar, facts, fold, make, name, percent } from "./nodes.js";
import { current, has, say } from "./language.js";

const RULES_SHOWN = 3;
const WITHOUT_POOL = ["rules", "default", "mllm"]; // arms in which no pool of models had a say

export function answerNodes(answer, gold) {
  return answer.predictions.map((prediction) => predictionNode(prediction, gold));
}

function predictionNode(prediction, gold) {
  const node = make("article", "prediction");
  const who = make("div", "who");
  who.append(make("span", `badge ${prediction.arm}`, say(has(prediction.arm) ? prediction.arm : "classifier")));
  const label = gold[prediction.task];
  if (label) {
    const agrees = label === prediction.label;
    who.append(make("span", agrees ? "badge agrees" : "badge", `${agrees ? "✓" : "≠"} ${say("gold", { label: name(label) })}`));
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

function ruleNodes(prediction) {
  if (!prediction.fired.length) return [make("p", "hint", say("noRules"))];
  const nodes = prediction.fired.map((rule) => ruleNode(rule, prediction.label));
  if (nodes.length <= RULES_SHOWN) return nodes;
  const rest = nodes.slice(RULES_SHOWN);
  return [...nodes.slice(0, RULES_SHOWN), fold(say("otherRules", { n: rest.length }), ...rest)];
}

function ruleNode(rule, label) {
  const node = make("div", rule.label === label ? "rule same" : "rule");
  const record = { precision: percent(rule.precision), support: rule.support, low: percent(rule.wilson_lower) };
  node.append(
    make("span", "", rule.words[current()]),
    make("span", "hint", rule.support ? say("record", record) : say("unmeasured")),
  );
  node.title = rule.id;
  return node;
}

// What was left out, how long it took, what answered; of any answer.
export function moreNodes(answer) {
  const total = answer.timings_ms.total.toFixed(0);
  return [...noteNodes(answer), fold(say("timings", { total }), timesNode(answer)), ...sourceNodes(answer)];
}

export const noteNodes = (answer) => answer.degraded.map((part) => make("p", "note", say("degraded") + part));

function timesNode(answer) {
  const times = Object.entries(answer.timings_ms);
  return facts(times.map(([stage, ms]) => [stageName(stage), `${ms.toFixed(1)} ms`]));
}

export const stageName = (stage) => (has(stage) ? say(stage) : name(stage));

export function sourceNodes(answer) {
  return [
    fold(say("used"), facts(Object.entries(answer.artifacts))),
    fold(say("json"), make("pre", "", JSON.stringify(answer, null, 2))),
  ];
}
