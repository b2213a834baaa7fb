"""When cameras were started: the time offset between clips, from how much moves in each of them.

Cameras that film the same action see it move at the same moments, from wherever they look. So the
*motion energy* of a clip, the mean absolute difference of successive frames, rises and falls alike
in all of them, and the shift at which two of these curves agree best is their offset. Offsets of
all pairs are then made consistent by weighted least squares.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from script.preprocessing.footage import Clip

WIDTH = 160  # pixels; motion needs no more, and noise averages out
LEAST_OVERLAP = 0.5  # of a clip that must remain when two are shifted
SLOW = 15  # frames; what changes more slowly is no event
CLEAR = 0.6  # correlation from which a pair's offset is believed
MARGIN = 0.1  # by which it must exceed the correlation at shifts further away than NEAR: else the
NEAR = 3  # motion is periodic, and which period it is cannot be told
SURE = 4.0  # standard deviations by which a correlation must exceed one by chance at some shift
SHORTEST = 12  # frames; less has no curve to compare


@dataclass(frozen=True)
class Offset:
    """How a camera's clip lies in time.

    Attributes:
        frames: what to add to the index of a frame of the first camera to get that of the same
            moment in this one; positive: this camera was started earlier.
        confidence: the best correlation with another camera's motion, at most 1, and 0 where
            several shifts are as good or the clip is too short to tell it from chance; below
            `CLEAR` the offset means nothing.
    """

    frames: float
    confidence: float

    @property
    def is_clear(self) -> bool:
        """Whether the estimate may be used."""
        return self.confidence >= CLEAR


def motion_energy(clip: Clip, frames: range) -> np.ndarray:
    """(F - 1,) mean absolute difference of successive frames, in grey levels, at `WIDTH` pixels."""
    size = (WIDTH, max(1, round(WIDTH * clip.size[1] / clip.size[0])))
    energy, before = [], None
    for pixels in clip.read(frames, size):
        grey = pixels.astype(np.float32).mean(axis=2)
        grey -= grey.mean()  # lamps that flicker and exposure that drifts are no motion
        if before is not None:
            energy.append(float(np.abs(grey - before).mean()))
        before = grey
    return np.array(energy)


def all_energies(clips: Sequence[Clip], frames: range) -> list[np.ndarray]:
    """`motion_energy` of every clip, with a progress bar."""
    bar = tqdm(clips, desc="motion", unit="camera")
    return [motion_energy(clip, frames) for clip in bar]


def estimate_offsets(energies: Sequence[np.ndarray], most: int) -> list[Offset]:
    """An offset for each clip, the first camera's being 0 where it can be compared.

    Args:
        energies: curves of equal length, one per camera.
        most: the largest shift looked for, in frames.
    """
    count = len(energies)
    if count < 2 or len(energies[0]) < SHORTEST:
        return [Offset(0.0, 0.0)] * count
    curves = [_standardised(energy) for energy in energies]
    pairs = {
        (a, b): pair_offset(curves[a], curves[b], most)
        for a, b in itertools.combinations(range(count), 2)
    }
    return _consistent(pairs, count)


def _standardised(energy: np.ndarray) -> np.ndarray:
    """The fast part of the curve's logarithm, a little smoothed.

    Logarithm: a camera near the action sees larger peaks, but at the same moments. Fast part: what
    rises and falls slowly agrees at many shifts, and differs with the direction of view.
    """
    logs = np.log(energy + 0.1 * np.median(energy) + 1e-6)
    edges = np.pad(logs, SLOW // 2, mode="edge")
    fast = logs - np.convolve(edges, np.full(SLOW, 1 / SLOW), mode="valid")
    smooth = np.convolve(np.pad(fast, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    return smooth - smooth.mean()


def pair_offset(a: np.ndarray, b: np.ndarray, most: int) -> Offset:
    """The shift of ``b`` against ``a`` at which they correlate best, to a fraction of a frame."""
    most = min(most, int(len(a) * (1 - LEAST_OVERLAP)))
    shifts = np.arange(-most, most + 1)
    scores = np.array([_correlation(a, b, int(shift)) for shift in shifts])
    best = int(scores.argmax())
    others = scores[np.abs(shifts - shifts[best]) > NEAR]
    clear = not len(others) or scores[best] - others.max() >= MARGIN
    clear = clear and _significance(a, b, int(shifts[best]), scores[best]) >= SURE
    confidence = float(scores[best]) if clear else 0.0
    return Offset(float(shifts[best]) + _vertex(scores, best), confidence)


def _overlap(a: np.ndarray, b: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """a[i] and b[i + shift] where both are there, each less its mean."""
    first, second = (a, b[shift:]) if shift >= 0 else (a[-shift:], b)
    length = min(len(first), len(second))
    return first[:length] - first[:length].mean(), second[:length] - second[:length].mean()


def _significance(a: np.ndarray, b: np.ndarray, shift: int, correlation: float) -> float:
    """In standard deviations of the correlation of unrelated curves that vary as slowly.

    Fisher's transform, with the number of independent values of Bartlett (1946): neighbouring
    frames are alike, so that a short clip has few.
    """
    first, second = _overlap(a, b, shift)
    own = [np.correlate(c, c, "full")[len(c) - 1 :] / max(float(c @ c), 1e-12)
           for c in (first, second)]  # fmt: skip
    lags = slice(1, 1 + len(first) // 4)
    independent = len(first) / max(1 + 2 * float(own[0][lags] @ own[1][lags]), 1.0)
    return float(np.arctanh(min(correlation, 0.999)) * np.sqrt(max(independent - 3, 0.0)))


def _correlation(a: np.ndarray, b: np.ndarray, shift: int) -> float:
    """Of a[i] with b[i + shift] where both are there."""
    first, second = _overlap(a, b, shift)
    scale = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / scale) if scale > 0 else 0.0


def _vertex(scores: np.ndarray, best: int) -> float:
    """Where the parabola through the best score and its neighbours has its top, from the best."""
    if not 0 < best < len(scores) - 1:
        return 0.0
    left, middle, right = scores[best - 1 : best + 2]
    curvature = left - 2 * middle + right
    return float(0.5 * (left - right) / curvature) if curvature < 0 else 0.0


def _consistent(pairs: dict[tuple[int, int], Offset], count: int) -> list[Offset]:
    """Offsets that agree best with those of the clear pairs; every group of cameras starts at 0."""
    clear = {pair: found for pair, found in pairs.items() if found.is_clear}
    rows, values = [], []
    for (a, b), found in clear.items():
        row = np.zeros(count)
        row[b], row[a] = found.confidence, -found.confidence
        rows.append(row)
        values.append(found.frames * found.confidence)
    solution = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0] if rows else None
    offsets = np.zeros(count) if solution is None else solution
    for group in _groups(clear, count):
        offsets[group] -= offsets[group[0]]
    best = [max(f.confidence for pair, f in pairs.items() if i in pair) for i in range(count)]
    return [Offset(float(offsets[i]), max(best[i], 0.0)) for i in range(count)]


def _groups(pairs: dict[tuple[int, int], Offset], count: int) -> list[list[int]]:
    """Cameras that are connected by clear pairs, ascending."""
    owner = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            owner[a] = owner[b] = min(owner[a], owner[b])
    return [[i for i in range(count) if owner[i] == first] for first in sorted(set(owner))]
