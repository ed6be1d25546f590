"""How long to train, at what rate, in which batches: one frozen object that every kind of guide shares."""

from pydantic import BaseModel, ConfigDict, Field


class Schedule(BaseModel):
    """Epochs, rates and batches of one training run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(3, ge=1, description="times that every example is seen at most")
    batch: int = Field(16, ge=1, description="examples in a step")
    lr: float = Field(1e-3, gt=0.0, description="highest learning rate of AdamW")
    warmup: float = Field(0.05, ge=0.0, le=1.0, description="share of the steps in which the rate rises")
    weight_decay: float = Field(0.0, ge=0.0, description="decay of AdamW")
    clip: float = Field(1.0, gt=0.0, description="largest norm of the gradient")
    patience: int = Field(2, ge=1, description="epochs without a better held-out loss before it stops")
    seed: int = Field(0, ge=0, description="of the start, the order and the held-out part")

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0: a linear rise, then a linear fall to 0."""
        rise = max(1, round(self.warmup * steps))
        return self.lr * min((step + 1) / rise, (steps - step) / max(1, steps - rise + 1))

    def batches(self, lengths: list[int], epoch: int) -> list[list[int]]:
        """Indices of an epoch's steps; a step's examples are of like length, the order is random."""
        import torch  # takes seconds, and the command line reads its options from here

        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(lengths), generator=generator).tolist()
        pool = self.batch * 32  # sorting within it makes like lengths, and leaves the order random
        found: list[list[int]] = []
        for at in range(0, len(order), pool):
            alike = sorted(order[at : at + pool], key=lengths.__getitem__)
            found += [alike[start : start + self.batch] for start in range(0, len(alike), self.batch)]
        return [found[index] for index in torch.randperm(len(found), generator=generator).tolist()]
