"""A chat of several turns in one session: each turn sends only what is new."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from treadle.errors import ChatTemplateError, UnknownSessionError
from treadle.generation_config import GenerationConfig
from treadle.generator import InferStream
from treadle.outputs import SequenceOutput

if TYPE_CHECKING:
    from treadle.engine import Engine

#: Ids of sessions made here; far from the small numbers that callers choose themselves.
_session_ids = itertools.count(1 << 40)


class Conversation:
    """Questions and answers in one session of an engine.

    for output in conversation.ask("浙江的省会在哪?"):
        print(output.new_text, end="", flush=True)
    """

    def __init__(
        self, engine: Engine, *, system: str | None = None, session_id: int | None = None
    ) -> None:
        """``system``: the system message. ``session_id``: None takes one of its own."""
        self._engine = engine
        self._generator = engine.create_instance()
        self._system = system
        self.session_id = next(_session_ids) if session_id is None else session_id
        #: The turns so far, in the form of OpenAI's API.
        self.messages: list[dict[str, str]] = []
        self._turn_closed = False
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self._engine.end_session(self.session_id)
        self.messages = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})

    def ask(
        self, question: str, gen_config: GenerationConfig | None = None, **overrides: Any
    ) -> Iterator[SequenceOutput]:
        """Yields the answer as it comes; the last output has a finish_reason.

        Closing the iterator or an exception (Ctrl-C) cancels the answer; what there is of it stays
        part of the conversation.
        """
        stream = self._submit(question, gen_config, {**overrides, "return_text": True, "n": 1})
        self.messages.append({"role": "user", "content": question})
        return self._follow(stream)

    def _follow(self, stream: InferStream) -> Iterator[SequenceOutput]:
        answer = ""
        self._turn_closed = False
        with stream:
            try:
                for (output,) in stream:
                    answer = output.text or ""
                    yield output
                    # Only an end token ends the turn, no stop word of the caller's and no length.
                    self._turn_closed = output.finish_reason == "stop"
            finally:
                self.messages.append({"role": "assistant", "content": answer})

    def _submit(
        self, question: str, gen_config: GenerationConfig | None, overrides: dict[str, Any]
    ) -> InferStream:
        if any(message["role"] == "assistant" for message in self.messages):
            try:
                return self._continue(question, gen_config, overrides)
            except UnknownSessionError:
                pass  # it has expired: send everything again
            except ChatTemplateError as error:
                if error.code != "template_not_incremental":
                    raise
        messages = [*self.messages, {"role": "user", "content": question}]
        template = self._engine.model
        # A chat format's text brings its own BOS, if any.
        ids = self._engine.tokenizer.encode(
            template.messages2prompt(messages), add_bos=None if template.is_plain else False
        )
        return self._generator.stream_infer(
            self.session_id, ids, gen_config, sequence_start=True, **overrides
        )

    def _continue(
        self, question: str, gen_config: GenerationConfig | None, overrides: dict[str, Any]
    ) -> InferStream:
        prompt = self._engine.model.get_prompt(
            question, sequence_start=False, previous_turn_closed=self._ends_with_end_token()
        )
        ids = self._engine.tokenizer.encode(prompt, continuation=True)
        return self._generator.stream_infer(
            self.session_id, ids, gen_config, sequence_start=False, **overrides
        )

    def _ends_with_end_token(self) -> bool:
        if not self._turn_closed:
            return False
        session = self._engine.session(self.session_id)
        while session is not None and session.busy:
            # The last output was shown an instant before the engine put the history away.
            time.sleep(0.001)
            session = self._engine.session(self.session_id)
        if session is None or not len(session.token_ids):
            return False
        return int(session.token_ids[-1]) in self._end_token_ids()

    def _end_token_ids(self) -> set[int]:
        tokenizer = self._engine.tokenizer
        words = [tokenizer.piece_to_id(word) for word in self._engine.model.stop_words]
        return {*self._engine.info.eos_token_ids, *(token for token in words if token is not None)}
