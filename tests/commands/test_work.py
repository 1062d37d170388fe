"""Progress on terminals, and what Ctrl-C leaves: nothing but whole files, a line, status 130."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time

import pytest
from support.helpers import ROOT
from support.sampling import by_level

pytest.importorskip("rich", reason="the extra `train` is not installed")
from fastgd.commands import output
from fastgd.commands.work import INTERRUPTED, Work


def test_nothing_is_drawn_where_there_is_no_terminal(capsys):
    with Work("sums", 3) as work:
        work.advance("one")
        work.advance("two", 2)
        print("found")
    assert work.share == 1
    assert capsys.readouterr() == ("found\n", "")


def test_an_interrupt_says_what_was_done(capsys, tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.json"

    def interrupted(files):
        with pytest.raises(SystemExit) as caught, Work("draw") as work:
            work.expect(8)
            work.advance("valley")
            for file in files:
                work.write(file, "whole")
            work.advance("saddle", 2)
            raise KeyboardInterrupt
        assert caught.value.code == INTERRUPTED == 128 + signal.SIGINT
        return capsys.readouterr().err

    said = "draw: interrupted at 38%, after saddle; "
    assert interrupted([]) == said + "nothing was written\n"
    assert interrupted([first, second]) == f"{said}kept, each of them whole: {first}, {second}\n"
    assert [file.read_text() for file in (first, second)] == ["whole", "whole"]


def test_what_is_under_way_is_not_called_done():
    work = Work("draw", 4)
    work.advance("valley")
    work.begin("saddle")
    assert work.told() == "draw: interrupted at 25%, in saddle; nothing was written"
    work.advance()
    assert "at 50%, in saddle;" in work.told(), "one part of it"
    work.advance("plain")
    assert "at 75%, after plain;" in work.told()
    work.begin("ridge")
    work.advance()
    work.show()
    assert "at 100%, after ridge;" in work.told()


def test_other_errors_stay_what_they_are():
    with pytest.raises(ValueError, match="of the work"), Work("draw", 1):
        raise ValueError("of the work")


def test_a_file_is_finished_before_the_interrupt(monkeypatch, tmp_path, capsys):
    calls, write = [], output.write

    def struck(path, content):
        write(path, content)
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(output, "write", struck)
    with pytest.raises(SystemExit), Work("draw", 1) as work:
        work.write(tmp_path / "a", b"whole")
    assert f"kept, each of them whole: {tmp_path / 'a'}" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["a"]


# ------------------------------------------------------------------------------ in a real terminal

pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")

# Of JAX, where a test before has imported it: the process that is forked becomes another program.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")

# What is run, and for how many seconds it takes at least, wherever that is.
COMMANDS = {
    "race": ("-m fastgd race --optimizer all --steps 300 --output made/race.gif", 2.0),
    "gallery": ("-m fastgd gallery --output made", 5.0),
    "train": ("-m fastgd train --output made/train.png", 3.0),
    "bytes": ("-m fastgd bytes --measure 4M", 0.15),
    "compare": (f"{ROOT}/bench/compare.py --only NumPy --json made/figures.json", 3.0),
}


class Terminal:
    """A program in a terminal of its own, whose Ctrl-C is a key that is pressed there."""

    def __init__(self, arguments, folder):
        import fcntl
        import termios

        self.side, inside = pty.openpty()

        def enter():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, *arguments.split()], cwd=folder, stdin=inside, stdout=inside,
            stderr=inside, start_new_session=True, preexec_fn=enter,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"},
        )  # fmt: skip
        os.close(inside)
        self.text = ""

    def read(self, until=None):
        """Read until something is there, or to the end."""
        last = time.monotonic() + 120
        while until is None or until not in self.text:
            assert time.monotonic() < last, self.text
            if not select.select([self.side], [], [], 1)[0]:
                continue
            found = b""
            with contextlib.suppress(OSError):  # as Linux says that nobody is left inside
                found = os.read(self.side, 65536)
            if not found:
                assert until is None, self.text
                break
            self.text += found.decode(errors="replace")
        return self.text

    def interrupt(self):
        os.write(self.side, b"\x03")

    def close(self):
        os.close(self.side)
        return self.process.wait(60)


@pytest.mark.slow
@pytest.mark.more
@pytest.mark.parametrize("name", by_level(["bytes"], ["bytes"], list(COMMANDS)))
def test_ctrl_c_at_any_moment(name, tmp_path):
    command, least = COMMANDS[name]
    for _ in range(by_level(1, 1, 4)):
        terminal = Terminal(command, tmp_path)
        terminal.read(until="%")
        after = random.uniform(0, least)
        time.sleep(after)
        terminal.interrupt()
        text = terminal.read()
        assert terminal.close() == INTERRUPTED, (after, text)
        assert "Traceback" not in text, (after, text)
        assert f"{name}: interrupted at " in text, (after, text)
        made = tmp_path / "made"
        files = sorted(os.listdir(made)) if made.exists() else []
        assert not [file for file in files if file.startswith(".")], (after, files)
        for file in files:
            start = {"png": b"\x89PNG", "gif": b"GIF8", "tml": b"<!DO", "son": b"{"}[file[-3:]]
            assert (made / file).read_bytes().startswith(start)
            assert file in text, (after, text)
            (made / file).unlink()


def test_a_bar_in_a_terminal_and_results_below_it(tmp_path):
    terminal = Terminal("-m fastgd bytes --measure 100K", tmp_path)
    text = terminal.read()
    assert terminal.close() == 0
    assert "━" in text
    assert text.rindex("0%") < text.index("100,000,000 parameters")
