"""# A graph network

Nodes [N, F] and edges; the answer says which nodes it looked at, and of edges with features which edges. Here a network
that has learned to tell whether a molecule has a nitro group, an N with two O.
"""

import runpy
from pathlib import Path

from safetensors.torch import load_file

import fxlrp

examples = Path(fxlrp.__file__).parent / "examples"
molecules = runpy.run_path(str(examples / "molecules.py"))
network = molecules["Network"]().eval()
network.load_state_dict(load_file(examples / "molecules.safetensors"))
molecule = next(m for m in map(molecules["molecule"], range(20_000_000, 20_000_100)) if m.label)

how = {"labels": molecules["CLASSES"], "features": molecule.atoms}  # names of the classes, and of the nodes
a = fxlrp.explain(network, molecule.x, molecule.edges, **how)  # the edges are found among the arguments
by_atom = a.relevance.sum(1)
print({f"{i} {atom}": round(float(r), 3) for i, (atom, r) in enumerate(zip(molecule.atoms, by_atom, strict=True))})
assert set(by_atom.topk(2).indices.tolist()) < set(molecule.group)  # known, since it was drawn
a.save("out/recipes/graph_network.png")
