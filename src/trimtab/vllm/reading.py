"""How far one guide has read one request."""

from dataclasses import dataclass, field

from trimtab.engine.pages import PageTable


@dataclass(eq=False, slots=True)
class Reading:
    """The pages that hold a guide's keys and values of a request; they can be given up and computed again."""

    table: PageTable
    holding: "dict[Reading, None]"
    """of the guide: readings that hold pages, the one unused for longest first"""
    alone: bool = False
    """it begins at the last token of the prompt"""
    skipped: int = field(default=0)
    """tokens of the request before the first that is read"""

    def free(self) -> None:
        """Give the pages back."""
        self.table.free()
        self.holding.pop(self, None)
