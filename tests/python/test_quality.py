"""The pure parts of bench/quality: which text is read, how it is split, what is counted."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle import Engine, GenerationConfig, demo_model_path, evaluation

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="module")
def repository_on_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield


def library(folder: Path) -> Path:
    files = {
        "a.py": "first = 1\n" * 60,
        "b/deep.py": "second = 2\n" * 60,
        "b/same.py": "first = 1\n" * 60,
        "c.rst": "third\n" * 100,
        "short.py": "x = 1\n",
        "data.bin": "y = 1\n" * 100,
        "encodings/cp1.py": "table = 1\n" * 60,
        "site-packages/other.py": "other = 1\n" * 60,
        "pydoc_data/topics.py": "# made\ntopics = " + repr({"if": "word " * 100, "is": "few"}),
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "latin.py").write_bytes(("# é\n" + "z = 1\n" * 100).encode("latin-1"))
    return folder


NAMES = ["a.py", "b/deep.py", "c.rst", "pydoc_data/topics.py:if"]


def test_the_corpus_is_what_the_library_holds_of_text(tmp_path: Path) -> None:
    from bench.quality import corpus

    documents = corpus.read(library(tmp_path))
    assert [document.name for document in documents] == NAMES
    assert documents[1].text == "second = 2\n" * 60
    assert documents[3].text == "word " * 100


def test_a_packed_library_is_read_the_same_and_packed_the_same(tmp_path: Path) -> None:
    from bench.quality import corpus

    source = library(tmp_path / "lib")
    for name in ("one.tar.xz", "two.tar.xz"):
        corpus.pack(source, tmp_path / name)
    assert corpus.read(tmp_path / "one.tar.xz") == corpus.read(source)
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "two.tar.xz").read_bytes()


def test_a_source_without_text_is_refused(tmp_path: Path) -> None:
    from bench.quality import corpus

    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(ValueError, match=r"empty\.tar: no text of the standard library"):
        corpus.read(tmp_path / "empty.tar")


def test_files_are_held_out_whole_and_by_their_names(tmp_path: Path) -> None:
    from bench.quality import corpus

    documents = [corpus.Document(f"{i}.py", f"line {i}\n" * 100) for i in range(20)]
    kept, heldout = corpus.split(documents, heldout_chars=250, piece_chars=100)
    assert len(heldout) == 3
    assert len(kept) == 17
    beginnings = {document.text[: len(heldout[0])] for document in kept}
    for text in heldout:
        assert 90 <= len(text) <= 100
        assert text.endswith("\n")
        assert text not in beginnings
    # Not on their order.
    assert corpus.split(documents[::-1], 250, 100) == (kept, heldout)
    with pytest.raises(ValueError, match=r"heldout_chars is 3000: nothing is left to train on"):
        corpus.split(documents, 3000, 100)


def test_one_text_gives_its_end(tmp_path: Path) -> None:
    from bench.quality import corpus

    path = tmp_path / "book.txt"
    path.write_text("abc\n" * 50, encoding="utf-8")
    (kept,), (heldout,) = corpus.split(corpus.read(path), heldout_chars=10, piece_chars=5)
    assert kept.text + heldout == "abc\n" * 50
    assert heldout == "abc\n" * 3


def test_jsonl_keeps_every_line_break(tmp_path: Path) -> None:
    from bench.quality import corpus

    texts = ["a\nb", "c\u2028d\x85e\r\n", "浙江"]
    corpus.write_jsonl(tmp_path / "x.jsonl", texts)
    assert corpus.read_jsonl(tmp_path / "x.jsonl") == texts


def test_agreement_counts_equal_choices() -> None:
    from bench.quality.agreement import Choices, compare

    one = Choices(forced=[[1, 2, 3], [4]], free=[[5, 6, 7], [8, 9], []])
    other = Choices(forced=[[1, 0, 3], [4]], free=[[5, 6, 0, 1], [8, 9], []])
    found = compare(one, other)
    assert found.positions == 4
    assert found.same_next == 0.75
    assert found.continuations == 3
    assert found.mean_length == pytest.approx(5 / 3)
    assert found.mean_prefix == pytest.approx(4 / 3)
    assert found.same_continuation == pytest.approx(2 / 3)
    assert compare(one, one).same_next == compare(one, one).same_continuation == 1


def test_agreement_needs_the_same_texts() -> None:
    from bench.quality.agreement import Choices, compare

    one = Choices([[1, 2]], [[3]])
    for other in (Choices([[1]], [[3]]), Choices([[1, 2]], [[3], [4]])):
        with pytest.raises(ValueError, match="not about the same texts"):
            compare(one, other)
    with pytest.raises(ValueError, match="nothing to compare"):
        compare(Choices([[]], []), Choices([[]], []))


def test_openings_end_where_an_answer_or_a_line_begins() -> None:
    from bench.quality.agreement import ANSWER, opening

    assert opening(f"a{ANSWER}b{ANSWER}c", 2) == f"a{ANSWER}b{ANSWER}"
    assert opening("one\ntwo\nthree\n", 9) == "one\ntwo\n"
    assert opening("without a line", 7) == "without"


def row(weights: str, kv: str, perplexity: float) -> dict[str, Any]:
    same = {"same_next": 0.5, "mean_prefix": 1.0, "mean_length": 2.0, "same_continuation": 0.25,
            "positions": 10, "continuations": 4}  # fmt: skip
    whole = weights == "fp16" and kv == "16"
    facts = {"weights": weights, "kv": kv, "perplexity": perplexity, "weight_bytes": 2_500_000,
             "tokens": 1234, "window": 8, "stride": 4}  # fmt: skip
    return facts if whole else facts | {"agreement": same}


def test_targets_compare_like_with_like() -> None:
    from bench.quality import report

    rows = [
        row("fp16", "16", 10.0),
        row("fp16", "8", 10.05),
        row("int4 RTN g128", "16", 11.0),
        row("int4 AWQ g128", "16", 10.5),
        row("int4 AWQ g128", "8", 10.7),
        row("int4 AWQ g64", "16", 10.4),
        row("int4 RTN g64", "16", 10.3),
    ]
    assert [met for met, _ in report.targets(rows)] == [True, True, False, False]
    texts = [text for _, text in report.targets(rows)]
    assert texts[0] == "fp16, KV 8: +0.50 % over 16-bit KV, at most +1 %"
    assert texts[1] == "int4 AWQ g128 10.5000 < round-to-nearest 11.0000"
    assert texts[3] == "int4 AWQ g64 10.4000 < round-to-nearest 10.3000"


def test_the_table_compares_with_its_first_row() -> None:
    from bench.quality import report

    rows = [row("fp16", "16", 10.0), row("int4 AWQ g128", "16", 10.5)]
    lines = report.table(rows).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["fp16", "16", "2.5", "10.0000", "", "", "", ""]
    assert cells[3] == ["int4 AWQ g128", "16", "2.5", "10.5000", "+5.00 %", "50.00 %",
                        "1.0 of 2.0", "25 %"]  # fmt: skip
    text = report.section({"name": "some", "texts": 3, "rows": rows})
    assert "1,234 tokens scored in 3 held-out texts, window 8, stride 4" in text


def test_a_change_that_rounds_to_nothing_has_no_minus() -> None:
    from bench.quality.report import change

    assert change(9.999999, 10.0) == "+0.00 %"
    assert change(9.9, 10.0) == "-1.00 %"


def test_one_reading_gives_what_eval_ppl_says() -> None:
    from bench.quality import compare

    texts = ["def first(x):\n    return x + 1\n" * 20, "import os\nimport sys\n"]
    with Engine.from_pretrained(demo_model_path(), device="cpu", session_len=512) as engine:
        total, best = compare.read(engine, texts, 64)
        expected = evaluation.perplexity(engine, texts, 64, 32)
        assert sum(map(len, best)) == expected.tokens
        assert -total / expected.tokens == pytest.approx(expected.mean_nll, rel=1e-12)
        ids = engine.tokenizer.encode(texts[1])
        one = GenerationConfig(max_new_tokens=1, do_sample=False)
        (output,) = compare.ask(engine, [ids[:3]], one)
        assert best[-1][2] == output.token_ids[0]
        (said,) = compare.go_on(engine, [texts[1]], 256)
        assert 1 <= len(said) <= compare.NEW_TOKENS


def test_models_are_named_by_folder(tmp_path: Path) -> None:
    from bench.quality import compare

    with pytest.raises(ValueError, match=r'some=.*expected "demo" or NAME=FOLDER; there is no .*'):
        compare.find(f"some={tmp_path}", tmp_path)
    model = compare.find("demo", tmp_path)
    from bench.quality import corpus

    heldout, calibration = corpus.read_jsonl(model.heldout), corpus.read_jsonl(model.calibration)
    assert len(heldout) == 300
    assert len(calibration) == compare.CONVERSATIONS
    assert len(set(calibration) - set(heldout)) > 400


def test_the_learning_rate_warms_up_and_falls() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from bench.quality import train_model

    peak = train_model.PEAK_LEARNING_RATE
    assert train_model.learning_rate(0, 0.0) == pytest.approx(peak / train_model.WARMUP_STEPS)
    assert train_model.learning_rate(1000, 0.0) == pytest.approx(peak)
    assert train_model.learning_rate(1000, 1.0) == pytest.approx(peak / 50)


def test_the_larger_model_fits_what_int4_needs() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from bench.quality import train_model

    sizes = train_model.settings(8192, 1024, small=False)
    hidden, inter = sizes["hidden_size"], sizes["intermediate_size"]
    heads = sizes["num_attention_heads"] + 2 * sizes["num_key_value_heads"]
    layer = hidden * (heads + sizes["num_attention_heads"]) * 64 + 3 * hidden * inter
    assert hidden % 128 == inter % 128 == 0
    assert 27e6 < sizes["num_hidden_layers"] * layer + 8192 * hidden < 28.5e6
