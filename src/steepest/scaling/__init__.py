"""Wrappers that scale the step of any torch optimizer by layer and block: SAC and SGG."""

from steepest.scaling.partition import Partition, partition
from steepest.scaling.sac import SAC
from steepest.scaling.sgg import SGG

__all__ = ["SAC", "SGG", "Partition", "partition"]
