"""The rule of searches that sample: what they return follows a target law, unless the request names another rule."""

from trimtab.decoders.select import Argmax


class Sampled(Argmax):
    """The search has drawn its choices itself; of what an early end leaves, the highest reward.

    Another rule finds the choices among all answers instead: each once where it goes by rewards, and as often as the
    target has it where it goes by what they have in common.
    """
