// The form that launches a sweep: a field for each setting of its space, of which only the changed ones are sent.
import { $, make, name } from "./nodes.js";
import { say } from "./language.js";

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const isList = (field) => field.accepts.type === "array";
const isNumber = (accepts) => accepts.type === "number" || accepts.type === "integer";
const idOf = (field) => `field-${field.key.replaceAll(".", "-")}`;

const sectionOf = (field) => field.key.split(".").slice(0, -1).join(".");

// Shows the fields of a kind: those of its first section, which is what it searches, and the rest folded away.
export function showFields(kind) {
  $("kind-words").textContent = say(`about_${kind.name}`);
  $("corpus").replaceChildren(...kind.corpora.map((corpus) => new Option(corpus, corpus)));
  const isOwn = (field) => sectionOf(field) === sectionOf(kind.fields[0]);
  $("fields").replaceChildren(...kind.fields.filter(isOwn).map(fieldNode));
  $("rest").replaceChildren(...kind.fields.filter((field) => !isOwn(field)).map(fieldNode));
}

function fieldNode(field) {
  const id = idOf(field);
  const choices = field.accepts.items?.enum;
  const node = make(choices ? "fieldset" : "div", "field");
  const label = make(choices ? "legend" : "label", "", name(field.key.split(".").at(-1)));
  if (!choices) label.htmlFor = id;
  const hint = make("p", "hint");
  hint.id = `${id}-hint`;
  hint.lang = "en"; // the settings' own words
  hint.append(make("code", "", field.key), ` ${field.description}`);
  node.append(label, choices ? boxes(field, id, choices) : inputNode(field, id), hint);
  return node;
}

function inputNode(field, id) {
  const { accepts } = field;
  const node = accepts.enum ? make("select") : make("input");
  node.id = id;
  node.setAttribute("aria-describedby", `${id}-hint`);
  if (accepts.enum) {
    node.append(...accepts.enum.map((value) => new Option(String(value), JSON.stringify(value))));
    node.value = JSON.stringify(field.default);
    return node;
  }
  node.type = "text";
  node.autocomplete = "off";
  node.spellcheck = false;
  node.inputMode = isList(field) ? "text" : "decimal";
  node.value = isList(field) ? field.default.join(", ") : String(field.default ?? "");
  return node;
}

function boxes(field, id, choices) {
  const node = make("div", "boxes");
  node.id = id;
  for (const choice of choices) {
    const label = make("label");
    const box = make("input");
    box.type = "checkbox";
    box.value = choice;
    box.checked = field.default.includes(choice);
    label.append(box, ` ${name(choice)}`);
    node.append(label);
  }
  return node;
}

// The settings that were changed; throws an Error with words for the reader where one is no number.
export function readSpace(kind) {
  const pairs = kind.fields.map((field) => [field.key, readField(field)]);
  return Object.fromEntries(pairs.filter(([, value], i) => !same(value, kind.fields[i].default)));
}

function readField(field) {
  const node = $(idOf(field));
  const { accepts } = field;
  if (accepts.items?.enum) return [...node.querySelectorAll("input:checked")].map((box) => box.value);
  if (accepts.enum) return JSON.parse(node.value);
  if (isList(field)) {
    const parts = node.value.split(/[,，;；\s]+/).filter(Boolean);
    return isNumber(accepts.items) ? parts.map((part) => readNumber(field, part)) : parts;
  }
  return isNumber(accepts) ? readNumber(field, node.value.trim()) : node.value;
}

function readNumber(field, text) {
  const value = Number(text);
  if (text === "" || !Number.isFinite(value)) throw new Error(say("notANumber", { key: field.key, text: text || "“”" }));
  return value;
}
