import json
import os
import signal
import threading
import time

import pytest

from swift_rm.cli.main import main

pytest.importorskip("trl")

SMALL = ["--task", "homework:test:easy", "--questions", "12"]
TRAIN = ["hipo", "train", *SMALL, "--steps", "2", "--prompts-per-step", "2", "--num-generations", "2", "--lr", "1e-4"]
TRAIN += ["--max-completion-length", "40", "--device", "cpu", "--json"]


def run(capsys, *arguments):
    code = main(list(arguments))
    said = capsys.readouterr()
    return code, (json.loads(said.out) if said.out else None), said.err


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    """A cold start of a few easy questions and the model trained on it, as the command line makes them."""
    folder = tmp_path_factory.mktemp("recipe")
    data = ["hipo", "data", "--model", "tiny-reasoner", *SMALL, "-n", "4", "--explainer", "terse", "--device", "cpu"]
    assert main([*data, "--max-new-tokens", "40", "--out", str(folder / "data")]) == 0
    sft = ["hipo", "sft", "--model", "tiny-reasoner", "--data", str(folder / "data" / "cold.jsonl"), "--device", "cpu"]
    assert main([*sft, "--out", str(folder / "cold"), "--lr", "3e-3", "--epochs", "25", "--batch-size", "4", "--json"]) == 0
    return folder


def test_the_recipe_from_data_to_report(cold, capsys, tmp_path):
    """Every step reads what the one before wrote, and the numbers on stdout are those of the files."""
    rows = [json.loads(line) for line in (cold / "data" / "cold.jsonl").read_text().splitlines()]
    counts = json.loads((cold / "data" / "counts.json").read_text())
    assert counts["kept"] == len(rows) and counts["kept"] + counts["dropped"] == counts["questions"] == 12
    assert {row["mode"] for row in rows} <= {"on", "off"} and all("<judge>" in row["completion"] for row in rows)
    assert len((cold / "data" / "on.jsonl").read_text().splitlines()) == 48

    code, told, _ = run(capsys, *TRAIN, "--model", str(cold / "cold"), "--out", str(tmp_path / "run"))
    assert (code, told["steps"], told["questions"]) == (0, 2, 12)
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert told["figures"]["hipo/format"]["last"] == log[1]["hipo/format"] > 0
    assert (tmp_path / "run" / "model.safetensors").exists()

    code, told, _ = run(capsys, "hipo", "report", str(tmp_path / "run"), "--out", str(tmp_path / "run.html"), "--json")
    assert code == 0 and told["figures"]["hipo/format"]["last"] == log[1]["hipo/format"]
    assert "<svg" in (tmp_path / "run.html").read_text()

    code, _, said = run(capsys, *TRAIN, "--model", str(cold / "cold"), "--out", str(tmp_path / "run"))
    assert code == 2 and "holds checkpoint-2 of a run: go on with it by --resume" in said
    (tmp_path / "run" / "checkpoint-9").mkdir()  # killed while it was being written
    code, told, _ = run(capsys, *TRAIN, "--model", str(cold / "cold"), "--out", str(tmp_path / "run"), "--resume", "--steps", "3")
    assert (code, told["steps"]) == (0, 3)
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    for name in ("config.json", "model.safetensors"):  # killed while the model was being saved
        (tmp_path / "run" / name).unlink()
    code, told, _ = run(capsys, *TRAIN, "--model", str(cold / "cold"), "--out", str(tmp_path / "run"), "--resume", "--steps", "3")
    assert (code, told["steps"]) == (0, 3) and (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    again = [*TRAIN, "--model", str(cold / "cold"), "--out", str(tmp_path / "run"), "--resume", "--steps"]
    code, _, said = run(capsys, *again, "3")
    assert code == 2 and "holds checkpoint-3, so the --steps 3 are done: to go on, ask for more" in said
    assert not (tmp_path / "run" / "checkpoint-4").exists()
    code, _, said = run(capsys, *again, "4", "--gamma", "1")
    assert code == 2 and "was trained with gamma 0.3, but gamma is 1.0 now" in said


def test_rewards_of_hidden_states_and_adapters_by_command(capsys, tmp_path):
    code, told, said = run(
        capsys, *TRAIN, "--model", "tiny-reasoner", "--no-judge", "--reward-model", "tiny-reasoner-reward", "--out",
        str(tmp_path), "--reward-source", "swift", "--refresh", "1.0", "--oversample", "4", "--lora", "2", "--forced-modes",
    )  # fmt: skip
    assert code == 0, said
    assert told["figures"]["hipo/think_rate"]["last"] == 0.5
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").exists()
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / "adapter_model.safetensors").exists()
    settings = json.loads((tmp_path / "hipo.json").read_text())
    assert (settings["reward_source"], settings["oversample"], settings["template"]["judge"]) == ("swift", 4, None)


def test_tags_are_added_trained_and_merged_with_adapters(cold, capsys, tmp_path):
    """A tokenizer without the judge tags: refused with what to do, then given them; the merged model writes them."""
    from swift_rm.models.load import load_language_model

    model, tokenizer = load_language_model("tiny-reasoner-2", device="cpu", progress=False)
    from swift_rm.hipo.response.tags import missing_tags
    from swift_rm.hipo.response.template import Template

    if not missing_tags(tokenizer, Template()):
        vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
        vocabulary["added_tokens"] = [t for t in vocabulary["added_tokens"] if t["content"] not in ("<judge>", "</judge>")]
        text = json.dumps(vocabulary).replace("<judge>", "<jugde>").replace("</judge>", "</jugde>")
        from tokenizers import Tokenizer

        tokenizer._tokenizer = Tokenizer.from_str(text)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    sft = ["hipo", "sft", "--model", str(tmp_path / "base"), "--data", str(cold / "data" / "cold.jsonl"), "--device", "cpu"]
    sft += ["--out", str(tmp_path / "cold"), "--lora", "4", "--epochs", "4", "--lr", "1e-2", "--batch-size", "4", "--json"]
    code, _, said = run(capsys, *sft)
    assert code == 2 and "no single token for <judge>, </judge>: give --add-tags" in said
    code, told, said = run(capsys, *sft, "--add-tags")
    assert code == 0, said
    assert told["tags_added"] == 2 and told["loss_last"] < told["loss_first"]
    trained, other = load_language_model(str(tmp_path / "cold"), device="cpu", progress=False)
    assert missing_tags(other, Template()) == ()
    ids = other.convert_tokens_to_ids(["<judge>", "</judge>"])
    rows = trained.get_input_embeddings().weight
    old = model.get_input_embeddings().weight[: len(tokenizer)]
    assert all((rows[token] - old.mean(0)).abs().max() > 1e-6 for token in ids)


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(cold, capsys, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)

    def press():
        while not (tmp_path / "hipo.json").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    code, told, said = run(capsys, *TRAIN, "--model", str(cold / "cold"), "--out", str(tmp_path), "--steps", "200")
    assert code == 130
    assert f"checkpoint-{told['steps']} is kept, and the same command with --resume goes on from there" in said
    assert (tmp_path / f"checkpoint-{told['steps']}" / "hipo.json").exists() and told["steps"] < 200
    assert not (tmp_path / "model.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is before

    def pressed_again(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("swift_rm.hipo.trainer.hipo_trainer.HiPOTrainer.train", pressed_again)
    arguments = [*TRAIN, "--model", str(cold / "cold"), "--out", str(tmp_path), "--steps", "200", "--resume"]
    assert run(capsys, *arguments)[::2] == (130, f"swift-rm: {said.removeprefix('swift-rm: ')}")


def test_adaptthink_compares_with_the_accuracy_before(cold, capsys, tmp_path):
    arguments = [*TRAIN, "--model", str(cold / "cold"), "--advantages", "adaptthink", "--out", str(tmp_path)]
    code, _, said = run(capsys, *arguments)
    assert code == 2 and "adaptthink needs --baseline, graded rollouts" in said
    code, told, _ = run(capsys, *arguments, "--baseline", str(cold / "data" / "on.jsonl"))
    assert code == 0 and told["steps"] == 2
    code, _, said = run(
        capsys, *TRAIN, "--model", str(cold / "cold"), "--baseline", str(cold / "data" / "on.jsonl"), "--out", str(tmp_path / "x")
    )
    assert code == 2 and "--advantages hipo has no --baseline" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*TRAIN, "--refresh", "0.1"], "--refresh is about rewards of hidden states: give --reward-model, too"),
        ([*TRAIN, "--reward-source", "swift"], "--reward-source is about rewards of hidden states"),
        ([*TRAIN, "--num-generations", "1"], "--num-generations must be at least 2, got 1"),
        ([*TRAIN, "--batch-size", "3"], "2 questions x 2 responses = 4 do not spread over 1 processes in passes of 3"),
        ([*TRAIN, "--resume"], "--resume goes on from a checkpoint, but"),
        ([*TRAIN, "--steps", "0"], "--steps must be at least 1, got 0"),
        ([*TRAIN, "--lr", "0"], "lr must be a finite number above 0, got 0.0"),
        ([*TRAIN, "--epsilon", "nan"], "epsilon must be a finite number above 0, got nan"),
        ([*TRAIN, "--beta", "-1"], "--beta must be a finite number, 0 or more, got -1.0"),
        ([*TRAIN, "--prompts-per-step", "13"], "homework:test:easy gives 12 questions, fewer than the 13 of a step"),
        (["hipo", "data", *SMALL, "--delta", "2"], "shares between 0 and 1 (at_least above 0), got 2.0, 0.01"),
        (["hipo", "data", *SMALL], "the tokenizer cannot write the explanation 'thinking first was right in 7 of 8 tries"),
        (["hipo", "data", *SMALL, "--explainer", "https://me:sekret@h/v1?key=sekret"], "--explainer https://h/v1 is an endpoint"),
        (["hipo", "data", *SMALL, "--explainer", "http://", "--explainer-model", "m"], "'http://' is no address with a host"),
        (["hipo", "data", *SMALL, "--source", "swift"], "--source swift reads probabilities: give --reward-model, too"),
        (
            ["hipo", "data", *SMALL, "--explainer", "poet"],
            "--explainer must be rule, terse or the URL of an endpoint, got 'poet'",
        ),
        (["hipo", "data", *SMALL, "--explainer", "http://127.0.0.1:1/v1"], "say with --explainer-model"),
        (["hipo", "data", *SMALL, "--explainer-model", "x"], "--explainer-model x goes with the URL"),
    ],
)
def test_misuse_is_one_sentence(capsys, tmp_path, arguments, said):
    code = main([*arguments, "--model", "tiny-reasoner", "--out", str(tmp_path / "out")])
    message = capsys.readouterr().err
    assert code == 2 and said in message and message.count("\n") == 1 and "sekret" not in message
    assert not (tmp_path / "out" / "on.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--epochs", "0"], "epochs must be a finite number above 0, got 0.0"),
        (["--epochs", "inf"], "epochs must be a finite number above 0, got inf"),
        (["--lr", "nan"], "lr must be a finite number above 0, got nan"),
        (["--batch-size", "0"], "batch_size must be a finite number above 0, got 0"),
        (["--no-judge"], "is not one of the template without a judge block ("),
        (["--out", "{cold}/cold"], "is the folder of --model, which training would replace: choose another"),
    ],
)
def test_misuse_of_sft_is_one_sentence(cold, capsys, tmp_path, arguments, said):
    usual = ["hipo", "sft", "--model", str(cold / "cold"), "--data", str(cold / "data" / "cold.jsonl"), "--device", "cpu"]
    code = main([*usual, "--out", str(tmp_path / "out"), *(one.format(cold=cold) for one in arguments)])
    message = capsys.readouterr().err
    assert code == 2 and said in message and message.count("\n") == 1
    assert not (tmp_path / "out" / "config.json").exists()


def test_an_unfit_trl_is_said_before_anything_is_loaded(capsys, tmp_path, monkeypatch):
    from swift_rm.hipo.trainer import trl_version as trl_range

    monkeypatch.setattr(trl_range, "version", lambda name: "1.15.0")
    assert main([*TRAIN, "--model", "no-such-model", "--out", str(tmp_path)]) == 1
    assert 'trl 1.15.0 is installed: pip install "swift-rm[rl]"' in capsys.readouterr().err


def test_a_report_of_what_is_no_run_is_refused(capsys, tmp_path):
    assert main(["hipo", "report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "trainer_state.json" in capsys.readouterr().err
