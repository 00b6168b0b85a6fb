"""From prompts to the tensors that a model reads: chat template, tokens, pictures, labels, padding.

The encoder needs the model's tokenizer and processor but not its weights, so that a loader encodes where no model is.
Every prompt is encoded on its own and rows are joined afterwards: what a row looks like never depends on its batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmd.errors import ModelError
from mmd.models.prompt import Prompt

if TYPE_CHECKING:
    import torch

    Batch = dict[str, torch.Tensor]

IGNORED = -100
"""Label of a token that is not part of the answer; torch's cross-entropy leaves it out."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ image_token }}"
    "{% endif %}{% endfor %}{% endif %}{{ '\n\n' }}{% endfor %}{% if add_generation_prompt %}Answer:\n{% endif %}"
)
"""Template of base models, which have none: system, user and the word ``Answer:``, a blank line between them."""

# Architectures whose processor returns one row a prompt, not one a picture.
_ROW_PER_PROMPT = frozenset({"idefics2", "idefics3", "smolvlm"})
_TOKEN_KEYS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})


class PromptEncoder:
    """Encodes prompts for one model.

    Args:
        name: the model's name, for messages.
        model_type: its architecture, as ``config.json`` names it.
        tokenizer: of transformers.
        processor: of transformers; None for models that see no pictures.
    """

    def __init__(self, name: str, model_type: str, tokenizer: Any, processor: Any | None) -> None:  # noqa: ANN401 (duck-typed library objects)
        self.name = name
        self.tokenizer = tokenizer
        self.processor = processor
        self._row_per_prompt = model_type in _ROW_PER_PROMPT
        self._templated = processor if processor is not None and processor.chat_template else tokenizer
        self._has_template = bool(self._templated.chat_template)
        self._bos = _leading_bos(tokenizer)
        self._control = _control_tokens(tokenizer, processor)
        self._end_id = self._find_end()

    @property
    def sees_pictures(self) -> bool:
        """Whether pictures of a prompt reach the model."""
        return self.processor is not None

    @property
    def end_id(self) -> int:
        """The token that closes an answer: the chat template's end of turn, or the tokenizer's end of text."""
        return self._end_id

    @property
    def pad_id(self) -> int:
        """The token of padding; never looked at."""
        pad = self.tokenizer.pad_token_id
        return self._end_id if pad is None else int(pad)

    def answer_ids(self, answer: str) -> list[int]:
        """Return the tokens of an answer and the end token: what the model is trained to say after a prompt."""
        tokens = self.tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*map(int, tokens), self._end_id]

    def words_of(self, tokens: Sequence[int]) -> str:
        """Return the text that tokens spell."""
        return str(self.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def text_ids(self, text: str) -> list[int]:
        """Return the tokens of plain text that people wrote, on its own; none of them is a control token.

        Of any length, without a warning: who asks cuts them.
        """
        tokens = self.tokenizer(self._defuse(text), add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]
        return list(map(int, tokens))

    def start_ids(self) -> list[int]:
        """Return the begin-of-text token in a list, or an empty one if this tokenizer starts texts with none."""
        return [int(self.tokenizer.bos_token_id)] if self._bos else []

    def encode(self, prompts: Sequence[Prompt], answers: Sequence[str] | None = None) -> Batch:
        """Return the tensors of a batch, padded on the right.

        Args:
            prompts: one a row.
            answers: what the model shall say, one a row; adds ``labels``.

        Returns:
            ``input_ids`` and ``attention_mask`` int64 (rows, width); picture tensors as the architecture wants them;
            ``labels`` int64 (rows, width): the token itself where it is the answer's or its end, else -100.

        Raises:
            ModelError: a picture cannot be read.
            ValueError: prompts and answers differ in number, or there are none.
        """
        if not prompts or (answers is not None and len(answers) != len(prompts)):
            raise ValueError(f"encode: {len(prompts)} prompts and {len(answers or ())} answers; give as many, above 0")
        texts = answers if answers is not None else [None] * len(prompts)
        return self.collate([self.encode_one(p, a) for p, a in zip(prompts, texts, strict=True)])

    def encode_one(self, prompt: Prompt, answer: str | None = None) -> Batch:
        """Return one prompt's tensors, token tensors of shape (1, width), without padding: a row of :meth:`collate`."""
        import torch

        row = self._encode_prompt(prompt)
        if answer is None:
            return row
        ids = self.answer_ids(answer)
        asked = row["input_ids"].shape[1]
        for key in row.keys() & _TOKEN_KEYS:
            tail = {"input_ids": ids, "attention_mask": [1] * len(ids)}.get(key, [0] * len(ids))
            row[key] = torch.cat([row[key], torch.tensor([tail], dtype=torch.int64)], dim=1)
        row["labels"] = torch.tensor([[IGNORED] * asked + ids], dtype=torch.int64)
        return row

    def collate(self, rows: Sequence[Batch]) -> Batch:
        """Join rows of :meth:`encode_one` into a batch, padded on the right."""
        pads = {"input_ids": self.pad_id, "labels": IGNORED}
        keys = list(dict.fromkeys(key for row in rows for key in row))
        batch: Batch = {}
        for key in keys:
            if key in _TOKEN_KEYS or key == "labels":
                batch[key] = _join([row[key] for row in rows], pads.get(key, 0))
            elif self._row_per_prompt:
                # The model leaves out pictures that are all zero: those of rows that have fewer or none.
                known = next(row[key] for row in rows if key in row)
                batch[key] = _join([row.get(key, known.new_zeros((1, 0, *known.shape[2:]))) for row in rows], 0)
            else:
                batch[key] = _join([row[key] for row in rows if key in row], 0)
        return batch

    def _encode_prompt(self, prompt: Prompt) -> Batch:
        import torch

        text = self._render(prompt)
        if self.processor is None:
            tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            return {
                "input_ids": torch.tensor([tokens], dtype=torch.int64),
                "attention_mask": torch.ones((1, len(tokens)), dtype=torch.int64),
            }
        pictures = [self.open_picture(data) for data in prompt.pictures]
        found = self.processor(
            text=[text],
            images=[pictures] if pictures else None,
            add_special_tokens=False,
            return_tensors="pt",
        )
        return {
            key: value.to(torch.int64) if key in _TOKEN_KEYS else value
            for key, value in found.items()
            if isinstance(value, torch.Tensor)
        }

    def open_picture(self, data: bytes) -> Any:  # noqa: ANN401 (a PIL image)
        """Decode a prompt's picture to RGB.

        Raises:
            ModelError: it cannot be read.
        """
        from mmd.features.pictures import decode_rgb

        try:
            return decode_rgb(data)
        except ValueError as err:
            raise ModelError(
                f"model {self.name!r}: a prompt's picture cannot be read ({err}); see `mmd ingest`."
            ) from err

    def _render(self, prompt: Prompt, answer: str | None = None) -> str:
        """Return the prompt as text in the model's own format, pictures as placeholders."""
        messages = self.messages(prompt)
        if answer is not None:
            messages.append({"role": "assistant", "content": self._content((answer,))})
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": answer is None}
        if not self._has_template:
            options["chat_template"] = PLAIN_TEMPLATE
            options["image_token"] = getattr(self.processor, "image_token", "")
        text = str(self._templated.apply_chat_template(messages, **options))
        return text if not self._bos or text.startswith(self._bos) else self._bos + text

    def messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        """Return a prompt as chat messages, the model's control tokens in it broken up, pictures as placeholders.

        Their content is one string for a model that sees no pictures, else a list of parts.
        """
        parts = prompt.parts
        messages = [{"role": "user", "content": self._content(parts)}]
        if not prompt.system:
            return messages
        if self._has_template and not self._takes_system():
            return [{"role": "user", "content": self._content((f"{prompt.system}\n\n", *parts))}]
        return [{"role": "system", "content": self._content((prompt.system,))}, *messages]

    def _takes_system(self) -> bool:
        """Say whether the template has a place for the system message (some refuse, some drop it)."""
        if not hasattr(self, "_system_known"):
            probe = [
                {"role": "system", "content": self._content(("instruction-probe",))},
                {"role": "user", "content": self._content(("question",))},
            ]
            try:
                text = self._templated.apply_chat_template(probe, tokenize=False, add_generation_prompt=True)
                self._system_known = "instruction-probe" in text
            except Exception:  # noqa: BLE001 (templates raise what they like)
                self._system_known = False
        return self._system_known

    def _content(self, parts: Sequence[str | bytes]) -> Any:  # noqa: ANN401 (what templates take)
        """Return a message's content: a list of parts for a processor, one string for a tokenizer."""
        words = [part if isinstance(part, bytes) else self._defuse(part) for part in parts]
        if self.processor is None:
            return "".join(part for part in words if isinstance(part, str))
        return [{"type": "image"} if isinstance(part, bytes) else {"type": "text", "text": part} for part in words]

    def _defuse(self, text: str) -> str:
        """Break up the model's control tokens in text that users wrote: ``<|im_end|>`` becomes ``< |im_end|>``."""
        return self._control.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def _find_end(self) -> int:
        """Return the first token that the template writes after an answer."""
        eos = self.tokenizer.eos_token_id
        if self._has_template:
            marker = "answer-probe"
            text = self._render(Prompt("", ("question",)), marker)
            after = text.rpartition(marker)[2]
            tokens = self.tokenizer(after, add_special_tokens=False)["input_ids"]
            if tokens and (after.strip() or eos is None):
                return int(tokens[0])
        if eos is None:
            raise ModelError(f"model {self.name!r}: its tokenizer names no end token; set eos_token in its folder.")
        return int(eos)


def _join(tensors: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    """Concatenate along the first axis after padding every other axis at its end to the longest."""
    import torch
    from torch.nn.functional import pad

    longest = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [(0, want - have) for want, have in zip(longest, tensor.shape[1:], strict=True)]
        flat = [amount for pair in reversed(missing) for amount in pair]
        padded.append(pad(tensor, flat, value=value) if any(flat) else tensor)
    return torch.cat(padded)


def _leading_bos(tokenizer: Any) -> str:  # noqa: ANN401 (duck-typed library object)
    """Return the begin-of-text token if this tokenizer starts every text with it."""
    tokens = tokenizer("a")["input_ids"]
    return str(tokenizer.bos_token) if tokens and tokens[0] == tokenizer.bos_token_id else ""


def _control_tokens(tokenizer: Any, processor: Any | None) -> re.Pattern[str]:  # noqa: ANN401 (duck-typed library objects)
    """Match every token that text can spell and that means something else than its characters."""
    added: Mapping[int, Any] = tokenizer.added_tokens_decoder
    tokens = {token.content for token in added.values()}
    tokens |= {getattr(processor, f"{kind}_token", None) or "" for kind in ("image", "video", "audio")}
    markup = sorted((t for t in tokens if len(t) > 1 and not t.isspace()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, markup)) or "(?!)")
