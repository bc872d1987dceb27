"""How tokens are chosen and when to stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from treadle import _checks as check
from treadle.errors import InvalidArgumentError

#: A word or a token id sequence; a bare int in ``stop_words`` counts as a token id.
Words: TypeAlias = str | Sequence[str | int | Sequence[int]]

#: Most alternatives that log-probabilities are reported for.
MAX_LOGPROBS = 64

#: What other engines and LMDeploy's older releases call an option.
_RENAMED = {
    "request_output_len": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "min_length": "min_new_tokens",
    "seed": "random_seed",
    "stop": "stop_words",
    "bad_token_ids": "bad_words",
    "top_logprobs": "logprobs",
    "num_return_sequences": "n",
    "repeat_penalty": "repetition_penalty",
}


@dataclass
class GenerationConfig:
    """Options of one generation. ``None`` takes the model's ``generation_config.json``, else the
    library's default, which is named with each field.

    Whether tokens are drawn or the most likely one is taken (greedy):

    1. ``do_sample=False`` is greedy; temperature, top_k, top_p and min_p then have no effect.
    2. ``do_sample=True`` draws. ``temperature=0`` beside it is refused: it contradicts.
    3. With ``do_sample=None``, giving any of temperature, top_k, top_p or min_p means to draw,
       except ``temperature=0`` or ``top_k=1``, which are greedy.
    4. Otherwise the model's file decides; without a word from it, greedy.

    Stop words given as text are matched on the text, wherever its tokens are cut. The word and what
    follows it are never emitted; text that might begin one is held back until it is decided. Of the
    token ids, those whose text lies wholly before the word are emitted.
    """

    #: Most tokens to generate (512).
    max_new_tokens: int | None = None
    #: End tokens and stop words are barred before this many tokens (0).
    min_new_tokens: int | None = None
    #: True draws tokens, False is greedy; see above.
    do_sample: bool | None = None
    #: Divides the logits before the draw (1.0). Above 1 flattens, below 1 sharpens, 0 is greedy.
    temperature: float | None = None
    #: Draw from the k most likely tokens (0 = all).
    top_k: int | None = None
    #: Draw from the smallest set of tokens whose probability reaches top_p (1.0 = all).
    top_p: float | None = None
    #: Leave out tokens below min_p times the most likely one (0.0).
    min_p: float | None = None
    #: Divides (or multiplies, if negative) the logits of tokens seen before (1.0 = off).
    repetition_penalty: float | None = None
    #: Subtracted once from the logits of tokens already generated (0.0).
    presence_penalty: float | None = None
    #: Subtracted per earlier occurrence in the output (0.0).
    frequency_penalty: float | None = None
    #: Added to the logits of these token ids; ``-inf`` bars a token.
    logit_bias: Mapping[int, float] | None = None
    #: Same seed, same tokens, whatever else runs. None = the engine's own.
    random_seed: int | None = None
    #: Texts, token ids or token id sequences that end the output.
    stop_words: Words | None = None
    #: Token ids that end the output, besides the model's own end tokens.
    stop_token_ids: Sequence[int] | None = None
    #: Texts or token id sequences that are never completed in the output.
    bad_words: Words | None = None
    #: Go on after the model's own end tokens (False).
    ignore_eos: bool | None = None
    #: Report log-probabilities of the output: 0 of the chosen tokens, n also of the n best.
    logprobs: int | None = None
    #: The same for the prompt's tokens. The prompt is then computed whole, without prefix reuse.
    prompt_logprobs: int | None = None
    #: Continuations that share the prompt (1).
    n: int | None = None
    #: Leave special tokens out of the text (True).
    skip_special_tokens: bool | None = None
    #: Give the text with every output of stream_infer, not only token ids (False).
    return_text: bool | None = None

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raises InvalidArgumentError for a wrong type, a value out of range or a contradiction."""
        self._integer("max_new_tokens", 1)
        self._integer("min_new_tokens", 0)
        for field in ("do_sample", "ignore_eos", "skip_special_tokens", "return_text"):
            if (value := getattr(self, field)) is not None:
                check.flag(field, value)
        self._number("temperature", lambda v: v >= 0, "at least 0 (0 is greedy)")
        self._integer("top_k", 0, note=" (0 keeps all tokens)")
        self._number("top_p", lambda v: 0 < v <= 1, "above 0 and at most 1 (1 keeps all tokens)")
        self._number("min_p", lambda v: 0 <= v <= 1, "from 0 to 1 (0 keeps all tokens)")
        self._number("repetition_penalty", lambda v: v > 0, "above 0 (1 changes nothing)")
        self._number("presence_penalty", lambda v: True, "a number")
        self._number("frequency_penalty", lambda v: True, "a number")
        self._integer("random_seed", 0, check.MAX_UINT64)
        self._integer("logprobs", 0, MAX_LOGPROBS)
        self._integer("prompt_logprobs", 0, MAX_LOGPROBS)
        self._integer("n", 1)
        self._check_contradictions()

    def _integer(self, field: str, low: int, high: int = check.MAX_INT32, note: str = "") -> None:
        if (value := getattr(self, field)) is not None:
            check.integer(field, value, low, high, note)

    def _number(self, field: str, is_right: Any, right: str) -> None:
        if (value := getattr(self, field)) is not None and not is_right(check.number(field, value)):
            raise check.refuse(field, value, f"it must be {right}")

    def _check_contradictions(self) -> None:
        if self.do_sample and self.temperature == 0:
            raise InvalidArgumentError(
                "do_sample is True and temperature is 0: they contradict; use do_sample=False for "
                "the most likely token, or a temperature above 0"
            )
        if None not in (self.min_new_tokens, self.max_new_tokens):
            self.check_lengths(self.min_new_tokens or 0, self.max_new_tokens or 0)

    @staticmethod
    def check_lengths(min_new_tokens: int, max_new_tokens: int) -> None:
        if min_new_tokens > max_new_tokens:
            right = f"it must be at most max_new_tokens, which is {max_new_tokens}"
            raise check.refuse("min_new_tokens", min_new_tokens, right)

    def replace(self, **overrides: Any) -> GenerationConfig:
        """A copy with some options changed; an unknown name is refused with the closest one."""
        names = [field.name for field in dataclasses.fields(self)]
        check.known_names("GenerationConfig", overrides, names, _RENAMED)
        return dataclasses.replace(self, **overrides)
