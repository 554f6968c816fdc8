"""Pure functions from a finished episode to numbers.

Importing the package makes the environments known to Gymnasium: `gymnasium.make("taudojo/retail-v0")`.
"""

from envs import registration

registration.register()
