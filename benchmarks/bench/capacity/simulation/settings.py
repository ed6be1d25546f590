"""`fleet` of a mix file: how requests arrive, where they go, and what goes wrong."""

from typing import Literal

from pydantic import Field, model_validator

from trimtab.bench.records import Record


class Bursts(Record):
    """Times of higher load: exponentially long, and so are the times between them."""

    factor: float = Field(4.0, gt=1.0)
    """load in a burst over load outside"""
    share: float = Field(0.1, gt=0.0, lt=1.0)
    """of the time"""
    seconds: float = Field(5.0, gt=0.0)
    """length of a burst, mean"""


class Prefixes(Record):
    """Beginnings that requests share, for routing by prefix: a replica that has read one need not read it again."""

    count: int = Field(1000, ge=1)
    skew: float = Field(1.0, ge=0.0)
    """exponent of their popularity, after Zipf; 0: all alike"""
    saves: float = Field(0.2, ge=0.0, lt=1.0)
    """share of a request's work that a replica saves which has read its prefix"""
    kept: int = Field(64, ge=1)
    """prefixes that a replica holds; the one used longest ago goes first"""
    overload: float = Field(1.5, ge=1.0)
    """a replica with more requests than so many times the mean, and two, is passed over"""


class Failures(Record):
    """Replicas that die, each after an exponential time, and are replaced."""

    every: float = Field(gt=0.0)
    """seconds that a replica lives, mean"""
    repair: float = Field(60.0, ge=0.0)
    """seconds until its replacement serves"""
    retry: Literal["queued", "all", "none"] = "queued"
    """which of its requests are sent elsewhere: those that had not begun, all of them, or none"""


class Autoscale(Record):
    """The number of replicas follows the requests in the system."""

    least: int = Field(1, ge=1)
    most: int = Field(ge=1)
    target: float = Field(gt=0.0)
    """requests for each replica"""
    interval: float = Field(10.0, gt=0.0)
    """seconds between two looks"""
    delay: float = Field(60.0, ge=0.0)
    """seconds until a new replica serves"""

    @model_validator(mode="after")
    def _least_before_most(self) -> "Autoscale":
        if self.least > self.most:
            raise ValueError(f"least={self.least} is above most={self.most}")
        return self


class Fleet(Record):
    """What `--simulate` adds to the load."""

    requests: int = Field(100_000, ge=1, le=10_000_000)
    warm_up: float = Field(0.1, ge=0.0, lt=1.0)
    """share of the requests, from the first on, that count nowhere"""
    routing: Literal["random", "two", "prefix"] = "two"
    """two: the one with fewer requests of two drawn at random"""
    bursts: Bursts | None = None
    """None: arrivals are Poisson"""
    slow_share: float = Field(0.0, ge=0.0, lt=1.0)
    """of replicas that are slow"""
    slow_speed: float = Field(0.5, gt=0.0, le=1.0)
    """of those, over that of the others"""
    prefixes: Prefixes = Prefixes()
    failures: Failures | None = None
    autoscale: Autoscale | None = None
