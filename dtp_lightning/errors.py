"""What went wrong through the user's input, said in one line that tells what to do."""


class UserError(Exception):
    """Shown as one line, without a traceback (set HYDRA_FULL_ERROR=1 to see it)."""


class ConfigError(UserError, ValueError):
    """The command line or a config file asks for something that does not exist or does not fit."""


class SecretError(ConfigError):
    """A configuration holds a password or key; what was written of it already is removed."""


class DataError(UserError):
    """A data set is missing, incomplete or does not fit the run."""


class RunError(UserError):
    """A run cannot go on where it runs: the disk is full, for example."""


class DivergedError(RunError):
    """A quantity of the training is no longer a finite number."""
