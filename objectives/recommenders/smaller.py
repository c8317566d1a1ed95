"""Which of the published sizes of a family's students are below a baseline's own."""

from __future__ import annotations

from spaces.domains import Choice, Scalar


def no_larger(published: Choice, own: Scalar) -> Choice:
    """Of the published sizes of students, those below the baseline's own; and that, the last. Several widths are below
    others that are no fewer and of which one is no narrower than their widest."""

    def widths(size: Scalar) -> list[int]:
        return [int(width) for width in str(size).split("-")]

    def below(size: Scalar) -> bool:
        ours, theirs = widths(size), widths(own)
        return size != own and len(ours) <= len(theirs) and max(ours) <= max(theirs)

    return Choice((*filter(below, published.values), own))
