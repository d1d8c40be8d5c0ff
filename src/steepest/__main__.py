"""The command `steepest`: the lab's command line, or how to install it."""

from __future__ import annotations

import importlib.util
import sys

# What the extra `lab` installs, as far as the command line cannot start or train without it.
_NEEDED = ("typer", "rich", "pydantic", "yaml", "transformers", "tokenizers", "scipy", "plotly", "matplotlib", "jinja2")


def main() -> int:
    """Run the command line; returns the exit code."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"The command `steepest` needs the lab, and {', '.join(missing)} is not installed. Install it with\n\n"
            '    pip install "steepest[lab]"\n\n'
            "The optimizers themselves (`import steepest`) work without it.",
            file=sys.stderr,
        )
        return 1
    from steepest.lab.cli import main as run  # noqa: PLC0415 - without the lab it cannot be imported

    return run()


if __name__ == "__main__":
    sys.exit(main())
