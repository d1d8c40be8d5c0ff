"""What every parameter is, how it is a stack of matrices, and which rule takes it."""

from steepest.routing import report
from steepest.routing.roles import HIDDEN, KINDS, Role, named_roles, roles
from steepest.routing.route import Entry, Routing, default_routing, route
from steepest.routing.views import View

__all__ = [
    "HIDDEN",
    "KINDS",
    "Entry",
    "Role",
    "Routing",
    "View",
    "default_routing",
    "named_roles",
    "report",
    "roles",
    "route",
]
