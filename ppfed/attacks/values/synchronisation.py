"""Find an element of a small group for each node of a graph, given what the elements of neighbours say of each other.

That is the core of several attacks: the group is that of the cipher's choices (negative or not, which order of
colours), nodes are pixels, and statistics tell of two neighbours which choices would fit together, never which choice
was made. The solver contracts edges greedily, the clearest first, and adds up the evidence of edges that become
parallel: greedy additive edge contraction (Keuper et al., ICCV 2015), for groups instead of clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.intp]
FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Group:
    """A finite group as tables; element 0 is the neutral one.

    Attributes
    ----------
    product : intp array, (G, G)
        ``product[a, b]`` is a times b.
    inverse : intp array, (G,)
    """

    product: IndexArray
    inverse: IndexArray

    @classmethod
    def of_xor(cls, bits: int) -> Group:
        """Make the group of ``bits`` independent flips; an element is the number whose bits say which are made."""
        numbers = np.arange(1 << bits)
        return cls(numbers[:, None] ^ numbers, numbers)

    @classmethod
    def of_orders(cls, things: int) -> Group:
        """Make the group of permutations in lexicographic order.

        Element p moves what was in place ``orders[p, k]`` to place k, as in the colour shuffle; a times b does b first.
        """
        orders = np.array(list(permutations(range(things))), dtype=np.intp)
        # b first: place k then holds orders[b, orders[a, k]].
        both = orders[np.arange(len(orders))[None, :, None], orders[:, None, :]]
        product = (both[:, :, None] == orders).all(axis=3).argmax(axis=2)
        return cls(product, (product == 0).argmax(axis=1))

    def times(self, other: Group) -> Group:
        """Make the direct product; its element ``a * len(other) + b`` is the pair (a, b)."""
        size = len(other)
        first, second = np.divmod(np.arange(len(self) * size), size)
        product = self.product[first[:, None], first] * size + other.product[second[:, None], second]
        return Group(product, self.inverse[first] * size + other.inverse[second])

    def __len__(self) -> int:
        return len(self.inverse)


def synchronise(group: Group, nodes: int, first: IndexArray, second: IndexArray, evidence: FloatArray) -> IndexArray:
    """Choose an element h for each node.

    Parameters
    ----------
    group : Group
    nodes : int
    first, second : intp array, (E,)
        The two ends of each edge. The graph need not be connected.
    evidence : float array, (E, G)
        Log-likelihood, up to a constant, that ``inverse(h[first]) * h[second]`` is each element.

    Returns
    -------
    intp array, (nodes,)
        Of each connected part, all elements may be multiplied from the left by one element: edges cannot tell.
    """
    root, element = np.arange(nodes), np.zeros(nodes, dtype=np.intp)
    edges = _Edges(first.astype(np.intp), second.astype(np.intp), evidence.astype(np.float64)).joined(group, nodes)
    while len(edges.first):
        chosen = edges.clearest(nodes)
        # The second end of each chosen edge goes into its first end; no node is in two chosen edges.
        into, shift = np.arange(nodes), np.zeros(nodes, dtype=np.intp)
        into[edges.second[chosen]] = edges.first[chosen]
        shift[edges.second[chosen]] = edges.evidence[chosen].argmax(axis=1)
        element = group.product[shift[root], element]
        root = into[root]
        edges = edges.moved(group, into, shift).joined(group, nodes)
    return element


@dataclass(frozen=True, eq=False)
class _Edges:
    first: IndexArray
    second: IndexArray
    evidence: npt.NDArray[np.float64]

    def clearest(self, nodes: int) -> IndexArray:
        """Pick the edges that are clearer than all others at both of their ends."""
        best = np.partition(self.evidence, -2, axis=1)
        clear = best[:, -1] - best[:, -2]
        most = np.full(nodes, -1.0)
        np.maximum.at(most, self.first, clear)
        np.maximum.at(most, self.second, clear)
        local = np.flatnonzero((clear == most[self.first]) & (clear == most[self.second]))
        # Of equally clear ones at a node, the first counts.
        number = np.full(nodes, len(clear))
        np.minimum.at(number, self.first[local], local)
        np.minimum.at(number, self.second[local], local)
        mutual: IndexArray = local[(number[self.first[local]] == local) & (number[self.second[local]] == local)]
        return mutual

    def moved(self, group: Group, into: IndexArray, shift: IndexArray) -> _Edges:
        """Let nodes be ``shift`` times the nodes that they went into, and drop the edges that closed on themselves."""
        first, second = into[self.first], into[self.second]
        kept = first != second
        evidence = self.evidence[kept]
        left, right = shift[self.first[kept]], shift[self.second[kept]]
        if left.any() or right.any():
            # The new relation is left * old * inverse(right); so ask for inverse(left) * new * right.
            old = group.product[group.product[group.inverse[left]], right[:, None]]
            evidence = np.take_along_axis(evidence, old, axis=1)
        return _Edges(first[kept], second[kept], evidence)

    def joined(self, group: Group, nodes: int) -> _Edges:
        """Direct all edges from the smaller to the larger node, and add up those between the same two."""
        if not len(self.first):
            return self
        turned = self.first > self.second
        evidence = np.where(turned[:, None], self.evidence[:, group.inverse], self.evidence)
        key = np.minimum(self.first, self.second) * nodes + np.maximum(self.first, self.second)
        order = np.argsort(key, kind="stable")
        key = key[order]
        start = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
        return _Edges(key[start] // nodes, key[start] % nodes, np.add.reduceat(evidence[order], start, axis=0))
