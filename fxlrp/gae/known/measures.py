"""The suites and their measures, in the order in which they are shown."""

from __future__ import annotations

MEASURES: dict[str, dict[str, str]] = {  # by suite, each with its heading; all but "misplaced" are better when larger
    "built": {"passed": "passed", "misplaced": "misplaced"},
    "parts": {
        "csdc": "CSDC",
        "pc": "PC",
        "dc": "DC",
        "distractibility": "D",
        "sd": "SD",
        "ts": "TS",
    },
    "grids": {"localisation": "GridPG"},
    "suppressors": {"precision": "precision", "auroc": "AUROC", "auprc": "AUPRC", "mass": "mass"},
    "agreement": {"pointing": "pointing", "mass": "mass", "above": "above attractors"},
}
TITLES = {
    "built": "Built networks: networks of each kind that pass, of those tried",
    "parts": "Shapes with parts (FunnyBirds)",
    "grids": "Grids of pictures (GridPG)",
    "suppressors": "Suppressors (XAI-TRIS)",
    "agreement": "Agreement of subject and verb",
}
