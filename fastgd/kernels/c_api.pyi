"""Types of what compiled code is given; the documentation is in `c_api.pyx`."""

from typing import Final

ABI_VERSION: Final[int]
ADDRESSES: Final[dict[str, int]]
TABLE: Final[int]
_C_API: Final[object]
