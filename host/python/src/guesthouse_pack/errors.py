"""What can go wrong. Every message says what to do about it, and none of them leaves a file behind."""


class PackError(Exception):
    """The model was not packed."""


class MissingPackageError(PackError, ImportError):
    """A package that only some functions need is not installed."""


class ProgramError(PackError):
    """The program `guesthouse` is not found, or cannot be run."""


class IdentityError(PackError, ValueError):
    """The name, the version or the path of the artifact is not valid."""


class ModelError(PackError, ValueError):
    """The model is not one that can be exported: not fitted, a class, or of another framework."""


class SampleError(PackError, ValueError):
    """The sample of inputs is not what the model takes, or is not what a server accepts."""


class ExportError(PackError):
    """The framework's exporter to ONNX does not support the model."""


class DifferenceError(PackError):
    """The framework and the packed model give outputs that are further apart than the tolerance."""


class RejectedError(PackError):
    """`guesthouse pack` rejects the model, for the reason in the message."""
