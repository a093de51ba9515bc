import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from cotnet.reporting.terminal import clock

TRAIN = {"train/loss": 2.34567, "train/lr": 0.4, "train/images_per_second": 1234.5, "train/data_wait": 0.012}
VAL = {"epoch": 1.0, "val/loss": 1.25, "val/top1": 71.234, "val/top5": 90.5, "val/images": 100}
EMA = {"val/loss_ema": 1.5, "val/top1_ema": 72.1, "val/top5_ema": 91.0, "val/images_ema": 100}

# Two epochs of four steps; the first half of the first was done by an earlier process.
RUN = f"""
import sys, time
from cotnet.reporting.terminal import Progress, say
progress = Progress(8, enabled=sys.argv[1] == "bar")
for epoch in range(2):
    progress.start_epoch(epoch, 2, 4, 2 if epoch == 0 else 0)
    for step in range(2 if epoch == 0 else 4):
        time.sleep(float(sys.argv[2]))
        if step % 2 == 0:
            progress.figures({TRAIN!r})
        progress.advance()
    time.sleep(float(sys.argv[2]))
    progress.epoch_line({VAL | EMA!r} | {{"epoch": epoch + 1.0}}, 72.4)
    say("saved")
progress.close()
print("after")
"""
LINE = (
    "epoch 1/2  loss 2.3457  val loss 1.2500  top-1 71.23 (EMA 72.10)  top-5 90.50 (EMA 91.00)  lr 0.4  "
    "1,234 images/s  wait 1%  1:12"
)
PLAIN = [LINE, "saved", LINE.replace("epoch 1/2", "epoch 2/2"), "saved", "after"]
HEAD = "    epoch    loss  top-1    EMA  top-5    EMA       lr images/s wait     time"
ROW = "      1/2  2.3457  71.23  72.10  90.50  91.00      0.4    1,234   1%     1:12"
TABLE_OF_RUN = [HEAD, ROW, "saved", ROW.replace("1/2", "2/2"), "saved", "after"]


def on_a_terminal(code: str, *arguments: str) -> str:
    """What a program writes to a terminal of 80 columns."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
        os.execv(sys.executable, [sys.executable, "-c", code, *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    written = b""
    with os.fdopen(terminal, "rb", buffering=0) as stream:
        try:
            while piece := stream.read(65536):
                written += piece
        except OSError:  # what a terminal answers once its last program has ended
            pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return written.decode()


def visible(written: str) -> list[str]:
    """Every state a line was in, without control sequences."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written).replace("\r", "\n")
    return [line.rstrip() for line in text.split("\n") if line.strip()]


@pytest.mark.slow
def test_a_terminal_shows_a_growing_table_over_a_bar():
    written = on_a_terminal(RUN, "bar", "0.5")  # drawn four times a second
    lines = visible(written)
    bars = [line for line in lines if "━" in line]
    assert re.fullmatch(r"epoch 1/2 [━╸╺]+ 2/4", bars[0])
    assert any(re.fullmatch(r"epoch 1/2 [━╸╺]+ 3/4", bar) for bar in bars)  # no pace yet, so no time left
    assert any(re.fullmatch(r"epoch 1/2 [━╸╺]+ 4/4 evaluating  left 0:0\d", bar) for bar in bars)
    assert any(re.fullmatch(r"epoch 2/2 [━╸╺]+ 2/4 left 0:0\d", bar) for bar in bars)
    live = [line for line in lines if re.match(r" +[12]/2 .*0:0\d$", line)]  # the row of the epoch under way
    assert all(len(line) == 77 for line in live)
    assert live[0].split() == ["1/2", "0:00"]
    assert any(line.split()[:-1] == ["1/2", "2.3457", "0.4", "1,234", "1%"] for line in live)
    assert any(line.split()[:-1] == ["2/2", "2.3457", "0.4", "1,234", "1%"] for line in live)
    assert [line for line in lines if line not in bars and line not in live] == TABLE_OF_RUN
    assert "\x1b[?25l" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back
    assert "\x1b[2K" in written[written.rindex("━") :]  # and the bar gone


def test_a_terminal_keeps_the_table_of_more_epochs_than_it_has_lines():
    code = f"""
from cotnet.reporting.terminal import Progress, say
progress = Progress(400, enabled=True)
for epoch in range(100):
    progress.start_epoch(epoch, 100, 4, 0)
    progress.figures({TRAIN!r})
    for step in range(4):
        progress.advance()
    progress.epoch_line({VAL!r} | {{"epoch": epoch + 1.0}}, 72.4)
progress.close()
"""
    rows = [line.split() for line in visible(on_a_terminal(code)) if line.endswith("1:12")]
    figures = ["2.3457", "71.23", "90.50", "0.4", "1,234", "1%", "1:12"]
    assert rows == [[f"{epoch}/100", *figures] for epoch in range(1, 101)]


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
def test_without_a_terminal_there_are_only_plain_lines(term):
    """Even where the environment asks for colours."""
    environment = os.environ | {"TERM": term, "FORCE_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", RUN, "bar", "0"], capture_output=True, check=True, env=environment)
    assert done.stdout.decode() == "\n".join(PLAIN) + "\n"
    assert done.stderr == b""


def test_a_bar_that_is_not_wanted_is_not_drawn():
    assert on_a_terminal(RUN, "no", "0").replace("\r", "") == "\n".join(PLAIN) + "\n"


def test_an_epoch_line_needs_neither_training_figures_nor_an_average(capsys):
    from cotnet.reporting.terminal import Progress

    progress = Progress(300, enabled=False)
    progress.start_epoch(8, 30, 10, 0)
    progress.epoch_line(VAL | {"epoch": 8.25}, 3725.0)
    progress.close()
    assert capsys.readouterr().out == "epoch 8.25/30  val loss 1.2500  top-1 71.23  top-5 90.50  1:02:05\n"


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (3599.4, "59:59"), (360000, "100:00:00")])
def test_clock(seconds, shown):
    assert clock(seconds) == shown
