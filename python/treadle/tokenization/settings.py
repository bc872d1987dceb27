"""What a model directory's JSON files say about its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from treadle.errors import ConfigError
from treadle.tokenization.files import read_json_if_exists, read_text

NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)
#: No vocabulary is near this; a larger id is a damaged file.
MAX_TOKEN_ID = (1 << 24) - 1
_MAX_LENGTH = 1 << 31  # transformers writes 1e30 for "no limit"


@dataclass(frozen=True)
class AddedTokenSpec:
    """A token that is matched in the text before the model's own segmentation runs.

    ``lstrip``/``rstrip`` swallow the whitespace beside it; ``special`` ones vanish when decoding
    with ``skip_special_tokens``.
    """

    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass
class TokenizerSettings:
    """Merged content of tokenizer_config.json, special_tokens_map.json, added_tokens.json and
    config.json; the files that are absent leave the defaults."""

    named: dict[str, AddedTokenSpec] = field(default_factory=dict)
    extra_eos: list[str] = field(default_factory=list)
    added: dict[int, AddedTokenSpec] = field(default_factory=dict)
    extra_special: list[AddedTokenSpec] = field(default_factory=list)
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    legacy: bool = True
    add_prefix_space: bool = True
    model_max_length: int | None = None
    chat_templates: dict[str, str] = field(default_factory=dict)
    model_bos_id: int | None = None
    model_eos_ids: tuple[int, ...] = ()
    model_vocab_size: int = 0


def load_settings(directory: Path) -> TokenizerSettings:
    """Reads every settings file in ``directory``; raises ConfigError naming file and field."""
    settings = TokenizerSettings()
    config_path = directory / "tokenizer_config.json"
    config = read_json_if_exists(config_path)
    map_path = directory / "special_tokens_map.json"
    special_map = read_json_if_exists(map_path)
    has_decoder = bool(config.get("added_tokens_decoder"))

    _read_named(settings, config, config_path, override=True)
    # As transformers does: the older map file has the last word only where tokenizer_config.json
    # does not already list the added tokens.
    _read_named(settings, special_map, map_path, override=not has_decoder)
    if has_decoder:
        _read_added_decoder(settings, config["added_tokens_decoder"], config_path)
    else:
        _read_added_file(settings, directory / "added_tokens.json")

    settings.add_bos_token = _flag(config, "add_bos_token", config_path)
    settings.add_eos_token = _flag(config, "add_eos_token", config_path)
    legacy = _flag(config, "legacy", config_path)
    settings.legacy = True if legacy is None else legacy
    prefix = _flag(config, "add_prefix_space", config_path)
    settings.add_prefix_space = True if prefix is None else prefix
    settings.model_max_length = _max_length(config.get("model_max_length"))
    settings.chat_templates = _chat_templates(directory, config, config_path)
    _read_model_config(settings, directory / "config.json")
    return settings


def _spec(value: Any, path: Path, name: str, *, special: bool = True) -> AddedTokenSpec:
    if isinstance(value, str):
        return AddedTokenSpec(value, special=special, normalized=not special)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = {}
        for flag in ("lstrip", "rstrip", "single_word", "normalized"):
            flags[flag] = _flag(value, flag, path, name) or False
        is_special = _flag(value, "special", path, name)
        return AddedTokenSpec(
            value["content"], special=special if is_special is None else is_special, **flags
        )
    raise ConfigError(
        f"{path}: {name} is {_short(value)}, expected a string or an object with a string 'content'"
    )


def _read_named(
    settings: TokenizerSettings, source: dict[str, Any], path: Path, *, override: bool
) -> None:
    for name in NAMED_TOKENS:
        value = source.get(name)
        if value is None or (name in settings.named and not override):
            continue
        if name == "eos_token" and isinstance(value, list):
            specs = [_spec(item, path, f"eos_token[{i}]") for i, item in enumerate(value)]
            settings.extra_eos = [spec.content for spec in specs[1:]]
            if not specs:
                continue
            settings.named[name] = specs[0]
        elif value != "":
            settings.named[name] = _spec(value, path, name)
    extra = source.get("extra_special_tokens") or source.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        extra = list(extra.values())
    if not isinstance(extra, list):
        raise ConfigError(
            f"{path}: additional_special_tokens is {_short(extra)}, expected a list of tokens"
        )
    known = {spec.content for spec in settings.extra_special}
    for i, item in enumerate(extra):
        spec = _spec(item, path, f"additional_special_tokens[{i}]")
        if spec.content and spec.content not in known:
            known.add(spec.content)
            settings.extra_special.append(spec)


def _token_id(value: Any, path: Path, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_TOKEN_ID:
        raise ConfigError(
            f"{path}: {name} has the token id {_short(value)}, expected an integer from 0 to "
            f"{MAX_TOKEN_ID}"
        )
    return value


def _read_added_decoder(settings: TokenizerSettings, table: Any, path: Path) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: added_tokens_decoder is {_short(table)}, expected an object")
    for key, value in table.items():
        token_id = int(key) if key.isascii() and key.isdigit() and len(key) < 12 else key
        checked = _token_id(token_id, path, f"added_tokens_decoder[{_short(key)}]")
        spec = _spec(value, path, f"added_tokens_decoder[{_short(key)}]", special=False)
        if spec.content:
            settings.added[checked] = spec


def _read_added_file(settings: TokenizerSettings, path: Path) -> None:
    special = {spec.content for spec in settings.named.values()}
    special.update(spec.content for spec in settings.extra_special)
    special.update(settings.extra_eos)
    for content, value in read_json_if_exists(path).items():
        token_id = _token_id(value, path, repr(content))
        if token_id in settings.added:
            raise ConfigError(
                f"{path}: {content!r} and {settings.added[token_id].content!r} both have the "
                f"token id {token_id}"
            )
        if content:
            settings.added[token_id] = _spec(content, path, content, special=content in special)


def _flag(source: dict[str, Any], name: str, path: Path, owner: str = "") -> bool | None:
    value = source.get(name)
    if value is None or isinstance(value, bool):
        return value
    label = f"{owner}.{name}" if owner else name
    raise ConfigError(f"{path}: {label} is {_short(value)}, expected true or false")


def _max_length(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 < value < _MAX_LENGTH else None


def _chat_templates(directory: Path, config: dict[str, Any], path: Path) -> dict[str, str]:
    """Templates by name; a separate file wins over tokenizer_config.json, as in transformers."""
    templates = _named_templates(config.get("chat_template"), path)
    json_path = directory / "chat_template.json"
    if json_path.exists():
        value = read_json_if_exists(json_path).get("chat_template")
        templates = _named_templates(value, json_path) or templates
    jinja_path = directory / "chat_template.jinja"
    if jinja_path.exists():
        templates = {"default": read_text(jinja_path)}
    extra_dir = directory / "additional_chat_templates"
    if extra_dir.is_dir():
        for file in sorted(extra_dir.glob("*.jinja"))[:64]:
            templates[file.stem] = read_text(file)
    return templates


def _named_templates(value: Any, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        if not all(isinstance(item, dict) for item in value):
            raise ConfigError(f"{path}: chat_template is a list, expected objects with a 'name'")
        value = {item.get("name"): item.get("template") for item in value}
    if isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(text, str) for name, text in value.items()
    ):
        return value
    raise ConfigError(
        f"{path}: chat_template is {_short(value)}, expected a string or a list of objects with a "
        "string 'name' and a string 'template'"
    )


def _read_model_config(settings: TokenizerSettings, path: Path) -> None:
    """config.json matters only where the tokenizer's own files are silent, so a wrong value here
    is left for the model loader to report."""
    config = read_json_if_exists(path)
    if isinstance(config.get("text_config"), dict):
        config = {**config, **config["text_config"]}

    def ids(value: Any) -> tuple[int, ...]:
        items = value if isinstance(value, list) else [value]
        return tuple(i for i in items if type(i) is int and 0 <= i <= MAX_TOKEN_ID)

    settings.model_vocab_size = next(iter(ids(config.get("vocab_size"))), 0)
    settings.model_bos_id = next(iter(ids(config.get("bos_token_id"))), None)
    settings.model_eos_ids = ids(config.get("eos_token_id"))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
