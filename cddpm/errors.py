"""Every error that a user can cause, as one small tree with exit codes.

::

    CddpmError             1
    ├── ConfigError        2   a configuration file or an override is wrong (all faults listed)
    ├── DataError          3   DATA_DIR, split files or a store are wrong
    │   └── VolumeError    3   one NIfTI file cannot be used
    ├── ArtifactError      4   a store, checkpoint, cache or model package is missing, damaged or of another kind
    ├── TrackingError      5   the MLflow server or the registry refuses or cannot be reached
    │   ├── AwayError      5   it does not answer now, or does not let us in: later it may
    │   ├── RefusedError   8   a promotion or archiving that a condition, an alias or another promotion forbids
    │   └── UndeliveredError  9   entries of the lab book still wait for MLflow
    ├── SearchError        6   a sweep cannot start, resume or finish
    ├── StorageError       7   the disk, a file or the network of this machine refuses
    └── StoppedError     130   the user asked the work to stop; it can be resumed

A message says what was found, where, what is allowed and what to do next. The errors carry only their message, so they
cross process borders (pickle) unchanged. Any other exit code but 0 is a fault of this program.
"""


class CddpmError(Exception):
    """Base of all errors that are shown to a user as one message without a traceback."""

    exit_code = 1


class ConfigError(CddpmError):
    """A configuration is wrong. The message lists every fault with file and dotted path."""

    exit_code = 2


class DataError(CddpmError):
    """The data directory, its split files or a cohort cannot be used."""

    exit_code = 3


class VolumeError(DataError):
    """One image, mask or segmentation file cannot be used."""


class ArtifactError(CddpmError):
    """An artifact on disk is missing, incomplete, altered or of another kind than asked for."""

    exit_code = 4


class TrackingError(CddpmError):
    """MLflow's server or registry cannot be reached or does not hold what was asked for."""

    exit_code = 5


class AwayError(TrackingError):
    """MLflow does not answer or does not let us in; what is to be entered can wait for it."""


class RefusedError(TrackingError):
    """Nothing was changed: a condition does not hold, an alias is in the way, or somebody else was faster."""

    exit_code = 8


class UndeliveredError(TrackingError):
    """MLflow does not show all that the folders say; nothing is lost."""

    exit_code = 9


class SearchError(CddpmError):
    """A sweep cannot start, resume or finish."""

    exit_code = 6


class StorageError(CddpmError):
    """A disk, file, folder or connection of this machine is full, closed to us, missing or does not answer."""

    exit_code = 7


class StoppedError(CddpmError):
    """The work was stopped on request (Ctrl-C, SIGTERM); its state is saved."""

    exit_code = 130
