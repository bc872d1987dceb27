"""Chat templates: published formats, transformers' rendering, sessions, and hostile templates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from chat_samples import CHATML_SYSTEM, GLM, HOSTILE, LLAMA31, MISTRAL, QWEN3, REFUSED
from tokenizer_models import DEMO
from treadle.chat.compiled import CompiledTemplate
from treadle.chat_template import ChatTemplate
from treadle.errors import ChatTemplateError, ConfigError
from treadle.tokenizer import Tokenizer

USER = {"role": "user", "content": "Q1"}
CHAT = [USER, {"role": "assistant", "content": "A1"}, {"role": "user", "content": "Q2"}]
SYSTEM = {"role": "system", "content": "S"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city, e.g. 杭州 <b>",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def model_dir(directory: Path, template: Any = None, **config: Any) -> Path:
    """The demo's tokenizer with another chat template, or with none."""
    shutil.copy(DEMO / "tokenizer.json", directory)
    settings = json.loads((DEMO / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    if template is not None:
        settings["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps({**settings, **config}))
    return directory


# The formats as published (system message, question, answer, question, then the answer to come).
PUBLISHED = {
    "internlm-chat-7b": (
        "<s><|System|>:S\n<|User|>:Q1<eoh>\n<|Bot|>:A1<eoa>\n<|User|>:Q2<eoh>\n<|Bot|>:"
    ),
    "internlm2-chat-7b": (
        "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n"
        "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "llama-2-7b-chat": ("<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ1 [/INST] A1 </s><s>[INST] Q2 [/INST]"),
    "Meta-Llama-3-8B-Instruct": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ1<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ2<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "Qwen2.5-7B-Instruct": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n"
        "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "mistral-7b-instruct-v0.2": "<s>[INST] S\n\nQ1 [/INST]A1</s>[INST] Q2 [/INST]",
    "Yi-34B-Chat": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ1<|im_end|>\n"
        "<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nQ2<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "vicuna-7b-v1.5": "<s>S USER: Q1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:",
}
STOP_WORDS = {
    "internlm-chat-7b": "<eoa>",
    "internlm2-chat-7b": "<|im_end|>",
    "llama-2-7b-chat": "</s>",
    "Meta-Llama-3-8B-Instruct": "<|eot_id|>",
    "Qwen2.5-7B-Instruct": "<|im_end|>",
    "mistral-7b-instruct-v0.2": "</s>",
    "Yi-34B-Chat": "<|im_end|>",
    "vicuna-7b-v1.5": "</s>",
}


@pytest.fixture
def plain_dir(tmp_path: Path) -> Path:
    return model_dir(tmp_path, eos_token="</s>")


@pytest.mark.parametrize("model_name", PUBLISHED)
def test_published_formats(model_name: str, plain_dir: Path) -> None:
    for name in (model_name, model_name.upper(), f"some-org/{model_name.lower()}"):
        template = ChatTemplate.from_pretrained(plain_dir, name)
        assert template.messages2prompt([SYSTEM, *CHAT]) == PUBLISHED[model_name]
        assert template.stop_words == [STOP_WORDS[model_name]]


@pytest.mark.parametrize("model_name", PUBLISHED)
def test_turns_put_together_are_the_conversation(model_name: str, plain_dir: Path) -> None:
    template = ChatTemplate.from_pretrained(plain_dir, model_name)
    first = template.get_prompt("Q1", system="S")
    # What the model generates: the answer and the end-of-turn token, where published formats put
    # blanks around it or not.
    end = template.stop_words[0]
    for closed in (True, False):
        history = first + ("A1" + end if closed else "A1")
        whole = history + template.get_prompt("Q2", False, previous_turn_closed=closed)
        assert whole.replace(" ", "") == PUBLISHED[model_name].replace(" ", "")


def test_default_system_messages(plain_dir: Path) -> None:
    def first_line(model_name: str) -> str:
        prompt = ChatTemplate.from_pretrained(plain_dir, model_name).get_prompt("hi")
        return prompt.split("<|im_end|>")[0]

    assert first_line("qwen2") == "<|im_start|>system\nYou are a helpful assistant."
    assert first_line("qwen2.5").endswith("created by Alibaba Cloud. You are a helpful assistant.")
    assert first_line("qwen3-8b") == first_line("chatml") == "<|im_start|>user\nhi"
    vicuna = ChatTemplate.from_pretrained(plain_dir, "vicuna").get_prompt("hi")
    assert vicuna == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. "
        "USER: hi ASSISTANT:"
    )


def test_internlm_turns(plain_dir: Path) -> None:
    template = ChatTemplate.from_pretrained(plain_dir, "internlm-chat-7b")
    assert template.get_prompt("你好啊兄嘚") == "<s><|User|>:你好啊兄嘚<eoh>\n<|Bot|>:"
    assert template.get_prompt("再见", False) == "\n<|User|>:再见<eoh>\n<|Bot|>:"
    assert template.get_prompt("再见", False, previous_turn_closed=False).startswith("<eoa>\n<|U")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("internlm", "internlm"),
        ("internlm-20b", "internlm"),
        ("internlm2_5-7b-chat", "internlm2"),
        ("internlm2.5-7b-chat", "internlm2"),
        ("InternLM3-8B-Instruct", "internlm2"),
        ("llama2", "llama2"),
        ("Llama-2-70b-chat-hf", "llama2"),
        ("CodeLlama-7b-Instruct", "llama2"),
        ("llama3.1-8b", "llama3"),
        ("Meta-Llama-3.1-8B-Instruct", "llama3"),
        ("Llama-3.2-1B", "llama3"),
        ("qwen-7b-chat", "qwen"),
        ("Qwen1.5-7B-Chat", "qwen"),
        ("Qwen2-7B-Instruct", "qwen"),
        ("Qwen3-0.6B", "chatml"),
        ("Mixtral-8x7B-Instruct-v0.1", "mistral"),
        ("Yi-1.5-9B-Chat", "yi"),
        ("/models/vicuna-13b/", "vicuna"),
        ("base", "base"),
    ],
)
def test_names_match_by_family(name: str, family: str, plain_dir: Path) -> None:
    assert ChatTemplate.from_pretrained(plain_dir, name).name == family


@pytest.mark.parametrize("name", ["gpt-5", "", "internlmx", "yikes", "llama-4", "qwen9"])
def test_unknown_model_name(name: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"internlm, internlm2, llama2") as caught:
        ChatTemplate.from_pretrained(DEMO, name)
    assert repr(name) in str(caught.value)
    assert caught.value.code == "unknown_model_name"
    with pytest.raises(ChatTemplateError, match="model_name is 7, expected a string"):
        ChatTemplate.from_pretrained(DEMO, 7)  # type: ignore[arg-type]


def test_the_models_own_template_wins() -> None:
    template = ChatTemplate.from_pretrained(DEMO, model_name="internlm-chat-7b")
    assert template.name is None
    assert template.stop_words == ["<|im_end|>"]
    turn = "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    assert template.get_prompt("你好") == "<s>" + turn
    assert template.get_prompt("你好", False) == "\n" + turn
    assert template.get_prompt("你好", False, previous_turn_closed=False) == "<|im_end|>\n" + turn


def test_session_ids_equal_the_whole_conversation() -> None:
    tokenizer = Tokenizer.from_pretrained(DEMO)
    template = ChatTemplate.from_pretrained(DEMO, tokenizer=tokenizer)
    ids = tokenizer.encode(template.get_prompt("浙江的省会在哪?"))
    ids += [*tokenizer.encode("杭州。", add_bos=False), tokenizer.eos_token_id]
    ids += tokenizer.encode(template.get_prompt("这有什么好吃的", False), continuation=True)
    chat = [
        {"role": "user", "content": "浙江的省会在哪?"},
        {"role": "assistant", "content": "杭州。"},
        {"role": "user", "content": "这有什么好吃的"},
    ]
    assert ids == tokenizer.encode(template.messages2prompt(chat))


def test_no_template_is_plain_text(plain_dir: Path) -> None:
    template = ChatTemplate.from_pretrained(plain_dir)
    assert template.is_plain
    assert template.stop_words == []
    assert template.get_prompt("  text\n") == template.get_prompt("  text\n", False) == "  text\n"


OWN = {
    "chatml": CHATML_SYSTEM,
    "llama31": LLAMA31,
    "qwen3": QWEN3,
    "mistral": MISTRAL,
    "glm": GLM,
}
TOOL_CHAT = [
    *CHAT,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"city": "杭州"}}}
        ],
    },
    {"role": "tool", "name": "weather", "content": '{"sun": true}'},
]


@pytest.mark.parametrize("name", OWN)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    directory = model_dir(tmp_path, OWN[name])
    theirs = AutoTokenizer.from_pretrained(directory)
    ours = ChatTemplate.from_pretrained(directory)
    chats: list[list[dict[str, Any]]] = [[USER], CHAT, [SYSTEM, *CHAT]]
    cases = [(chat, None) for chat in chats]
    if name in ("qwen3", "llama31"):
        cases += [(chats[2], TOOLS), (TOOL_CHAT, TOOLS)]
    for chat, tools in cases:
        for generate in (True, False):
            expected = theirs.apply_chat_template(
                chat, tools=tools, tokenize=False, add_generation_prompt=generate
            )
            rendered = ours.messages2prompt(chat, add_generation_prompt=generate, tools=tools)
            assert rendered == expected
    if name == "qwen3":
        expected = theirs.apply_chat_template(
            CHAT, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert "<think>" in expected
        assert ours.messages2prompt(CHAT, enable_thinking=False) == expected


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("chatml", ["<|im_end|>"]),
        ("llama31", []),  # <|eot_id|> is no token of this vocabulary
        ("qwen3", ["<|im_end|>"]),
        ("mistral", ["</s>"]),
        ("glm", []),
    ],
)
def test_continuing_with_own_templates(name: str, ends: list[str], tmp_path: Path) -> None:
    eos = "</s>" if name == "mistral" else "<|im_end|>"
    template = ChatTemplate.from_pretrained(model_dir(tmp_path, OWN[name], eos_token=eos))
    assert template.stop_words == ends
    open_tail = template.get_prompt("Q2", False, previous_turn_closed=False)
    whole = template.messages2prompt(CHAT)
    assert whole.endswith("A1" + open_tail)
    closed_tail = template.get_prompt("Q2", False)
    assert open_tail == "".join(ends) + closed_tail


def test_end_of_turn_from_generation_config(tmp_path: Path) -> None:
    directory = model_dir(tmp_path, LLAMA31, additional_special_tokens=["<|eot_id|>"])
    tokenizer = Tokenizer.from_pretrained(directory)
    (directory / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, tokenizer.piece_to_id("<|eot_id|>"), -3, "x"]})
    )
    template = ChatTemplate.from_pretrained(directory)
    assert template.stop_words == ["<|eot_id|>"]
    assert template.get_prompt("Q", False).startswith("<|start_header_id|>user")


def test_prompt_text_cannot_confuse_the_turn(tmp_path: Path) -> None:
    template = ChatTemplate.from_pretrained(DEMO)
    prompt = "treadleanswer0 treadleanswer1 <|im_end|> treadlequestion"
    tail = template.get_prompt(prompt, False)
    assert tail == f"\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def test_template_that_forgets_answers(tmp_path: Path) -> None:
    source = "{{ messages[-1]['content'] }}"
    template = ChatTemplate.from_pretrained(model_dir(tmp_path, source))
    with pytest.raises(ChatTemplateError, match="leaves earlier answers out"):
        template.get_prompt("x", False)


def test_named_templates_and_files(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    directory = model_dir(tmp_path, named)
    template = ChatTemplate.from_pretrained(directory)
    assert template.messages2prompt("x") == "D"
    assert template.messages2prompt("x", tools=TOOLS) == "T"
    (directory / "chat_template.json").write_text('{"chat_template": "J"}')
    assert ChatTemplate.from_pretrained(directory).messages2prompt("x") == "J"
    (directory / "chat_template.jinja").write_text("F")
    assert ChatTemplate.from_pretrained(directory).messages2prompt("x") == "F"
    (directory / "chat_template.jinja").unlink()
    (directory / "chat_template.json").write_text("{")
    with pytest.raises(ConfigError, match=r"chat_template\.json: malformed JSON"):
        ChatTemplate.from_pretrained(directory)


def test_content_in_parts() -> None:
    template = ChatTemplate.from_pretrained(DEMO)
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    expected = template.get_prompt("one\ntwo")
    assert template.messages2prompt([{"role": "user", "content": parts}]) == expected
    assert template.messages2prompt("one\ntwo") == expected


BAD_MESSAGES = [
    ([], "messages is empty"),
    (5, "messages is a int"),
    ({"role": "user"}, "messages is a dict"),
    (["hi"], r"messages\[0\] is a str"),
    ([{"content": "x"}], r"messages\[0\] has no role"),
    ([USER, {"role": "usr", "content": "x"}], r"messages\[1\].role is 'usr', expected one of sys"),
    ([{"role": "user"}], r"messages\[0\] has no content"),
    ([{"role": "user", "content": None}], r"messages\[0\] has no content"),
    ([{"role": "user", "content": 7}], r"messages\[0\].content is a int"),
    (
        [{"role": "user", "content": [{"type": "image_url"}]}],
        r"content\[0\] is of type 'image_url'",
    ),
    ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\].text is None"),
    ([{"role": "user", "content": "x", "extra": object()}], r"messages\[0\].extra is a object"),
    ([{"role": "user", "content": "x", 3: 4}], "the key 3"),
]


@pytest.mark.parametrize(("messages", "message"), BAD_MESSAGES)
def test_bad_messages(messages: Any, message: str) -> None:
    template = ChatTemplate.from_pretrained(DEMO)
    with pytest.raises(ChatTemplateError, match=message) as caught:
        template.messages2prompt(messages)
    assert caught.value.code == "bad_messages"


def test_bad_arguments(plain_dir: Path) -> None:
    template = ChatTemplate.from_pretrained(DEMO)
    with pytest.raises(ChatTemplateError, match="prompt is a list"):
        template.get_prompt(["x"])  # type: ignore[arg-type]
    with pytest.raises(ChatTemplateError, match="system is given with sequence_start=False"):
        template.get_prompt("x", sequence_start=False, system="S")
    with pytest.raises(ChatTemplateError, match="tools is a str"):
        template.messages2prompt("x", tools="weather")  # type: ignore[arg-type]
    nested: Any = "x"
    for _ in range(200):
        nested = [nested]
    with pytest.raises(ChatTemplateError, match="nested more than 64 deep"):
        template.messages2prompt("x", extra=nested)
    builtin = ChatTemplate.from_pretrained(plain_dir, "llama2")
    with pytest.raises(ChatTemplateError, match="'llama2' does not support tools"):
        builtin.messages2prompt("x", tools=TOOLS)
    with pytest.raises(ChatTemplateError, match="role 'tool' is not supported"):
        builtin.messages2prompt([USER, {"role": "tool", "content": "x"}])


def test_template_messages_reach_the_user(tmp_path: Path) -> None:
    directory = model_dir(tmp_path, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ChatTemplateError, match="refuses the messages: roles must alternate") as e:
        ChatTemplate.from_pretrained(directory).get_prompt("x")
    assert e.value.code == "template_refused"
    assert str(directory) in str(e.value)


def render(source: str) -> str:
    return CompiledTemplate(source, "model").render({"messages": [USER]})


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped(name: str) -> None:
    """The limits are on counted work and on CPU time, so this ends; that is the test."""
    with pytest.raises(ChatTemplateError, match=r"^model: ") as caught:
        render(HOSTILE[name])
    assert caught.value.code in ("template_limit", "template_failed", "template_syntax")
    if name in REFUSED:
        assert caught.value.code != "template_limit"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ 'a%s' % 1 ~ '%d-%d'|format(2, 3) }}", "a12-3"),
        ("{{ '{}-{x:>3}'.format(1, x=2) }}", "1-  2"),
        ("{{ ['a', 1]|join(',') ~ 'ab'.join(['x', 'y']) }}", "a,1xaby"),
        ("{{ 'aXbX'|replace('X', '-') ~ 'aa'.replace('a', 'b', 1) }}", "a-b-ba"),
        ("{{ {'k': [1, '<é>']}|tojson }}", '{"k": [1, "<é>"]}'),
        ("{{ [1]|tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ [1, 2]|sum }}{{ [{'n': 1}, {'n': 2}]|sum(attribute='n') }}", "33"),
        ("{{ ' x '|trim ~ 'xyx'.strip('x') ~ '--a'|trim('-') }}", "xya"),
        ("{% for i in range(3) if i != 1 %}{{ loop.index }}{{ i }}{% endfor %}", "1022"),
        ("{% for a, b in {'x': 1}.items() %}{{ a }}{{ b }}{% endfor %}", "x1"),
        ("{% for i in range(9) %}{% if i > 1 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        (
            "{% macro m(x) %}<{{ x }}{{ caller() }}>{% endmacro %}{% call m(1) %}c{% endcall %}",
            "<1c>",
        ),
        ("{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a * 3 }}", "6"),
        ("{% generation %}g{% endgeneration %}", "g"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x|upper|indent(2, true) }}", "  A1"),
        ("{{ messages|map(attribute='role')|list|length ~ messages[0:1]|length }}", "11"),
        ("{{ [3, 1, 2]|sort|first }}{{ 7.126|round(2) }}{{ 2 ** 10 }}{{ 7 // 2 }}", "17.1310243"),
        ("{{ 'ab'[::-1] }}{{ missing }}{{ missing is defined }}{{ 'é'.upper() }}", "baFalseÉ"),
        ("{{ strftime_now('%Y')|length }}", "4"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "1"),
        ("a\n{% if true %}\n  b\n{% endif %}\nc\n", "a\n  b\nc"),
        (
            "{% for x in [[1, [2]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}",
            "12",
        ),
        ("{{ dict(a=1).a }}{{ dict.fromkeys(['k'], 2).k }}", "12"),
    ],
)
def test_the_usual_template_language_works(source: str, expected: str) -> None:
    assert render(source) == expected


def test_iterating_and_slicing_a_long_conversation_is_allowed() -> None:
    many = [{"role": "user", "content": "m" * 500}] * 1500
    source = "{% for m in messages %}{{ messages[loop.index:]|length }},{% endfor %}"
    text = CompiledTemplate(source, "model").render({"messages": many})
    assert text.startswith("1499,1498,")


def test_limits_grow_with_the_messages() -> None:
    long = "你好 " * 1_000_000
    template = ChatTemplate.from_pretrained(DEMO)
    assert long in template.get_prompt(long)
    many = [{"role": ("user", "assistant")[i % 2], "content": f"m{i}"} for i in range(4001)]
    assert template.messages2prompt(many).count("<|im_start|>") == 4002
