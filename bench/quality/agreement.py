"""How much of what one model would say another says, too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Where an answer begins in the demo model's chat format.
ANSWER = "<|im_start|>assistant\n"


@dataclass(frozen=True)
class Choices:
    """What a model chooses greedily, on a list of texts."""

    #: For each text, the most likely next token behind each of its tokens, the text itself read.
    forced: list[list[int]]
    #: For each text, what the model goes on with behind the beginning of it.
    free: list[list[int]]


@dataclass(frozen=True)
class Agreement:
    """Two models' choices, compared."""

    #: Positions where the next token was compared, and the share of them where it is the same.
    positions: int
    same_next: float
    #: Continuations, the mean number of their tokens in the reference, how many of these the
    #: other model gives before it first differs (mean), and the share that is equal to the end.
    continuations: int
    mean_length: float
    mean_prefix: float
    same_continuation: float


def equal_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the beginning."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def compare(reference: Choices, other: Choices) -> Agreement:
    """Raises ValueError when they are not about the same texts, or about none."""
    shapes = [[len(text) for text in choices.forced] for choices in (reference, other)]
    if shapes[0] != shapes[1] or len(reference.free) != len(other.free):
        raise ValueError("the choices are not about the same texts")
    positions = sum(shapes[0])
    if not positions or not reference.free:
        raise ValueError("there is nothing to compare")
    same = sum(
        x == y
        for a, b in zip(reference.forced, other.forced, strict=True)
        for x, y in zip(a, b, strict=True)
    )
    pairs = list(zip(reference.free, other.free, strict=True))
    return Agreement(
        positions=positions,
        same_next=same / positions,
        continuations=len(pairs),
        mean_length=sum(len(a) for a, _ in pairs) / len(pairs),
        mean_prefix=sum(equal_prefix(a, b) for a, b in pairs) / len(pairs),
        same_continuation=sum(a == b for a, b in pairs) / len(pairs),
    )


def opening(text: str, chars: int) -> str:
    """The part of a text that a model is to continue.

    A conversation up to where its last answer begins; any other text up to the last line that
    ends within ``chars`` characters, or exactly so many where no line ends.
    """
    if (answer := text.rfind(ANSWER)) >= 0:
        return text[: answer + len(ANSWER)]
    return text[: text.rfind("\n", 0, chars) + 1] or text[:chars]
