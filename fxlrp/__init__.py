"""fxlrp."""
