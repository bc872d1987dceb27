"""Built-in chat formats, for models that bring no template of their own.

Each is a small jinja template, so that built-in and own templates go one way. The formats are those
the models were published with:

* internlm: ``<s><|User|>:...<eoh>\\n<|Bot|>:...<eoa>\\n`` (InternLM-Chat 7B)
* internlm2: ChatML with BOS (InternLM2-Chat, InternLM2.5, InternLM3)
* llama2: ``[INST] <<SYS>>...`` (Llama 2, code llama)
* llama3: ``<|start_header_id|>...`` (Llama 3, 3.1, 3.2, 3.3)
* qwen, yi, chatml: ChatML without BOS, qwen with its default system message
* mistral: ``[INST] ... [/INST]`` (Mistral 7B Instruct v0.1 and v0.2, Mixtral)
* vicuna: ``USER: ... ASSISTANT: ...</s>`` (Vicuna v1.1 and v1.5)
* base: the messages' text alone
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from treadle.errors import ChatTemplateError


@dataclass(frozen=True)
class ChatFormat:
    """A built-in format: its jinja template and the texts at which an answer ends."""

    name: str
    template: str
    stop_words: tuple[str, ...] = ()


_CHECK_ROLES = """\
{%- if message['role'] not in ['user', 'assistant'] -%}
{{ raise_exception("role '" + message['role'] + "' is not supported by this chat format, expected \
an optional system message followed by user and assistant messages") }}
{%- endif -%}"""

_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""


def _chatml(default_system: str = "") -> str:
    if not default_system:
        return _CHATML
    return (
        "{%- if messages[0]['role'] != 'system' -%}"
        "{{ '<|im_start|>system\\n" + default_system + "<|im_end|>\\n' }}{%- endif -%}" + _CHATML
    )


_INTERNLM = (
    """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if loop.first and message['role'] == 'system' -%}
{{ '<|System|>:' + message['content'] + '\\n' }}
{%- else -%}"""
    + _CHECK_ROLES
    + """\
{%- if message['role'] == 'user' -%}{{ '<|User|>:' + message['content'] + '<eoh>\\n' }}
{%- else -%}{{ '<|Bot|>:' + message['content'] + '<eoa>\\n' }}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|Bot|>:' }}{%- endif -%}"""
)

# The system message is part of the first user message. Every question starts with BOS.
_LLAMA2 = (
    """\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] == 'system' -%}
{%- set ns.system = '<<SYS>>\\n' + message['content'] + '\\n<</SYS>>\\n\\n' -%}
{%- else -%}"""
    + _CHECK_ROLES
    + """\
{%- if message['role'] == 'user' -%}
{{ bos_token ~ '[INST] ' + ns.system + message['content'] | trim + ' [/INST]' }}
{%- set ns.system = '' -%}
{%- else -%}{{ ' ' + message['content'] | trim + ' ' ~ eos_token }}
{%- endif -%}
{%- endif -%}
{%- endfor -%}"""
)

_MISTRAL = (
    """\
{{- bos_token -}}
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] == 'system' -%}
{%- set ns.system = message['content'] + '\\n\\n' -%}
{%- else -%}"""
    + _CHECK_ROLES
    + """\
{%- if message['role'] == 'user' -%}
{{ '[INST] ' + ns.system + message['content'] + ' [/INST]' }}
{%- set ns.system = '' -%}
{%- else -%}{{ message['content'] ~ eos_token }}
{%- endif -%}
{%- endif -%}
{%- endfor -%}"""
)

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim \
+ '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif -%}"""

_VICUNA = (
    """\
{{- bos_token -}}
{%- if messages[0]['role'] != 'system' -%}
A chat between a curious user and an artificial intelligence assistant. The assistant gives \
helpful, detailed, and polite answers to the user's questions.{{ ' ' }}
{%- endif -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] == 'system' -%}{{ message['content'] + ' ' }}
{%- else -%}"""
    + _CHECK_ROLES
    + """\
{%- if message['role'] == 'user' -%}{{ 'USER: ' + message['content'] + ' ' }}
{%- else -%}{{ 'ASSISTANT: ' + message['content'] ~ eos_token }}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"""
)

_BASE = "{%- for message in messages -%}{{ message['content'] }}{%- endfor -%}"

_FORMATS = {
    chat_format.name: chat_format
    for chat_format in (
        ChatFormat("internlm", _INTERNLM, ("<eoa>",)),
        ChatFormat("internlm2", "{{- bos_token -}}" + _CHATML, ("<|im_end|>",)),
        ChatFormat("llama2", _LLAMA2, ("</s>",)),
        ChatFormat("llama3", _LLAMA3, ("<|eot_id|>",)),
        ChatFormat("qwen", _chatml("You are a helpful assistant."), ("<|im_end|>",)),
        ChatFormat(
            "qwen2.5",
            _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
            ("<|im_end|>",),
        ),
        ChatFormat("chatml", _CHATML, ("<|im_end|>",)),
        ChatFormat("mistral", _MISTRAL, ("</s>",)),
        ChatFormat("yi", _CHATML, ("<|im_end|>",)),
        ChatFormat("vicuna", _VICUNA, ("</s>",)),
        ChatFormat("base", _BASE),
    )
}

# The first pattern that matches the start of a lower-case model name decides.
_FAMILIES: tuple[tuple[str, str], ...] = (
    (r"internlm-?_?(2|2\.5|2_5|3)($|[-_.])", "internlm2"),
    (r"internlm($|[-_])", "internlm"),
    (r"(meta-)?llama-?_?3($|[-_.])", "llama3"),
    (r"((meta-)?llama-?_?2|code-?llama)($|[-_])", "llama2"),
    (r"qwen-?_?2\.5($|[-_])", "qwen2.5"),
    (r"(qwen-?_?3|qwq)($|[-_.])", "chatml"),
    (r"qwen(-?_?(1\.5|2))?($|[-_])", "qwen"),
    (r"chatml$", "chatml"),
    (r"(mistral|mixtral|ministral)($|[-_])", "mistral"),
    (r"yi(-?_?1\.5)?($|[-_])", "yi"),
    (r"vicuna($|[-_])", "vicuna"),
    (r"(base|llama)$", "base"),
)


def known_names() -> list[str]:
    """The names of the built-in formats."""
    return list(_FORMATS)


def find_format(model_name: str) -> ChatFormat:
    """The built-in format for a name such as ``internlm-chat-7b`` or ``Qwen/Qwen2.5-7B-Instruct``.

    Names match by family, without regard to case. Raises ChatTemplateError for an unknown one.
    """
    if not isinstance(model_name, str):
        raise ChatTemplateError(
            f"model_name is {model_name!r}, expected a string", code="unknown_model_name"
        )
    name = model_name.strip().rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1].lower()
    if name in _FORMATS:
        return _FORMATS[name]
    for pattern, format_name in _FAMILIES:
        if re.match(pattern, name):
            return _FORMATS[format_name]
    raise ChatTemplateError(
        f"model_name is {model_name!r}, which names no built-in chat format; known are "
        f"{', '.join(known_names())} and model names of these families. Leave model_name out to "
        "use the model's own chat template",
        code="unknown_model_name",
    )
