// The language of the page, and its words.
import { WORDS } from "./words.js";

let language = readLanguage();

function readLanguage() {
  let saved = null;
  try {
    saved = localStorage.getItem("mmd.language");
  } catch {
    // storage is switched off; the choice then lasts as long as the page
  }
  if (saved in WORDS) return saved;
  return navigator.language.startsWith("zh") ? "zh" : "en";
}

// Adds the words of one page.
export function learn(words) {
  for (const known of Object.keys(WORDS)) Object.assign(WORDS[known], words[known]);
}

export const current = () => language;

function choose(wanted) {
  language = wanted;
  try {
    localStorage.setItem("mmd.language", wanted);
  } catch {
    // see readLanguage
  }
}

export const has = (key) => key in WORDS.en;

export function say(key, values = {}) {
  return WORDS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

// Puts the page into a language: its title and every node that names its word.
export function speak(wanted, title) {
  choose(wanted);
  document.documentElement.lang = wanted === "zh" ? "zh-Hans" : "en";
  document.title = say(title);
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = say(node.dataset.text);
}
