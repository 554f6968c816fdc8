"""The training stack."""

import time

#: When this package was first imported, on the monotonic clock: where a command's work begins, seconds before torch is there.
IMPORTED = time.monotonic()
