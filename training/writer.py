"""An adapter that writes: fitted to answers, saved, and told of. What arms and experts have in common."""

from trimtab.engine.guides.card import Card
from trimtab.training.answers import Answers
from trimtab.training.loop import Task, fit
from trimtab.training.lora import Adapted
from trimtab.training.options import ArmOptions, ExpertOptions
from trimtab.training.run import finish, settings_of


def train_writer(adapted: Adapted, task: Task, answers: Answers, options: ArmOptions | ExpertOptions) -> Card:
    """Fit `adapted` by `task` and write its folder; raises TrainingError."""
    run = settings_of(options) | answers.settings
    progress = fit(task, options.schedule, options.out, run=run, label=options.kind)
    adapted.save(options.out, task="CAUSAL_LM")
    return finish(
        options,
        answers.loaded,
        progress.history[progress.best],
        examples=answers.records,
        policy=answers.policy,
        progress=progress,
    )
