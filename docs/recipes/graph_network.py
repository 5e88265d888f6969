"""# A graph network

Nodes [N, F] and edges; the answer for one node says which nodes it looked at. Only those two edges away can count.
"""

import torch
from torch import Tensor, nn

import fxlrp


class Graph(nn.Module):
    """Two layers of mean aggregation, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 3)

    def neighbours(self, x: Tensor, edges: Tensor) -> Tensor:
        source, sink = edges
        sums = torch.zeros_like(x).index_add(0, sink, x[source])
        degree = torch.zeros(len(x)).index_add(0, sink, torch.ones(len(sink)))
        return x + sums / degree.clamp(min=1)[:, None]

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.second(self.neighbours(self.first(self.neighbours(x, edges)).relu(), edges))


torch.manual_seed(0)
path = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]])
edges = torch.cat([path, path.flip(0)], 1)
explainer = fxlrp.convert(Graph().eval())
a = fxlrp.explain(explainer, torch.randn(8, 4), edges, position=3, target=1)  # node 3
by_node = a.relevance.sum(1)
print({f"node {i}": round(float(r), 3) for i, r in enumerate(by_node)})
assert not by_node[[0, 6, 7]].any()  # three edges away and more
a.save("out/recipes/graph_network.png")  # the edges are found among the arguments
