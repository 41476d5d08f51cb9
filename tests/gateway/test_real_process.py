"""`swift-rm serve` with the tiny reasoner, as people start it: a page, a reload, a broken reload, a wrong reward model."""

import json
import shutil
import signal

import pytest
from safetensors.torch import load_file, save_file

from swift_rm.models.load import ASSETS, TINY, TINY_2, TINY_REWARD
from tests.gateway.page_visits import visit, words
from tests.gateway.served_process import get, started

PROGRAM = ("-m", "swift_rm.cli", "serve", "--model", TINY, "--reward-model")


def test_the_tiny_reasoner_is_served_and_its_reward_model_exchanged(tmp_path):
    folder = tmp_path / "rm"
    shutil.copytree(ASSETS / TINY_REWARD, folder)
    weights = folder / "model.safetensors"
    with started(tmp_path, "--drain-s", "5", program=(*PROGRAM, str(folder))) as server:
        address = server.event("ready")["address"]
        question = {"messages": [{"role": "user", "content": "55-47-65+01+19"}], "model": "swift-best-of-4", "seed": 3}

        def reward():
            status, _, text = get(f"{address}/chat/completions", {**question, "n": 4})
            assert status == 200
            return sorted(one["reward"] for one in json.loads(text)["choices"])

        before = reward()
        status, _, html = visit(f"{address.removesuffix('/v1')}/", {"question": "55-47-65+01+19", "n": "3", "rule": "vote"})
        assert (status, "All 3 candidates chosen" in words(html)) == (200, True)
        assert "<answer>" in words(html)

        kept = load_file(weights)
        turned = {name: value.clone() for name, value in kept.items()}
        turned["head.weight"][1] *= -1
        turned["head.bias"][1] *= -1
        save_file(turned, weights)
        server.process.send_signal(signal.SIGHUP)
        assert server.event("reloaded")["reward_model"] == "rm"
        after = reward()
        assert after == pytest.approx([-one for one in reversed(before)], abs=1e-4)

        weights.write_bytes(b"broken")
        server.process.send_signal(signal.SIGHUP)
        assert "rm is not a readable reward model" in server.event("reload failed")["reason"]
        assert reward() == pytest.approx(after, abs=1e-6), "the old one stays"
        server.process.send_signal(signal.SIGTERM)
        assert server.ended()[0] == 0
    assert "55-47" not in "".join(server.said)


def test_a_reward_model_of_another_language_model_is_misuse(tmp_path):
    with started(tmp_path, program=("-m", "swift_rm.cli", "serve", "--model", TINY_2, "--reward-model", TINY_REWARD)) as server:
        code, said = server.ended(within=60)
    assert code == 2, server.said
    assert said == "swift-rm: the reward model was trained on tiny-reasoner with 4 layers, but tiny-reasoner-2 has 6\n"
