// What the pages ask of the service beside answers: its limits, what it serves, and what it says of an error.
import { ask } from "./key.js";
import { say } from "./language.js";

const read = async (path) => (await ask(path)).json();

let limits = null;

// Of a request, by their names in the settings (serve.max_images …); asked once.
export function readLimits() {
  limits ??= read("static/limits.json");
  limits.catch(() => (limits = null));
  return limits;
}

export const readReady = () => read("readyz");
// None where a key is wanted first.
export const readExamples = async () => (await read("v1/examples")).examples ?? [];
export const readTasks = async () => (await read("v1/tasks")).tasks ?? [];

// Why a response is an error, in words.
export async function explain(response) {
  const wait = response.headers.get("Retry-After");
  if (wait) return say("busy", { s: wait });
  try {
    return (await response.json()).error.message;
  } catch {
    return `HTTP ${response.status}`;
  }
}
