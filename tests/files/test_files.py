import errno
import os
import resource
import signal
import subprocess
import sys
from multiprocessing import get_context

import pytest

from swift_rm.files.atomic_write import check_writable, write_whole
from swift_rm.files.jsonl_appender import LineAppender

BEGINS = '{"id": '


def test_a_file_is_written_whole_and_nothing_is_left_beside_it(tmp_path):
    write_whole(tmp_path / "a.json", "one")
    write_whole(tmp_path / "a.json", b"two")
    assert (tmp_path / "a.json").read_text() == "two"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    write_whole(tmp_path / "a.json", "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_cannot_be_written_is_found_before_the_long_work(tmp_path):
    check_writable(tmp_path / "new" / "folders" / "a.json")
    assert list((tmp_path / "new/folders").iterdir()) == [], "nothing is left there"
    (tmp_path / "file").write_text("old")
    check_writable(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "old"
    for path, error, words in (
        (tmp_path, IsADirectoryError, "is a folder"),
        (tmp_path / "file" / "a.json", OSError, r"a\.json cannot be written: File exists"),
        ("/proc/swift/a.json", OSError, r"/proc/swift/a\.json cannot be written"),
    ):
        with pytest.raises(error, match=words):
            check_writable(path)


def test_a_file_to_read_is_not_to_be_written(tmp_path):
    (tmp_path / "in.jsonl").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "in.jsonl")
    os.link(tmp_path / "in.jsonl", tmp_path / "hard")
    for name in ("in.jsonl", "link", "hard", "../" + tmp_path.name + "/in.jsonl"):
        with pytest.raises(ValueError, match="is a file to read, which writing would replace"):
            check_writable(tmp_path / name, [None, tmp_path / "other", tmp_path / "in.jsonl"])
    check_writable(tmp_path / "out.jsonl", [None, tmp_path / "in.jsonl"])
    with pytest.raises(ValueError, match=r"later\.json is a file to read"):
        check_writable(tmp_path / "later.json", [tmp_path / "later.json"])  # two outputs, one place


def test_half_a_last_line_is_cut_off_on_entry(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n{"id": ' + "x" * 200_000)
    with LineAppender(path, BEGINS) as file:
        file.append(['{"d": 4}'])
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n{"d": 4}\n'


@pytest.mark.parametrize("rest", ['{"', '{"id": ', '{"id": 7, "te'])
def test_a_file_that_is_but_half_a_line_is_emptied(tmp_path, rest):
    path = tmp_path / "r.jsonl"
    path.write_text(rest)
    with LineAppender(path, BEGINS):
        assert path.read_text() == ""


def test_a_whole_last_line_that_lost_its_end_is_kept(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": 1}\n{"id": 2}')
    with LineAppender(path, BEGINS) as file:
        file.append(['{"id": 3}'])
    assert path.read_text() == '{"id": 1}\n{"id": 2}\n{"id": 3}\n'


@pytest.mark.parametrize("content", ['{"question": "1+1"}', "some notes", '{"id": 1}\nnotes'])
def test_a_file_of_something_else_is_not_touched(tmp_path, content):
    path = tmp_path / "r.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"ends in .* not touched"):
        LineAppender(path, BEGINS).__enter__()
    assert path.read_text() == content


def test_a_second_writer_is_refused_in_one_sentence_and_let_in_later(tmp_path):
    with LineAppender(tmp_path / "r.jsonl", BEGINS), pytest.raises(BlockingIOError, match=r"another run is writing .*r\.jsonl"):
        LineAppender(tmp_path / "r.jsonl", BEGINS).__enter__()
    with LineAppender(tmp_path / "r.jsonl", BEGINS) as file:
        file.append(["{}"])


def _append_beyond_the_limit(path, queue):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # the kernel refuses what a full disk would
    with LineAppender(path, BEGINS) as file:
        file.append(["first"])
        try:
            file.append(["x" * 5000])
        except OSError as error:
            queue.put(str(error))


def test_what_the_disk_refuses_is_taken_back_whole_and_the_error_says_how_to_go_on(tmp_path):
    context = get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=_append_beyond_the_limit, args=(tmp_path / "r.jsonl", queue))
    worker.start()
    message = queue.get(timeout=60)
    worker.join(60)
    assert (tmp_path / "r.jsonl").read_text() == "first\n"
    assert "could not write" in message
    assert "the same call resumes" in message


def test_a_writer_killed_at_any_moment_leaves_whole_lines_after_the_next_entry(tmp_path):
    path = tmp_path / "r.jsonl"
    program = (
        "import sys; from swift_rm.files.jsonl_appender import LineAppender\n"
        "with LineAppender(sys.argv[1], '') as file:\n"
        "    i = 0\n"
        "    while True:\n"
        "        file.append([f'{i}:' + 'x' * 5000] * 3); i += 1; print(i, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    acknowledged = int([writer.stdout.readline() for _ in range(20)][-1])
    writer.kill()
    writer.wait()
    with LineAppender(path, BEGINS):
        lines = path.read_text().splitlines()
    assert all(line.endswith("x" * 5000) for line in lines)
    assert len(lines) >= 3 * acknowledged
