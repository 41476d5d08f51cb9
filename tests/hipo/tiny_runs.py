"""Short HiPO runs of the tiny reasoner, shared by the tests of the trainer."""

from __future__ import annotations

import warnings

from swift_rm.hipo.cold_start.questions import answer_grader, hipo_rows
from swift_rm.hipo.response.template import Template
from swift_rm.models.load import load_language_model
from swift_rm.tasks.task_lookup import open_world

NO_JUDGE = Template(judge=None)  # the packaged model knows no judge block


def homework(questions=6):
    task = open_world("homework")
    return hipo_rows(list(task.questions(questions))), answer_grader(task.grade)


def settings(folder, **changed):
    from swift_rm.hipo.trainer.hipo_trainer import HiPOConfig

    usual = {
        "max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 48,
        "report_to": "none", "use_cpu": True, "bf16": False, "logging_steps": 1, "learning_rate": 0.1, "optim": "sgd",
        "lr_scheduler_type": "constant", "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    return HiPOConfig(output_dir=str(folder), **(usual | changed))


def make_trainer(folder, *, data=None, grade=None, template=NO_JUDGE, model=None, others=None, **changed):
    """A trainer of a fresh copy of the tiny reasoner on a few homework questions, on the CPU."""
    from swift_rm.hipo.trainer.hipo_trainer import HiPOTrainer

    rows, homework_grade = homework()
    loaded, tokenizer = load_language_model(device="cpu", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return HiPOTrainer(
            model or loaded, grade or homework_grade, settings(folder, **changed), rows if data is None else data, tokenizer,
            template=template, **(others or {}),
        )  # fmt: skip


def weights(trainer):
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
