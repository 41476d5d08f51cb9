import itertools
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from swift_rm import SwiftConfig, SwiftRewardModel
from swift_rm.reward.calibration import Calibration


def reward_model(seed=0, **config):
    rm = SwiftRewardModel(SwiftConfig(**{"hidden_size": 6, "layers": (0, 2), **config}))
    with torch.no_grad():
        for parameter in rm.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(seed))
    return rm


def test_a_saved_model_is_the_same_when_loaded(tmp_path):
    calibration = Calibration("platt", 0.7, -0.3).to_dict()
    rm = reward_model(base_model="org/model", region="after:</think>", calibration=calibration, training={"questions": 12})
    rm.save_pretrained(tmp_path)
    loaded = SwiftRewardModel.from_pretrained(tmp_path)
    assert loaded.config == rm.config
    features, offsets = torch.randn(5, 12), torch.tensor([0, 2, 5])
    assert torch.equal(loaded(features, offsets), rm(features, offsets))
    assert loaded.probability([1.0]) == pytest.approx(1 / (1 + torch.exp(torch.tensor(-0.4)).item()))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_list_of_layers_and_gateless_heads():
    rm = reward_model(gate=False)
    assert rm.head.weight.shape == (1, 12)
    features, offsets = torch.randn(5, 12), torch.tensor([0, 2, 5])
    assert torch.allclose(rm([features[:, :6], features[:, 6:]], offsets), rm(features, offsets), atol=1e-6)
    scores = rm.token_scores(features)
    assert torch.equal(scores.gate, torch.ones(5))
    assert rm(features, offsets).tolist() == pytest.approx(
        torch.stack([scores.reward[:2].mean(), scores.reward[2:].mean()]).tolist()
    )


def test_token_scores_give_the_reward():
    rm = reward_model()
    features = torch.randn(4, 12)
    gate, reward = rm.token_scores(features)
    assert rm(features, torch.tensor([0, 4]))[0].item() == pytest.approx(((gate * reward).sum() / gate.sum()).item(), abs=1e-6)


@pytest.mark.parametrize("gate", [True, False])
def test_rewards_and_token_scores_are_differentiable(gate):
    rm = reward_model(gate=gate).double()
    features, offsets = torch.randn(5, 12, dtype=torch.float64, requires_grad=True), torch.tensor([0, 2, 5])
    parts = [features[:, :6], features[:, 6:]]
    inputs, gradients = (features, rm.head.weight, rm.head.bias), []
    for rewards, (gates, tokens) in (
        (rm(features, offsets), rm.token_scores(features)),
        by_the_formula(rm, features, offsets),
        rm.head.rewards_and_tokens(parts, offsets),
    ):
        sums = (rewards.square().sum(), tokens.square().sum(), *([gates.square().sum()] if gate else []))
        gradients.append([torch.autograd.grad(one, inputs, retain_graph=True) for one in sums])
    for way in gradients[1:]:
        for ours, theirs in zip(gradients[0], way, strict=True):
            assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))


def by_the_formula(rm, features, offsets):
    scores = features @ rm.head.weight.T + rm.head.bias
    gates, tokens = torch.sigmoid(scores[:, 0]) if rm.config.gate else torch.ones(len(features)), scores[:, -1]
    parts = list(itertools.pairwise(offsets.tolist()))
    return torch.stack([(gates[a:b] * tokens[a:b]).sum() / gates[a:b].sum() for a, b in parts]), (gates, tokens)


def test_a_rounded_head_is_still_summed_in_float32():
    rm, features, offsets = reward_model(), torch.randn(400, 12), torch.tensor([0, 2, 400])
    rough = reward_model().to(torch.bfloat16)
    assert rough(features.to(torch.bfloat16), offsets).dtype == torch.float32
    rm.load_state_dict({name: value.float() for name, value in rough.state_dict().items()})
    assert torch.allclose(rough(features, offsets), rm(features, offsets), atol=1e-6)


def test_the_card_says_what_is_read_and_how_it_does(tmp_path):
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    evaluation = {"questions": 30, "n": 16, "accuracy": {"swift_best": figure}, "auroc_within": {"swift": figure}}
    rm = reward_model(base_model="org/mo|del", training={"questions": 12, "responses": 96})
    rm.with_evaluation(evaluation).save_pretrained(tmp_path / "first")
    SwiftRewardModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path)  # the table outlives a load
    card = (tmp_path / "README.md").read_text()
    for expected in ("A linear head of 26 parameters", "| layers | 0, 2 of 0..?", "org/mo\\|del", "| questions | 12 |",
                     "30 questions, 16 responses each", "| swift_best | 50.0 | 40.0 to 60.0 |", "AUROC: 0.500"):  # fmt: skip
        assert expected in card


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"head.weight": torch.zeros(2, 12)}, r"expected .*'head\.bias'"),
        ({"head.weight": torch.zeros(2, 11), "head.bias": torch.zeros(2)}, r"\(2, 12\).*found .*\(2, 11\)"),
        ({"head.weight": torch.zeros(2, 12), "head.bias": torch.zeros(2), "more": torch.zeros(1)}, "'more'"),
        ({"head.weight": torch.full((2, 12), torch.nan), "head.bias": torch.zeros(2)}, r"NaN or Inf in \['head\.weight'\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, tensors, message):
    reward_model().save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        SwiftRewardModel.from_pretrained(tmp_path)


def test_damaged_files_are_refused_in_one_sentence(tmp_path):
    reward_model().save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="is not a readable reward model"):
        SwiftRewardModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "config.json").write_text('{"hidden_size": ')
    with pytest.raises(ValueError, match="is not a readable reward model"):
        SwiftRewardModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no config\.json"):
        SwiftRewardModel.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no reward model folder"):
        SwiftRewardModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no reward model 'tiny-reasoner-rewrad': it is no folder here"):
        SwiftRewardModel.from_pretrained("tiny-reasoner-rewrad")


def test_a_failed_save_leaves_the_old_model_whole(tmp_path, monkeypatch):
    reward_model(base_model="org/old").save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        reward_model(seed=1, base_model="org/new").save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("stem", "rows"), [("fused_layer", 2), ("reward_layer", 1)])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_checkpoints_are_read(tmp_path, stem, rows, prefix):
    weight, bias = torch.randn(rows, 12), torch.randn(rows)
    torch.save({f"{prefix}{stem}.weight": weight, f"{prefix}{stem}.bias": bias}, tmp_path / "best.pt")
    rm = SwiftRewardModel.from_published(tmp_path / "best.pt", layers=(0, 2), hidden_size=6, base_model="org/model")
    assert torch.equal(rm.head.weight, weight)
    assert torch.equal(rm.head.bias, bias)
    assert (rm.config.position, rm.config.gate, rm.config.base_model) == ("token", rows == 2, "org/model")
    rm.save_pretrained(tmp_path / "rm")
    assert torch.equal(load_file(tmp_path / "rm" / "model.safetensors")["head.weight"], weight)


class Trap:
    def __reduce__(self):
        return (open, (os.environ["SWIFT_RM_TRAP"], "w"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"fused_layer.weight": torch.zeros(2, 12), "fused_layer.bias": torch.zeros(2)},
            r"12 weights per row, but 3 layers x .* = 18",
        ),
        ({"fused_layer.weight": torch.zeros(3, 18), "fused_layer.bias": torch.zeros(3)}, r"weight \[2, D\].*got \(3, 18\)"),
        ({"linear.weight": torch.zeros(2, 12)}, r"holds \['linear\.weight'\]; expected fused_layer"),
        ([1, 2], "not a bare state_dict"),
        ({"fused_layer.weight": Trap()}, "not a checkpoint of plain tensors"),
    ],
)
def test_other_files_are_refused_and_nothing_is_unpickled(tmp_path, content, message, monkeypatch):
    monkeypatch.setenv("SWIFT_RM_TRAP", str(tmp_path / "sprung"))
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        SwiftRewardModel.from_published(tmp_path / "x.pt", layers=(0, 1, 2), hidden_size=6)
    assert not (tmp_path / "sprung").exists()


def test_a_file_that_is_no_checkpoint_at_all(tmp_path):
    (tmp_path / "x.pt").write_text("hello")
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
        SwiftRewardModel.from_published(tmp_path / "x.pt", layers=(0,), hidden_size=6)


def test_config_json_holds_all_that_identifies_the_base(tmp_path):
    reward_model(base_model="org/model", base_revision="abc", base_layers=2, fingerprint="0" * 16).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    expected = {"base_model": "org/model", "base_revision": "abc", "base_layers": 2, "hidden_size": 6, "layers": [0, 2]}
    assert expected.items() <= stored.items()


def test_push_to_hub_uploads_the_three_files(tmp_path, monkeypatch):
    uploaded = {}

    class Api:
        def __init__(self, **kwargs):
            pass

        def create_repo(self, repo_id, **kwargs):
            return type("Repo", (), {"repo_id": repo_id})()

        def upload_folder(self, repo_id, folder_path, **kwargs):
            uploaded.update({repo_id: {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}})
            return "https://example.org/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    rm = reward_model(base_model="org/model")
    assert rm.push_to_hub("me/rm") == "https://example.org/commit"
    assert rm.save_pretrained(tmp_path, push_to_hub=True, repo_id="me/other") == "https://example.org/commit"
    local = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert uploaded == {"me/rm": local, "me/other": local}


def test_another_models_folder_is_never_overwritten(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"weights of a language model")
    with pytest.raises(ValueError, match="holds another model"):
        reward_model().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights of a language model"
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        reward_model().save_pretrained(tmp_path / "file")


def test_our_card_is_renewed_and_a_foreign_readme_left_alone(tmp_path):
    reward_model(base_model="org/one").save_pretrained(tmp_path)
    reward_model(base_model="org/two").save_pretrained(tmp_path)
    assert "org/two" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("my project")
    reward_model().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my project"
