"""Small tokenizers of every kind, trained on the spot, in Hugging Face directories."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import text_samples
import treadle.tokenizer

DEMO = Path(treadle.tokenizer.__file__).parent / "demo"
# The pre-tokenizer of llama 3 (qwen's differs in the number of digits only).
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def demo_without_json(directory: Path) -> Path:
    """The demo model's directory with only tokenizer.model to go by."""
    for name in ("tokenizer.model", "tokenizer_config.json", "config.json"):
        shutil.copy(DEMO / name, directory)
    return directory


def save_byte_level(directory: Path, split: str, adds_bos: bool) -> Path:
    """A byte-level BPE as llama 3 has it (``adds_bos``), or as qwen has it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=adds_bos))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text_samples.training_text(), trainer)
    tokenizer.add_tokens(["<|tool|>"])
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if adds_bos:
        template = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
        )
        byte_level = processors.ByteLevel(trim_offsets=False)
        tokenizer.post_processor = processors.Sequence([byte_level, template])
        config.update(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        config.update(bos_token=None, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def save_sentencepiece(directory: Path, legacy: bool = True) -> Path:
    """A sentencepiece BPE as llama 2 has it: byte fallback and a dummy prefix."""
    import sentencepiece

    directory.mkdir(exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text_samples.training_text()),
        model_writer=model,
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.99,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": legacy,
        "add_bos_token": True,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
