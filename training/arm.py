"""An autoregressive reward model: an adapter whose log-probabilities are the reward (GenARM, arXiv 2410.08193)."""

from trimtab.engine.guides.card import Card
from trimtab.training.answers import open_answers
from trimtab.training.contrasts import Contrasts
from trimtab.training.lora import Adapted
from trimtab.training.options import ArmOptions
from trimtab.training.writer import train_writer


def train_arm(options: ArmOptions) -> Card:
    """Train and write an autoregressive reward model; raises DataError, ModelLoadError or TrainingError.

    From preferences, or from the best and the worst of a prompt's rated or sampled answers.
    """
    answers = open_answers(options)
    examples = answers.contrasts()
    adapted = Adapted(answers.loaded, options.lora, options.schedule.seed)
    task = Contrasts(adapted, examples, options, reference=False)
    return train_writer(adapted, task, answers, options)
