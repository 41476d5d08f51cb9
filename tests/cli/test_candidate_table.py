import fcntl
import io
import json
import math
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from swift_rm import SwiftConfig, SwiftRewardModel, best_of_n
from swift_rm.cli.candidate_table import LiveTable, final_table
from swift_rm.decoding.decoded_candidate import Step
from swift_rm.decoding.pruning import Confidence, Halving
from swift_rm.selection.candidates import BestOfN, Candidate

HOSTILE = "\x1b[31mred\x1b]0;owned\x07[bold]x[/bold]\r\n\u202e\x9b2J:smile:"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def table(questions=("27+15",), text=lambda ids: f"<{len(ids)}>", height=30, width=100, **more):
    console = Console(
        file=io.StringIO(), force_terminal=True, color_system=None, width=width, height=height, markup=False, emoji=False
    )
    return LiveTable(questions, text, lambda rewards: [1 / (1 + math.exp(-reward)) for reward in rewards], console, **more)


def step(length, rewards, prompts=None):
    return Step(list(rewards), prompts or [0] * len(rewards), [[5] * length for _ in rewards], list(rewards.values()))


def drawn(live):
    console = Console(file=io.StringIO(), width=live._console.width, height=live._console.height, color_system=None)
    console.print(live.render())
    return console.file.getvalue().splitlines()


def states(live):
    return [(row.reward, len(row.token_ids), row.state) for row in live.rows.values()]


def test_rows_are_sorted_by_reward_with_probability_tokens_and_state():
    live = table()
    for length, rewards in ((1, {0: 0.5, 1: 2.0, 2: math.nan}), (2, {0: 0.5, 2: math.nan})):
        live.watch(lambda length=length, rewards=rewards: step(length, rewards))
        live._due = -math.inf
    lines = [line.split() for line in drawn(live)]
    assert lines[0] == ["question", "1", "of", "1:", "27+15"]
    assert lines[1] == ["reward", "right", "tokens", "state", "text"]
    assert lines[2:5] == [
        ["2.00", "88.1%", "1", "done", "<1>"], ["0.50", "62.2%", "2", "writing", "<2>"], ["-", "-", "2", "writing", "<2>"],
    ]  # fmt: skip
    assert lines[5] == ["2", "of", "3", "are", "being", "written"]


def test_a_watcher_that_waits_does_not_even_look():
    clock, seen = Clock(), []
    live = table(clock=clock, interval=1.0)
    for length in range(1, 41):
        clock.now = length * 0.125
        live.watch(lambda length=length: seen.append(length) or step(length, {0: 0.0}))
    assert seen == [1, 9, 17, 25, 33]
    assert states(live) == [(0.0, 33, "writing")]  # one candidate of one wave


def test_a_later_wave_is_known_by_its_length_even_if_its_first_tokens_were_not_seen():
    clock = Clock()
    live = table(clock=clock, interval=1.0)
    for length, now in ((1, 0.0), (2, 0.1), (3, 2.0), (1, 2.1), (2, 2.2), (3, 2.3), (4, 4.0)):
        clock.now = now
        live.watch(lambda length=length: step(length, {0: float(length)}))
    assert states(live) == [(3.0, 3, "done"), (4.0, 4, "writing")]


def test_the_first_unfinished_question_of_the_batch_is_shown_and_the_next_batch_counts_on():
    live = table(questions=("first", "second", "third"))
    live.watch(lambda: step(1, {0: 1.0, 1: 2.0}, [0, 1]))
    assert drawn(live)[0] == "question 1 of 3: first"
    live._due = -math.inf
    live.watch(lambda: step(2, {1: 2.0}, [1]))
    assert drawn(live)[0] == "question 2 of 3: second"
    live.next_batch(2)
    live._due = -math.inf
    live.watch(lambda: step(1, {0: 1.0}))
    assert drawn(live)[0] == "question 3 of 3: third"
    assert len(drawn(live)) == 4


@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("rule", [Halving(min_tokens=2), Confidence(min_tokens=3, margin=0.001, every=1)])
@pytest.mark.parametrize("position", ["generating", "token"])
def test_the_states_are_those_of_the_decoding(llama, tokenizer, rule, prompts, position):
    rm = SwiftRewardModel(SwiftConfig(32, (0, 2, 3), position=position))
    with torch.no_grad():
        for parameter in rm.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    live, seen = table(questions=("a", "b"), interval=0.0), []
    results = best_of_n(
        llama, tokenizer, rm, ["27+15", "31-14+22"][:prompts], n=8, prune=live.told(rule), watch=live.watch, max_new_tokens=12,
        on_results=lambda batch: seen.extend(live.rows.values()),
    )  # fmt: skip
    plain = best_of_n(llama, tokenizer, rm, ["27+15", "31-14+22"][:prompts], n=8, prune=rule, max_new_tokens=12)
    for one, other in zip(results, plain, strict=True):
        ways = [[(c.token_ids, c.finish_reason) for c in result.candidates] for result in (one, other)]
        assert ways[0] == ways[1]
        assert [c.reward for c in one.candidates] == pytest.approx([c.reward for c in other.candidates], abs=1e-5)
    for place, result in enumerate(results):
        dropped = sorted(c.token_ids for c in result.candidates if c.finish_reason == "pruned")
        assert dropped
        assert dropped == sorted(row.token_ids for row in seen if row.place == place and row.state == "pruned")


def test_nothing_of_the_model_drives_the_terminal():
    outputs = []
    for text in (HOSTILE, "x" * 40):
        live = table(questions=(text,), text=lambda ids, text=text: text)
        with live:
            live.watch(lambda: step(1, {0: 1.0}))
        outputs.append(live._console.file.getvalue())
    assert re.findall(r"\x1b.[0-9;?]*.?", outputs[0]) == re.findall(r"\x1b.[0-9;?]*.?", outputs[1])
    assert not set("\x07\x9b\u202e") & set(outputs[0])
    assert "[31mred ]0;owned [bold]x[/bold]" in outputs[0]
    assert ":smile:" in outputs[0]
    candidate = Candidate(HOSTILE, [5], 1.0, 0.7, -0.1, "stop", HOSTILE, None)
    printed = final_table("27+15", BestOfN("27+15", [candidate], candidate, 1, 0, "all"), 1)
    assert not set("\x1b\x07\x9b\u202e\r") & set(printed)
    assert len(printed.splitlines()) == 4


@pytest.mark.parametrize("text", ["abc\n" * 99, "\u6c34" * 99])
def test_the_table_fits_the_terminal(text):
    live = table(questions=("why? " * 40,), text=lambda ids: text, height=10, width=60)
    live.watch(lambda: step(1, {i: float(i) for i in range(40)}))
    lines = drawn(live)
    assert len(lines) == 9
    assert max(map(cell_len, lines)) <= 60
    assert [line.split()[0] for line in lines[2:8]] == ["39.00", "38.00", "37.00", "36.00", "35.00", "34.00"]
    assert lines[8] == "and 34 more"


def test_the_final_table_says_what_was_spent_and_why_it_ended():
    good = Candidate("a", [5, 6], 1.5, 0.8, -0.1, "stop", "4", None)
    bad = Candidate("b", [5], 2.5, 0.9, -0.1, "pruned", None, None)
    lines = final_table("27+15", BestOfN("27+15", [good, bad], good, 3, 1, "probability"), 2).splitlines()
    assert lines[0] == "27+15"
    assert lines[2].split() == ["*", "1.50", "0.800", "4", "stop", "a"]
    assert lines[3].split() == ["2.50", "0.900", "-", "pruned", "b"]
    assert lines[4] == "  3 tokens spent, about 1 saved of what 2 whole candidates cost; one is probable enough"


def test_on_a_terminal_the_table_lives_and_ctrl_c_prints_what_is_there():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 80, 0, 0))
    command = ["best-of-n", "--model", "tiny-reasoner", "--reward-model", "tiny-reasoner-reward", "27+15-08", "31-14+22"]
    process = subprocess.Popen(
        [sys.executable, "-m", "swift_rm.cli", *command, "-n", "9999", "--stop-at", "1", "--min-gain", "0", "--wave", "3"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=theirs, text=True, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + 120
    told = False
    try:
        while chunk := os.read(ours, 65536):
            seen += chunk
            if not told and (b"done" in seen or time.monotonic() > deadline):
                process.send_signal(signal.SIGINT)
                told = True
    except OSError:  # the other side is closed
        pass
    out = process.communicate(timeout=60)[0]
    os.close(ours)
    screen = seen.decode()
    assert process.returncode == 130
    assert "question 1 of 2: 27+15-08" in screen
    assert "writing" in screen
    assert screen.rstrip().endswith("swift-rm: stopped; 0 of 2 questions were answered in full")
    assert "Traceback" not in screen
    assert screen.rfind("\x1b[?25h") > screen.rfind("\x1b[?25l")  # the cursor is back
    records = [json.loads(line) for line in out.splitlines()]  # the output goes into a pipe
    assert {record["ended"] for record in records} == {"interrupted"}
    assert all(record["candidates"] for record in records)
    assert "\x1b" not in out
