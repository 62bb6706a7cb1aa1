"""Which manifests stay, and what they need: pure functions of a survey."""

from __future__ import annotations

from collections.abc import Iterable

from registry.gc.survey import Node, Place, Survey


def staying(survey: Survey, led: dict[Place, set[Place]], grace: float, untagged: bool) -> set[Place]:
    """The manifests that stay. With `untagged`, those that nothing leads to do not, once they are older than `grace`
    seconds; without, every manifest stays."""
    if not untagged:
        return set(survey.nodes)
    roots = {place for place in survey.tagged if place in survey.nodes}
    # One that is condemned was written when it was condemned, which says nothing about its use.
    roots.update(
        place
        for place, node in survey.nodes.items()
        if node.manifest.condemned is None and survey.started - node.modified < grace
    )
    reached, pending = set(roots), list(roots)
    while pending:
        for place in led[pending.pop()] - reached:
            reached.add(place)
            pending.append(place)
    return reached


def needed(nodes: Iterable[Node]) -> set[Place]:
    """The blobs that manifests name, each in its repository."""
    return {(node.name, blob) for node in nodes for blob in node.blobs}


def leads_to(survey: Survey) -> dict[Place, set[Place]]:
    """For each manifest those that stay because of it: what it lists, and what refers to it."""
    led: dict[Place, set[Place]] = {place: set() for place in survey.nodes}
    for node in survey.nodes.values():
        led[node.place].update(place for child in node.children if (place := (node.name, child)) in led)
        if node.subject is not None and (node.name, node.subject) in led:
            led[node.name, node.subject].add(node.place)
    return led


def leaders_first(led: dict[Place, set[Place]]) -> list[Place]:
    """Every manifest, each after those because of which it stays. An index that refers to what it lists makes a ring;
    the members of rings come last."""
    waiting = dict.fromkeys(led, 0)
    for places in led.values():
        for place in places:
            waiting[place] += 1
    order = [place for place, count in waiting.items() if not count]
    for leader in order:
        for place in led[leader]:
            waiting[place] -= 1
            if not waiting[place]:
                order.append(place)
    return [*order, *(place for place, count in waiting.items() if count)]
