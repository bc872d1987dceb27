"""Sums up a CI run in one line: tests from JUnit reports, and steps.

    ci_summary.py REPORTS_DIR STEPS_PASSED STEPS_FAILED

Exits with 1 when anything failed or when no test ran at all.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def count(report: Path) -> tuple[int, int, int]:
    """Passed, failed and skipped test cases of one report."""
    passed = failed = skipped = 0
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif case.find("skipped") is not None or case.get("status") == "disabled":
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def main() -> int:
    folder, steps_passed, steps_failed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    total_passed = total_failed = 0
    for report in sorted(folder.glob("*.xml")):
        passed, failed, skipped = count(report)
        total_passed += passed
        total_failed += failed
        print(f"{report.stem}: {passed} passed, {failed} failed, {skipped} skipped")
    print(f"steps: {steps_passed} passed, {steps_failed} failed")
    print(f"{total_passed + steps_passed} passed, {total_failed + steps_failed} failed")
    return 1 if total_failed or steps_failed or not total_passed else 0


if __name__ == "__main__":
    sys.exit(main())
