"""Talk with a running service in the terminal: ``mmd chat`` or ``python -m serve_apps.chat_cli``.

    mmd chat                                        the service of the settings; run `mmd serve` in another terminal
    mmd chat --url https://shop.example             one elsewhere
    echo "Do you have a purple dress?" | mmd chat   questions from a pipe, a line each

Where the service wants an API key, it is read from MMD_API_KEY. In the conversation: /image FILE shows a picture with
the next words, /why tells how the last reply came about, /new begins anew, /quit or Ctrl-D ends.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import mimetypes
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urljoin

from pydantic import ValidationError
from rich.console import Console

from mmd.config import load_config
from mmd.errors import MmdError, RequestError
from serve_apps.api import Words
from serve_apps.chat_api import ChatChunk, TextPartOut, TurnOut
from serve_apps.client import ServiceClient, add_service_options

Language = Literal["en", "zh"]

PATH = "/v1/chat/completions"
_RULES_SHOWN = 3
_SHOWN = 5
_REFUSED = ("400", "413")  # status of what would be refused again as it is


def main(argv: Sequence[str] | None = None) -> int:
    """Talk from the command line; return the exit code.

    0: ended, every question of a pipe answered; 1: one of them was not; 2: a user's mistake.
    """
    args = build_parser().parse_args(argv)
    console = Console(highlight=False)
    try:
        settings = load_config(args.config, profile=args.profile, overrides=args.overrides).serve
        client = ServiceClient(settings, args.url)
        client.get("/healthz")  # a service that is not there shows before the first question is typed
    except MmdError as err:
        console.print(f"mmd chat: {err}", style="red", markup=False, soft_wrap=True)
        return 2
    session = Session(Conversation(client, args.language), console)
    if not sys.stdin.isatty():
        return 0 if session.run(sys.stdin) else 1
    with contextlib.suppress(ImportError):  # arrow keys and history where Python was built with it
        import readline  # noqa: F401 (importing it is what it takes)
    console.print("/image FILE, /why, /new, /quit", style="dim")
    with contextlib.suppress(KeyboardInterrupt):
        session.run(typed_lines())
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="mmd chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_service_options(parser)
    parser.add_argument(
        "--language", choices=("en", "zh"), help="of what the service itself says (default: that of your last words)"
    )
    return parser


def typed_lines() -> Iterator[str]:
    """Yield what is typed, until its end."""
    while True:
        try:
            yield input("you: ")
        except EOFError:
            return


@dataclass
class Conversation:
    """A conversation with a service, which itself keeps nothing of it.

    Attributes:
        client: of the service.
        language: of what the service itself says; None: that of the last words.
        messages: said so far, as OpenAI's.
        pictures: data URLs that go with the next words.
        last: how the last reply came about.
    """

    client: ServiceClient
    language: Language | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    last: TurnOut | None = None

    def show(self, path: Path) -> None:
        """Send a picture with the next words.

        Raises:
            RequestError: it cannot be read, or its name is not a picture's.
        """
        kind = mimetypes.guess_type(path.name)[0] or ""
        if not kind.startswith("image/"):
            raise RequestError(f"{path}: not a picture by its name; name a .png, .jpg or .webp file.")
        try:
            data = path.expanduser().read_bytes()
        except OSError as err:
            raise RequestError(f"{path}: cannot be read ({err.strerror}); name a picture on this machine.") from err
        self.pictures.append(f"data:{kind};base64,{base64.b64encode(data).decode()}")

    def say(self, text: str) -> Iterator[str]:
        """Say something; yield the reply as it comes. What gets no whole answer is as if it had not been said.

        Raises:
            RequestError: the service cannot be reached, refuses, or breaks off. Pictures that are refused for good go
                with no other words.
        """
        shown = [{"type": "image_url", "image_url": {"url": url}} for url in self.pictures]
        content: Any = [*([{"type": "text", "text": text}] if text else []), *shown] if shown else text
        asked = {"role": "user", "content": content}
        own = {"language": self.language} if self.language else {}
        body: Mapping[str, Any] = {"messages": [*self.messages, asked], "stream": True, "mmd": own}
        said, turn = "", None
        for chunk in self._chunks(body):
            for choice in chunk.choices:
                said += choice.delta.content or ""
                yield choice.delta.content or ""
            turn = chunk.mmd if isinstance(chunk.mmd, TurnOut) else turn
        if turn is None:
            raise RequestError(f"{PATH}: the reply broke off; ask again.")
        self.messages += [asked, {"role": "assistant", "content": said}]
        self.pictures, self.last = [], turn

    def forget(self) -> None:
        """Begin anew."""
        self.messages, self.pictures, self.last = [], [], None

    def _chunks(self, body: Mapping[str, Any]) -> Iterator[ChatChunk]:
        for data in self._events(body):
            if data == "[DONE]":
                return
            try:
                yield ChatChunk.model_validate_json(data)
            except ValidationError as err:
                raise RequestError(f"{PATH}: the reply broke off: {data[:300]}") from err

    def _events(self, body: Mapping[str, Any]) -> Iterator[str]:
        try:
            yield from self.client.events(PATH, body)
        except RequestError as err:
            refused = str(err).startswith(tuple(f"{self.client.url}{PATH}: HTTP {status}:" for status in _REFUSED))
            if not refused or not self.pictures:
                raise
            self.pictures = []
            raise RequestError(f"{err} The pictures are dropped; ask again without, or /image others.") from err


class Session:
    """Reads lines, prints replies.

    Args:
        conversation: that is led.
        console: printed on.
    """

    def __init__(self, conversation: Conversation, console: Console) -> None:
        self._talk = conversation
        self._console = console
        self._commands: Mapping[str, Callable[[str], None]] = {
            "/image": self._image,
            "/why": self._why,
            "/new": self._new,
        }

    def run(self, lines: Iterable[str]) -> bool:
        """Answer line by line until /quit; say whether everything was answered."""
        good = True
        for line in map(str.strip, lines):
            if line == "/quit":
                break
            if line:
                good = self._heed(line) and good
        return good

    def _heed(self, line: str) -> bool:
        word, _, rest = line.partition(" ")
        try:
            if word.startswith("/"):
                self._commands.get(word, self._unknown)(rest.strip())
            else:
                self._reply(line)
        except RequestError as err:
            self._say(str(err), "red")
            return False
        return True

    def _reply(self, text: str) -> None:
        begun = False
        try:
            for piece in self._talk.say(text):
                self._console.print(piece if begun else f"assistant: {piece}", end="", markup=False, soft_wrap=True)
                begun = True
        finally:
            if begun:
                self._console.print()
        turn = self._talk.last
        for part in turn.parts if turn else ():
            if not isinstance(part, TextPartOut):
                what = "picture" if part.kind == "image" else f"product {part.item_id}"
                place = f": {urljoin(self._talk.client.url, part.url)}" if part.url else ""
                self._say(f"  {what}, {part.title}{place}", "cyan")
        for problem in turn.degraded if turn else ():
            self._say(f"  without a part: {problem}", "yellow")

    def _image(self, rest: str) -> None:
        self._talk.show(Path(rest.strip("'\"")))
        self._say("it goes with your next words", "dim")

    def _new(self, _: str) -> None:
        self._talk.forget()
        self._say("a new conversation", "dim")

    def _why(self, _: str) -> None:
        if self._talk.last is None:
            raise RequestError("/why: nothing has been answered yet.")
        for line in reasons(self._talk.last, self._talk.language or "en"):
            self._say(line, "green")

    def _unknown(self, _: str) -> None:
        raise RequestError(f"no such command; there are {', '.join(self._commands)}, /quit.")

    def _say(self, text: str, style: str) -> None:
        self._console.print(text, style=style, markup=False, soft_wrap=True)


def reasons(turn: TurnOut, language: Language) -> Iterator[str]:
    """Yield how a reply came about, a line each."""

    def told(words: Words) -> str:
        return words.zh if language == "zh" else words.en

    for intent in turn.intents:
        yield f"{intent.task}: {intent.label} ({intent.confidence:.2f}, decided by {intent.arm})"
        for rule in intent.fired[:_RULES_SHOWN]:
            yield f"  rule: {told(rule.words)}"
    for decision in turn.decisions:
        yield f"{decision.step}: {decision.choice} – {told(decision.reason)}"
    for name, hits in (("retrieved", turn.retrieved), ("recommended", turn.recommended)):
        for hit in hits[:_SHOWN]:
            yield f"{name}: {hit.title[:100]} ({hit.score:.3f})"
    yield "ms: " + ", ".join(f"{stage} {ms:.0f}" for stage, ms in turn.timings_ms.items())
    yield "answered by " + ", ".join(turn.artifacts.values())


if __name__ == "__main__":
    sys.exit(main())
