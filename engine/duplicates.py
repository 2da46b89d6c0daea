"""Which images are nearly the same, though a split or a fold takes them for different patients.

Two images are compared by the cosine between their standardised features. On the 720 paediatric
chest X-rays of Kermany et al. (2018) and the default features, the 258,545 pairs of different
patients have cosines of 0.00 with a spread of 0.15, and none above 0.66; the 295 pairs of one
patient a median of 0.30, and but for one image that is there twice none above 0.77. Of altered
copies of 60 images these shares are above 0.75, `LEAST_COSINE`:

====================================  =====
brighter (gamma 0.7), half the size     all
3 % cut off each side                  97 %
JPEG of quality 30                     95 %
turned by 3 degrees                    85 %
8 % cut off each side                   3 %
mirrored                                2 %
====================================  =====

So copies that were stored, resized or brightened again are found; mirrored and cropped ones are
not. The more pairs there are, the more of them are alike by chance: the threshold is what the
largest of so many normal variables of the measured spread comes to, sqrt(2 log pairs) times the
spread (Leadbetter, Lindgren, Rootzen 1983, section 1.5), within `LEAST_COSINE` and `MOST_COSINE`.

Up to `EXACT_ROWS` rows all pairs are compared. Above, rows are hashed by the signs of seeded random
projections (Charikar 2002, section 3), in `BANDS` tables of `BITS` bits; pairs that share an entry
are compared. Of pairs with a cosine of 0.95, 99 % share one; of 0.90, `HASHED_COSINE`, below which
the threshold is then not set, 94 %. 40,000 rows of 1,280 features with 500 copies took 2 seconds;
all were found. 50,000 rows took 30 MiB beside what reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.dataset import as_containers, chosen_spans
from engine.errors import SplitError
from engine.fitting import standardisation
from engine.rows import Crew, Feed, Rows, piece_rows
from engine.work import Course, Progress

if TYPE_CHECKING:
    from formats import Container

__all__ = [
    "EXACT_ROWS",
    "HASHED_COSINE",
    "LEAST_COSINE",
    "MOST_COSINE",
    "NearDuplicates",
    "compare_all_rows",
    "find_near_duplicates",
]

#: Cosines from which on two images may be called nearly the same; the number of pairs decides.
LEAST_COSINE, MOST_COSINE = 0.75, 0.95
#: The least where rows are hashed: pairs that are less alike seldom share an entry.
HASHED_COSINE = 0.9
#: Rows of which all pairs are compared: 200 million pairs, some ten seconds.
EXACT_ROWS = 20_000
#: Tables of hashes, and bits of an entry.
BANDS, BITS = 32, 16

# Rows whose pairs tell the spread of cosines of different patients.
_SAMPLE = 400
# Standardised features compared at once, on each of two sides, and their rows: cosines of all with
# all are held too.
_BLOCK_BYTES, _BLOCK_ROWS = 8 << 20, 1024
# Neighbours in a table that a row is compared with: entries of more rows are of images that are
# alike, not the same.
_NEIGHBOURS = 48
# Pairs whose hashes are compared at once, and pairs that are compared by their features.
_HASHED_PAIRS, _MOST_PAIRS = 1 << 16, 100_000
# Rows whose features are compared pair by pair at once.
_PAIR_BYTES = 4 << 20


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Pairs of rows that are nearly the same.

    Attributes
    ----------
    n_rows : int
        Rows compared.
    cosine : float
        From which on a pair counts.
    exact : bool
        Whether all pairs were compared, or those that share a hash.
    n_pairs, n_across_patients, n_across_splits : int
        Pairs; those of different patients; those on different sides of the marked split.
    first, second : int64 (m,)
        Places of the pairs among the rows compared, at most 100,000 of them.
    cosines : float64 (m,)
        Of these pairs.
    """

    n_rows: int
    cosine: float
    exact: bool
    n_pairs: int
    n_across_patients: int
    n_across_splits: int
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    cosines: NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """Return the counts alone: which rows they are stays with the caller."""
        return {
            "n_rows": self.n_rows,
            "n_pairs": self.n_pairs,
            "n_across_patients": self.n_across_patients,
            "n_across_splits": self.n_across_splits,
            "cosine": self.cosine,
            "exact": self.exact,
        }


def find_near_duplicates(
    container: Container | Sequence[Container],
    *,
    rows: NDArray[np.int64] | None = None,
    cosine: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Count images that are nearly the same as another's.

    Parameters
    ----------
    container : Container or sequence of Container
        Of equal blocks; patients of two containers are different people. Checksums are not looked
        at again.
    rows : int64 (m,), optional
        Of one container; None takes all that are neither withdrawn nor augmented views, of every
        split.
    cosine : float, optional
        From which on a pair counts; None measures it, see the module.
    seed : int
        Of the sample that measures, and of the hashes.
    threads : int, optional
        Threads that read; the number of cores if None.
    progress : callable, optional
        As in `engine.fit_head`.

    Returns
    -------
    dict
        ``n_rows``, ``n_pairs``, ``n_across_patients``, ``n_across_splits``, ``cosine`` and
        ``exact``; no row is named.

    Raises
    ------
    SplitError
        `rows` of several containers.
    """
    containers = as_containers(container)
    if rows is not None and len(containers) > 1:
        raise SplitError("rows of several containers; expected rows of one, or None for all")
    chosen = [_judged(each) if rows is None else np.asarray(rows, np.int64) for each in containers]
    groups, n_groups = [], 0
    for each, own in zip(containers, chosen, strict=True):
        people = own if each.groups is None else each.groups[own].astype(np.int64)
        groups.append(people + n_groups)
        n_groups += int(people.max(initial=-1)) + 1
    # Rows that are not marked are learned from like those marked train.
    side_of_mark = np.array([0, 0, 1, 2], np.int64)
    sides = [
        np.zeros(len(own), np.int64) if each.splits is None else side_of_mark[each.splits[own]]
        for each, own in zip(containers, chosen, strict=True)
    ]
    origin = np.repeat(np.arange(len(containers)), [len(own) for own in chosen])
    course = Course(1, progress)
    with (
        Crew.of(threads) as crew,
        Rows(containers, [chosen_spans(each) for each in containers]) as features,
    ):
        course.say(0.0, "reading")
        features.choose(np.concatenate(chosen), origin, crew)
        found = compare_all_rows(
            features,
            np.concatenate(groups),
            np.concatenate(sides),
            crew,
            course,
            cosine=cosine,
            seed=seed,
        )
    course.say(math.inf, "near duplicates")
    return found.to_json()


def _judged(container: Container) -> NDArray[np.int64]:
    rows = container.rows()
    return rows if container.views is None else rows[container.views[rows] == 0]


def compare_all_rows(
    features: Rows,
    groups: NDArray[np.int64],
    sides: NDArray[np.int64],
    crew: Crew,
    course: Course,
    *,
    cosine: float | None = None,
    seed: int = 0,
) -> NearDuplicates:
    """Find pairs among chosen rows.

    Parameters
    ----------
    features : Rows
        Chosen.
    groups, sides : int64 (n,)
        Patient, and side of the marked split.
    crew, course : Crew, Course
        Who works, and who hears of it.
    cosine, seed
        As in `find_near_duplicates`.

    Returns
    -------
    NearDuplicates
        Pairs in ascending order.
    """
    n = len(features)
    if n < 2:
        nothing = np.empty(0, np.int64)
        return NearDuplicates(
            n, cosine or LEAST_COSINE, True, 0, 0, 0, nothing, nothing, np.empty(0)
        )
    index = np.arange(n)
    origin = np.empty((1, features.dim), np.float32)
    features.read(index[:1], origin)
    mean, scale = standardisation(Feed(features, index), origin[0], crew)
    feed = Feed(features, index, mean, scale)
    exact = n <= EXACT_ROWS
    if cosine is None:
        cosine = max(_threshold(feed, groups, seed), 0.0 if exact else HASHED_COSINE)
    n_pairs, n_across_patients, n_across_splits = 0, 0, 0
    kept: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
    room = _MOST_PAIRS
    pairs = _pairs_of_all(feed, cosine, course) if exact else _hashed(feed, cosine, seed, course)
    for first, second, values in pairs:
        n_pairs += len(first)
        n_across_patients += int(np.count_nonzero(groups[first] != groups[second]))
        n_across_splits += int(np.count_nonzero(sides[first] != sides[second]))
        if room and len(first):
            kept.append((first[:room], second[:room], values[:room]))
            room -= min(room, len(first))
    if not kept:
        kept.append((np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)))
    first, second = (np.concatenate([part[side] for part in kept]) for side in (0, 1))
    values = np.concatenate([part[2] for part in kept])
    order = np.lexsort((second, first))
    return NearDuplicates(
        n,
        cosine,
        exact,
        n_pairs,
        n_across_patients,
        n_across_splits,
        first[order],
        second[order],
        values[order],
    )


def _directions(feed: Feed, places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return standardised features scaled to length 1; what is of no length stays 0."""
    X = feed.take(places)
    lengths = np.sqrt(np.einsum("ij,ij->i", X, X, dtype=np.float64))
    X /= np.where(lengths > 0.0, lengths, 1.0)[:, None].astype(np.float32)
    return X


def _threshold(feed: Feed, groups: NDArray[np.int64], seed: int) -> float:
    """Return what so many pairs of different patients hardly ever reach by chance."""
    n = len(feed)
    some = np.sort(np.random.default_rng(seed).permutation(n)[:_SAMPLE])
    X = _directions(feed, some)
    first, second = np.triu_indices(len(some), 1)
    strangers = groups[some[first]] != groups[some[second]]
    cosines = (X @ X.T)[first[strangers], second[strangers]].astype(np.float64)
    spread = math.sqrt(float((cosines**2).mean())) if len(cosines) else 0.0
    largest = spread * math.sqrt(2.0 * math.log(n * (n - 1) / 2 + 1.0))
    return min(max(LEAST_COSINE, largest), MOST_COSINE)


_Pairs = Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]


def _pairs_of_all(feed: Feed, cosine: float, course: Course) -> _Pairs:
    """Compare all rows with all."""
    n = len(feed)
    step = min(max(64, _BLOCK_BYTES // (4 * feed.dim)), _BLOCK_ROWS)
    starts = range(0, n, step)
    total, done = len(starts) * (len(starts) + 1) // 2, 0
    for start in starts:
        mine = _directions(feed, np.arange(start, min(start + step, n)))
        for other in range(start, n, step):
            same = other == start
            theirs = mine if same else _directions(feed, np.arange(other, min(other + step, n)))
            cosines = mine @ theirs.T
            first, second = np.nonzero(cosines >= cosine)
            if same:
                upper = first < second
                first, second = first[upper], second[upper]
            done += 1
            course.say(done / total, "comparing images")
            yield first + start, second + other, cosines[first, second].astype(np.float64)


def _hashed(feed: Feed, cosine: float, seed: int, course: Course) -> _Pairs:
    """Compare rows that share an entry of a table of hashes."""
    codes = _hashes(feed, seed, course)
    # Signs differ in this share of the projections of a pair at the threshold, and in hardly ever
    # more than so many: four standard deviations.
    share = math.acos(cosine) / math.pi

    def at_most(n_bits: int) -> float:
        return n_bits * share + 4.0 * math.sqrt(n_bits * share * (1.0 - share))

    most, most_of_some = at_most(BANDS * BITS), at_most(64)
    found = np.empty(0, np.int64)
    n = len(feed)
    for band in range(BANDS):
        course.say(0.5 + 0.3 * band / BANDS, "comparing hashes")
        keys = codes.view(np.uint16)[:, band]
        order = np.argsort(keys, kind="stable")
        ranked = keys[order]
        n_words = codes.shape[1]
        some = np.ascontiguousarray(codes[:, (band * BITS // 64 + 1) % n_words])
        for lag in range(1, min(_NEIGHBOURS, n - 1) + 1):
            same = np.flatnonzero(ranked[lag:] == ranked[:-lag])
            if not len(same):
                break
            for start in range(0, len(same), _HASHED_PAIRS):
                part = same[start : start + _HASHED_PAIRS]
                first, second = order[part], order[part + lag]
                # Of most pairs a part of the bits tells enough, not those of the shared entry.
                hopeful = np.bitwise_count(some[first] ^ some[second]) <= most_of_some
                first, second = first[hopeful], second[hopeful]
                unlike = np.bitwise_count(codes[first] ^ codes[second]).sum(axis=1)
                near = unlike <= most
                low = np.minimum(first[near], second[near])
                high = np.maximum(first[near], second[near])
                found = np.union1d(found, low * n + high)
            if len(found) > _MOST_PAIRS:
                break
        if len(found) > _MOST_PAIRS:
            break
    step = max(16, _PAIR_BYTES // (4 * feed.dim))
    for start in range(0, len(found), step):
        course.say(0.8 + 0.2 * start / len(found), "comparing images")
        first, second = np.divmod(found[start : start + step], n)
        cosines = np.einsum(
            "ij,ij->i", _directions(feed, first), _directions(feed, second), dtype=np.float64
        )
        near = cosines >= cosine
        yield first[near], second[near], cosines[near]


def _hashes(feed: Feed, seed: int, course: Course) -> NDArray[np.uint64]:
    """Return the signs of random projections: uint64 (n, BANDS * BITS / 64)."""
    n, n_bits = len(feed), BANDS * BITS
    generator = np.random.default_rng([seed, 2])
    directions = generator.standard_normal((feed.dim, n_bits), np.float32)
    codes = np.empty((n, n_bits // 64), np.uint64)
    step = 8 * piece_rows(feed.dim)
    for start in range(0, n, step):
        places = np.arange(start, min(start + step, n))
        signs = feed.take(places) @ directions > 0.0
        codes[places] = np.packbits(signs, axis=1).view(np.uint64)
        course.say(0.5 * start / n, "hashing images")
    return codes
