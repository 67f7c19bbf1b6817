"""Episodes as index arrays: which images are support and which are queries.

Episode `e` of a (target, spec, seed) is the same whoever asks, for how many, on how many threads: every draw is a
counter-based random number keyed by (seed, purpose) and counted by (draw, class, episode). Support of k shots is part
of the support of k + 1 shots, so shots are nested, and every backbone sees the same images, so comparisons are paired.
"""

from fastxfer.episodes.draws import philox
from fastxfer.episodes.sample import sample_episodes
from fastxfer.episodes.spec import Episodes, EpisodeSpec

__all__ = ["EpisodeSpec", "Episodes", "philox", "sample_episodes"]
