"""An interrupt is not lost, wherever it is swallowed, and a second one ends the process at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from lorahydra.utils import interrupts
from lorahydra.utils.interrupts import listening, noticed, postponed, raise_if_interrupted
from lorahydra.utils.progress import Progress

Swallow = Callable[[], None]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def in_a_destructor() -> None:
    class Dying:
        def __del__(self) -> None:
            interrupt()

    Dying()


def under_a_bare_except() -> None:
    with suppress(BaseException):
        interrupt()


def as_another_error() -> None:
    try:
        interrupt()
    except BaseException as error:
        raise RuntimeError("a callback failed") from error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("swallow", [in_a_destructor, under_a_bare_except, as_another_error])
def test_a_lost_interrupt_is_raised_at_the_end_of_the_work(swallow: Swallow) -> None:
    with pytest.raises(KeyboardInterrupt), listening():
        swallow()
    raise_if_interrupted()  # it is over


def test_a_lost_interrupt_is_raised_by_the_next_step() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), listening(), Progress(live=False).task("Training", 9) as advance:
        for step in range(9):
            if step == 2:
                under_a_bare_except()
            advance(1, "")
            done.append(step)
    assert done == [0, 1]


def test_an_error_without_an_interrupt_stays_itself() -> None:
    with pytest.raises(RuntimeError, match="its own"), listening(), noticed():
        raise RuntimeError("its own")


def test_other_threads_are_not_told() -> None:
    told: list[BaseException] = []

    def work() -> None:
        try:
            raise_if_interrupted()
        except BaseException as error:
            told.append(error)

    with pytest.raises(KeyboardInterrupt), listening():
        under_a_bare_except()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert told == []


def test_what_is_done_as_a_whole_ends_before_the_interrupt() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), listening():
        with postponed():
            with postponed():
                interrupt()
            done.append("whole")
        done.append("more")
    assert done == ["whole"]


def test_an_exception_of_what_is_done_as_a_whole_comes_first() -> None:
    with pytest.raises(KeyboardInterrupt), listening(), pytest.raises(ValueError, match="first"), postponed():
        interrupt()
        raise ValueError("first")


def test_closing_after_an_interrupt_is_not_interrupted_by_it() -> None:
    closed = []
    with pytest.raises(KeyboardInterrupt), listening():
        try:
            interrupt()
        finally:
            with postponed():
                closed.append(1)
            closed.append(2)
    assert closed == [1, 2]


def test_a_handler_of_somebody_else_is_left_alone() -> None:
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    with listening():
        interrupt()
    assert heard == [1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_may_be_meant_for_one_step_and_sigterm_is_not(number: signal.Signals) -> None:
    script = (
        "import signal\nfrom lorahydra.utils.interrupts import *\nlisten(str)\n"
        f"try:\n    signal.raise_signal({number:d})\nexcept KeyboardInterrupt:\n    forget()\n"
        "print('on')\nlisten(str)\nraise_if_interrupted()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout == "on\n") == (done.returncode == 0) == (number is signal.SIGINT)


TWICE = """
import signal, time
from lorahydra.utils import interrupts
interrupts.SAME_SIGNAL_SECONDS = {apart}
interrupts.listen(lambda: "; go on with: X")
try:
    signal.raise_signal(signal.{first})
except KeyboardInterrupt:
    try:
        signal.raise_signal(signal.{second})
    finally:
        print("closed")
    raise SystemExit(130)
"""


@pytest.mark.parametrize(
    ("apart", "first", "second", "ends_at_once"),
    [
        (0, "SIGINT", "SIGINT", True),
        (0, "SIGTERM", "SIGINT", True),
        (0, "SIGINT", "SIGTERM", False),
        (60, "SIGINT", "SIGINT", False),
    ],
)
def test_a_second_ctrl_c_ends_at_once(apart: float, first: str, second: str, ends_at_once: bool) -> None:
    script = TWICE.format(apart=apart, first=first, second=second)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    said = "lorahydra: interrupted twice: ended at once; go on with: X\n"
    assert (done.returncode, done.stderr, done.stdout) == (130, said, "") if ends_at_once else (130, "", "closed\n")


def test_a_background_job_keeps_ignoring_ctrl_c() -> None:
    script = (
        "import signal; from lorahydra.utils.interrupts import listen; listen(str); signal.raise_signal(signal.SIGINT)"
    )
    ignoring = f"import signal, runpy; signal.signal(signal.SIGINT, signal.SIG_IGN); exec({script!r})"
    assert subprocess.run([sys.executable, "-c", ignoring], check=False).returncode == 0


def test_an_interrupt_in_a_destructor_is_not_said() -> None:
    script = (
        "import signal\nfrom lorahydra.utils.interrupts import *\nlisten(str)\n"
        "class Dying:\n    def __del__(self): signal.raise_signal(signal.SIGINT)\n"
        "Dying()\nprint(interrupted())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_signal_after_all_is_said_ends_without_a_word() -> None:
    script = (
        "import signal; from lorahydra.utils.interrupts import *; listen(str); stop_listening();"
        "signal.raise_signal(signal.SIGINT)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (interrupts.EXIT_INTERRUPTED, "")
