"""Optional dependencies: one helper that imports them where they are used and says which extra brings a missing one.

Owns no list of packages; those stand in setup.cfg under the extras' names.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from loader.errors import MissingDependencyError


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: Dotted name, as in an import statement.
        extra: The extra of setup.cfg that installs it.

    Raises:
        MissingDependencyError: It is not installed. An installed module that fails inside its own import raises its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingDependencyError(f"{package} is not installed and this needs it: pip install 'headrace[{extra}]'", name=package) from error
