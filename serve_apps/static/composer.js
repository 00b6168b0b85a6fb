// Where a message is written: words, pictures, what is wrong with them.
import { say } from "./language.js";
import { $ } from "./nodes.js";
import { readPicture, thumbnail } from "./pictures.js";
import { readLimits } from "./service.js";

// `onSend(text, pictures)` takes a message, `onStop()` ends the reply that is being said.
export class Composer {
  #pictures = [];
  #busy = false;
  #limits = null;

  constructor(onSend, onStop) {
    this.onSend = onSend;
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    $("text").addEventListener("keydown", (event) => this.#key(event));
    $("text").addEventListener("input", () => this.#tell(""));
    $("attach").addEventListener("click", () => $("files").click());
    $("files").addEventListener("change", async () => {
      await this.add($("files").files);
      $("files").value = ""; // the same file may be chosen again
    });
    $("stop").addEventListener("click", () => {
      this.focus();
      onStop();
    });
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#busy) onStop();
    });
  }

  // Writes again what depends on language and limits.
  async show() {
    $("text").placeholder = say("messageHint");
    this.#showPictures();
    this.#limits = await readLimits().catch(() => null);
    if (!this.#limits) return;
    const { max_images: n, max_image_mb: mb, media_types: types } = this.#limits;
    $("attach").hidden = n === 0;
    $("files").accept = types.join(",");
    $("limits").textContent = n ? say("pictureLimits", { n, mb, kinds: types.map(kindName).join(", ") }) : "";
  }

  focus() {
    $("text").focus();
  }

  fill(text, pictures) {
    $("text").value = text;
    this.#pictures = [...pictures];
    this.#tell("");
    this.#showPictures();
    this.focus();
  }

  setBusy(busy) {
    this.#busy = busy;
    $("send").hidden = busy;
    $("stop").hidden = !busy;
  }

  async add(files) {
    this.#tell("");
    const most = (await readLimits()).max_images;
    for (const file of files) {
      if (this.#pictures.length >= most) {
        this.#tell(say("tooMany", { n: most }));
        break;
      }
      await readPicture(file).then((picture) => this.#pictures.push(picture), (err) => this.#tell(err.message));
    }
    this.#showPictures();
    this.focus();
  }

  #key(event) {
    // not while an input method composes: its Enter chooses a character
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.#send();
  }

  #send() {
    if (this.#busy) return;
    const text = $("text").value.trim();
    const pictures = this.#pictures;
    if (!text && !pictures.length) return this.#tell(say("empty"));
    this.fill("", []);
    this.onSend(text, pictures);
  }

  #tell(message) {
    $("error").textContent = message;
    $("error").hidden = !message;
  }

  #showPictures() {
    const nodes = this.#pictures.map((picture) => thumbnail(picture, () => this.#remove(picture)));
    document.querySelector("#composer .pictures").replaceChildren(...nodes);
  }

  #remove(picture) {
    this.#pictures = this.#pictures.filter((other) => other !== picture);
    this.#tell("");
    this.#showPictures();
    this.focus();
  }
}

const kindName = (type) => type.replace("image/", "").toUpperCase();
