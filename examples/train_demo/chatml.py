"""The chat format of the demo model: ChatML around each turn, as text and as a template."""

from collections.abc import Iterable

BOS_ID = 1
EOS_ID = 2
IM_END_ID = 4

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
#: In the order of their ids, 0 to 4.
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", IM_START, IM_END)

#: What `tokenizer_config.json` carries; renders the same text as `prompt` behind a "<s>".
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)


def render(messages: Iterable[tuple[str, str]]) -> str:
    """Returns the ChatML text of (role, content) messages, without the leading "<s>"."""
    return "".join(f"{IM_START}{role}\n{content}{IM_END}\n" for role, content in messages)


def prompt(messages: Iterable[tuple[str, str]]) -> str:
    """Returns `render(messages)` followed by the opening of the assistant's answer."""
    return render(messages) + f"{IM_START}assistant\n"
