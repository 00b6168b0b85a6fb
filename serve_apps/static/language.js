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
  return saved ?? (navigator.language.startsWith("zh") ? "zh" : "en");
}

export const current = () => language;

export function choose(wanted) {
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
