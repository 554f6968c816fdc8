"""The one exception that is meant for the person at the terminal."""


class TaudojoError(Exception):
    """Something the user can put right. The message is one sentence: what is wrong, where, what to do.

    Commands print it without a traceback and exit with status 2.
    """


class UserError(Exception):
    """The simulated user could not answer; whoever plays the episode ends it with `StopReason.USER_ERROR`."""
