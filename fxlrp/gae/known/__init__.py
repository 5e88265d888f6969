"""Networks and data whose right answer is known: built ones, and ones that are trained within the command."""
