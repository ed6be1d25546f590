"""What a search wrote, kept while it runs: a tree in which answers that begin alike share a path.

Nodes end where answers part, where the search thought something of an answer, and where answers end. Where there would
be too many, the oldest branches that were given up are left out.
"""

from array import array
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Many
from math import isnan
from typing import TYPE_CHECKING, NamedTuple

from trimtab.engine.plan import BASE
from trimtab.engine.results import Fate, Tree, TreeNode

if TYPE_CHECKING:
    from trimtab.engine.sequence import Sequence

NODES = 2000
"""that are kept, but for those on the way to answers that live or are told of"""
TOKENS = 131_072
"""of all nodes together, likewise"""


class _End(NamedTuple):
    """An answer that ends at a node; the choice or the candidate that it is, or both."""

    candidate: int | None
    choice: int | None
    reward: float | None


class _Node:
    """Tokens that follow those of the parent."""

    __slots__ = ("children", "ends", "fate", "live", "parent", "reward", "tokens", "value")

    def __init__(self, parent: "_Node | None", tokens: "array[int]") -> None:
        self.parent = parent
        self.tokens = tokens
        self.children: dict[int, _Node] = {}
        """by their first token"""
        self.value: float | None = None
        self.reward: float | None = None
        self.live = 0
        """trails that are here and not at their end"""
        self.ends: list[_End] = []
        self.fate: Fate = "pruned"

    @property
    def said(self) -> bool:
        """Whether its end has to stay one."""
        return self.value is not None or self.reward is not None or bool(self.ends)


class Lineage:
    """The tree of one request."""

    def __init__(self) -> None:
        self.root = _Node(None, array("q"))
        self._size, self._tokens, self._omitted = 1, 0, 0
        self._given_up: deque[_Node] = deque()
        """where branches ended, the oldest first"""

    def gone(self, node: _Node) -> bool:
        """Whether a node has been left out."""
        return node.parent is None and node is not self.root

    def grow(self, node: _Node, tokens: "array[int]") -> _Node:
        """The node at which `tokens` after `node` end."""
        at = 0
        while at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                child = node.children[tokens[at]] = _Node(node, tokens[at:])
                self._size, self._tokens = self._size + 1, self._tokens + len(child.tokens)
            elif (common := _common(child.tokens, tokens[at:])) < len(child.tokens):
                child = self._split(child, common)
            node, at = child, at + len(child.tokens)
        return node

    def lengthen(self, node: _Node, tokens: "array[int]") -> None:
        """Let `tokens` end a leaf where nothing else ends."""
        node.tokens.extend(tokens)
        self._tokens += len(tokens)

    def give_up(self, node: _Node) -> None:
        """Note that a branch ends here, and leave out the oldest where there are too many."""
        self._given_up.append(node)
        while self._given_up and (self._size > NODES or self._tokens > TOKENS):
            left = self._given_up.popleft()
            while left.parent is not None and not (left.children or left.live or left.ends):
                above = left.parent
                del above.children[left.tokens[0]]
                left.parent = None
                self._size, self._tokens = self._size - 1, self._tokens - len(left.tokens)
                self._omitted += 1
                left = above

    def tree(self, family: Iterable["Sequence"], choices: Many["Sequence"], candidates: Many["Sequence"]) -> Tree:
        """What was written, now that the answer is known; nothing may be noted afterwards."""
        place = {sequence: index for index, sequence in enumerate(choices)}
        ends = [(each, _End(index, place.pop(each, None), each.reward)) for index, each in enumerate(candidates)]
        known = {end.choice for _, end in ends}
        ends += [(each, _End(None, i, each.reward)) for i, each in enumerate(choices) if i not in known]
        for sequence, end in sorted(ends, key=lambda each: each[1].choice is None):
            self.grow(self.root, sequence.answer).ends.append(end)
        for sequence in family:
            if sequence.trail is not None and sequence.trail.lineage is self:
                sequence.trail.end(sequence)
        return Tree(tuple(self._told()), self._omitted)

    def _split(self, node: _Node, at: int) -> _Node:
        """Let a node begin later, and return the one above it that has its first tokens."""
        assert node.parent is not None
        upper = node.parent.children[node.tokens[0]] = _Node(node.parent, node.tokens[:at])
        node.parent, node.tokens = upper, node.tokens[at:]
        upper.children[node.tokens[0]] = node
        self._size += 1
        return upper

    def _told(self) -> list[TreeNode]:
        """All nodes, parents before children."""
        self._decide()
        nodes: list[TreeNode] = []
        left: list[tuple[_Node, int | None]] = [(self.root, None)]
        while left:
            node, parent = left.pop()
            tokens = node.tokens
            while len(node.children) == 1 and not node.said and node is not self.root:
                (node,) = node.children.values()
                tokens = tokens + node.tokens
            leaf = not node.children and node is not self.root
            own, *others = node.ends if node.ends and leaf else (_End(None, None, None), *node.ends)
            reward = node.reward if own.reward is None else own.reward
            index = len(nodes)
            nodes.append(TreeNode(parent, tuple(tokens), node.value, reward, node.fate, own.candidate, own.choice))
            nodes += [TreeNode(index, (), None, end.reward, _fate([end]), end.candidate, end.choice) for end in others]
            left += [(child, index) for child in reversed(node.children.values())]
        return nodes

    def _decide(self) -> None:
        """Say what became of each node."""
        ends: list[_Node] = []
        left = [self.root]
        while left:
            node = left.pop()
            ends += [node] if node.ends else []
            left += node.children.values()
        for end in ends:
            fate = _fate(end.ends)
            above: _Node | None = end
            while above is not None and above.fate not in (fate, "chosen"):
                above.fate, above = fate, above.parent


class Trail:
    """Where the tree has one sequence; a fork's begins where its original's is."""

    __slots__ = ("_depth", "_node", "_value", "lineage", "scored")

    def __init__(self, lineage: Lineage) -> None:
        self.lineage = lineage
        self.scored = -1
        """length of the answer, in tokens, at which it was scored last"""
        self._value: float | None = None
        """the last value that the tree has of the sequence"""
        self._stand(lineage.root, 0)

    def fork(self) -> "Trail":
        trail = Trail.__new__(Trail)
        trail.lineage, trail.scored, trail._value = self.lineage, -1, self._value
        gone = self.lineage.gone(self._node)
        trail._stand(self.lineage.root if gone else self._node, 0 if gone else self._depth)
        return trail

    def note(self, sequence: "Sequence") -> None:
        """Take the sequence into the tree as far as it goes, with what the search thinks of it now.

        Look-aheads, helpers and texts of another vocabulary are left out. A value that was there before the answer grew
        says nothing of it as it stands, unless it was given again.
        """
        if not sequence.candidate or sequence.base.name != BASE:
            return
        tail = sequence.tokens[sequence.prompt_length + self._depth :]
        node = self._node
        if tail and node.live == 1 and not (node.children or node.said) and node is not self.lineage.root:
            self.lineage.lengthen(node, tail)
            self._depth += len(tail)
        elif tail:
            self._move(self.lineage.grow(node, tail), self._depth + len(tail))
        value, reward = sequence.value, sequence.reward
        if value is not None and (value != self._value or (self.scored == self._depth and reward is None)):
            self._node.value = self._value = value
        if reward is not None and not isnan(reward):
            self._node.reward = reward

    def cut(self, sequence: "Sequence", generated: int) -> None:
        """Note the sequence, which is about to lose what follows its first `generated` tokens."""
        self.note(sequence)
        node, depth = self._node, self._depth
        while depth > generated:
            assert node.parent is not None
            node, depth = node.parent, depth - len(node.tokens)
        left = self._node
        self._move(node, depth)
        self._value, self.scored = None, -1
        self.lineage.give_up(left)

    def end(self, sequence: "Sequence") -> None:
        """Note the sequence for the last time."""
        self.note(sequence)
        self._node.live -= 1
        self.lineage.give_up(self._node)

    def _move(self, node: _Node, depth: int) -> None:
        self._node.live -= 1
        self._stand(node, depth)

    def _stand(self, node: _Node, depth: int) -> None:
        node.live += 1
        self._node, self._depth = node, depth


def _fate(ends: Iterable[_End]) -> Fate:
    return "kept" if all(end.choice is None for end in ends) else "chosen"


def _common(one: "array[int]", other: "array[int]") -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(at for at in range(length) if one[at] != other[at])
