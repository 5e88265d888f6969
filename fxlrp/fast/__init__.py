"""What makes explanations faster or smaller and leaves them as they are: it can be deleted."""
