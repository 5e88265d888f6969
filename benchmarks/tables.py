"""All suites by all methods: the networks that are known, texts, then masking and masks on the shipped networks.

    python -m benchmarks.tables --out out/tables --docs docs/benchmarks.md
    python -m benchmarks.tables --workers 2 --out out/tables --docs docs/benchmarks.md     # the same, in half

A run that was stopped goes on.  OUT/known, OUT/texts and OUT/NETWORK hold results.parquet, report.json and report.html.
"""

from __future__ import annotations

import argparse
import platform
import re
from collections.abc import Iterator
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import transformers
from rich.console import Console

import fxlrp
from benchmarks.evaluation import shapes
from examples import sentences
from fxlrp.gae import BASELINES, SUITES, KnownReport, Report, evaluate, known, texts
from fxlrp.gae.known.measures import TITLES
from fxlrp.gae.known.report import facts_of

NETWORKS = ("cnn", "vit", "deep_vit", "deep_convnext", "deep_swin")
MEASURES = ("pointing", "relevance_mass", "gae", "abpc", "abpc_mean", "abpc_blur", "abpc_noise", "abpc_fill")
GAINS = ("srg", "srg_mean", "srg_blur", "srg_noise", "srg_fill")
UNSEEN = 10_000_000  # seeds of reviews from here on are the test's
TEXT_MEASURES = (
    ("auprc", "average_precision", "token_f1", "max_sensitivity", "randomization"),
    ("comprehensiveness", "sufficiency", "hidden_abpc", "dropped_abpc", "replaced_abpc"),
)
HEAD = """# Benchmarks

Every method beside ours, on networks whose right answer is known, on texts and on the shipped networks. What is
measured: [evaluation.md](evaluation.md). `ground-truth` and `random` are the ends of each scale; the best stand
first. Means ± half the width of their 95 % bootstrap intervals.

    python -m benchmarks.tables --workers 2 --out out/tables --docs docs/benchmarks.md

A run that was stopped goes on. One suite alone, without a model or data: `fxlrp evaluate --suite parts -o parts/`."""
ABOUT = {
    "built": """How many of five layouts (table, sequence, signals of one to three axes) a method is right about:
of each sample at most a twentieth of its relevance is misplaced against the closed form. A zero is
what a rule means to do as often as a fault: z⁺ keeps what speaks for a class alone, a flat rule
spreads relevance on purpose, ε-rules and gradients know no bias.""",
    "parts": """Creatures of five parts among other objects, one convolutional network, 30 pictures, each asked
about for three classes. The measures are FunnyBirds', after the authors' framework.""",
    "grids": """Four creatures of four classes in one picture, the same network: the part of positive relevance in
the right cell. Chance is 0.25.""",
    "suppressors": """8 × 8 pictures, linear and exclusive patterns in white and smooth noise; linear, dense and
convolutional networks together.""",
    "agreement": """A causal language model of two blocks; one to three nouns of the other number stand between subject
and verb. Tokens are one-hot, so that what explains numbers can run.""",
    "texts": """The shipped text classifier on generated reviews that it was not trained on. What makes the label (the
word that is good or bad, and a negation in front of it) is marked, as people mark it in ERASER's data sets:
`ground-truth`. Low is good for sufficiency, sensitivity and randomization.""",
}
PUBLISHED = {
    "built": """Published: XAI-Units (2506.01059) scores networks built alike by distance and infidelity, not by
passes: **not comparable** in value.""",
    "parts": """Published for the same measures: ResNet-50, input × gradient, CSDC 0.735, PC 0.602, DC 0.532, D
0.544, SD 0.546, TS 0.806 (README of [funnybirds-framework](https://github.com/visinf/funnybirds-
framework)). **Not comparable** in value: theirs are rendered birds of 50 classes at 256 pixels,
and another network.""",
    "grids": """Published: Böhle et al. (CVPR 2021) and Rao et al. (2205.10435) plot GridPG of ImageNet
classifiers; **not comparable** with a network of 40-pixel creatures.""",
    "suppressors": """Published: XAI-TRIS (2306.12816) plots precision and earth mover's distance of such scenarios, of
networks and noise levels of its own: **not comparable** in value.""",
    "agreement": """Published: Poerner et al. (1801.06422) count how often the strongest word is the verb's subject in
recurrent networks, and find LRP, DeepLIFT and LIMSSE best: the same count as pointing, **not comparable** in value,
since those are other networks and sentences of an encyclopedia, ours generated and with attractors in all.""",
    "texts": """Published for the same measures: ERASER (1911.03429) gives AUPRC, comprehensiveness and sufficiency of
soft scores on data sets that people marked; on Evidence Inference the best AUPRC is 0.506, of an LSTM's attention.
**Not comparable** in value: those are articles of thousands of words and other models, ours have 17, of which 11 %
are marked. AUPRC, the shares of 1, 5, 10, 20 and 50 % and the mean of the five are those of the authors' [metrics.py](https://github.com/jayded/eraserbenchmark).""",
    "networks": """Published: Blücher et al. (2401.06654) compare methods by SRG under 40 ways of masking, and find that
MoRF or LeRF alone rank them in contradicting orders: **not comparable** in value, of larger networks. GAE's own
paper is [doi 10.1145/3649458](https://dl.acm.org/doi/10.1145/3649458), its definition
[another](evaluation.md#two-definitions).""",
}


def machine(workers: int) -> str:
    """When and on what it was measured, by this process or so many of Ray's."""
    cpu = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpu.read_text()) if cpu.exists() else None
    packages = ", ".join(f"{name} {_version(name)}" for name in ("torch", "captum", "zennit"))
    made = f"{date.today()}, {found[1] if found else platform.machine()}, "
    return f"{made}{'one process' if workers < 2 else f'{workers} processes'} of one thread; {packages}."


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def known_sections(report: KnownReport) -> Iterator[str]:
    """Each suite: what it is, its table, what was published, and what could not run."""
    for suite in report.suites:
        yield f"## {TITLES[suite].partition(':')[0]}"
        yield ABOUT[suite]
        facts = facts_of(report, suite)
        yield from ["\n".join(f"- {line}" for line in facts)] if facts else []
        yield report.markdown(suite)
        yield from [PUBLISHED[suite]] if suite in PUBLISHED else []
        said = [line if len(line) < 200 else f"{line[:200]}…" for line in report.said(suite)]
        yield from ["Not run:\n\n" + "\n".join(f"- {line}" for line in said)] if said else []


def orders(report: Report, what: str) -> Iterator[str]:
    """The place of every method by each way of masking or removal, and how alike these are."""
    yield f"The place of each method by each of these {what}, equal ones sharing one, so that none is picked:"
    yield report.places_markdown()
    for heading, alike in report.agreements().items():
        yield f"How alike two {what} rank the methods by {heading} (Spearman's ρ): {alike}."
    yield from (f"`{method}` is left out: {error[:200]}" for method, error in report.errors.items())


def text_sections(report: Report) -> Iterator[str]:
    """The shipped classifier of texts: human-like rationales, and removal by five ways."""
    yield f"## Texts with rationales (ERASER), {report.settings['samples']} reviews"
    yield ABOUT["texts"]
    yield from (report.markdown(measures) for measures in TEXT_MEASURES)
    yield PUBLISHED["texts"]
    yield from orders(report, "ways of removal")


def network_sections(name: str, report: Report) -> Iterator[str]:
    """A shipped network: masks and masking by five ways, and how alike the orders of methods are."""
    made = report.settings
    yield f"## {name}, {made['samples']} pictures of two objects, {made['steps']} masking steps"
    yield report.markdown(MEASURES)
    yield report.markdown(GAINS)
    yield from orders(report, "maskings")


def on_texts(count: int, steps: int, out: Path, workers: int) -> Report:
    """Evaluate every method on reviews that the shipped classifier was not trained on."""
    folder = str(Path(sentences.__file__).parent / "text")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    made = [sentences.sentence(seed) for seed in range(UNSEEN, UNSEEN + count)]
    data = [{"text": s.text, "label": s.label, "rationale": s.important} for s in made]
    methods = list(dict.fromkeys([*fxlrp.rulebooks(), *texts.BASELINES]))
    return texts.evaluate(model, tokenizer, methods, data, steps=steps, out=out, workers=workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/tables"))
    parser.add_argument("--docs", type=Path, help="write the page there")
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--texts", type=int, default=32, help="how many reviews; 0 for none")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0, help="actors of Ray")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True)
    pages = [HEAD, machine(args.workers)]
    if args.suites:
        console.print("[bold]networks that are known")
        pages += known_sections(known(suites=args.suites.split(","), out=args.out / "known", workers=args.workers))
    if args.texts:
        console.print("[bold]texts")
        pages += text_sections(on_texts(args.texts, args.steps, args.out / "texts", args.workers))
    if args.networks:
        pages += ["Beside these, the shipped networks, whose right answer nobody knows: masks and masking."]
        pages += [PUBLISHED["networks"]]
    methods = list(dict.fromkeys([*fxlrp.rulebooks(), *BASELINES]))
    for name, model, data in shapes(args.pictures, args.networks.split(",")) if args.networks else ():
        console.print(f"[bold]{name}")
        how = {"steps": args.steps, "batch_size": 4, "quantus": False, "workers": args.workers}
        pages += network_sections(name, evaluate(model, methods, data, out=args.out / name.replace(" ", "-"), **how))
    page = "\n\n".join(pages) + "\n"
    print(page)
    if args.docs:
        args.docs.write_text(page)


if __name__ == "__main__":
    main()
