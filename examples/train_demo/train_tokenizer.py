"""Trains the demo model's tokenizer and writes it in both common formats.

    python train_tokenizer.py --corpus build/demo/corpus.json --out build/demo/model

writes `tokenizer.model` (sentencepiece BPE), a `tokenizer.json` that gives the same ids, and
`tokenizer_config.json` with the chat template.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

import chatml

VOCAB_SIZE = 4096
CONTEXT_LENGTH = 2048
SPACE = "▁"  # How sentencepiece writes a space inside a piece.

# What the tokenizer sees of each part; more changes the merges little and takes longer.
TRAINING_CONVERSATIONS = 12_000
TRAINING_LISTS = 500
TRAINING_LINE_CHARS = 2_000


def training_lines(corpus: dict[str, list[str]]) -> Iterator[str]:
    """Yields the lines to learn merges from, without the special tokens (they are whole pieces)."""
    for text in corpus["library"]:
        yield from (line[:TRAINING_LINE_CHARS] for line in text.split("\n") if line.strip())
    for text in corpus["conversations"][:TRAINING_CONVERSATIONS]:
        plain = text.replace(chatml.IM_START, "").replace(chatml.IM_END, "")
        yield from plain.replace("\n\n", "\n").splitlines()
    for text in corpus["lists"][:TRAINING_LISTS]:
        yield from text.splitlines()


def train_sentencepiece(corpus: dict[str, list[str]], prefix: Path, vocab_size: int) -> None:
    """Writes `prefix`.model and `prefix`.vocab: BPE with byte fallback that changes no text."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as lines:
        lines.writelines(f"{line}\n" for line in training_lines(corpus))
        lines.flush()
        sentencepiece.SentencePieceTrainer.train(
            input=lines.name,
            model_prefix=str(prefix),
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9999,
            user_defined_symbols=[chatml.IM_START, chatml.IM_END],
            unk_id=0,
            bos_id=chatml.BOS_ID,
            eos_id=chatml.EOS_ID,
            pad_id=-1,
            split_digits=True,
            # Lossless: decode(encode(text)) is the text, spaces and all.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            input_sentence_size=400_000,
            shuffle_input_sentence=True,
            max_sentence_length=8192,
            num_threads=os.cpu_count() or 1,
            minloglevel=2,
        )


def merge_rules(processor: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
    """Returns the BPE merges, best first, that rebuild the pieces of a sentencepiece model.

    sentencepiece keeps no merge list: it joins the neighbours whose union is the piece of the
    lowest id (the highest score). So every way to split a piece into two others is a merge, and
    merges rank by the id of what they make.
    """
    vocab = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    rules = []
    for piece, index in vocab.items():
        if index < len(chatml.SPECIAL_TOKENS) or processor.is_byte(index):
            continue
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in splits if left in vocab and right in vocab]
        rules += sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return rules


def convert(processor: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """Returns a `tokenizers` tokenizer that gives the ids `processor` gives, without a BOS.

    Raises ValueError if the first ids are not the special tokens of `chatml`.
    """
    pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    found = tuple(pieces[: len(chatml.SPECIAL_TOKENS)])
    if found != chatml.SPECIAL_TOKENS:
        raise ValueError(f"the first pieces are {found}, expected {chatml.SPECIAL_TOKENS}")
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=merge_rules(processor),
            unk_token=chatml.SPECIAL_TOKENS[0],
            fuse_unk=True,
            byte_fallback=True,
            ignore_merges=False,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in chatml.SPECIAL_TOKENS]
    )
    return tokenizer


def tokenizer_config() -> dict[str, Any]:
    """Returns the content of `tokenizer_config.json`."""
    unk, bos = chatml.SPECIAL_TOKENS[:2]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": chatml.IM_END,
        "unk_token": unk,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_LENGTH,
        "chat_template": chatml.CHAT_TEMPLATE,
    }


def main() -> None:
    """Parses the command line and writes the tokenizer files."""
    parser = argparse.ArgumentParser(description="Train the demo model's tokenizer.")
    parser.add_argument("--corpus", type=Path, required=True, help="corpus.json of corpus.py")
    parser.add_argument("--out", type=Path, required=True, help="the model's folder")
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE, help="default: %(default)s")
    args = parser.parse_args()

    corpus = json.loads(args.corpus.read_text(encoding="utf-8"))
    args.out.mkdir(parents=True, exist_ok=True)
    train_sentencepiece(corpus, args.out / "tokenizer", args.vocab_size)
    (args.out / "tokenizer.vocab").unlink()  # A listing for people; tokenizer.json has it too.
    processor = sentencepiece.SentencePieceProcessor(model_file=str(args.out / "tokenizer.model"))
    tokenizer = convert(processor)
    tokenizer.save(str(args.out / "tokenizer.json"))
    (args.out / "tokenizer_config.json").write_text(
        json.dumps(tokenizer_config(), ensure_ascii=False, indent=1), encoding="utf-8"
    )

    sample = corpus["conversations"][:1000] + corpus["library"][:20]
    differing = sum(
        processor.encode(text) != tokenizer.encode(text, add_special_tokens=False).ids
        for text in sample
    )
    print(f"{tokenizer.get_vocab_size()} pieces; {differing} of {len(sample)} texts tokenize apart")


if __name__ == "__main__":
    main()
