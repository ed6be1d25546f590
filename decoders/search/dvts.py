"""Diverse verifier tree search: n / m trees, each of which keeps its best step alone and goes on m ways from it.

Beeching, Tunstall and Rush 2024, https://huggingface.co/spaces/HuggingFaceH4/blogpost-scaling-test-time-compute.
Beam search with the beams set apart, so that one early favourite cannot crowd out the others.
"""

from trimtab.decoders.registry import strategy
from trimtab.decoders.search.beam_search import BeamSearch


@strategy(
    "dvts",
    paper="Beeching et al. 2024, Scaling test-time compute with open models",
    cost="n answers, n scores a step",
    needs=("reward",),
)
class DVTS(BeamSearch):
    """Beam search in n / m independent trees, each greedy by step."""

    @property
    def kept(self) -> int:
        return 1
