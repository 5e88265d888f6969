"""fxlrp as a method of other libraries: `fxlrp.adapters.captum` and `fxlrp.adapters.quantus`."""
