"""Stop words matched on streamed text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from treadle.errors import ConfigError


class StopWords:
    """Ends a stream of text at the first stop word, wherever the pieces are cut.

    The word that is *completed* first counts; of several completed by the same character, the
    longest. Neither it nor anything behind it is emitted, and text that might begin one is held
    back until that is decided. The work is linear in the text (Aho and Corasick, "Efficient string
    matching", 1975).
    """

    def __init__(self, words: Sequence[str]) -> None:
        """Raises ConfigError for a word that is empty or not a string."""
        items = [words] if isinstance(words, str) else list(words)
        for i, word in enumerate(items):
            if not isinstance(word, str) or not word:
                raise ConfigError(f"stop_words[{i}] is {word!r}, expected a non-empty string")
        #: The stop word that ended the text; None so far.
        self.matched: str | None = None
        self._held = ""
        self._state = 0
        # Node 0 is the root; a node stands for a prefix of some word.
        self._next: list[dict[str, int]] = [{}]
        self._fail: list[int] = [0]
        self._depth: list[int] = [0]
        self._word: list[str | None] = [None]
        for word in items:
            self._insert(word)
        self._link()

    def _insert(self, word: str) -> None:
        node = 0
        for char in word:
            child = self._next[node].get(char)
            if child is None:
                child = len(self._next)
                self._next[node][char] = child
                self._next.append({})
                self._fail.append(0)
                self._depth.append(self._depth[node] + 1)
                self._word.append(None)
            node = child
        self._word[node] = word

    def _link(self) -> None:
        """Points every node to its longest proper suffix that is also a node, breadth first."""
        queue = deque(self._next[0].values())
        while queue:
            node = queue.popleft()
            for char, child in self._next[node].items():
                queue.append(child)
                self._fail[child] = self._step(self._fail[node], char)
            if self._word[node] is None:
                self._word[node] = self._word[self._fail[node]]

    def _step(self, state: int, char: str) -> int:
        while state and char not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(char, 0)

    def feed(self, text: str) -> tuple[str, bool]:
        """Returns (text that may be shown, whether a stop word has been met)."""
        if self.matched is not None:
            return "", True
        buffer = self._held + text
        state = self._state
        for position, char in enumerate(text, start=len(self._held) + 1):
            state = self._step(state, char)
            word = self._word[state]
            if word is not None:
                self.matched = word
                self._held, self._state = "", 0
                return buffer[: position - len(word)], True
        self._state = state
        cut = len(buffer) - self._depth[state]
        self._held = buffer[cut:]
        return buffer[:cut], False

    def flush(self) -> str:
        """What was held back, at the end of a text that no stop word ended."""
        held, self._held, self._state = self._held, "", 0
        return held
