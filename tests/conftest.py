"""What holds for every Python test."""

import signal

import pytest

# A shell without job control starts background jobs with SIGINT ignored, and children inherit that.
# The tests of Ctrl-C need it as a terminal would have it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=["cpu", "cuda"],
        help="run only what is parametrised to this device, and fail where it cannot be used",
    )
