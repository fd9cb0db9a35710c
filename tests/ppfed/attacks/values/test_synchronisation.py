"""Elements of a group from the relations of neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from ppfed.attacks.values.synchronisation import Group, synchronise

GROUPS = {
    "signs": Group.of_xor(1),
    "constants": Group.of_xor(2),
    "orders": Group.of_orders(3),
    "both": Group.of_xor(1).times(Group.of_orders(3)),
}


@pytest.mark.parametrize("name", GROUPS)
def test_tables_are_those_of_a_group(name: str) -> None:
    group = GROUPS[name]
    numbers = np.arange(len(group))
    product = group.product
    assert np.array_equal(product[0], numbers)
    assert np.array_equal(product[:, 0], numbers)
    assert not product[numbers, group.inverse].any()
    assert np.array_equal(product[product[:, :, None], numbers], product[numbers[:, None, None], product[None]]), (
        "associative"
    )


@pytest.mark.parametrize("name", GROUPS)
def test_relations_give_the_elements_up_to_one(name: str) -> None:
    group, nodes, rng = GROUPS[name], 40, np.random.default_rng(5)
    true = rng.integers(len(group), size=nodes)
    first, second = (ends.reshape(-1) for ends in np.meshgrid(np.arange(nodes), np.arange(nodes), indexing="ij"))
    edges = first != second
    first, second = first[edges], second[edges]
    evidence = rng.normal(size=(len(first), len(group)))
    # A single edge is wrong often, with evidence of two standard deviations; 78 of them at each node outvote that.
    evidence[np.arange(len(first)), group.product[group.inverse[true[first]], true[second]]] += 2
    found = synchronise(group, nodes, first, second, evidence)
    assert len(set(group.product[true, group.inverse[found]])) == 1


def test_parts_without_an_edge_are_left_apart() -> None:
    found = synchronise(Group.of_xor(1), 4, np.array([0, 2]), np.array([1, 3]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert found[0] != found[1]
    assert found[2] == found[3]
    assert not synchronise(Group.of_xor(1), 3, *(np.zeros(0, dtype=np.intp),) * 2, np.zeros((0, 2))).any()
