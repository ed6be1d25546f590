"""What every token-level strategy is: parameters that add their part to the plan of a request."""

from abc import abstractmethod

from trimtab.decoders.params import Params
from trimtab.decoders.steer.draft import Draft


class Steer(Params):
    """One part of how tokens are drawn; several in one request add up."""

    @abstractmethod
    def steer(self, draft: Draft) -> None:
        """Ask for what the strategy's formula needs; raises InvalidRequest that names the field."""
