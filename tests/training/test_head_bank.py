import pytest
import torch

from swift_rm import SwiftConfig
from swift_rm.features.read_states import Features
from swift_rm.training.fit import fit_bank, fit_features
from swift_rm.training.fit_settings import FitSettings
from swift_rm.training.head_grid import HeadPlan, bank_layers, plan_grid
from swift_rm.training.head_validation import best_of
from tests.training.planted_states import CONFIG, auroc, planted

TWO = SwiftConfig(4, (0, 2))  # the planted states as two layers of four


def assert_alike(one, other, states, loss="bce"):
    """Equal but for rounding: in what the heads say, since the planted features' scales differ a millionfold.

    A loss of pairs does not know where rewards lie, so that their level is what rounding makes of it.
    """
    with torch.no_grad():
        for ours, theirs in zip(one.token_scores(states), other.token_scores(states), strict=True):
            if loss == "dpo":
                ours, theirs = ours - ours.mean(), theirs - theirs.mean()
            assert (ours - theirs).abs().max() < 1e-3 * max(1.0, float(theirs.abs().max()))


def bank(features, plans, layers=(0, 2), views=(("generating", "response"),)):
    return fit_bank(features, plans, layers, list(views))


def test_a_head_learns_in_a_bank_what_it_learns_alone():
    features = planted()
    plans = plan_grid(TWO, FitSettings(epochs=4), loss=["bce", "dpo"], gate=[True, False], lr=[0.003, 0.03])
    for plan, judged in zip(plans, bank(features, plans), strict=True):
        alone = fit_features(features, plan.config, plan.settings)
        assert judged.rm.config.training == alone.config.training
        assert_alike(judged.rm, alone, features.states, plan.settings.loss)
        assert judged.rm.head.gate == plan.config.gate


def test_a_head_of_one_layer_equals_one_that_never_saw_the_others():
    features = planted()
    plans = [HeadPlan(TWO, FitSettings(epochs=3), "both"), HeadPlan(SwiftConfig(4, (2,)), FitSettings(epochs=3), "last")]
    assert bank_layers(plans) == (0, 2)
    last = bank(features, plans)[1]
    columns = Features(features.states[:, 4:].clone(), *vars_of(features))
    alone = fit_features(columns, SwiftConfig(4, (2,)), FitSettings(epochs=3))
    assert last.rm.head.weight.shape == (2, 4)
    assert_alike(last.rm, alone, features.states[:, 4:])


def vars_of(features):
    return features.offsets, features.labels, features.question


def test_views_read_their_own_rows_only():
    """The signal stands on the last row: a view without it is blind, and one with it equals a head that got these rows."""
    features = planted()
    ends = torch.zeros(len(features.states), dtype=torch.bool).index_fill(0, features.offsets[1:] - 1, True)
    views = (("token", "response"), ("token", "steps:x"))
    masked = Features(features.states, *vars_of(features), masks=torch.stack([~ends, ends], 1), views=views)
    plans = plan_grid(SwiftConfig(8, (0,), position="token"), FitSettings(epochs=5), region=[region for _, region in views])
    blind, seeing = bank(masked, plans, (0,), views)
    assert abs(blind.auroc.value - 0.5) < 0.2
    assert seeing.auroc.value > 0.95
    rows = Features(features.states[ends], torch.arange(len(features.labels) + 1), features.labels, features.question)
    alone = fit_features(rows, SwiftConfig(8, (0,)), FitSettings(epochs=5))
    assert_alike(seeing.rm, alone, features.states)


def test_the_best_is_chosen_on_held_out_questions_and_every_head_is_told():
    plans = plan_grid(TWO, FitSettings(epochs=6), layers=[(0,), (2,), (0, 2)])
    judged = bank(planted(), plans)
    assert best_of(judged).plan.name in ("layers=0", "layers=0,2"), "the signal stands in the first four columns"
    assert [one.row["name"] for one in judged] == ["layers=0", "layers=2", "layers=0,2"]
    assert all(one.auroc.low <= one.auroc.value <= one.auroc.high for one in judged)
    assert [one.row["parameters"] for one in judged] == [10, 10, 18]


def test_shards_give_what_one_table_gives_and_in_any_shuffle_only_one_is_open():
    features = planted()
    cut = int((features.question < 25).sum())

    class Shards:
        labels, question = features.labels, features.question
        opened = 0

        def __len__(self):
            return 2

        def shard(self, index):
            here = torch.arange(len(features.labels))[[slice(cut), slice(cut, None)][index]]
            return features.only(here)

    rm = fit_features(Shards(), CONFIG, FitSettings(lr=0.03))
    assert auroc(rm, planted(seed=1)) > 0.95
    assert rm.config.training["questions"] + rm.config.training["validation_questions"] == 60


def confounded(seed=0, questions=80, n=6):
    """What a question is tells how likely a response is right, loudly; whether this one is right, only faintly."""
    generator = torch.Generator().manual_seed(seed)
    easy = torch.rand(questions, generator=generator) < 0.5
    chance = torch.where(easy, 0.85, 0.15).repeat_interleave(n)
    labels = (torch.rand(questions * n, generator=generator) < chance).long()
    states = torch.randn(questions * n, 2, generator=generator)
    states[:, 0] = 3 * easy.repeat_interleave(n) + 0.3 * (1 - 2 * labels) * torch.rand(questions * n, generator=generator)
    states[:, 1] += 0.4 * (2 * labels - 1)
    return Features(states, torch.arange(questions * n + 1), labels, torch.arange(questions).repeat_interleave(n))


def test_centring_and_balance_remove_what_only_tells_questions_apart():
    plans = plan_grid(SwiftConfig(2, (0,)), FitSettings(lr=0.03), centre=[False, True], balance=["response", "question"])
    judged = {one.plan.name: one for one in bank(confounded(), plans, (0,))}
    fresh = confounded(seed=1, questions=200)
    values = {name: auroc(one.rm, fresh) for name, one in judged.items()}
    plain = values["centre=False balance=response"]
    assert values["centre=True balance=response"] > plain + 0.03
    assert values["centre=True balance=question"] > plain + 0.03


def test_centred_scores_are_those_of_centred_states():
    from swift_rm.training.head_bank import HeadBank
    from swift_rm.training.input_standardisation import measure_scaling

    features, settings = planted(questions=10), FitSettings(centre=True)
    everything = torch.arange(10)
    scaling = measure_scaling(features, everything)
    batch = features.batch(torch.arange(len(features.labels)))
    row = batch.question.repeat_interleave(batch.offsets.diff())
    mean = torch.stack([batch.states[row == q].mean(0) for q in range(10)])
    plain = Features(batch.states - mean[row] + scaling[0].mean, *vars_of(features))
    ours = HeadBank([HeadPlan(CONFIG, settings)], (0,), [("generating", "response")], scaling, right_share=0.5, questions=10)
    slow = HeadBank([HeadPlan(CONFIG, FitSettings())], (0,), [("generating", "response")], scaling, right_share=0.5, questions=10)
    for one, source in ((ours, features), (slow, plain)):
        one.members[0].rm.head.weight.data.copy_(torch.linspace(-1, 1, 16).view(2, 8))
        one.loss_now = float(one.losses(source.batch(torch.arange(len(features.labels))))[0].detach())
    assert ours.loss_now == pytest.approx(slow.loss_now, abs=1e-5)


def test_standardising_by_layer_keeps_the_ratios_within_a_layer():
    from swift_rm.training.input_standardisation import Scaling

    scaling = Scaling(torch.arange(4.0), torch.tensor([1.0, 3.0, 5.0, 5.0]))
    by_layer = scaling.of(slice(None), "layer", 2)
    assert torch.allclose(by_layer.scale, torch.tensor([5.0, 5.0, 25.0, 25.0]).sqrt())
    assert torch.equal(by_layer.mean, scaling.mean)
    none = scaling.of(slice(None), "none", 2)
    assert torch.equal(none.scale, torch.ones(4)) and torch.equal(none.mean, torch.zeros(4))
    for how in ("feature", "layer", "none"):
        rm = fit_features(planted(), TWO, FitSettings(lr=0.03 if how == "feature" else 0.003, standardise=how))
        assert torch.isfinite(rm.head.weight).all()


def test_an_ensemble_is_one_reward_model_whose_members_differ():
    features = planted(noise=1.5)
    rm = fit_features(features, CONFIG, FitSettings(ensemble=3, pessimism=1.0, epochs=4))
    assert rm.config.heads == 3 and rm.config.pessimism == 1.0
    with torch.no_grad():
        heads = rm.head_rewards(features.states, features.offsets)
        rewards = rm(features.states, features.offsets)
    assert torch.allclose(rewards, heads.mean(1) - heads.std(1, correction=0), atol=1e-4)
    assert heads.std(1).mean() > 1e-3
    again = fit_features(features, CONFIG, FitSettings(ensemble=3, pessimism=1.0, epochs=4))
    assert torch.equal(rm.head.weight, again.head.weight)
    assert rm.calibration is not None and rm.config.training["ensemble"] == 3


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"depth": [1]}, "varies layers, position, region, gate or a field of FitSettings, got 'depth'"),
        ({"heads": [2, 3]}, "got 'heads'"),
        ({"layers": 5}, "layers needs a list of values, got 5"),
        ({"layers": [5]}, "a head cannot have layers=5"),
        ({"lr": ["fast"]}, "a head cannot have lr=fast"),
        ({"region": [5]}, "a head cannot have region=5"),
        ({"epochs": [1, 2]}, "'epochs' is the same for all heads of a bank"),
        ({"loss": "bce"}, "loss needs a list of values, got 'bce'"),
        ({"loss": []}, "loss needs a list of values"),
        ({"loss": ["bce", "cosine"]}, "got 'cosine'"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        plan_grid(TWO, **choices)


def test_what_a_bank_does_not_hold_is_refused():
    with pytest.raises(ValueError, match="at least one head"):
        bank(planted(), [])
    with pytest.raises(ValueError, match=r"reads layer 5, but the features hold the layers \(0, 2\)"):
        bank(planted(), plan_grid(TWO, layers=[(5,)]))
    with pytest.raises(ValueError, match="share seed: 'a' has 0, 'b' 1"):
        bank(planted(), [HeadPlan(TWO, FitSettings(), "a"), HeadPlan(TWO, FitSettings(seed=1), "b")])
    views = (("generating", "response"), ("token", "response"))
    with pytest.raises(ValueError, match="reads position 'generating' and region 'steps:x', but the features hold"):
        bank(planted(), plan_grid(TWO, region=["steps:x"]), views=views)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"standardise": "row"}, "standardise must be one of .* got 'row'"),
        ({"balance": "none"}, "balance must be one of .* got 'none'"),
        ({"ensemble": 0}, "ensemble must be positive, got 0"),
        ({"ensemble": 2, "pessimism": -1.0}, "pessimism must be 0 or more, got -1"),
        ({"pessimism": 1.0}, "needs an ensemble: one head has no spread"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FitSettings(**settings)
