"""The engine as Python sees it."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any

from treadle import _checks as check
from treadle import gpu
from treadle.config import EngineConfig
from treadle.errors import InvalidArgumentError, NotFoundError, TreadleError
from treadle.generation_config import GenerationConfig
from treadle.outputs import EngineStats, Health, ModelInfo, SessionInfo
from treadle.progress import LoadProgress
from treadle.sampling import ConfigResolver, load_model_defaults

if TYPE_CHECKING:
    from treadle import _engine
    from treadle.chat_template import ChatTemplate
    from treadle.generator import Generator
    from treadle.inference import RequestSpec
    from treadle.tokenizer import Tokenizer

_live: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """An engine's threads must be gone before the interpreter and the libraries are."""
    for engine in list(_live):
        engine.close()


class Engine:
    """A loaded model with its batch loop, KV cache and sessions.

    Make one with :meth:`from_pretrained`. Thread safe. Use it as a context manager or call
    :meth:`close` to free its memory at a known moment.
    """

    def __init__(
        self,
        native: _engine.Engine,
        path: str,
        config: EngineConfig,
        model_name: str | None,
        defaults: GenerationConfig,
    ) -> None:
        """Use :meth:`from_pretrained`."""
        self._native = native
        self.path = path
        #: The options as given; what was made of them is in ``info``.
        self.config = config
        #: Sizes and limits in force.
        self.info = ModelInfo(**native.info())
        self._model_name = model_name or self.info.model_name or None
        self._lock = threading.RLock()
        self._tokenizer: Tokenizer | None = None
        self._chat_template: ChatTemplate | None = None
        self._template_stop_words: list[str] | None = None
        #: Sessions that ran past a stop word, and the history length that counts.
        self._shortened: dict[int, int] = {}
        #: The request each session got last, while somebody holds it.
        self._newest: weakref.WeakValueDictionary[int, RequestSpec] = weakref.WeakValueDictionary()
        self._resolver = ConfigResolver(
            defaults,
            self.info.vocab_size,
            lambda: self.tokenizer,
            self._get_template_stop_words,
        )
        _live.add(self)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        model_name: str | None = None,
        config: EngineConfig | None = None,
        **overrides: Any,
    ) -> Engine:
        """Loads a Hugging Face model directory (config.json, safetensors, tokenizer) or a workspace
        that ``treadle convert`` made.

        model_name: picks a built-in chat template, for example "internlm-chat-7b", where the model
            brings none of its own. A workspace's config.ini may name one, too.
        config: engine options; keyword ``overrides`` change single ones:
            ``from_pretrained(path, session_len=4096)``.

        A slow load shows a progress bar on a terminal; Ctrl-C ends it. Raises a TreadleError that
        names the file or the option.
        """
        from treadle import _engine

        directory = _check_path(path)
        if model_name is not None and not isinstance(model_name, str):
            raise check.refuse("model_name", model_name, "it must be a str or None")
        if config is not None and not isinstance(config, EngineConfig):
            raise InvalidArgumentError(
                f"config is a {type(config).__name__}: it must be an EngineConfig"
            )
        config = (config or EngineConfig()).replace(**overrides)
        defaults = load_model_defaults(directory)  # before the slow part
        if config.device != "cpu":
            gpu.load_library()
        with LoadProgress(os.path.basename(os.path.abspath(directory))) as progress:
            native = _engine.Engine.load(
                directory, config.to_native(), on_load_progress=progress.callback
            )
        engine = cls(native, directory, config, model_name, defaults)
        log = logging.getLogger("treadle")
        if engine.info.device_note:
            log.warning("%s", engine.info.device_note)
        if engine.info.ignored_keys:
            keys = engine.info.ignored_keys
            log.warning("%s: config.ini: ignored, as they are LMDeploy's own: %s", directory, keys)
        return engine

    def create_instance(self) -> Generator:
        """A Generator, whose stream_infer runs requests on this engine."""
        from treadle.generator import Generator

        return Generator(self)

    @property
    def tokenizer(self) -> Tokenizer:
        """Loaded at first use. Raises TokenizerError where the model directory has none."""
        from treadle.tokenizer import Tokenizer

        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = Tokenizer.from_pretrained(self.path)
            return self._tokenizer

    @property
    def model(self) -> ChatTemplate:
        """The chat template: ``get_prompt`` and ``messages2prompt``. Loaded at first use."""
        from treadle.chat_template import ChatTemplate

        with self._lock:
            if self._chat_template is None:
                self._chat_template = ChatTemplate.from_pretrained(
                    self.path, model_name=self._model_name, tokenizer=self.tokenizer
                )
            return self._chat_template

    def cancel(self, session_id: int) -> bool:
        """Cancels what runs or waits in a session; the session and its history stay. False when
        there was nothing to cancel."""
        return self._native.cancel(_session_id(session_id))

    def end_session(self, session_id: int) -> bool:
        """Forgets a session and cancels its requests. False when there was none."""
        self._shortened.pop(session_id, None)
        return self._native.end_session(_session_id(session_id))

    def session(self, session_id: int) -> SessionInfo | None:
        """A session's history; None when there is no such session."""
        found = self._native.session(_session_id(session_id))
        if found is None:
            return None
        token_ids, busy = found
        return SessionInfo(session_id, token_ids[: self._shortened.get(session_id)], busy)

    def stats(self) -> EngineStats:
        """Counters and gauges, as they were after the last step."""
        return EngineStats(**self._native.stats())

    def health(self) -> Health:
        """Whether the engine can run requests; never raises."""
        return Health(*self._native.health())

    def close(self, drain_seconds: float = 0.0) -> None:
        """Takes no more requests, lets live ones run on for at most ``drain_seconds``, ends the
        rest and frees the memory. May be called again."""
        if check.number("drain_seconds", drain_seconds) < 0:
            raise check.refuse("drain_seconds", drain_seconds, "it must be 0 or more seconds")
        self._native.close(drain_seconds)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Engine({self.path!r}, {self.info.architecture}, {self.info.device})"

    def _submit(self, spec: RequestSpec) -> _engine.Stream:
        step = spec.step
        limit = None if spec.session_id is None else self._shortened.get(spec.session_id)
        if spec.session_id is not None and limit is not None and spec.session_mode != "start":
            step = self._step_within(spec.session_id, limit, step)
        stream = self._native.submit(
            spec.input_ids,
            spec.config.sampling,
            session_id=spec.session_id,
            session_mode=spec.session_mode,
            end_session=spec.end_session,
            step=step,
            priority=spec.priority,
            timeout_s=spec.timeout or 0.0,
        )
        if spec.session_id is not None:
            self._shortened.pop(spec.session_id, None)
            self._newest[spec.session_id] = spec
        return stream

    def _step_within(self, session_id: int, limit: int, step: int | None) -> int | None:
        if self._native.session(session_id) is None:
            return step  # it has expired, so nothing is left to shorten
        if step is not None and step > limit:
            raise check.refuse(
                "step", step, f"it must be from 0 to the length of the session's history, {limit}"
            )
        return limit if step is None else step

    def _shorten_session(self, spec: RequestSpec, length: int) -> None:
        """The session's next request begins after ``length`` tokens of history. Where that request
        was submitted before ``spec`` met its stop word, it has begun after whatever was generated,
        and its turn must stay."""
        if spec.session_id is not None and self._newest.get(spec.session_id) is spec:
            self._shortened[spec.session_id] = length

    def _get_template_stop_words(self) -> list[str]:
        """Words that end an answer in the model's chat format; none for a model without one."""
        if self._template_stop_words is None:
            try:
                words = list(self.model.stop_words)
            except TreadleError:
                words = []
            self._template_stop_words = words
        return self._template_stop_words


def _session_id(value: object) -> int:
    return check.integer("session_id", value, 0, check.MAX_UINT64)


def _check_path(path: object) -> str:
    demo = "treadle.demo_model_path() gives the bundled demo model"
    if path is None:
        raise InvalidArgumentError(f"path is None: give a model directory; {demo}")
    if not isinstance(path, str | os.PathLike):
        raise check.refuse("path", path, "it must be a str or a path")
    directory = os.fspath(path)
    if not isinstance(directory, str):
        directory = os.fsdecode(directory)
    if not os.path.isdir(directory):
        exists = os.path.exists(directory)
        what = "it is not a directory" if exists else "there is no such directory"
        raise NotFoundError(
            f"path is {directory!r}: {what}; models are loaded from local directories, and {demo}"
        )
    return directory
