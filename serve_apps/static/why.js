// The drawer that tells why a reply is what it is: beside the conversation where there is room, else above it.
import { answerNodes, noteNodes, sourceNodes, stageName } from "./answer.js";
import { has, current, say } from "./language.js";
import { $, bar, facts, fold, make, name, percent } from "./nodes.js";
import { itemsNode, modeNode } from "./recommended.js";
import { hitNodes, modalityName } from "./retrieved.js";
import { traceNodes } from "./trace.js";

const WIDE = matchMedia("(min-width: 64rem)");

export class WhyDrawer {
  #turn = null;
  #opener = null;

  constructor() {
    $("why-close").addEventListener("click", () => this.close());
    $("why").addEventListener("close", () => this.#closed());
    $("why").addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return; // by itself it closes a modal dialog only
      event.preventDefault();
      event.stopPropagation();
      this.close();
    });
    WIDE.addEventListener("change", () => {
      if (!$("why").open) return;
      const [turn, opener] = [this.#turn, this.#opener];
      this.close();
      this.toggle(turn, opener);
    });
  }

  // Opens the drawer for a reply, or closes it where it shows that reply already.
  toggle(turn, opener) {
    if ($("why").open && this.#turn === turn) return this.close();
    this.#opener?.setAttribute("aria-expanded", "false");
    [this.#turn, this.#opener] = [turn, opener];
    opener.setAttribute("aria-expanded", "true");
    this.show();
    if (!$("why").open) {
      if (WIDE.matches) $("why").show();
      else $("why").showModal();
    }
    $("why").scrollTop = 0;
    $("why-title").focus();
  }

  show() {
    if (this.#turn) $("why-body").replaceChildren(...whyNodes(this.#turn.mmd));
  }

  close() {
    $("why").close();
  }

  #closed() {
    this.#opener?.setAttribute("aria-expanded", "false");
    if (this.#opener?.isConnected) this.#opener.focus();
    this.#turn = null;
  }
}

function whyNodes(mmd) {
  return [
    ...noteNodes(mmd),
    section("decisions", listOf("decisions", mmd.decisions.map(decisionNode))),
    mmd.intents.length ? section("intent", ...answerNodes({ predictions: mmd.intents }, {})) : "",
    mmd.mode || mmd.trace.length ? section("studentSaid", ...studentNodes(mmd)) : "",
    mmd.recommended.length ? section("itemsThought", itemsNode(mmd.recommended)) : "",
    mmd.retrieved.length ? section("retrieved", ...hitNodes(mmd.retrieved)) : "",
    section("time", ...timeNodes(mmd.timings_ms)),
    ...sourceNodes(mmd),
  ];
}

function section(title, ...content) {
  const node = make("section", "because");
  node.append(make("h3", "", say(title)), ...content);
  return node;
}

function listOf(className, nodes) {
  const list = make("ol", className);
  list.append(...nodes);
  return list;
}

function decisionNode({ step, choice, reason, confidence }) {
  const node = make("li", "decision");
  const head = make("p", "decision-head");
  head.append(make("span", "step-name", wordOf("step", step)), make("span", "badge agrees", choiceName(choice)));
  if (confidence !== null) head.append(make("span", "hint", say("sure", { share: percent(confidence) })));
  node.append(head, make("p", "", reason[current()]));
  return node;
}

const wordOf = (kind, id) => (has(`${kind}_${id}`) ? say(`${kind}_${id}`) : name(id));
const choiceName = (choice) => (has(`choice_${choice}`) ? say(`choice_${choice}`) : modalityName(choice));

function studentNodes(mmd) {
  return [...(mmd.mode ? [modeNode(mmd.mode)] : []), ...(mmd.trace.length ? traceNodes(mmd.trace) : [])];
}

// A bar a stage, as long as its share of the whole; what stages tell of themselves (`retrieval.search`) is folded away.
function timeNodes(timings) {
  const total = timings.total || 1;
  const stages = Object.entries(timings).filter(([stage]) => stage !== "total");
  const rows = stages.filter(([stage]) => !stage.includes(".")).map(([stage, ms]) => timeNode(stageName(stage), ms, ms / total));
  const inner = stages.filter(([stage]) => stage.includes(".")).map(([stage, ms]) => [partedName(stage), milliseconds(ms)]);
  return [
    ...rows,
    make("p", "hint", say("sideBySide", { total: total.toFixed(0) })),
    ...(inner.length ? [fold(say("inDetail"), facts(inner))] : []),
  ];
}

const milliseconds = (ms) => `${ms.toFixed(1)} ms`;
const partedName = (stage) => stage.split(".").map(stageName).join(": ");

function timeNode(stage, ms, share) {
  const node = bar(stage, Math.min(1, share));
  node.setAttribute("aria-label", `${stage}: ${milliseconds(ms)}`);
  node.querySelector(".number").textContent = milliseconds(ms);
  return node;
}
