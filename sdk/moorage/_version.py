"""The version, and how this client introduces itself."""

from typing import Final

__version__: Final = "0.1.0"
USER_AGENT: Final = f"moorage-sdk/{__version__}"
