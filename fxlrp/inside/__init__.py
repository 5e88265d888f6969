"""Inside the network: relevance through chosen parts, concepts, edges between modules, patching and weights.

All of it works on the captured graph of any model: a part is an entry of a tensor in it, a place a node.
"""
