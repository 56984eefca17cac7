"""Everything that can go wrong for a user, as one tree.

PrunusError
├── ConfigError          a flag, a config file or an argument is wrong
├── DataError            a data set, archive or image cannot be used
├── ModelError           a model name, factory or checkpoint does not fit
├── TrainingError        a training diverged
├── TraceError           the model could not be run on channel labels
├── PlanError            a pruning plan does not fit the network
│   └── BudgetError      a budget cannot be reached
├── SurgeryError         channels could not be removed
├── VerificationError    the pruned network differs from the silenced original
├── FileFormatError      a file is truncated, corrupt or not what it should be
└── RunError             a run folder is in use, or belongs to another run

Every message says what went wrong, where, why, and what to type instead. The command line prints it and exits with 2.
"""


class PrunusError(Exception):
    """Base of every error that Prunus raises on purpose."""


class ConfigError(PrunusError):
    """A flag, a configuration file or an argument is wrong."""


class DataError(PrunusError):
    """A data set, an archive or an image cannot be used."""


class ModelError(PrunusError):
    """A model name, a factory or a checkpoint does not fit."""


class TrainingError(PrunusError):
    """A training diverged."""


class TraceError(PrunusError):
    """The model could not be run on channel labels."""


class PlanError(PrunusError):
    """A pruning plan does not fit the network."""


class BudgetError(PlanError):
    """A budget cannot be reached; where latency alone is too much, with what the smallest network is said to take."""

    least_latency_ps: int | None = None


class SurgeryError(PrunusError):
    """Channels could not be removed."""


class VerificationError(PrunusError):
    """The pruned network differs from the silenced original."""


class FileFormatError(PrunusError):
    """A file is truncated, corrupt or not what it should be."""


class RunError(PrunusError):
    """A run folder is in use, or belongs to another run."""
