"""Groups of methods that cannot be told apart: the largest sets in which no two differ.

    indistinguishable(["a", "b", "c"], [("a", "c")])   == [("a", "b"), ("b", "c")]       a and c differ, b stands with both

"Not told apart" is not transitive, so groups overlap; they are the maximal cliques of the pairs that do not differ (C. Bron and
J. Kerbosch, 1973).
"""

from collections.abc import Iterable, Sequence


def indistinguishable(names: Sequence[str], different: Iterable[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Maximal sets, each in the order of `names`, and they in the order of their members. One that differs from all stands alone.

    Raises:
        ValueError: a pair with a name that is not there, or with itself.
    """
    alike = {name: set(names) - {name} for name in names}
    for a, b in different:
        if a not in alike or b not in alike or a == b:
            raise ValueError(f"{a!r} and {b!r} are no pair of {', '.join(names)}")
        alike[a].discard(b)
        alike[b].discard(a)
    found: list[set[str]] = []

    def grow(clique: set[str], more: set[str], done: set[str]) -> None:
        if not more and not done:
            found.append(clique)
        for name in sorted(more, key=list(names).index):
            grow(clique | {name}, more & alike[name], done & alike[name])
            more, done = more - {name}, done | {name}

    grow(set(), set(names), set())
    place = {name: number for number, name in enumerate(names)}
    ordered = [tuple(sorted(clique, key=place.get)) for clique in found if clique]
    return sorted(ordered, key=lambda clique: [place[name] for name in clique])
