"""A class name's prompt as token ids, and which of the tokens are the class's."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float32, Int32

from rimjax.models.transformers_folder import TOKENISING


@dataclass(frozen=True, eq=False)
class PromptEncoder:
    """A prompt template with the tokenizer that it goes through.

    Attributes:
        tokenizer: a fast tokenizer; slow ones don't tell which characters a token stands for.
        length: tokens that the text encoder takes.
        template: the prompt, with `{}` for the class name.
        vocabulary: the class names that the model was trained on, lower case; None: any name that
            the tokenizer knows.

    Raises:
        ValueError: the tokenizer is slow.
    """

    tokenizer: Any
    length: int
    template: str
    vocabulary: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "is_fast", False):
            raise ValueError("tokenizer must be a fast tokenizer, got a slow one; convert it")

    @property
    def empty_prompt(self) -> Int32[np.ndarray, "1 L"]:
        """Token ids of the empty prompt."""
        return np.array([self._tokenise("")["input_ids"]], np.int32)

    def encode(self, class_name: str) -> tuple[Int32[np.ndarray, "2 L"], Float32[np.ndarray, " L"]]:
        """Return the token ids of the empty prompt and of the class's prompt, and token weights.

        The weights average over the tokens of the class name, or of a prompt's words in braces.

        Args:
            class_name: the class name, or a whole prompt with the object's words in braces, such as
                "an old {television}".

        Raises:
            ValueError: the name is blank, the model doesn't know it, or the prompt is too long.
        """
        prompt, (start, stop) = split_prompt(class_name, self.template)
        if not prompt[start:stop].strip():
            raise ValueError("class_name must be a word, got blanks")
        check_vocabulary(class_name, self.vocabulary)
        encoded = self._tokenise(
            prompt, return_offsets_mapping=True, return_special_tokens_mask=True
        )
        columns = ("input_ids", "offset_mapping", "special_tokens_mask")
        tokens = list(zip(*(encoded[column] for column in columns), strict=True))
        unknown = [
            prompt[begin:end]
            for token, (begin, end), special in tokens
            if not special and token == self.tokenizer.unk_token_id
        ]
        if unknown:
            vocabulary = set(self.tokenizer.get_vocab()) - set(self.tokenizer.all_special_tokens)
            refuse_words(unknown, sorted(vocabulary))
        if len(tokens) > self.length:
            actual = f"{prompt!r} with {len(tokens)} tokens"
            limit = f"class_name must fit a prompt of {self.length} tokens"
            raise ValueError(f"{limit}, got {actual}; shorten it")
        inside = [
            begin < stop and end > start and not special for _, (begin, end), special in tokens
        ]
        ids = np.concatenate([self.empty_prompt, [encoded["input_ids"]]]).astype(np.int32)
        return ids, np.array(inside, np.float32) / np.float32(sum(inside))

    def _tokenise(self, prompt: str, **options: bool) -> Any:
        padding: Any = {"padding": "max_length", "max_length": self.length}
        with TOKENISING:
            return self.tokenizer(prompt, **padding, verbose=False, **options)


def split_prompt(text: str, template: str) -> tuple[str, tuple[int, int]]:
    """Return the prompt of a class name, or of a prompt in braces, and the range of its object."""
    opening, closing = text.find("{"), text.find("}")
    if 0 <= opening < closing:
        prompt = text[:opening] + text[opening + 1 : closing] + text[closing + 1 :]
        return prompt, (opening, closing - 1)
    start = template.index("{}")
    return template.replace("{}", text), (start, start + len(text))


def check_vocabulary(class_name: str, vocabulary: Collection[str] | None) -> None:
    """Raise ValueError for a class name, or object of a prompt, that a model wasn't trained on.

    Args:
        class_name: as of `PromptEncoder.encode`.
        vocabulary: as of `PromptEncoder`.
    """
    prompt, (start, stop) = split_prompt(class_name, "{}")
    words = prompt[start:stop]
    if vocabulary is not None and words.strip().lower() not in vocabulary:
        refuse_words([words], vocabulary)


def refuse_words(words: Sequence[str], known: Collection[str]) -> NoReturn:
    """Raise ValueError for words that a model doesn't know."""
    which = f" ({', '.join(known)})" if len(known) <= 200 else ""
    actual = ", ".join(map(repr, words))
    raise ValueError(f"class_name must use words that the model knows{which}, got {actual}")
