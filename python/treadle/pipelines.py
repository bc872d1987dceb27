"""Text in, text out: prompts or chat messages through an engine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from treadle import _checks as check
from treadle.config import EngineConfig
from treadle.engine import Engine
from treadle.errors import InvalidArgumentError, TreadleError
from treadle.generation_config import GenerationConfig
from treadle.inference import ActiveRequest, RequestSpec
from treadle.inputs import token_arrays
from treadle.outputs import FinishReason, PositionLogprobs, SequenceOutput, TokenIds, Usage
from treadle.progress import ProgressBar
from treadle.request_pool import RequestPool
from treadle.sampling import merge_configs

if TYPE_CHECKING:
    from treadle.sampling import ResolvedConfig

Message: TypeAlias = Mapping[str, Any]
#: A text, or a conversation in the form of OpenAI's API.
Prompt: TypeAlias = str | Sequence[Message]


@dataclass(frozen=True)
class Response:
    """The answer to one prompt, or what there is of it while streaming."""

    #: All text so far, and what came since the last Response of the same sequence.
    text: str
    new_text: str
    token_ids: TokenIds
    #: None while streaming.
    finish_reason: FinishReason | None
    #: The cause when finish_reason is "error".
    error: TreadleError | None
    usage: Usage
    logprobs: list[PositionLogprobs] | None
    prompt_logprobs: list[PositionLogprobs] | None
    #: Which of the prompts, and which of its n continuations.
    index: int
    continuation: int

    @classmethod
    def of(cls, output: SequenceOutput) -> Response:
        return cls(
            text=output.text or "",
            new_text=output.new_text,
            token_ids=output.token_ids,
            finish_reason=output.finish_reason,
            error=output.error,
            usage=output.usage,
            logprobs=output.logprobs,
            prompt_logprobs=output.prompt_logprobs,
            index=output.index,
            continuation=output.continuation,
        )

    @property
    def generate_token_len(self) -> int:
        return self.usage.output_tokens

    @property
    def input_token_len(self) -> int:
        return self.usage.prompt_tokens


class Pipeline:
    """Answers prompts; make one with :func:`pipeline`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(
        self,
        prompts: Prompt | Sequence[Prompt],
        gen_config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        *,
        do_preprocess: bool = True,
        use_tqdm: bool | None = None,
        **overrides: Any,
    ) -> Any:
        """Answers a text or a conversation with a Response, a list of them with a list in order.

        prompts: a str, a list of messages (``{"role": ..., "content": ...}``), or a list of either.
        gen_config: options for all prompts or one for each; ``overrides`` change single ones.
        do_preprocess: put texts into the model's chat format; False completes them as they are.
        use_tqdm: progress bar; None shows one on a terminal when there are several prompts.

        With ``n`` above 1 the result is a list, the n answers to a prompt side by side. What is
        wrong with one of several prompts is that Response's ``error``; the others are answered.
        """
        items, alone = _prompt_list(prompts)
        finished = self.as_finished(items, gen_config, do_preprocess=do_preprocess, **overrides)
        answers: dict[int, list[Response]] = {}
        with ProgressBar(len(items), use_tqdm) as bar:
            for responses in finished:
                answers[responses[0].index] = responses
                bar.update()
        flat = [response for i in range(len(items)) for response in answers[i]]
        if not alone or len(flat) > 1:
            return flat
        return flat[0]

    def as_finished(
        self,
        prompts: Sequence[Prompt],
        gen_config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        *,
        do_preprocess: bool = True,
        **overrides: Any,
    ) -> Iterator[list[Response]]:
        """Yields the n answers to a prompt when they are complete, the quickest prompt first."""
        specs = self._specs(list(prompts), gen_config, overrides, do_preprocess)
        requests = RequestPool(self.engine, specs, stream=False).run()
        return ([Response.of(state.take()) for state in request.states] for request in requests)

    def stream_infer(
        self,
        prompts: Prompt | Sequence[Prompt],
        gen_config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        *,
        do_preprocess: bool = True,
        **overrides: Any,
    ) -> Iterator[Response]:
        """Yields a Response whenever one of the sequences has new text, in any order: ``index`` and
        ``continuation`` say which. The last one of a sequence has a ``finish_reason``."""
        items, _ = _prompt_list(prompts)
        return self._stream(self._specs(items, gen_config, overrides, do_preprocess))

    def _stream(self, specs: Iterator[RequestSpec | ActiveRequest]) -> Iterator[Response]:
        told: set[tuple[int, int]] = set()
        # Closing this generator must close that one, which cancels: letting go may come later.
        with closing(RequestPool(self.engine, specs, stream=True).run()) as requests:
            for request in requests:
                for state in request.states:
                    output = state.take()
                    key = (output.index, output.continuation)
                    if key in told or not (len(output.new_token_ids) or output.finished):
                        continue
                    if output.finished:
                        told.add(key)
                    yield Response.of(output)

    def _specs(
        self,
        items: list[Prompt],
        gen_config: GenerationConfig | Sequence[GenerationConfig] | None,
        overrides: Mapping[str, Any],
        do_preprocess: bool,
    ) -> Iterator[RequestSpec | ActiveRequest]:
        """Checks all options now, and encodes the prompts as they are asked for."""
        check.flag("do_preprocess", do_preprocess)
        overrides = {**overrides, "return_text": True}
        resolver = self.engine._resolver
        if gen_config is None or isinstance(gen_config, GenerationConfig):
            configs = [resolver.resolve(gen_config, overrides)] * len(items)
        else:
            given = merge_configs(gen_config, len(items))
            configs = [resolver.resolve(config, overrides) for config in given]
        if len(items) == 1:  # what is wrong with the only prompt is raised
            spec = self._encode(0, items[0], configs[0], do_preprocess)
            return iter([ActiveRequest(self.engine, spec)])
        return self._encode_all(items, configs, do_preprocess)

    def _encode_all(
        self, items: list[Prompt], configs: list[ResolvedConfig], do_preprocess: bool
    ) -> Iterator[RequestSpec | ActiveRequest]:
        for index, (item, config) in enumerate(zip(items, configs, strict=True)):
            try:
                yield self._encode(index, item, config, do_preprocess)
            except TreadleError as error:
                empty = RequestSpec(np.empty(0, dtype=np.int32), config, index)
                yield ActiveRequest.refused(self.engine, empty, error)

    def _encode(
        self, index: int, item: Prompt, config: ResolvedConfig, do_preprocess: bool
    ) -> RequestSpec:
        tokenizer = self.engine.tokenizer
        if do_preprocess:
            template = self.engine.model
            # A chat format's text brings its own BOS, if any.
            ids = tokenizer.encode(
                template.messages2prompt(item), add_bos=None if template.is_plain else False
            )
        elif isinstance(item, str):
            ids = tokenizer.encode(item)
        else:
            raise InvalidArgumentError(
                "do_preprocess is False and the prompt is a list of messages: messages need the "
                "chat format; give a str"
            )
        arrays = token_arrays([ids], self.engine.info.vocab_size)
        # A completed text goes on from its prompt; an answer is a text of its own.
        return RequestSpec(arrays[0], config, index, continues_text=not do_preprocess)

    def close(self) -> None:
        """Closes the engine."""
        self.engine.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def pipeline(
    path: str | os.PathLike[str],
    model_name: str | None = None,
    config: EngineConfig | None = None,
    **overrides: Any,
) -> Pipeline:
    """Loads a model and returns a callable that answers prompts::

        pipe = treadle.pipeline(treadle.demo_model_path())
        print(pipe("浙江的省会在哪?").text)
        for response in pipe(["What is 37 + 48?", "JSON: Ada, 36, London"]):
            print(response.text)

    The arguments are those of :meth:`Engine.from_pretrained`.
    """
    return Pipeline(Engine.from_pretrained(path, model_name, config, **overrides))


def _prompt_list(prompts: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """The prompts as a list, and whether there was just one, outside a list."""
    if isinstance(prompts, str):
        return [prompts], True
    if isinstance(prompts, Mapping | bytes) or not isinstance(prompts, Iterable):
        raise InvalidArgumentError(
            f"prompts is a {type(prompts).__name__}: it must be a str, a list of messages "
            '({"role": "user", "content": "..."}), or a list of either'
        )
    items: list[Any] = list(prompts)
    if items and all(isinstance(item, Mapping) for item in items):
        return [items], True
    for i, item in enumerate(items):
        if not isinstance(item, str) and (
            isinstance(item, Mapping | bytes) or not isinstance(item, Sequence)
        ):
            raise InvalidArgumentError(
                f"prompts[{i}] is a {type(item).__name__}: it must be a str or a list of messages"
            )
    return items, False
