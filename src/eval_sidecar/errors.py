"""What can go wrong, as one base error and a few leaves.

A message is one line: what happened, to which file or checkpoint, why, and what to do next.
Only the command line turns these into exit codes.
"""


class SidecarError(Exception):
    """A mistake or a failure that a person can act on; its text is the whole report.

    Attributes:
        setting: The setting that is wrong (of a `UsageError`) or that would help, by its name in a
            configuration; empty if there is none. The command line says which flag that is.
        lines: What belongs below the message, such as the end of a log or a list to choose from.
    """

    def __init__(self, message: str = "", *, setting: str = "", lines: str = "") -> None:
        super().__init__(message)
        self.setting = setting
        self.lines = lines


class UsageError(SidecarError):
    """The command line or a file that the user named is wrong.

    The text begins with the value of `setting`, if there is one: its flag is put before it.
    """


class CheckpointError(SidecarError):
    """A checkpoint cannot be read, pinned or found."""


class ResultError(SidecarError):
    """A ``metrics.json`` is missing, unreadable, or holds no finite numbers."""


class MissingResultError(ResultError):
    """There is no ``metrics.json`` yet."""


class StateError(SidecarError):
    """A ledger cannot be read or written, or is from a newer version."""


class LockedError(StateError):
    """Another process holds what this one needs for itself."""


class LaunchError(SidecarError):
    """An evaluation could not be started."""


class BusyError(LaunchError):
    """No evaluation is taken at the moment, for a reason unrelated to it; nothing was started."""


class DaemonError(SidecarError):
    """A background instance could not be started, found or stopped."""


class BundleError(SidecarError):
    """A bundle of results cannot be made, found, trusted or brought in."""


class TrackerError(SidecarError):
    """Delivery to a tracker failed, or its outcome is unknown.

    Attributes:
        permanent: True if a retry cannot succeed without a user's help
            (wrong key, no permission, deleted run, client not installed).
        nothing_sent: True if it is certain that no row was handed to the tracker.
        unreachable: True if nobody answered, so that no other model would be answered now.
    """

    nothing_sent = False

    def __init__(
        self,
        message: str,
        *,
        permanent: bool = False,
        nothing_sent: bool = False,
        unreachable: bool = False,
    ) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.nothing_sent = nothing_sent
        self.unreachable = unreachable


class ReadBackUnsupported(TrackerError):
    """The tracker cannot show what it holds (offline mode, a server without that query).

    Attributes:
        rows: How many rows it has anyway, if it says so.
    """

    def __init__(self, message: str, *, rows: int = 0) -> None:
        super().__init__(message)
        self.rows = rows


class StaleView(TrackerError):
    """The run did not start where the last look-up said it ends; nothing was sent.

    Either the server had rows that it did not show yet, or another process writes to the run.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, nothing_sent=True)
