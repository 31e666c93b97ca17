"""Zonelists: in which order a node's requests turn to other nodes (mm/page_alloc.c ``build_all_zonelists``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kmemd.mm.mmzone import Node

PENALTY_FOR_NODE_WITH_CPUS = 1


def build_all_zonelists(nodes: Sequence[Node]) -> list[list[int]]:
    """Every node's fallback order. Several nodes at one distance share the load of those that fall back to them."""
    load = [0] * len(nodes)
    return [_node_order(nodes, node, load) for node in nodes]


def zonelist_rows(orders: Sequence[list[int]]) -> Iterator[list[int]]:
    """The nodes of each row of the core's table: of a node with fallback, and of the node alone (__GFP_THISNODE)."""
    for nid, order in enumerate(orders):
        yield order
        yield [nid]


def zones_of(nodes: Sequence[Node], order: Sequence[int]) -> list[int]:
    """Indices of the zones of some nodes, the highest zone of each first."""
    return [zone.index for nid in order for zone in reversed(nodes[nid].zones) if zone.managed]


def _node_order(nodes: Sequence[Node], local: Node, load: list[int]) -> list[int]:
    """The nodes from nearest to farthest, evened out over equal distances (``find_next_best_node``)."""

    def weight(nid: int) -> int:
        """How far a node is; those without CPUs, and those used less, come first."""
        base = local.distance[nid] + (nid < local.nid)
        if nodes[nid].cpus:
            base += PENALTY_FOR_NODE_WITH_CPUS
        return base * 64 + load[nid]

    order: list[int] = [local.nid]
    previous = local.nid
    rest = {node.nid for node in nodes if node.has_memory} - {local.nid}
    while rest:
        best = min(sorted(rest), key=weight)
        rest.discard(best)
        if local.distance[best] != local.distance[previous]:
            load[best] += 1
        order.append(best)
        previous = best
    return order
