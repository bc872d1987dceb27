"""Runs the tests and benches that need a GPU against a build carried here.

    python tools/gpu_suite.py FOLDER [--only SECTION,...] [--out DIR]

FOLDER is what tools/gpu_suite_pack.py made. The sections, each with its own time limit:

    ops        the C++ tests of the CUDA table and of the engine on it
    python     the Python tests, parametrised to the GPU
    sanitize   the kernel tests under compute-sanitizer: memcheck, racecheck, initcheck
    ops-bench  single operations
    bench      the whole engine through Python (bench/engine/gpu_workloads.py)

Without --only the tests and benches run, but not sanitize. Output goes to DIR/log.txt, results to
DIR/summary.json. The last line is "N passed, N failed"; the status is 1 when something failed,
was skipped or ran out of time.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Programs that need more than their name.
ARGUMENTS = {"engine_cuda_test": [str(ROOT / "python" / "treadle" / "demo")]}
#: The engine as a whole takes the sanitizers an hour, and its kernels are in the other programs.
#: A program without kernels is an error to them.
NOT_SANITIZED = {"engine_cuda_test", "cublas_lt_test"}
#: Sanitizers run side by side: most of their time is the host's.
SANITIZER_JOBS = 6
SANITIZERS = ("memcheck", "racecheck", "initcheck")
LIMITS = {"ops": 400, "python": 580, "sanitize": 580, "ops-bench": 300, "bench": 580}
DEFAULT_SECTIONS = ("ops", "python", "ops-bench", "bench")


@dataclass
class Counts:
    """What a section found."""

    passed: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, ok: bool, what: str) -> None:
        if ok:
            self.passed += 1
        else:
            self.failed += 1
            self.failures.append(what)


class Suite:
    """The carried build, the output folder, and the time that is left."""

    def __init__(self, folder: Path, out: Path, work: Path, log: Path) -> None:
        self.folder = folder.resolve()
        self.out = out.resolve()
        self.work = work.resolve()
        self._log = log
        self._deadline = 0.0
        self._site: Path | None = None

    def begin(self, limit: float) -> None:
        self._deadline = time.monotonic() + limit

    def programs(self, pattern: str) -> list[Path]:
        """Carried programs whose whole name matches."""
        return [p for p in sorted(self.folder.iterdir()) if re.fullmatch(pattern, p.name)]

    def run(self, command: list[str], env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Status and output; -1 when the section's time is over. Ends the whole process group."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            return -1, "no time left"
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **library_path(), **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=left)
            status = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            status = -1
        seconds = time.monotonic() - began
        shown = f"$ {shlex.join(command)}\n{output}\n[status {status}, {seconds:.1f} s]\n"
        print(shown, flush=True)
        with self._log.open("a", encoding="utf-8") as log:
            log.write(shown)
        return status, output

    def python_path(self) -> dict[str, str]:
        """The environment in which `import treadle` is this tree's package on the carried engine.
        Links the extension at the first call."""
        if self._site is None:
            self._site = self._install()
        return {"PYTHONPATH": f"{self._site}{os.pathsep}{ROOT}"}

    def _install(self) -> Path:
        build, site = self.work / "extension", self.work / "site"
        library = f"-DTREADLE_ENGINE={self.folder / 'libengine.a'}"
        python = f"-DPython_EXECUTABLE={sys.executable}"
        source = str(ROOT / "python" / "bindings")
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        for command in (
            ["cmake", "-S", source, "-B", str(build), *generator, library, python],
            ["cmake", "--build", str(build), "--parallel"],
        ):
            if self.run(command)[0] != 0:
                raise RuntimeError("the Python extension cannot be built: see the log")
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(ROOT / "python" / "treadle", site / "treadle")
        suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
        shutil.copy(build / f"_engine{suffix}", site / "treadle")
        return site


def library_path() -> dict[str, str]:
    """Lets programs find cuBLASLt in a PyPI package, for example the one that torch brings."""
    folders = [
        str(library.parent)
        for entry in sys.path
        for library in Path(entry or ".").glob("nvidia/*/lib/libcublasLt.so.*")
    ]
    known = os.environ.get("LD_LIBRARY_PATH", "")
    return {"LD_LIBRARY_PATH": os.pathsep.join([*folders, *([known] if known else [])])}


def run_ops(suite: Suite, _: list[str]) -> Counts:
    counts = Counts()
    for program in suite.programs(r"\w+_test"):
        status, output = suite.run([str(program), *ARGUMENTS.get(program.name, [])])
        last = output.strip().rpartition("\n")[2]
        counts.add(status == 0, f"{program.name}: status {status}, {last}")
    return counts


def run_sanitize(suite: Suite, extra: list[str]) -> Counts:
    tools = [name for name in extra if name in SANITIZERS] or SANITIZERS
    names = [name for name in extra if name not in SANITIZERS]
    runs = [
        (tool, program)
        for program in suite.programs("|".join(names) or r"\w+_test")
        if program.name not in NOT_SANITIZED
        for tool in tools
    ]

    def run(tool: str, program: Path) -> tuple[int, str]:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        if tool != "initcheck":  # which must see the tests' own kernels write what others read
            command += ["--kernel-name-exclude", "kernel_substring=testing"]
        # "small" is short problems, in the programs that have an argument.
        return suite.run([*command, str(program), "small"])

    counts = Counts()
    with ThreadPoolExecutor(SANITIZER_JOBS) as pool:
        done = [(tool, program, pool.submit(run, tool, program)) for tool, program in runs]
    for tool, program, future in done:
        status, output = future.result()
        last = output.strip().rpartition("\n")[2]
        counts.add(status == 0, f"{tool} {program.name}: status {status}, {last}")
    return counts


def run_python(suite: Suite, extra: list[str]) -> Counts:
    counts = Counts()
    report = suite.out / "pytest.xml"
    options = ["-q", "-p", "no:cacheprovider", "--device", "cuda", f"--junitxml={report}"]
    if find_spec("xdist") is not None:
        # The tests are small for a GPU: several processes share it. (pytest-benchmark warns of
        # that, and a warning is an error here.)
        options += ["-n", str(min(12, os.cpu_count() or 1)), "-p", "no:benchmark"]
    command = [sys.executable, "-m", "pytest", *options, *(extra or ["tests/python"])]
    status, _ = suite.run(command, suite.python_path())
    for name, outcome in outcomes(report):
        counts.add(outcome == "passed", f"{name}: {outcome}")
    if status != 0 and not counts.failed:
        counts.add(False, f"pytest: status {status}")
    return counts


def outcomes(report: Path) -> Iterable[tuple[str, str]]:
    """Each test of a JUnit report with passed, failed or skipped."""
    if not report.exists():
        return
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            yield name, "failed"
        else:
            yield name, "skipped" if case.find("skipped") is not None else "passed"


def run_ops_bench(suite: Suite, _: list[str]) -> Counts:
    counts = Counts()
    for program in suite.programs(r"cuda_(?!engine)\w+"):  # that one needs a model
        status, output = suite.run([str(program)])
        (suite.out / f"{program.name}.txt").write_text(output, "utf-8")
        counts.add(status == 0, f"{program.name}: status {status}")
    return counts


def run_bench(suite: Suite, extra: list[str]) -> Counts:
    counts = Counts()
    status, _ = suite.run(
        [sys.executable, "-m", "bench.engine.gpu_workloads", "--out", str(suite.out), *extra],
        suite.python_path(),
    )
    counts.add(status == 0, f"gpu_workloads: status {status}")
    return counts


SECTIONS: dict[str, Callable[[Suite, list[str]], Counts]] = {
    "ops": run_ops,
    "python": run_python,
    "sanitize": run_sanitize,
    "ops-bench": run_ops_bench,
    "bench": run_bench,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default=",".join(DEFAULT_SECTIONS), help="sections, with commas")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu_suite")
    parser.add_argument("--work", type=Path, help="where to link the extension (default: OUT/work)")
    parser.add_argument("--limit", type=float, help="seconds for each section")
    parser.epilog = "After --: arguments for pytest or the bench, tools and programs for sanitize."
    argv = sys.argv[1:]
    end = argv.index("--") if "--" in argv else len(argv)
    args, extra = parser.parse_args(argv[:end]), argv[end + 1 :]
    names = args.only.split(",")
    unknown = sorted(set(names) - set(SECTIONS))
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if extra and len(names) > 1:
        parser.error("arguments after -- need --only with one section")
    args.out.mkdir(parents=True, exist_ok=True)
    suite = Suite(args.folder, args.out, args.work or args.out / "work", args.out / "log.txt")
    results: dict[str, Counts] = {}
    for name in names:
        started = time.monotonic()
        suite.begin(args.limit or LIMITS[name])
        try:
            results[name] = SECTIONS[name](suite, extra)
        except (OSError, RuntimeError) as error:
            results[name] = Counts(failed=1, failures=[str(error)])
        results[name].seconds = round(time.monotonic() - started, 1)
    (args.out / "summary.json").write_text(
        json.dumps({name: vars(counts) for name, counts in results.items()}, indent=1), "utf-8"
    )
    for name, counts in results.items():
        for failure in counts.failures:
            print(f"{name}: {failure}")
        print(f"{name}: {counts.passed} passed, {counts.failed} failed in {counts.seconds} s")
    passed = sum(counts.passed for counts in results.values())
    failed = sum(counts.failed for counts in results.values())
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
