"""Street graphs: a rotated grid with uneven blocks, or an irregular one with bent blocks and missing streets."""

import math
import random
from collections.abc import Iterable, Sequence

from recipe.amft.tasks.virl.geography import Point, heading_change, plane_heading

Edge = tuple[int, int]

MIN_ANGLE = 45.0  # degrees between two streets at a node, so that directions and facades stay apart


def street_graph(style: str, size: int, rng: random.Random) -> tuple[tuple[Point, ...], tuple[Edge, ...]]:
    """Nodes (metres) and streets (pairs of node indices) of `size` x `size` crossings around the origin; connected."""
    irregular = style == "irregular"
    columns, rows = (_offsets(size, rng, (75, 115) if irregular else (65, 110)) for _ in range(2))
    nodes = [(x, y) for y in rows for x in columns]
    if irregular:
        nodes = [(x + rng.uniform(-20, 20), y + rng.uniform(-20, 20)) for x, y in nodes]
        twist = math.radians(rng.uniform(25, 50)) * rng.choice((-1, 1)) / max(columns[-1], rows[-1])
        nodes = [_rotated(point, twist * math.hypot(*point)) for point in nodes]
    angle = math.radians(rng.uniform(0, 90))
    nodes = [_rotated(point, angle) for point in nodes]
    edges = [(i, i + 1) for i in range(size * size) if i % size < size - 1]
    edges += [(i, i + size) for i in range(size * (size - 1))]
    edges = _without_sharp_corners(nodes, edges)
    for edge in rng.sample(edges, len(edges) * (12 if irregular else 6) // 100):
        remaining = [other for other in edges if other != edge]
        if _connected(len(nodes), remaining):
            edges = remaining
    return tuple(nodes), tuple(edges)


def neighbours(edges: Iterable[Edge]) -> dict[int, list[int]]:
    """The nodes next to each node."""
    table: dict[int, list[int]] = {}
    for a, b in edges:
        table.setdefault(a, []).append(b)
        table.setdefault(b, []).append(a)
    return table


def _offsets(size: int, rng: random.Random, block: tuple[float, float]) -> list[float]:
    offsets = [0.0]
    for _ in range(size - 1):
        offsets.append(offsets[-1] + rng.uniform(*block))
    return [offset - offsets[-1] / 2 for offset in offsets]


def _rotated(point: Point, angle: float) -> Point:
    sine, cosine = math.sin(angle), math.cos(angle)
    return (point[0] * cosine - point[1] * sine, point[0] * sine + point[1] * cosine)


def _without_sharp_corners(nodes: Sequence[Point], edges: list[Edge]) -> list[Edge]:
    """Drops streets that meet another one at less than MIN_ANGLE, as far as the graph stays connected."""
    for edge in list(edges):
        remaining = [other for other in edges if other != edge]
        if _is_sharp(nodes, edge, edges) and _connected(len(nodes), remaining):
            edges = remaining
    return edges


def _is_sharp(nodes: Sequence[Point], edge: Edge, edges: Iterable[Edge]) -> bool:
    table = neighbours(edges)
    for here, there in (edge, edge[::-1]):
        heading = plane_heading(nodes[here], nodes[there])
        others = (plane_heading(nodes[here], nodes[node]) for node in table[here] if node != there)
        if any(abs(heading_change(heading, other)) < MIN_ANGLE for other in others):
            return True
    return False


def _connected(num_nodes: int, edges: Iterable[Edge]) -> bool:
    table = neighbours(edges)
    seen, waiting = {0}, [0]
    while waiting:
        fresh = set(table.get(waiting.pop(), ())) - seen
        seen |= fresh
        waiting += fresh
    return len(seen) == num_nodes
