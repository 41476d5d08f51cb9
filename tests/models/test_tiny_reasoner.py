import random

import pytest
import torch
from courses import STAGES, Stage
from graded_corpus import CHECKS, batches, blend, make_tokenizer
from homework_corpus import HOMEWORK
from rewriting_corpus import REWRITING
from tiny_reasoner import Progress, grown, new_model
from train_tiny_reasoner import learn

from swift_rm.models.load import load_language_model
from swift_rm.reward.identity import fingerprint
from swift_rm.sampling.sample import sample
from swift_rm.tasks.task_lookup import WORLDS, open_task

LESSONS = {"homework": HOMEWORK, "rewriting": REWRITING}


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_grown_model_answers_as_before_and_all_of_it_learns(layers):
    torch.manual_seed(0)
    old, tokenizer = new_model("llama", 2, 32, make_tokenizer()), make_tokenizer(REWRITING.symbols)
    model = grown(old, layers, tokenizer)
    assert model.config.num_hidden_layers == 2 + layers == len(model.model.layers)
    assert old.config.num_hidden_layers == 2 and old.config.vocab_size < len(tokenizer) == model.config.vocab_size
    ids = torch.randint(3, old.config.vocab_size, (4, 20))
    with torch.no_grad():
        before, after = old(input_ids=ids).logits, model(input_ids=ids).logits
    torch.testing.assert_close(after[..., : old.config.vocab_size], before, rtol=0, atol=0)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)]
    window, source = (
        Progress(tokenizer, LESSONS),
        batches(tokenizer, random.Random(0), blend(CHECKS, {"rewriting": 1.0}), LESSONS, 8),
    )
    for _ in range(2):  # at the first step nothing flows behind a projection that is zero
        learn(model, optimizers, window, *next(source))
    assert [name for name, p in model.named_parameters() if torch.equal(p, start[name])] == []


def test_progress_counts_each_world_apart_and_the_goal_needs_all():
    tokenizer = make_tokenizer(REWRITING.symbols)
    window = Progress(tokenizer, LESSONS)
    right, wrong = tokenizer.convert_tokens_to_ids(["<right>", "<wrong>"])
    for text, told in (("27+15=42<right>", right), ("27+15=32<wrong>", wrong), ("bead~=daeb<right>", wrong)):
        ids = torch.tensor([tokenizer(f"<bos><marked>{text}, <eos>", add_special_tokens=False)["input_ids"]])
        logits = torch.zeros(*ids.shape, len(tokenizer))
        logits[..., told] = 1.0
        window.add(ids, logits[:, :-1], 0.5)
    assert window.known() == 0.0
    assert window.hits["homework"]["drill"] == [2, 2] and window.hits["rewriting"]["drill"] == [0, 1]
    assert window.flush() == 'loss 0.5000 marks right {"homework": {"drill": 1.0}, "rewriting": {"drill": 0.0}}'


def test_a_stage_shares_its_documents_among_the_worlds():
    assert STAGES[0].shares(["homework"]) == {"homework": 1.0}
    assert Stage("s", CHECKS, 8).shares(["homework", "rewriting"]) == {"homework": 0.5, "rewriting": 0.5}
    assert Stage("s", CHECKS, 8, newest=0.75).shares(["homework", "rewriting"]) == {"homework": 0.25, "rewriting": 0.75}
    assert Stage("s", CHECKS, 8, newest=0.75).shares(["homework"]) == {"homework": 1.0}


@pytest.mark.parametrize("world", WORLDS)
def test_the_second_tiny_reasoner_answers_both_worlds(world, tmp_path):
    model, tokenizer = load_language_model("tiny-reasoner-2", progress=False)
    assert model.config.num_hidden_layers == 6
    assert fingerprint(tokenizer) == fingerprint(make_tokenizer(REWRITING.symbols))
    questions, grade, _ = open_task(f"{world}:test:easy", questions=16, seed=0, grading="auto", chat_template=True)
    rollouts = sample(model, tokenizer, questions, 4, tmp_path / "r.jsonl", grade=grade, seed=0, progress=False)
    assert sum(rollout.answer is None for rollout in rollouts) <= 3
    assert 0.3 <= sum(rollout.label for rollout in rollouts) / len(rollouts) <= 0.9, "students err, but not always"
