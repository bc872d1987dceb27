"""A chat template that is ready to render, whatever it tries to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jinja2

from treadle.chat.budget import CURRENT, Budget, LimitError
from treadle.chat.globals import RaisedByTemplate
from treadle.chat.sandbox import TemplateEnvironment
from treadle.errors import ChatTemplateError

T = TypeVar("T")
#: Published chat templates have at most some tens of thousands of characters.
MAX_SOURCE_CHARS = 128 << 10


class CompiledTemplate:
    """A template ready to render; raises ChatTemplateError for whatever goes wrong in it."""

    def __init__(self, source: str, origin: str) -> None:
        """``origin`` names the file or built-in format in messages."""
        if len(source) > MAX_SOURCE_CHARS:
            raise LimitError(
                f"{origin}: chat template has {len(source)} characters, more than the limit of "
                f"{MAX_SOURCE_CHARS}"
            )
        self._origin = origin
        self._template = self._run(Budget(), lambda: TemplateEnvironment().from_string(source))

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for these variables, which must be plain JSON values."""
        budget = Budget(Budget().weigh(dict(variables)))

        def generate() -> str:
            pieces: list[str] = []
            chars = 0
            for piece in self._template.generate(dict(variables)):
                chars += len(piece)
                if chars > budget.max_chars:
                    raise LimitError(
                        f"the chat template writes more than the limit of {budget.max_chars} "
                        "characters"
                    )
                pieces.append(piece)
            return "".join(pieces)

        return self._run(budget, generate)

    def _run(self, budget: Budget, action: Callable[[], T]) -> T:
        token = CURRENT.set(budget)
        try:
            return action()
        except LimitError as error:
            raise LimitError(f"{self._origin}: {error}") from None
        except RaisedByTemplate as error:
            message = f"{self._origin}: the chat template refuses the messages: {error}"
            raise ChatTemplateError(message, code="template_refused") from None
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(
                f"{self._origin}: chat template syntax error at line {error.lineno}: "
                f"{error.message}",
                code="template_syntax",
            ) from None
        except RecursionError:
            raise LimitError(f"{self._origin}: the chat template recurses too deeply") from None
        except MemoryError:
            raise LimitError(f"{self._origin}: the chat template is too large to compile") from None
        except Exception as error:
            raise ChatTemplateError(
                f"{self._origin}: the chat template failed: {type(error).__name__}: "
                f"{str(error)[:500]}",
                code="template_failed",
            ) from None
        finally:
            CURRENT.reset(token)
