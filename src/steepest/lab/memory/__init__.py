"""What training takes in memory, counted before anything is allocated.

Model and optimizer are built on the meta device (shapes and dtypes without storage) as a run builds them. So weights,
gradients and optimizer state are exact. What a step allocates for a while is an estimate: the optimizer takes a step
there, and the sizes of all tensors that come and go are recorded.
"""

from steepest.lab.memory.architectures import meta_model
from steepest.lab.memory.counting import Report, Usage, count, hybrid
from steepest.lab.memory.output import by_role, headline, remarks, totals, write
from steepest.lab.memory.papers import published, published_tables

__all__ = [
    "Report",
    "Usage",
    "by_role",
    "count",
    "headline",
    "hybrid",
    "meta_model",
    "published",
    "published_tables",
    "remarks",
    "totals",
    "write",
]
