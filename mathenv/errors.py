"""The one error tree. A broken program raises; a bad episode is data (see `types.StopReason`)."""


class MathEnvError(Exception):
    """Base class: something the user can act on. The message says what to do."""


class ConfigError(MathEnvError):
    """A recipe, flag or argument is wrong."""


class DataError(MathEnvError):
    """A file or row cannot be used. The message names the file and the row."""


class InfraError(MathEnvError):
    """The machinery failed (sandbox, engine, grader), not the model.

    Never turned into a wrong answer: the episode ends with `StopReason.INFRA`.
    """


class RenderError(MathEnvError):
    """A chat template cannot be rendered so that tokens stay exact."""


class TrainingError(MathEnvError):
    """Training data or state that would train on the wrong thing."""
