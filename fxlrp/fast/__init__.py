"""Makes explanations faster or smaller and leaves their values as they are. The folder can be deleted."""
