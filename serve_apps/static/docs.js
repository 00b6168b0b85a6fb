// The API document, rendered from openapi.json, so that it needs no other host.
import { make } from "./nodes.js";

const main = document.getElementById("api");

// Text in which ``names`` stand between double backquotes.
function prose(tag, className, text = "") {
  const node = make(tag, className);
  node.append(...text.split("``").map((part, n) => (n % 2 ? make("code", "", part) : part)));
  return node;
}

const refName = (schema) => schema?.$ref?.split("/").at(-1);

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return refName(schema);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((v) => JSON.stringify(v)).join(" | ");
  const members = schema.anyOf ?? schema.oneOf;
  if (members) return members.map(typeOf).join(" | ");
  if (schema.type === "array") return `list of ${typeOf(schema.items)}`;
  if (schema.type === "object" && schema.additionalProperties) return `map to ${typeOf(schema.additionalProperties)}`;
  return schema.type ?? "any";
}

function refsIn(schema) {
  if (!schema || typeof schema !== "object") return [];
  const own = schema.$ref ? [refName(schema)] : [];
  return [...own, ...Object.values(schema).flatMap(refsIn)];
}

function table(schema) {
  const node = make("table");
  const head = node.createTHead().insertRow();
  for (const title of ["field", "type", "meaning"]) head.append(make("th", "", title));
  const body = node.createTBody();
  for (const [field, inner] of Object.entries(schema.properties ?? {})) {
    const row = body.insertRow();
    const required = schema.required?.includes(field) ? "" : " (optional)";
    row.insertCell().append(make("code", "", field));
    row.insertCell().append(make("code", "", typeOf(inner)));
    row.insertCell().textContent = (inner.description ?? "") + required;
  }
  return node;
}

// A schema and everything it refers to, each once.
function schemaNodes(names, schemas) {
  const seen = [];
  const queue = [...names];
  while (queue.length) {
    const next = queue.shift();
    if (seen.includes(next) || !schemas[next]) continue;
    seen.push(next);
    queue.push(...refsIn(schemas[next]));
  }
  return seen.flatMap((schemaName) => {
    const title = make("h3");
    title.append(make("code", "", schemaName));
    return [title, prose("p", "hint", schemas[schemaName].description), table(schemas[schemaName])];
  });
}

function example(path, method, bodySchema) {
  const url = new URL(`.${path}`, location.href).href;
  if (method !== "post") return `curl ${url}`;
  const body = JSON.stringify(bodySchema?.examples?.[0] ?? {}, null, 2);
  return `curl ${url} -H 'Content-Type: application/json' -d '${body.replaceAll("'", "’")}'`;
}

function operation(path, method, op, schemas) {
  const node = make("article");
  const title = make("h2");
  title.append(make("span", "method", method.toUpperCase()), make("code", "", path), make("span", "", ` – ${op.summary}`));
  node.append(title, prose("p", "", op.description));

  const bodyRef = refName(op.requestBody?.content?.["application/json"]?.schema);
  node.append(make("pre", "", example(path, method, schemas[bodyRef])));
  if (bodyRef) node.append(...schemaNodes([bodyRef], schemas));

  const answers = make("table");
  for (const [status, answer] of Object.entries(op.responses)) {
    const row = answers.insertRow();
    row.insertCell().append(make("code", "", status));
    row.insertCell().textContent = answer.description;
    row.insertCell().append(make("code", "", typeOf(answer.content?.["application/json"]?.schema)));
  }
  const results = make("details");
  const okRef = refName(op.responses["200"]?.content?.["application/json"]?.schema);
  results.append(make("summary", "", "Responses"), answers, ...schemaNodes([okRef, "ErrorResponse"], schemas));
  node.append(results);
  return node;
}

async function start() {
  const spec = await (await fetch("openapi.json")).json();
  const nodes = Object.entries(spec.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, op]) => operation(path, method, op, spec.components.schemas)),
  );
  main.replaceChildren(...nodes);
  main.setAttribute("aria-busy", "false");
}

start().catch(() => {
  main.textContent = "openapi.json cannot be read; is the service running?";
});
