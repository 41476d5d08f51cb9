import json
import re
import sys

import pytest

from swift_rm.cli.main import main
from swift_rm.reward.config import SwiftConfig
from swift_rm.reward.reward_model import SwiftRewardModel
from tests.report.pages import Page

POINT = {"value": 0.6, "low": 0.5, "high": 0.7}
LAYERS = [{"layer": k, "mean": POINT, "last": POINT} for k in (0, 1, 2)]
CURVE = [{"questions": k, "auroc": POINT, "best": POINT, "shrunk": POINT} for k in (5, 10)]


def run(capsys, *arguments):
    code = main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def scored(tmp_path, make_rollout):
    """Four questions of three responses; the reward prefers the right one in three of them."""
    rollouts = [
        make_rollout(f"q{q}", label=int(answer == "8"), answer=answer, reward=reward if q else -reward, prompt_ids=[1, q])
        for q in range(4)
        for answer, reward in zip("778", (-1.0, 0.0, 3.0), strict=True)
    ]
    path = tmp_path / "scored.jsonl"
    path.write_text("".join(one.to_json() + "\n" for one in rollouts))
    return path


@pytest.fixture
def parts(tmp_path):
    (tmp_path / "probe.json").write_text(json.dumps({"questions": 4, "layers": LAYERS}))
    (tmp_path / "curve.json").write_text(json.dumps({"label_efficiency": CURVE}))
    return tmp_path / "probe.json", tmp_path / "curve.json"


@pytest.fixture
def folder(tmp_path):
    SwiftRewardModel(SwiftConfig(8, (-1,), base_model="a/base")).save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


def test_the_page_the_charts_and_the_figures_are_written(capsys, scored, parts, tmp_path):
    report, out = tmp_path / "new" / "report.html", tmp_path / "pictures"
    places = ["--report", report, "--out", out, "--probe", parts[0], "--label-curve", parts[1]]
    code, printed, error = run(capsys, scored, *places, "--json")
    assert (code, error) == (0, "")
    data = json.loads(printed)
    assert (data["report"], data["out"]) == (str(report), str(out))
    assert (data["layers"], data["label_efficiency"]) == (LAYERS, CURVE)
    assert data["accuracy"]["swift_best"]["value"] == 0.75
    names = ["accuracy_by_n", "accuracy_by_tokens", "auroc_by_layer", "calibration", "differences", "label_efficiency"]
    files = [f"{name}.{kind}" for name in names for kind in ("csv", "svg")]
    assert sorted(path.name for path in out.iterdir()) == sorted([*files, "report.json"])
    written = json.loads((out / "report.json").read_text())
    assert written == {key: value for key, value in data.items() if key not in ("report", "out")}
    page = Page(report.read_text())
    assert [tag for tag, _ in page.elements].count("svg") == 6
    assert "scored.jsonl" in page.texts["title"][0]
    assert str(tmp_path) not in report.read_text()  # the folder is nobody's business


def test_a_table_says_what_was_written(capsys, scored, tmp_path):
    code, printed, _ = run(capsys, scored, "--report", tmp_path / "r.html")
    assert code == 0
    assert "swift_shrunk-majority" in printed
    assert f"report  {tmp_path / 'r.html'} (0." in printed
    assert "4 questions with 12 candidates, 0 of them with shaded tokens" in printed


def test_without_the_options_nothing_is_written(capsys, scored, tmp_path):
    before = sorted(tmp_path.iterdir())
    code, printed, _ = run(capsys, scored, "--json")
    assert code == 0
    assert not {"report", "out", "layers", "label_efficiency", "dataset"} & set(json.loads(printed))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], {"id": "local/scored", "task": "default"}), (["--dataset", "a/b"], {"id": "a/b", "task": "default"}),
        (["--dataset", "a/b:hard"], {"id": "a/b", "task": "hard"}),
    ],
)  # fmt: skip
def test_a_reward_model_gets_its_card_and_the_name_of_the_questions(capsys, scored, folder, given, told):
    code, _, error = run(capsys, scored, "--reward-model", folder, *given)
    assert (code, error) == (0, "")
    assert re.search(r"swift_best \| 75.0 ", (folder / "README.md").read_text())
    assert SwiftRewardModel.from_pretrained(folder).config.evaluation["dataset"] == told


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--report", "{tmp}"], 2, "{tmp} is a folder"), (["--report", "{scored}"], 2, "scored.jsonl is a file to read"),
        (["--report", "{scored}/x/r.html"], 1, "{scored}/x/r.html cannot be written: Not a directory"),
        (["--out", "{scored}"], 2, "--out {scored} is a file"),
        (["--out", "{scored}/x"], 1, "{scored}/x/report.json cannot be written"),
        (["--reward-model", "{tmp}/none"], 2, "--reward-model {tmp}/none is not a folder"),
        (["--dataset", "a/b"], 2, "--dataset 'a/b' is for a reward model's"),
        (["--reward-model", "{rm}", "--dataset", ":x"], 2, "--dataset must be ID or ID:TASK"),
        (["--reward-model", "{rm}", "--dataset", "x:"], 2, "--dataset must be ID or ID:TASK"),
        *(
            (["--reward-model", "{rm}", "--dataset", given], 2, f"openai/gsm8k:main, got {given!r}: ")
            for given in (
                "a b", "../x", "<b>", "a\nb", "a/b/c", "a--b", "x" * 97, "openai/gsm8k:main:extra", "a/b:c d", "a/b:x\n"
            )
        ),
        (["--probe", "{tmp}/none"], 2, "{tmp}/none"),
        (["--probe", "{scored}"], 2, "{scored} is not what `swift-rm probe --out` writes"),
        (["--probe", "{curve}"], 2, '{curve} is not what `swift-rm probe --out` writes: it has no "layers"'),
        (["--label-curve", "{probe}"], 2, '{probe} is not what `swift-rm train --label-curve` writes: it has no "label'),
    ],
)  # fmt: skip
def test_what_cannot_be_written_or_read_is_said_first(capsys, scored, parts, folder, tmp_path, options, code, sentence):
    known = {"tmp": tmp_path, "scored": scored, "rm": folder, "probe": parts[0], "curve": parts[1]}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "bad.jsonl").write_text("never read\n")
    found, printed, error = run(capsys, scored, tmp_path / "bad.jsonl", *(option.format(**known) for option in options))
    assert (found, printed, error.count("\n")) == (code, "", 1)
    assert sentence.format(**known) in error
    (tmp_path / "bad.jsonl").unlink()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("key", "option", "value"),
    [
        ("layers", "--probe", [{"layer": 1}]), ("layers", "--probe", [{"layer": "x", "mean": POINT, "last": POINT}]),
        ("layers", "--probe", {"layer": 1}), ("layers", "--probe", [{"layer": 1, "mean": 0.5, "last": POINT}]),
        ("label_efficiency", "--label-curve", [{"auroc": POINT}]), ("label_efficiency", "--label-curve", "x"),
    ],
)  # fmt: skip
def test_a_part_of_another_form_is_named(capsys, scored, tmp_path, key, option, value):
    (tmp_path / "part.json").write_text(json.dumps({key: value}))
    code, _, error = run(capsys, scored, option, tmp_path / "part.json")
    assert (code, error.count("\n")) == (2, 1)
    assert f"{tmp_path / 'part.json'} is not what" in error


def test_without_matplotlib_one_sentence_says_what_to_install(capsys, scored, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, error = run(capsys, scored, "--report", tmp_path / "r.html")
    assert (code, error.count("\n")) == (1, 1)
    assert 'pip install "swift-rm[report]"' in error
    assert not (tmp_path / "r.html").exists()
    assert run(capsys, scored)[0] == 0


def test_lone_surrogates_and_other_text_of_a_file_reach_the_page_as_code_points(capsys, scored, tmp_path):
    records = [json.loads(line) for line in scored.read_text().splitlines()]
    for record in records:
        record["response"] = "\ud800\x00\u202e</script><b onclick=x>" + "line\n" * 10_000
        record["tokens"] = {"text": ["\ud800", "</i>"], "gate": [1.0, 1.0], "reward": [1.0, -1.0]}
    scored.write_text("".join(json.dumps(record) + "\n" for record in records))
    code, _, error = run(capsys, scored, "--report", tmp_path / "r.html")
    assert (code, error) == (0, "")
    html = (tmp_path / "r.html").read_text()
    assert "\u2039U+D800\u203a" in html
    assert "&lt;/i&gt;" in html
    assert "</script>" not in html


def test_records_without_labels_are_refused_in_one_sentence(capsys, make_rollout, tmp_path):
    (tmp_path / "r.jsonl").write_text(make_rollout(label=None).to_json() + "\n")
    code, _, error = run(capsys, tmp_path / "r.jsonl", "--report", tmp_path / "r.html")
    assert (code, error) == (2, "swift-rm: 1 of 1 rollouts have no label; grade them first\n")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("option", "place"),
    [("--report", "scored.jsonl"), ("--out", "inputs"), ("--out", "beside")],
)
def test_nothing_is_written_over_what_is_read_or_over_the_page(capsys, scored, tmp_path, option, place):
    (tmp_path / "inputs").mkdir()
    source = tmp_path / "inputs" / "report.json" if place == "inputs" else scored
    source.write_bytes(scored.read_bytes())
    more = ["--report", tmp_path / "beside" / "report.json"] if place == "beside" else []
    code, out, error = run(capsys, source, option, tmp_path / place, *more)
    assert (code, out) == (2, "") and re.fullmatch(r"swift-rm: \S+ is a file to read, which writing would replace; .*\n", error)
    assert source.read_bytes() == scored.read_bytes()


def test_a_chart_that_cannot_be_written_is_found_before_the_work(capsys, scored, tmp_path):
    (tmp_path / "figures" / "calibration.svg").mkdir(parents=True)
    code, out, error = run(capsys, scored, "--out", tmp_path / "figures")
    assert (code, out) == (2, "") and "calibration.svg is a folder" in error
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["calibration.svg"]


@pytest.mark.parametrize("option", ["--report", "--out", "--probe", "--label-curve"])
def test_an_empty_path_is_refused(capsys, scored, option):
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(scored), option, ""])
    assert "a path must not be empty" in capsys.readouterr().err
