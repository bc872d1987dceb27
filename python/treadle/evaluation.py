"""Quality of a model on a text: perplexity by a sliding window."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TextIO, TypeAlias, cast

from treadle import _checks as check
from treadle.encoded_text import encode_file
from treadle.errors import InvalidArgumentError
from treadle.generation_config import GenerationConfig
from treadle.inference import RequestSpec
from treadle.inputs import token_arrays
from treadle.progress import ProgressBar
from treadle.request_pool import RequestPool

if TYPE_CHECKING:
    from treadle.engine import Engine

#: One text (a str, or a file opened for reading text), or several that have nothing to do with
#: each other.
Texts: TypeAlias = str | TextIO | Iterable[str]


@dataclass(frozen=True)
class Perplexity:
    """How well a model foretells a text."""

    #: How many were scored: all that had a token before them in their window.
    tokens: int
    #: Mean negative log-likelihood of a token (natural logarithm).
    mean_nll: float
    #: Scored tokens by wall-clock time.
    tokens_per_second: float
    #: As used, in tokens.
    window: int
    stride: int

    @property
    def perplexity(self) -> float:
        """exp(mean_nll)"""
        try:
            return math.exp(self.mean_nll)
        except OverflowError:
            return math.inf


class Window(NamedTuple):
    """Tokens that the model sees together; the last ``scored`` of them are scored."""

    ids: list[int]
    scored: int


def sliding_windows(chunks: Iterable[list[int]], window: int, stride: int) -> Iterator[Window]:
    """Windows over one text, whose ids come in ``chunks`` of any length.

    Window k begins at k * stride, and its tokens are scored that no earlier window has seen. A
    token without another before it in its window cannot be scored: that is the text's first one
    (the BOS, where the tokenizer adds it) and, when ``stride`` equals ``window``, that of each
    window.
    """
    ids: list[int] = []
    seen = 0  # of ids, how many earlier windows have scored
    for chunk in chunks:
        ids += chunk
        begin = 0
        while len(ids) - begin >= window:
            scored = min(window - seen, window - 1)
            yield Window(ids[begin : begin + window], scored)
            begin += stride
            seen = window - stride
        del ids[:begin]
    scored = min(len(ids) - seen, len(ids) - 1)
    if scored > 0:
        yield Window(ids, scored)


def check_window(window: int | None, stride: int | None) -> None:
    """Raises InvalidArgumentError for what is wrong with any model."""
    if window is not None:
        check.integer("window", window, 2)
    if stride is not None:
        check.integer("stride", stride, 1)
    if window is not None and stride is not None and stride > window:
        raise check.refuse(
            "stride",
            stride,
            f"it must be at most window, which is {window}: tokens would be left out",
        )


def perplexity(
    engine: Engine,
    text: Texts,
    window: int | None = None,
    stride: int | None = None,
    progress: bool | None = None,
) -> Perplexity:
    """Perplexity of ``text`` under the engine's model, several windows at once.

    text: a str or a text file is one text, read piece by piece; an iterable of str holds separate
        texts, which never share a window. Each is encoded as ``engine.tokenizer.encode`` does it by
        default: with a BOS at its beginning where the model's files ask for one, and none at the
        beginning of the other windows.
    window: tokens that the model sees at once; None = session_len - 1, the most there is room for
        (each request needs a place for one output token).
    stride: tokens from one window to the next; None = half the window. Each token is scored once
        and sees at least window - stride before it, or all there are. Smaller is nearer to the
        truth and slower.
    progress: progress bar; None shows one on a terminal.

    This is the definition for models of fixed length in transformers' documentation, with every
    scored token weighted the same.

    Raises InvalidArgumentError for what cannot be, and when ``text`` has no token to score.
    """
    check_window(window, stride)
    longest = engine.info.session_len - 1
    if window is None:
        window = check.integer("session_len - 1", longest, 2)
    elif window > longest:
        raise check.refuse(
            "window",
            window,
            f"it must be at most {longest}, so that it and one token more fit session_len, "
            f"which is {engine.info.session_len}",
        )
    stride = max(1, window // 2) if stride is None else stride
    check_window(window, stride)

    scored: dict[int, int] = {}  # by index, of windows under way
    count, total = 0, 0.0
    started = time.monotonic()
    requests = RequestPool(engine, _specs(engine, text, window, stride, scored), stream=False)
    with ProgressBar(None, progress, unit="token") as bar, closing(requests.run()) as finished:
        for request in finished:
            output = request.states[0].take()
            if output.error is not None:
                raise output.error
            assert output.prompt_logprobs is not None
            num = scored.pop(output.index)
            total -= math.fsum(entry.chosen.logprob for entry in output.prompt_logprobs[-num:])
            count += num
            bar.update(num)
    if not count:
        raise InvalidArgumentError(
            "text is empty: it needs at least two tokens, the first being context only"
        )
    seconds = max(time.monotonic() - started, 1e-9)
    return Perplexity(count, total / count, count / seconds, window, stride)


def _specs(
    engine: Engine, text: Texts, window: int, stride: int, scored: dict[int, int]
) -> Iterator[RequestSpec]:
    config = engine._resolver.resolve(
        GenerationConfig(prompt_logprobs=0, max_new_tokens=1, do_sample=False), {}
    )
    index = 0
    for file in _files(text):
        chunks = encode_file(engine.tokenizer, file)
        for part in sliding_windows(chunks, window, stride):
            (ids,) = token_arrays([part.ids], engine.info.vocab_size)
            scored[index] = part.scored
            yield RequestSpec(ids, config, index)
            index += 1


def _files(text: Texts) -> Iterator[TextIO]:
    if isinstance(text, str):
        yield io.StringIO(text, newline="")
    elif isinstance(text, io.TextIOBase):
        yield cast(TextIO, text)
    else:
        for item in text:
            if not isinstance(item, str):
                raise check.refuse("text", item, "each of several texts must be a str")
            yield io.StringIO(item, newline="")
