"""The one exception fxlrp raises for what a caller can mend, and its one warning."""


class FxlrpError(Exception):
    """Something the caller can mend; the message says what, where and what to do."""


class NoRelevance(UserWarning):
    """A map is zero although the score is not, or is not finite."""
