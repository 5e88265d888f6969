"""The one exception fxlrp raises for what a caller can mend."""


class FxlrpError(Exception):
    """Something the caller can mend; the message says what, where and what to do."""
