"""steepest: steepest-descent optimizers for PyTorch, and a lab that compares them honestly.

```python
import steepest

opt = steepest.LionMuon(model, lr=1e-3, weight_decay=0.1)
print(opt)  # what each parameter is, which rule it got, and why
```
"""

from steepest import kernels, rules, theory
from steepest._version import __version__
from steepest.engine import Steepest, state_bytes
from steepest.optimizers import (
    LASM,
    SAGE,
    Lion,
    LionMuon,
    Muon,
    SignMuon,
    Signum,
    SinkGD,
    SoftLionMuon,
    SoftMuon,
    SoftSignum,
)
from steepest.routing import Role, Routing, View, roles, route
from steepest.scaling import SAC, SGG

__all__ = [
    "LASM",
    "SAC",
    "SAGE",
    "SGG",
    "Lion",
    "LionMuon",
    "Muon",
    "Role",
    "Routing",
    "SignMuon",
    "Signum",
    "SinkGD",
    "SoftLionMuon",
    "SoftMuon",
    "SoftSignum",
    "Steepest",
    "View",
    "__version__",
    "kernels",
    "roles",
    "route",
    "rules",
    "state_bytes",
    "theory",
]
