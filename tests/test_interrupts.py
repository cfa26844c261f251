"""Ctrl-C: answered at once, wherever the main thread is; a program ends with one line."""

import textwrap

import pytest
from terminal import Terminal

from guided_diffusion_jax.runtime.interrupts import STOPPED, UNSAVED

BUSY = "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**8)"
"""Like a compilation: most of a minute in C, which no signal interrupts and which lets other threads run."""

PROGRAM = """
import hashlib, signal, time
from guided_diffusion_jax.runtime import interrupts

def remembered():
    signal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGINT, signal.default_int_handler))
    return interrupts.promises_to_stop("stopping soon")

{body}
"""


def program(body, in_command=True):
    body = textwrap.dedent(body).strip()
    if in_command:
        body = "with interrupts.ends_process():\n" + textwrap.indent(body, "    ")
    return Terminal("-c", PROGRAM.format(body=body))


def lines(terminal):
    return [line for line in terminal.text.replace("\r", "\n").splitlines() if line.strip(" ^C")]


def test_a_promise_is_given_within_a_second_and_the_next_ctrl_c_ends_a_busy_program():
    with program(f"with remembered():\n    print('ready', flush=True)\n    {BUSY}") as terminal:
        terminal.wait_for("ready")
        terminal.press()
        assert terminal.wait_for("stopping soon") < 1
        terminal.press()
        code, took = terminal.code()
    assert code == 1 and took < 5
    assert lines(terminal) == ["ready", "stopping soon", UNSAVED]


ENDED = {
    "a busy program": BUSY,
    "one that waits": "time.sleep(60)",
    "one that cleans up": """
        try:
            time.sleep(60)
        finally:
            time.sleep(0.2)
            print("cleaned", flush=True)
    """,
    "one that takes the interrupt for another error": """
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            raise ImportError("cannot import name 'x'")
    """,
    "one that swallows it": """
        for _ in range(2):
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass
    """,
    "one that gets it in a destructor": """
        class Slow:
            def __del__(self):
                time.sleep(60)
        slow = Slow()
        del slow
        time.sleep(60)
    """,
    "one whose promise is past": """
        with remembered():
            pass
        signal.signal(signal.SIGINT, signal.default_int_handler)
        time.sleep(60)
    """,
}


@pytest.mark.parametrize("what", ENDED)
def test_ctrl_c_ends_a_command_with_one_line(what):
    with program("print('ready', flush=True)\n" + textwrap.dedent(ENDED[what]).strip()) as terminal:
        terminal.wait_for("ready")
        terminal.press()
        code, took = terminal.code()
    assert code == 1 and took < 5
    cleaned = ["cleaned"] * (what == "one that cleans up")
    assert lines(terminal) == ["ready", *cleaned, STOPPED]


def test_in_a_library_the_second_ctrl_c_is_an_exception_as_ever():
    body = """
        try:
            with remembered():
                print("ready", flush=True)
                for _ in range(600):
                    time.sleep(0.1)
        except KeyboardInterrupt:
            print("interrupted")
    """
    with program(body, in_command=False) as terminal:
        terminal.wait_for("ready")
        terminal.press()
        terminal.wait_for("stopping soon")
        terminal.press()
        code, _ = terminal.code()
    assert code == 0 and lines(terminal) == ["ready", "stopping soon", "interrupted"]


def test_other_errors_and_exit_codes_are_left_alone():
    with program("raise SystemExit(3)") as terminal:
        assert terminal.code()[0] == 3 and not lines(terminal)
    with program("raise RuntimeError('of its own')") as terminal:
        assert terminal.code()[0] == 1 and "RuntimeError: of its own" in terminal.text
