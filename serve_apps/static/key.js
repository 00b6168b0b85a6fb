// The API key of a service that wants one: asked for where it is wanted, kept in this tab alone.
import { $ } from "./nodes.js";

const NAME = "mmd.key";
const WANTED = "key-wanted";

let given = readKey();

function readKey() {
  try {
    return sessionStorage.getItem(NAME);
  } catch {
    return null; // storage is switched off; the key then lasts as long as the page
  }
}

function keep(key) {
  given = key;
  try {
    sessionStorage.setItem(NAME, key);
  } catch {
    // see readKey
  }
}

// fetch with the key; a service that wants one, or another, makes the page ask for it.
export async function ask(path, options = {}) {
  const headers = given ? { ...options.headers, Authorization: `Bearer ${given}` } : options.headers;
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) document.dispatchEvent(new Event(WANTED));
  return response;
}

// Shows the form while a key is wanted; `then` is called when one was given.
export function askForKey(then) {
  document.addEventListener(WANTED, () => ($("key-form").hidden = false));
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = $("key").value.trim();
    if (!key) return $("key").focus();
    keep(key);
    $("key").value = "";
    $("key-form").hidden = true;
    then();
  });
}
