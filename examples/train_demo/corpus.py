"""Builds the demo model's training corpus and a held-out set.

    python corpus.py --out build/demo

writes `corpus.json` (keys `library`, `conversations`, `lists`: lists of documents) and
`heldout.json` (keys `lib`, `chats`). The conversations depend on the seed alone, not on the number
of worker processes; the library part is the standard library of the Python that runs this.
"""

import argparse
import json
import os
import random
import sysconfig
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path

from conversations import capital_list, conversation

CONVERSATIONS_PER_SHARD = 12_500
LISTS_PER_SHARD = 400
HELDOUT_CONVERSATIONS = 300
HELDOUT_MODULES = 6
HELDOUT_MODULE_CHARS = 6_000

# Parts of a path that mark tests, bundled packages and tables: long, and poor as prose or code.
SKIPPED_LIBRARY_PATHS = (
    "test",
    "site-packages",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "encodings",
    "_sysconfigdata",
    "pydoc_data",
    "ensurepip",
    "distutils",
)
LIBRARY_MODULE_CHARS = range(401, 400_000)


def library_sources(root: Path | None = None) -> list[str]:
    """Returns the text of the standard library's modules below `root`, in path order."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    sources = []
    for path in sorted(root.rglob("*.py")):
        if any(part in str(path.relative_to(root)) for part in SKIPPED_LIBRARY_PATHS):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # A few modules are not UTF-8 on purpose.
        if len(text) in LIBRARY_MODULE_CHARS:
            sources.append(text.replace("\t", "    "))
    return sources


def shard(seed: str, conversations: int, lists: int) -> tuple[list[str], list[str]]:
    """Returns that many conversations and lists; the same for the same seed on any machine."""
    rng = random.Random(seed)  # Strings are seeded through SHA-512, not through hash().
    texts = [conversation(rng) for _ in range(conversations)]
    return texts, [capital_list(rng) for _ in range(lists)]


def training_texts(seed: int, count: int, workers: int) -> tuple[list[str], list[str]]:
    """Returns `count` conversations, and lists in proportion, built shard by shard."""
    sizes = [
        min(CONVERSATIONS_PER_SHARD, count - start)
        for start in range(0, count, CONVERSATIONS_PER_SHARD)
    ]
    seeds = [f"{seed}/train/{index}" for index in range(len(sizes))]
    lists = [max(1, size * LISTS_PER_SHARD // CONVERSATIONS_PER_SHARD) for size in sizes]
    if workers == 1:
        shards = list(map(shard, seeds, sizes, lists))
    else:
        with ProcessPoolExecutor(workers) as executor:
            shards = list(executor.map(shard, seeds, sizes, lists))
    conversations, capital_lists = zip(*shards, strict=True)
    return list(chain(*conversations)), list(chain(*capital_lists))


def main() -> None:
    """Parses the command line and writes both files."""
    parser = argparse.ArgumentParser(description="Build the demo model's training corpus.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--conversations", type=int, default=400_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=7, help="default: %(default)s")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)"
    )
    args = parser.parse_args()
    if args.conversations < 1 or args.workers < 1:
        parser.error("--conversations and --workers must be at least 1")

    library = library_sources()
    random.Random(args.seed).shuffle(library)
    conversations, lists = training_texts(args.seed, args.conversations, args.workers)
    heldout, _ = shard(f"{args.seed}/heldout", HELDOUT_CONVERSATIONS, 0)

    args.out.mkdir(parents=True, exist_ok=True)
    corpus = {
        "library": library[HELDOUT_MODULES:],
        "conversations": conversations,
        "lists": lists,
    }
    heldout_modules = [text[:HELDOUT_MODULE_CHARS] for text in library[:HELDOUT_MODULES]]
    for name, content in (
        ("corpus.json", corpus),
        ("heldout.json", {"lib": heldout_modules, "chats": heldout}),
    ):
        (args.out / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    for kind, documents in corpus.items():
        print(f"{kind}: {len(documents):,} documents, {sum(map(len, documents)):,} characters")


if __name__ == "__main__":
    main()
