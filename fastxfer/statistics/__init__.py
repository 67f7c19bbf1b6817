"""From rows to means with intervals; each interval names the population it speaks of."""

from fastxfer.statistics.cells import EPISODES, EPISODES_AND_IMAGES, TEST_IMAGES, summarise
from fastxfer.statistics.intervals import (
    ImageVariance,
    interval_over_images,
    score_interval,
    t_interval,
    variance_over_images,
)
from fastxfer.statistics.splits import measure_classes, measure_split, split_interval

__all__ = [
    "EPISODES",
    "EPISODES_AND_IMAGES",
    "TEST_IMAGES",
    "ImageVariance",
    "interval_over_images",
    "measure_classes",
    "measure_split",
    "score_interval",
    "split_interval",
    "summarise",
    "t_interval",
    "variance_over_images",
]
