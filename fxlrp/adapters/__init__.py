"""fxlrp as a method of other libraries: `fxlrp.adapters.captum`, `.quantus` and `.inseq`."""
