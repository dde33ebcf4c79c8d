"""The error tree. A branch answers one question: who must act?

    TracInError
    ├── InputError                whoever chose the files or the settings
    │   ├── RecipeError             the description of the analysis
    │   ├── PluginError             a file of the workspace's plugins
    │   ├── DataError               recordings, labels, splits
    │   │   ├── UnreadableSampleError
    │   │   ├── TooFewClassesError
    │   │   └── UnknownSampleError
    │   ├── CheckpointError         checkpoint files
    │   │   ├── NoCheckpointsError
    │   │   ├── UnsafeCheckpointError
    │   │   └── CheckpointMismatchError
    │   ├── ViewError               a what-if that cannot be answered
    │   ├── ExclusionError          an exclusion list or the rule behind it
    │   ├── OutsideRootsError       a folder that this server may not read
    │   └── NotFoundError           a run, job or sample that is not there
    ├── ModelError                whoever wrote the model
    │   ├── BatchCoupledModelError
    │   ├── OutputShapeError
    │   ├── NonFiniteError
    │   └── UnknownParameterError
    ├── MachineError              whoever runs this machine
    │   ├── DamagedBlockError
    │   ├── DiskFullError
    │   ├── WorkspaceError
    │   └── ClusterError
    └── JobError                  a background job that did not end well
        ├── JobFailedError
        └── JobCancelledError

A message is one sentence with the values that are wrong, and the next step.
"""


class TracInError(Exception):
    """Base of every error that this product raises on purpose."""


class InputError(TracInError):
    """The chosen files or settings cannot be used as they are."""


class RecipeError(InputError):
    """The recipe of an analysis is incomplete or contradicts itself."""


class PluginError(InputError):
    """A file of the workspace's plugins is missing, fails, or does not return what it should."""


class DataError(InputError):
    """Samples, labels or splits cannot be used."""


class UnreadableSampleError(DataError):
    """One sample's file cannot be read."""


class TooFewClassesError(DataError):
    """Ranking needs at least two different labels."""


class UnknownSampleError(DataError):
    """An id does not belong to the data set."""


class CheckpointError(InputError):
    """A checkpoint cannot be used."""


class NoCheckpointsError(CheckpointError):
    """A folder holds no checkpoint file."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint is not plain weights; nothing in it was executed."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint's tensors do not fit the model."""


class ViewError(InputError):
    """The scores were asked for with settings that have no answer."""


class ExclusionError(InputError):
    """An exclusion rule or list cannot be applied."""


class OutsideRootsError(InputError):
    """A path lies outside the folders that this server may read."""


class NotFoundError(InputError):
    """A run, job, sample or pair does not exist here."""


class ModelError(TracInError):
    """The model does not have exact per-sample gradients as it is."""


class BatchCoupledModelError(ModelError):
    """A sample's output depends on the other samples of its batch."""


class OutputShapeError(ModelError):
    """The outputs or cotangents do not have the shape the task needs."""


class NonFiniteError(ModelError):
    """An output, weight or gradient is NaN or infinite."""


class UnknownParameterError(ModelError):
    """A parameter was named that the model does not have."""


class MachineError(TracInError):
    """Disk, memory or processes are not in order."""


class DamagedBlockError(MachineError):
    """A stored block's checksum does not match its bytes."""


class DiskFullError(MachineError):
    """There is not enough room for the result."""


class WorkspaceError(MachineError):
    """The workspace directory cannot be used."""


class ClusterError(MachineError):
    """The cluster that should compute is not there, or its workers do not fit."""


class JobError(TracInError):
    """A background job did not deliver its result."""


class JobFailedError(JobError):
    """The job ended with an error, which the message repeats."""


class JobCancelledError(JobError):
    """The job was cancelled; the blocks it finished are kept."""
