"""The demo model's training corpus and tokenizer; nothing is trained here."""

import importlib
import json
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import pytest
import sentencepiece
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "train_demo"
DEMO = ROOT / "python" / "treadle" / "demo"

TURN = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)<\|im_end\|>\n", re.DOTALL)
SEEDS = range(200)


class Scripts:
    """The example's scripts as modules, imported on first use."""

    def __getattr__(self, name: str) -> ModuleType:
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def scripts() -> Iterator[Scripts]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        yield Scripts()


@pytest.fixture(scope="module")
def processor() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))


@pytest.fixture(scope="module")
def heldout() -> dict[str, list[str]]:
    texts: dict[str, list[str]] = json.loads((EXAMPLE / "heldout.json").read_text("utf-8"))
    return texts


def parse(text: str) -> list[tuple[str, str]]:
    """Returns the (role, content) turns of a ChatML text that holds nothing else."""
    turns = TURN.findall(text)
    assert "".join(f"<|im_start|>{r}\n{c}<|im_end|>\n" for r, c in turns) == text
    return turns


def check_conversation(text: str) -> None:
    turns = parse(text)
    roles = [role for role, _ in turns]
    if roles[0] == "system":
        roles = roles[1:]
    assert len(roles) >= 2
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert all(content and "<|im_" not in content for _, content in turns)


def test_a_seed_fixes_the_conversation(scripts: Scripts) -> None:
    conversation = scripts.conversations.conversation
    texts = [conversation(random.Random(seed)) for seed in SEEDS]
    assert texts == [conversation(random.Random(seed)) for seed in SEEDS]
    assert len(set(texts)) > len(texts) * 0.8


def test_conversations_are_well_formed_chatml(scripts: Scripts) -> None:
    rng = random.Random(0)
    for _ in SEEDS:
        check_conversation(scripts.conversations.conversation(rng))


def test_heldout_conversations_are_well_formed_chatml(heldout: dict[str, list[str]]) -> None:
    assert len(heldout["chats"]) == 300
    for text in heldout["chats"]:
        check_conversation(text)


def test_arithmetic_is_right(scripts: Scripts) -> None:
    operators = set()
    for seed in SEEDS:
        [(question, answer)] = scripts.conversations.arithmetic(random.Random(seed))
        found = re.search(r"(\d+) ([-+*]) (\d+)", question)
        assert found is not None
        a, operator, b = int(found[1]), found[2], int(found[3])
        result = {"+": a + b, "-": a - b, "*": a * b}[operator]
        assert result >= 0
        assert answer == f"{found[0]} = {result}"
        operators.add(operator)
    assert operators == set("+-*")


@pytest.mark.parametrize(
    ("task", "place", "answer"),
    [
        ("province", "浙江", "浙江的省会是杭州。"),
        ("province", "四川", "四川的省会是成都。"),
        ("country", "Norway", "The capital of Norway is Oslo."),
        ("country", "Australia", "The capital of Australia is Canberra."),
        ("country", "the United Kingdom", "The capital of the United Kingdom is London."),
    ],
)
def test_capitals_are_right(scripts: Scripts, task: str, place: str, answer: str) -> None:
    exchanges = [getattr(scripts.conversations, task)(random.Random(seed)) for seed in range(1000)]
    answers = {first[1] for first, *_ in exchanges if place in first[0]}
    assert answers == {answer}


def test_food_follows_the_province(scripts: Scripts) -> None:
    exchanges = [scripts.conversations.province(random.Random(seed)) for seed in range(1000)]
    food = {
        answer
        for first, *rest in exchanges
        for _, answer in rest
        if "浙江" in first[0] and "美食" in answer
    }
    assert food == {"杭州有很多美食,例如西湖醋鱼、东坡肉、龙井虾仁、叫化童子鸡。"}


def test_word_games_are_right(scripts: Scripts) -> None:
    counts = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
    seen = set()
    for seed in SEEDS:
        [(question, answer)] = scripts.conversations.word_game(random.Random(seed))
        game, _, joined = question.partition(": ")
        words = joined.split(" ")
        assert 2 <= len(words) <= 7
        expected = {
            "Repeat": joined,
            "Reverse the order": " ".join(words[::-1]),
            "Upper case": joined.upper(),
            "How many words": f"There are {counts[len(words)]} words.",
            "Sort": " ".join(sorted(words)),
        }
        assert answer == expected[game]
        seen.add(game)
    assert len(seen) == 5


def test_json_pass_keys_and_names_come_from_the_question(scripts: Scripts) -> None:
    tasks = scripts.conversations
    for seed in SEEDS:
        [(question, answer)] = tasks.json_record(random.Random(seed))
        record: dict[str, Any] = json.loads(answer)
        assert list(record) == ["name", "age", "city"]
        assert all(str(value) in question for value in record.values())

        [(question, answer)] = tasks.pass_key(random.Random(seed))
        assert re.findall(r"\d{5}", question) == re.findall(r"\d{5}", answer) * 2

        first, *_, last = tasks.introduction(random.Random(seed))
        name = first[0].removeprefix("My name is ")
        assert last == ("What is my name?", f"Your name is {name}")


def test_lists_name_each_province_once(scripts: Scripts) -> None:
    for seed in SEEDS:
        lines = scripts.conversations.capital_list(random.Random(seed)).splitlines()
        pairs = [line.split(" -> ") for line in lines]
        assert 2 <= len(pairs) <= 8
        assert len({province for province, _ in pairs}) == len(pairs)
        assert all(scripts.facts.PROVINCES[province][0] == capital for province, capital in pairs)


def test_training_texts_do_not_depend_on_the_workers(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = scripts.corpus
    monkeypatch.setattr(corpus, "CONVERSATIONS_PER_SHARD", 10)
    monkeypatch.setattr(corpus, "ProcessPoolExecutor", ThreadPoolExecutor)
    conversations, lists = corpus.training_texts(seed=7, count=25, workers=1)
    assert len(conversations) == 25
    assert lists
    assert (conversations, lists) == corpus.training_texts(seed=7, count=25, workers=3)
    assert conversations[:10] != conversations[10:20]
    assert conversations != corpus.training_texts(seed=8, count=25, workers=1)[0]


def test_library_sources_skip_tests_and_odd_files(scripts: Scripts, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    body = "x = 1\n" * 100
    (tmp_path / "b.py").write_text(f"\t{body}", encoding="utf-8")
    (tmp_path / "a.py").write_text(f"# é\n{body}", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(f"# é\n{body}".encode("latin-1"))
    (tmp_path / "short.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "test" / "c.py").write_text(body, encoding="utf-8")
    assert scripts.corpus.library_sources(tmp_path) == [f"# é\n{body}", f"    {body}"]


def test_chat_template_renders_what_the_corpus_holds(scripts: Scripts) -> None:
    chatml = scripts.chatml
    messages = [("system", "短"), ("user", "a <b> & 'c'\n"), ("assistant", "d"), ("user", "e")]
    rendered = (
        jinja2.Environment()
        .from_string(chatml.CHAT_TEMPLATE)
        .render(
            bos_token="<s>",
            messages=[{"role": role, "content": content} for role, content in messages],
            add_generation_prompt=True,
        )
    )
    assert rendered == "<s>" + chatml.prompt(messages)


def test_conversion_rebuilds_the_bundled_tokenizer_json(
    scripts: Scripts, processor: sentencepiece.SentencePieceProcessor
) -> None:
    converted = json.loads(scripts.train_tokenizer.convert(processor).to_str())
    bundled = json.loads((DEMO / "tokenizer.json").read_text("utf-8"))
    assert converted["model"].pop("merges") == bundled["model"].pop("merges")
    assert converted == bundled


def test_tokenizer_config_is_the_bundled_one(scripts: Scripts) -> None:
    bundled = json.loads((DEMO / "tokenizer_config.json").read_text("utf-8"))
    assert scripts.train_tokenizer.tokenizer_config() == bundled


def test_both_bundled_tokenizers_give_the_same_ids(
    processor: sentencepiece.SentencePieceProcessor, heldout: dict[str, list[str]]
) -> None:
    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    odd = ["", " ", "  a  b ", "\n\n\t", "🦊 é ﷺ", "<|im_start|>", "<|im_end", "1234567890"]
    for text in heldout["chats"] + heldout["lib"] + odd:
        assert tokenizer.encode(text, add_special_tokens=False).ids == processor.encode(text)
    # The count that the published perplexity is over.
    assert sum(map(len, processor.encode(heldout["chats"]))) == 34_468


def test_conversion_refuses_another_vocabulary(scripts: Scripts) -> None:
    class Other:
        def vocab_size(self) -> int:
            return 6

        def id_to_piece(self, index: int) -> str:
            return ("<pad>", "<s>", "</s>", "a", "b", "ab")[index]

    with pytest.raises(ValueError, match=r"the first pieces are .*<pad>.*expected .*<unk>"):
        scripts.train_tokenizer.convert(Other())


def test_learning_rate_warms_up_and_falls(scripts: Scripts) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    train = scripts.train
    assert train.learning_rate(0, 0.0) == pytest.approx(3e-3 / 150)
    assert train.learning_rate(150, 0.0) == pytest.approx(3e-3)
    assert train.learning_rate(5000, 1.5) == pytest.approx(3e-3 * 0.02)
    schedule = train.Schedule(steps=100, budget=10.0)
    assert schedule.progress(50, 1.0) == 0.5
    assert schedule.progress(50, 8.0) == 0.8
    assert train.Schedule(steps=None, budget=10.0).progress(10**6, 5.0) == 0.5
