"""The one torch optimizer: state, buckets, step and checkpoint for any rule."""

from steepest.engine.accounting import state_bytes
from steepest.engine.bucket import Bucket, Member
from steepest.engine.optimizer import Steepest

__all__ = ["Bucket", "Member", "Steepest", "state_bytes"]
