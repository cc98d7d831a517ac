"""How long it takes to draw a General Points hand and a V-IRL view grid, on one core.

    python -m benchmarks.rendering [--repeats 40]

CPU time of this process (so that other work on the machine does not count), per image: with what a process keeps
between images (cards, signs, the city), and for the first image of a fresh process.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

from recipe.amft.tasks.environment import Picture
from recipe.amft.tasks.rendering.cards import SUITS, HandPicture
from recipe.amft.tasks.rendering.street import StreetPicture
from recipe.amft.tasks.virl.city import CityOptions, make_city

LIMITS = {"General Points hand": 15.0, "V-IRL view grid": 150.0}  # milliseconds


def hand(rng: random.Random) -> Picture:
    """Four cards at the full size."""
    return HandPicture(tuple((rng.randint(1, 13), rng.choice(SUITS)) for _ in range(4)))


def street(rng: random.Random) -> Picture:
    """A place of a city of the default size, at the default size of a view."""
    options = CityOptions("grid", "train", rng.randrange(2))
    return StreetPicture(options, rng.choice(make_city(options).panoramas).id, rng.uniform(0, 360))


def milliseconds(draw: Callable[[], object]) -> float:
    """CPU time of one call."""
    started = time.process_time()
    draw()
    return (time.process_time() - started) * 1e3


def main() -> None:
    """Print a table; exit status 1 when a median is over its limit."""
    parser = argparse.ArgumentParser(description="Time the drawing of images.")
    parser.add_argument("--repeats", type=int, default=40)
    repeats = parser.parse_args().repeats
    too_slow = False
    print(f"{'image':<22}{'first':>10}{'median':>10}{'slowest':>10}{'limit':>10}   ms of CPU time")
    for (name, limit), make in zip(LIMITS.items(), (hand, street), strict=True):
        rng = random.Random(0)
        first = milliseconds(make(rng).draw)
        for _ in range(repeats):
            make(rng).draw()
        times = [milliseconds(make(rng).draw) for _ in range(repeats)]
        median = statistics.median(times)
        too_slow |= median > limit
        print(f"{name:<22}{first:>10.1f}{median:>10.1f}{max(times):>10.1f}{limit:>10.0f}")
    raise SystemExit(too_slow)


if __name__ == "__main__":
    main()
