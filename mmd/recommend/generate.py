"""Generation: the mode first, then words, and items only where the mode allows them.

Whatever the method, a reply in a batch is the reply alone: rows differ in padding only, and what is drawn depends on
the sample's own id. The mode is always the likelier one; beams and samples differ in what is said after it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmd.recommend.batches import BatchMaker, batches_by
from mmd.recommend.beam import grow_beams
from mmd.recommend.drafts import Draft, Rules, chance_of, draw, item_masses
from mmd.recommend.replies import Event, Reply, put_titles_in
from mmd.recommend.settings import ConversationSettings, GenerationSettings
from mmd.recommend.types import Context, Mode, ResponseSample

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmd.recommend.backbone import Backbone
    from mmd.recommend.batches import DialogueBatch
    from mmd.recommend.graph import ItemGraph
    from mmd.recommend.vocabulary import Tokenizer

_HALF_CHARACTER = "�"  # what the first bytes of a character decode to before its last ones are there


class Generator:
    """Answers contexts with a student or a dialogue teacher.

    Args:
        backbone: that speaks; it is put into eval mode.
        tokenizer: its own.
        graph: whose items it names.
        settings: how to decode.
        conversations: how contexts are read, how long a reply may be, and whether it begins with its mode.
        seed: of the draws of ``sample``.
    """

    def __init__(
        self,
        backbone: Backbone[Any],
        tokenizer: Tokenizer,
        graph: ItemGraph,
        settings: GenerationSettings,
        conversations: ConversationSettings,
        *,
        seed: int = 0,
    ) -> None:
        self.backbone = backbone.eval()
        self.tokenizer = tokenizer
        self.settings = settings
        self.seed = seed
        self.maker = BatchMaker(tokenizer, conversations)
        self.rules = Rules(
            tokenizer.space, conversations.mode_tokens, conversations.response_tokens, settings.no_repeat
        )
        self.titles = tuple(graph.title(item) for item in range(graph.n_items))

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return next(self.backbone.parameters()).device

    def replies(self, samples: Sequence[ResponseSample], gold_modes: Sequence[Mode] | None = None) -> list[Reply]:
        """Return the reply to each sample's context; its right response is not looked at.

        Args:
            samples: to answer.
            gold_modes: modes that are given instead of decoded: the upper bound of what a better mode could bring.
        """
        return self.answer(
            [sample.context for sample in samples], [sample.id for sample in samples], gold_modes=gold_modes
        )

    def answer(
        self, contexts: Sequence[Context], keys: Sequence[str] | None = None, gold_modes: Sequence[Mode] | None = None
    ) -> list[Reply]:
        """Return the reply to each context.

        Args:
            contexts: to answer.
            keys: names of the contexts, on which what is drawn depends; None: all alike.
            gold_modes: modes that are given instead of decoded; without mode tokens, all that ``gen`` does is to keep
                items out.
        """
        keys = keys or [""] * len(contexts)
        lengths = [len(self.maker.context_ids(context)) for context in contexts]
        replies: dict[int, Reply] = {}
        for rows in batches_by(lengths, self.settings.batch):
            modes = [gold_modes[row] for row in rows] if gold_modes else None
            some = self._together([contexts[row] for row in rows], [keys[row] for row in rows], modes)
            replies |= dict(zip(rows, some, strict=True))
        return [replies[row] for row in range(len(contexts))]

    def stream(self, context: Context, key: str = "", gold_mode: Mode | None = None) -> Iterator[Event]:
        """Yield a reply piece by piece: its mode, words, items, and at the end the whole.

        Beams are settled only at their end, so all of their pieces come then. The arguments are those of
        :meth:`answer` for one context.
        """
        started, teller = time.perf_counter(), _Teller(is_given=gold_mode is not None)
        gold_modes = None if gold_mode is None else [gold_mode]
        [draft] = self._empty([key], gold_modes)
        for drafts in self._grow(self.maker.contexts([context]), [draft], gold_modes):
            draft = drafts[0]
            if self.settings.method != "beam":
                yield from teller.tell(self._reply(draft, 0.0), over=False)
        yield from teller.tell(self._reply(draft, (time.perf_counter() - started) * 1e3), over=True)

    def first_items(self, contexts: Sequence[Context]) -> NDArray[np.float32]:
        """Return what would be named first: logits of all items right after the token of recommendation, (n, n_items).

        Without mode tokens, those of the first token.
        """
        import torch

        space, batch = self.rules.space, self.maker.contexts(contexts).to(self.device)
        with torch.inference_mode():
            first = torch.full((len(contexts),), space.bos, device=self.device)
            logits, state = self.backbone.step(self.backbone.start(batch), first)
            if self.rules.mode_tokens:
                logits, _ = self.backbone.step(state, torch.full_like(first, space.rec))
        found: NDArray[np.float32] = logits[:, space.items].float().cpu().numpy()
        return found

    def _together(
        self, contexts: Sequence[Context], keys: Sequence[str], gold_modes: Sequence[Mode] | None
    ) -> list[Reply]:
        started = time.perf_counter()
        drafts: Sequence[Draft] = self._empty(keys, gold_modes)
        for grown in self._grow(self.maker.contexts(contexts), drafts, gold_modes):
            drafts = grown
        ms = (time.perf_counter() - started) * 1e3 / max(1, sum(len(draft.tokens) for draft in drafts))
        return [self._reply(draft, ms * len(draft.tokens)) for draft in drafts]

    def _empty(self, keys: Sequence[str], gold_modes: Sequence[Mode] | None) -> list[Draft]:
        """Return drafts to begin with; a given mode that no token can say holds from the start."""
        given = gold_modes if gold_modes and not self.rules.mode_tokens else [None] * len(keys)
        return [Draft(key, mode=mode) for key, mode in zip(keys, given, strict=True)]

    def _grow(
        self, batch: DialogueBatch, drafts: Sequence[Draft], gold_modes: Sequence[Mode] | None
    ) -> Iterator[Sequence[Draft]]:
        """Yield the drafts after each step until all have ended."""
        if self.settings.method == "beam":
            yield grow_beams(self.backbone, self.rules, batch.to(self.device), drafts, gold_modes, self.settings.beams)
            return
        yield from self._grow_one_each(batch.to(self.device), list(drafts), gold_modes)

    def _grow_one_each(
        self, batch: DialogueBatch, drafts: list[Draft], gold_modes: Sequence[Mode] | None
    ) -> Iterator[Sequence[Draft]]:
        """Decode greedily or by drawing; rows that ended leave the batch."""
        import torch

        rules, rows = self.rules, list(range(len(drafts)))
        chances = [chance_of(draft.key, self.seed) for draft in drafts]
        with torch.inference_mode():
            state = self.backbone.start(batch)
        tokens = torch.full((len(rows),), rules.space.bos, device=self.device)
        while rows:
            with torch.inference_mode():  # left before each yield: the caller's code in between is not inference
                logits, state = self.backbone.step(state, tokens)
                allowed = rules.forbid(logits, [drafts[row] for row in rows])
                tokens = self._choose(allowed, rows, drafts, chances, gold_modes)
                masses = item_masses(logits, rules.space)
                for place, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
                    drafts[row] = rules.extend(drafts[row], token, allowed[place], masses[place])
                going = [place for place, row in enumerate(rows) if not drafts[row].ended]
                if 0 < len(going) < len(rows):
                    kept = torch.tensor(going, device=self.device)
                    state, tokens = state.select(kept), tokens[kept]
                rows = [rows[place] for place in going]
            yield drafts

    def _choose(
        self,
        allowed: Tensor,
        rows: Sequence[int],
        drafts: Sequence[Draft],
        chances: Sequence[np.random.Generator],
        gold_modes: Sequence[Mode] | None,
    ) -> Tensor:
        """Return the next token of each row, int64 (B,)."""
        space, settings = self.rules.space, self.settings
        tokens = allowed.argmax(dim=1)
        for place, row in enumerate(rows):
            if self.rules.undecided(drafts[row]) and gold_modes:
                tokens[place] = space.mode_token(gold_modes[row])
        talking = [place for place, row in enumerate(rows) if not self.rules.undecided(drafts[row])]
        if settings.method == "sample" and talking:
            uniforms = [chances[rows[place]].random() for place in talking]
            tokens[talking] = draw(allowed[talking], settings.top_p, settings.temperature, uniforms)
        return tokens

    def _reply(self, draft: Draft, ms: float) -> Reply:
        parts = tuple(self.tokenizer.decode(draft.tokens))
        text, spans = put_titles_in(parts, self.titles)
        return Reply(
            mode=draft.mode or ("rec" if draft.emissions else "gen"),
            parts=parts,
            emissions=draft.emissions,
            text=text,
            spans=spans,
            token_ids=draft.tokens,
            ms=ms,
            item_mass=draft.masses,
            mode_probability=draft.mode_probability,
        )


class _Teller:
    """Turns a growing reply into events, each piece once.

    Args:
        is_given: whether the mode was given, so that it is known although no token says it.
    """

    def __init__(self, *, is_given: bool) -> None:
        self._is_given = is_given
        self._chars = 0
        self._items = 0
        self._said_mode = False

    def tell(self, reply: Reply, *, over: bool) -> Iterator[Event]:
        """Yield what a reply has more than was told before.

        Args:
            reply: so far.
            over: whether this is all of it.
        """
        if not self._said_mode:
            self._said_mode = True
            decided = self._is_given or reply.mode_probability is not None
            yield Event("mode", mode=reply.mode if decided else None, mode_probability=reply.mode_probability)
        for span, emission in zip(reply.spans[self._items :], reply.emissions[self._items :], strict=True):
            yield from self._words(reply.text[self._chars : span.start])
            yield Event("item", text=reply.text[span.start : span.end], emission=emission)
            self._chars, self._items = span.end, self._items + 1
        rest = reply.text[self._chars :]
        yield from self._words(rest if over else rest.rstrip(_HALF_CHARACTER))
        if over:
            yield Event("end", reply=reply)

    def _words(self, text: str) -> Iterator[Event]:
        if text:
            self._chars += len(text)
            yield Event("text", text=text)
