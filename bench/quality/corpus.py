"""Text that ships with Python: the standard library's sources, its notes and pydoc's topics.

    python -m bench.quality.corpus --pack stdlib.tar.xz

packs this Python's files, so that another machine can train on the same text.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import json
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

SUFFIXES = (".py", ".rst", ".txt")
#: Not the library's own, made by a machine, or tables without prose. "badsyntax" and the like are
#: no Python.
SKIPPED_FOLDERS = frozenset(
    ("site-packages", "__pycache__", "encodings", "cjkencodings", "tokenizedata", "xmltestdata")
)
SKIPPED_NAMES = ("_sysconfigdata", "test_unicode", "PatternGrammar", "test_codecencodings")
TOPICS = "pydoc_data/topics.py"
CHARS = range(400, 300_000)


class Document(NamedTuple):
    #: Path below the library's folder; for a topic "pydoc_data/topics.py:NAME".
    name: str
    text: str


def wanted(name: str) -> bool:
    """Whether the file of that path, relative to the library's folder, belongs to the corpus."""
    path = PurePosixPath(name)
    return (
        path.suffix in SUFFIXES
        and SKIPPED_FOLDERS.isdisjoint(path.parts)
        and not path.name.startswith(SKIPPED_NAMES)
    )


def stdlib() -> Path:
    """The folder of the standard library of the Python that runs this."""
    return Path(sysconfig.get_paths()["stdlib"])


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    """(relative path, content) of the wanted files of a folder or a tar, in any order."""
    if source.is_dir():
        for path in source.rglob("*"):
            name = path.relative_to(source).as_posix()
            if wanted(name) and path.is_file():
                yield name, path.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            if member.isfile() and wanted(member.name):
                content = archive.extractfile(member)
                assert content is not None  # a file has content
                yield member.name, content.read()


def _topics(source: str) -> dict[str, str]:
    """The dictionary that pydoc's module of topics assigns; nothing of it is executed."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign):
            topics: dict[str, str] = ast.literal_eval(statement.value)
            return topics
    return {}


def read(source: Path) -> list[Document]:
    """Documents of a library folder, a tar of one, or a single text file, ordered by name.

    What is not UTF-8, shorter or longer than CHARS, or the same as an earlier one is left out.
    Raises ValueError when nothing remains.
    """
    if source.is_file() and not tarfile.is_tarfile(source):
        return [Document(source.name, source.read_text(encoding="utf-8"))]
    documents: list[Document] = []
    seen: set[str] = set()
    for name, content in sorted(_files(source)):
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            continue  # some tests are not UTF-8 on purpose
        parts = {f"{name}:{k}": v for k, v in _topics(text).items()} if name == TOPICS else None
        for part, words in sorted((parts or {name: text}).items()):
            if len(words) in CHARS and words not in seen:
                seen.add(words)
                documents.append(Document(part, words))
    if not documents:
        raise ValueError(f"{source}: no text of the standard library in it")
    return documents


def _order(document: Document) -> bytes:
    return hashlib.sha256(document.name.encode()).digest()


def split(
    documents: list[Document], heldout_chars: int, piece_chars: int
) -> tuple[list[Document], list[str]]:
    """Returns the documents to train on, and the beginnings of the others.

    A document is held out whole, but only its first lines, at most ``piece_chars``, are kept, so
    that no long file dominates. Which ones are held out hangs on the hash of their names: as many
    as give ``heldout_chars`` characters. A single document gives its last lines.
    """
    if len(documents) == 1:
        ((name, text),) = documents
        cut = text.rfind("\n", 0, max(len(text) - heldout_chars, 0)) + 1
        return [Document(name, text[:cut])], [text[cut:]]
    ordered = sorted(documents, key=_order)
    heldout: list[str] = []
    total = 0
    while ordered and total < heldout_chars:
        heldout.append(beginning(ordered.pop(0).text, piece_chars))
        total += len(heldout[-1])
    if not ordered:
        raise ValueError(f"heldout_chars is {heldout_chars}: nothing is left to train on")
    return ordered, heldout


def beginning(text: str, chars: int) -> str:
    """The first whole lines of a text, at most ``chars`` characters (at least one line's part)."""
    if len(text) <= chars:
        return text
    return text[: text.rfind("\n", 0, chars) + 1] or text[:chars]


def write_jsonl(path: Path, texts: list[str]) -> None:
    """One object with a "text" a line, which is what `treadle eval` and `treadle lite` read."""
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")


def read_jsonl(path: Path) -> list[str]:
    return [
        json.loads(line)["text"] for line in path.read_text(encoding="utf-8").split("\n") if line
    ]


def pack(source: Path, target: Path) -> None:
    """Writes a folder's wanted files to ``target``, a tar that is the same each time."""
    with tarfile.open(target, "w:xz") as archive:
        for name, content in sorted(_files(source)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack the text that ships with Python.")
    parser.add_argument("--source", type=Path, default=stdlib(), help="folder (default: this one)")
    parser.add_argument("--pack", type=Path, required=True, help="tar.xz to write")
    args = parser.parse_args()
    pack(args.source, args.pack)
    documents = read(args.pack)
    chars = sum(len(document.text) for document in documents)
    print(f"{len(documents):,} documents, {chars:,} characters")


if __name__ == "__main__":
    main()
