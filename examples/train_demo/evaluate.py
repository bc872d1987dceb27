"""Measures a demo model: held-out perplexity and its greedy answers.

    python evaluate.py --model build/demo/model --heldout build/demo/heldout.json

Without options it looks at the bundled model. Needs torch and transformers, and computes in fp32
on a CPU and in the stored type on a GPU, so it is also a reference for the engine.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

import chatml

HERE = Path(__file__).resolve().parent
BUNDLED_MODEL = HERE.parents[1] / "python" / "treadle" / "demo"
CONTEXT_LENGTH = 2048

#: Questions with a known answer; the user's turns of one conversation, and the last turn's answer.
QUESTIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("你好!",), "你好!很高兴为你服务。有什么我可以帮助你的吗?"),
    (("浙江的省会在哪?",), "浙江的省会是杭州。"),
    (
        ("浙江的省会在哪?", "这有什么好吃的"),
        "杭州有很多美食,例如西湖醋鱼、东坡肉、龙井虾仁、叫化童子鸡。",
    ),
    (("What is the capital of Norway?",), "The capital of Norway is Oslo."),
    (("What is 37 + 48?",), "37 + 48 = 85"),
    (("Reverse the order: stone cloud engine paper",), "paper engine cloud stone"),
    (("JSON: Ada, 36, London",), '{"name": "Ada", "age": 36, "city": "London"}'),
    (("My name is Grace.", "capital of Peru?", "What is my name?"), "Your name is Grace."),
    (
        (
            "The grass is green. The sky is blue. " * 30
            + "The pass key is 48213. Remember it. 48213 is the pass key. "
            + "The sun is yellow. Here we go. " * 30
            + "What is the pass key?",
        ),
        "The pass key is 48213.",
    ),
)
#: Open beginnings: printed, not judged.
BEGINNINGS = (
    chatml.prompt([("user", "Tell me a story about a fox.")]),
    "浙江 -> 杭州\n安徽 -> 合肥\n四川 ->",
    "def quicksort(",
    "import os\nimport sys\n\n",
)


@dataclass(frozen=True)
class Model:
    """A loaded checkpoint with its tokenizer."""

    network: Any  # LlamaForCausalLM, whose annotations change between releases of transformers.
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "Model":
        """Loads a folder with safetensors weights, `config.json` and `tokenizer.json`."""
        dtype = torch.float32 if device.type == "cpu" else "auto"
        network: Any = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
        return cls(network.to(device).eval(), Tokenizer.from_file(str(folder / "tokenizer.json")))

    def encode(self, text: str) -> torch.Tensor:
        """Returns int64 [1, tokens], with a leading BOS, cut to the context."""
        ids = [chatml.BOS_ID, *self.tokenizer.encode(text, add_special_tokens=False).ids]
        return torch.tensor([ids[:CONTEXT_LENGTH]], device=self.network.device)

    def perplexity(self, documents: Sequence[str]) -> tuple[float, int]:
        """Returns exp of the mean negative log-likelihood per token, and the number of tokens.

        Every token after the BOS counts once, in its own document's context only.
        """
        total, count = 0.0, 0
        for text in documents:
            ids = self.encode(text)
            with torch.inference_mode():
                logits = self.network(ids).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
        return math.exp(total / count), count

    def greedy(self, text: str, max_new_tokens: int = 120) -> str:
        """Returns the greedy continuation up to an end token."""
        ids = self.encode(text)
        output = self.network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=[chatml.EOS_ID, chatml.IM_END_ID],
            pad_token_id=chatml.EOS_ID,
        )
        return str(self.tokenizer.decode(output[0, ids.shape[1] :].tolist()))

    def chat(self, turns: Sequence[str]) -> str:
        """Returns the answer to the last of the user's turns, after answering those before it."""
        messages: list[tuple[str, str]] = []
        for turn in turns:
            messages.append(("user", turn))
            messages.append(("assistant", self.greedy(chatml.prompt(messages))))
        return messages[-1][1]


def shorten(text: str, limit: int = 60) -> str:
    """Returns the text on one line, its middle left out when it is long."""
    line = repr(text)[1:-1]
    return line if len(line) <= limit else f"{line[: limit // 2]} ... {line[-limit // 2 :]}"


def main() -> None:
    """Parses the command line and prints perplexities and answers."""
    parser = argparse.ArgumentParser(description="Measure a demo model.")
    parser.add_argument(
        "--model", type=Path, default=BUNDLED_MODEL, help="default: the bundled one"
    )
    parser.add_argument(
        "--heldout", type=Path, default=HERE / "heldout.json", help="default: the bundled one's"
    )
    parser.add_argument("--device", help="torch device (default: cuda if there is one, else cpu)")
    args = parser.parse_args()

    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = Model.load(args.model, device)
    heldout = json.loads(args.heldout.read_text(encoding="utf-8"))
    for part, documents in heldout.items():
        perplexity, tokens = model.perplexity(documents)
        print(f"{part}: perplexity {perplexity:.4f} on {len(documents)} texts, {tokens:,} tokens")

    right = 0
    for turns, expected in QUESTIONS:
        answer = model.chat(turns)
        right += answer == expected
        mark = "ok " if answer == expected else "BAD"
        print(f"{mark} {' | '.join(map(shorten, turns))} -> {answer}")
    print(f"{right} of {len(QUESTIONS)} answers as expected")
    for text in BEGINNINGS:
        print(f"\n{text}{model.greedy(text)}")


if __name__ == "__main__":
    main()
