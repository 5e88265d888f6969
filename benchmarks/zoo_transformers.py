"""Every architecture of transformers' Auto mappings as a tiny random-weights model with inputs, built offline.

    python benchmarks/zoo_transformers.py [--name sequence-classification/bert] [--head causal-lm]

`build(name)` shrinks the default configuration by the names of its attributes, on a ladder from "everything is small"
to "as released", and takes the first rung whose model fits the memory and tells two samples apart.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import inspect
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.models.auto import modeling_auto

TASKS = "SequenceClassification TokenClassification ImageClassification AudioClassification QuestionAnswering MaskedLM"
HEADS: dict[str, Any] = {
    re.sub("(?<=[a-z])(?=[A-Z])", "-", task).lower(): getattr(transformers, f"AutoModelFor{task}")
    for task in [*TASKS.split(), "CausalLM"]
}
MAX_PARAMETERS = 50_000_000
HIDDEN, LABELS, LENGTH, VOCAB = 32, 5, 12, 100


class NotTried(Exception):
    """This entry cannot be built here; the message is the one-line reason."""


def names() -> list[str]:
    """All "head/model type" pairs."""
    mappings = {h: f"MODEL_FOR_{h.upper().replace('-', '_')}_MAPPING_NAMES" for h in HEADS}
    return [f"{head}/{kind}" for head, mapping in mappings.items() for kind in getattr(modeling_auto, mapping)]


def family(name: str) -> str:
    """The head of an entry."""
    return name.split("/")[0]


def _read(config: PretrainedConfig, key: str) -> Any:
    """An attribute by its common name; unlike `getattr`, also one that varies by layer."""
    return vars(config).get(config.attribute_map.get(key, key))


def _parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    """A configuration and its sub-configurations."""
    return [config, *[v for v in vars(config).values() if isinstance(v, PretrainedConfig)]]


def _width(old: int, config: PretrainedConfig) -> int:
    """A multiple of the hidden size stays the same multiple of it."""
    hidden = _read(config, "hidden_size")
    return HIDDEN * (old // hidden) if isinstance(hidden, int) and 0 < hidden <= old and old % hidden == 0 else HIDDEN


def _kv_heads(old: int, config: PretrainedConfig) -> int:
    """Grouped queries stay grouped."""
    return 4 if old == _read(config, "num_attention_heads") else 2


def _head_dim(old: int, config: PretrainedConfig) -> int:
    """A head that is the sum of its rotated and unrotated parts stays their sum."""
    return 16 if old == (_read(config, "qk_nope_head_dim") or 0) + (_read(config, "qk_rope_head_dim") or 0) else 8


# fmt: off
# What an integer attribute becomes where its name matches, the first match wins: (group, value, names). Values only
# shrink; a function gets the old value and the configuration.
RULES: list[tuple[str, int | Callable[[int, PretrainedConfig], int], str]] = [
    ("vocab", VOCAB, r".*(vocab_size(_\w+)?|hash_buckets|group_vocab|unit_embeddings|2d_position_embeddings)"),
    ("vocab", 64, r"codebook_size|num_centroids"), ("vocab", LABELS, r"num_(qa|object|attr)_labels"),
    ("positions", 64, r".*(position_embeddings|max_seq_len|n_positions|n_ctx|context_length|model_max_length)"),
    ("positions", 64, r"max_\w*(source|target|encoder|decoder)_position\w+|max_length|train_size|seq_length"),
    ("positions", 16, r"rel_extent|max_bucket_distance|num_latents|max_depth"),
    ("positions", LENGTH, r"segment_means_seq_len"),
    ("window", 8, r".*(sliding_window|local_attention|attention_window|attention_chunk_size)(_size|_len)?"),
    ("window", 8, r"index_topk|keep_window_size|index_block_size|(mamba_)?chunk_size|block_size|indexer_budget"),
    ("window", 4, r"(lsh|local)_attn_chunk_length|local_transformer_stride|num_landmarks|index_topk_blocks"),
    ("window", 2, r"window_size"),
    ("layers", 2, r"((conf_)?num|n)_(hidden_|encoder_|decoder_|global_)?layers?(_per_stack)?|\w+coder_layers"),
    ("layers", 2, r"[lxr]_layers|num_blocks|num_self_attends_per_block|depth|num_kv_shared_layers|layer_group_size"),
    ("layers", 2, r"(attn|expert)_layer_period|.*_pattern|global_attn_every_n_layers"),
    ("layers", 1, r"first_k_dense_replace|moe_layer_start_index|num_dense_layers|num_hash|(attn|expert)_layer_offset"),
    ("experts", 8, r"(num|n)_(routed_|local_)?experts|moe_num_experts|zero_expert_num"),
    ("experts", 2, r".*(num_experts_per_tok(en)?|top_?k_experts|moe_top_?k|moe_k)|n_group|num_expert_group"),
    ("experts", 1, r"topk_group|(num|n|moe_num)_shared_experts"),
    ("heads", _kv_heads, r".*(num_key_value_heads|kv_heads|kv_n_heads|num_query_groups)"),
    ("heads", 4, r".*(attention_heads|n_heads?|num_heads|linear_num_\w+_heads|mamba_heads|encoder_heads)(_per_layer)?"),
    ("heads", 16, r"mamba_(d_head|head_?dim)"),
    ("heads", _head_dim, r".*(head_dim|dim_head|d_head|head_size|kv_channels|qk_\w+_dim|groups_width)"),
    ("heads", 4, r"rotary_dim|num_groups"), ("heads", 2, r".*n_?groups"),
    ("width", 16, r".*(_rank|lowrank|hidden_size_per_layer_input)|embed_dim|visual_feat_dim"),
    ("width", 48, r".*(intermediate_size\w*|ffn_dim|ffn_hidden_size|d_ff|dff|inner|dim_ff|mlp_dim|ffn_size)"),
    ("width", 4, r".*(state_size|d_state|codevectors_per_group)|shape_size"),
    ("width", 6, r"coordinate_size"), ("width", 8, r"stem_out_channels"),
    ("width", HIDDEN, r"hidden_size|d_model|n_embd|emb_dim|dim|d_latents|hidden_size_global|adapter_out_dim"),
    ("width", _width, r".*(hidden_size|embedding_size|(embed|embedding|embd|proj|projection|hidden)_dim|emb_size)"),
    ("width", _width, r".*(proj_size|(out|in)put_size|codevector_dim|(out|in|output)_dim|lru_width|d_ssm)"),
    ("image", 64, r"image_size|crop_size"), ("image", 16, r"patch_size|num_patches"),
    ("image", 4, r"mm_tokens_per_image"),
]
# The same for the elements of per-stage lists, of which a function gets one and all.
LIST_RULES: list[tuple[str, Callable[[int, Any], int], str]] = [
    ("layers", lambda v, _: min(v, 2), r"depths?|num_block_repeats|stage_num\w+"),
    ("lists", lambda v, every: v // math.gcd(*every), r"num_(attention_)?heads"),
    # an eighth, in multiples of four; three is an image's channels
    ("lists", lambda v, _: v if v < 8 else max(8, round(v / 32) * 4), r"(neck_)?hidden_sizes|embed_dims?|\w*conv_dim"
     r"|(stem|stage_\w+)_channels|tdnn_dim|base_attn_unit_dims"),
]
# fmt: on
ALL = {group for group, *_ in [*RULES, *LIST_RULES]} | {"kinds"}
LADDER = {  # "kinds" keeps a layer of each kind, "fill" gives values to what is unset
    "": ALL,
    "unset sizes filled": ALL | {"fill"},
    "layers as the configuration derives them": ALL - {"kinds"},
    "only layers, vocabulary and experts small": {"layers", "kinds", "vocab", "experts"},
    "only layers small": {"layers"},
    "default configuration": set(),
}
SKIP = re.compile(r"transformers_version|id2label|label2id|architectures|dtype|_\w+|return_dict|output_\w+s")
TOKEN = re.compile(r"\w+_(token_id|token_index|pad_id)|pad_index")
INDICES = re.compile(r".*(_layers|idxs|layer_ids|_indexes|_indices)")
# fmt: off
INDEXER = {"n_heads": 4, "kv_heads": 1, "head_dim": 8, "budget": 8, "compress_ratio": 2}
INDEXER = {f"indexer_{key}": value for key, value in INDEXER.items()}
PER_TYPE: dict[str, dict[str, Any]] = {
    # what has no default, or one that its own model class refuses
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}, "ffn_config": {"moe_top_k": 2}},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2},  # a mixture of one
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "qwen4_exp": {"text_config": INDEXER},
    "qwen4_exp_text": INDEXER,
    "xmod": {"default_language": "en_XX"},
    # relations between attributes that no name tells
    "bros": {"hidden_size": 64},  # its sinusoids take a 32nd
    "cvt": {"depth": (1, 2, 3)},  # it indexes the drop path rates of a stage by the stage
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}},
    "efficientnet": {"width_coefficient": 0.25, "hidden_dim": 320},  # 1280 times the coefficient
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},  # spells out the layers
    "lilt": {"hidden_size": 48},  # six coordinates share it
    "mamba2": {"num_heads": 8, "head_dim": 8},  # their product is expand * hidden_size
    "mobilevit": {"image_size": 128},  # the patches of its last stage are 64 px
    "mobilevitv2": {"image_size": 128},
    "neomme": {"head_dim": 16},  # the rotary quarter of a head is a multiple of four
    "reformer": {"axial_pos_shape": (4, 16), "axial_pos_embds_dim": (16, 16), "num_buckets": 4, "hash_seed": 0,
                 "attn_layers": ["local", "lsh"]},  # positions factor, and sum to the hidden size
    "shieldgemma2": {"yes_token_index": 90, "no_token_index": 91},  # its classes are logits of the vocabulary
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
              "attention_head_dim": 16},  # of twice the hidden size; hybrids share weights
    # vision models that are timm's and sized by their name
    "gemma3n": {"vision_config": {"architecture": "test_resnet"}},
    "timm_wrapper": {"architecture": "test_resnet"},
}
NOT_TRIED = dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "needs the key-values of another model")
# fmt: on


def _small(key: str, value: Any, config: PretrainedConfig, groups: set[str]) -> Any:
    """The small value of one attribute, or of the elements of a list."""
    if isinstance(value, (list, tuple)):
        for group, new, pattern in LIST_RULES:
            if re.fullmatch(pattern, key) and all(type(v) is int for v in value):
                return type(value)(new(v, value) for v in value) if group in groups else value
        return type(value)(_small(key, v, config, groups) if type(v) is int else v for v in value)
    for group, size, pattern in RULES:
        if re.fullmatch(pattern, key):
            size = size(value or 1 << 20, config) if callable(size) else size
            return size if group in groups and (value is None or size < value) else value
    return value


def _kept_layers(config: PretrainedConfig) -> list[int]:
    """One layer of each kind that the per-layer lists of a configuration mix, at least two; none of stages."""
    depth = _read(config, "num_hidden_layers")
    lists = {k: v for k, v in vars(config).items() if isinstance(v, list) and not SKIP.fullmatch(k)}
    if not isinstance(depth, int) or "depths" in vars(config):
        return []
    settings = [v for v in lists.values() if len(v) == depth and v != list(range(depth))]
    indices = [v for k, v in lists.items() if INDICES.fullmatch(k) and len(v) != depth]
    kinds = [str([*(v[i] for v in settings), *(i in v for v in indices)]) for i in range(depth)]
    first = [i for i, kind in enumerate(kinds) if kind not in kinds[:i]][:6] if settings or indices else []
    return list(range(min(depth, 2))) if first == [0] else first


def shrunk(config: PretrainedConfig, groups: set[str]) -> dict[str, Any]:
    """Constructor arguments that make a configuration small, sub-configurations included."""
    fields = {config.attribute_map.get(f.name, f.name): f for f in dataclasses.fields(config)}
    special = iter(range(VOCAB - 1, 0, -1))
    small: dict[str, Any] = {}
    keep = _kept_layers(config) if {"layers", "kinds"} <= groups else []
    for key, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            small[key] = shrunk(value, groups) | {"model_type": value.model_type}
        elif key == "_heterogeneity_spec" and keep:  # attributes that vary by layer
            layers = {i: (config.per_layer_config[i], value.explicit_per_layer_attributes) for i in keep}
            small["per_layer_config"] = {
                keep.index(i): {k: _small(k, vars(layer)[k], layer, groups) for k in keys}
                for i, (layer, keys) in layers.items()
            }
        elif key not in fields or SKIP.fullmatch(key) or isinstance(value, bool):
            continue
        elif TOKEN.fullmatch(key):
            first = value[0] if isinstance(value, list) and value else value
            if first is None and key == "pad_token_id":
                small[key] = 0
            elif isinstance(first, int) and first >= VOCAB:
                small[key] = next(special)
        elif isinstance(value, list) and keep and INDICES.fullmatch(key) and sorted(set(value)) == value:
            small[key] = [keep.index(i) for i in value if i in keep]
        elif isinstance(value, list) and keep and len(value) == _read(config, "num_hidden_layers"):
            small[key] = _small(key, [value[i] for i in keep], config, groups)
        elif (
            isinstance(value, (list, tuple))
            or (type(value) is int and type(fields[key].default) is int)  # else derived from these
            or (value is None and "fill" in groups and "int" in str(fields[key].type))
        ):
            small[key] = _small(key, value, config, groups)
    if keep:
        small[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(keep)
    return {k: v for k, v in small.items() if v is not None and (k not in vars(config) or v != vars(config)[k])}


NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Gives constant parameters (norms, biases, gates, zero-initialised heads) values, and matrices unit gain."""
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if not p.is_floating_point() or p.numel() == 0 or not p.requires_grad:  # frozen ones are sinusoids
                continue
            mean, spread = p.mean().item(), p.std(correction=0).item()
            fan = p[0].numel() if isinstance(module, nn.modules.conv._ConvNd) else p.shape[-1] if p.ndim else 1
            if name == "weight" and isinstance(module, NORMS):
                p.normal_(1, 0.1)
            elif p.numel() == 1 or (mean and spread <= 1e-4 * abs(mean)):  # gates and LayerScale, that they matter
                p.copy_((mean if abs(mean) > 0.1 else 0.5) * (1 + 0.1 * torch.randn_like(p)))
            elif not math.isfinite(mean + spread) or spread < 1e-5:  # left uninitialised, or zero
                p.normal_(0, fan**-0.5 if p.ndim > 1 else 0.1)
            elif p.ndim > 1 and abs(mean) < 0.3 * spread:  # not the decay rates of a state space
                p.mul_(min(fan**-0.5 / spread, 50.0))


@torch.no_grad()
def calibrate(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Sets the statistics of batch norms to about those of their inputs, so that a signal does not fade with depth."""

    def measure(norm: Any, args: tuple[Tensor, ...]) -> None:
        x = args[0].transpose(0, 1).flatten(1)
        norm.running_mean.copy_(x.mean(1))
        norm.running_var.copy_(x.var(1) + 1e-3)  # a constant channel's is zero

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    with contextlib.ExitStack() as hooks:
        for norm in norms:
            hooks.enter_context(norm.register_forward_pre_hook(measure))
        if norms:
            model(**inputs)


def _find(config: PretrainedConfig, key: str, default: Any = None) -> Any:
    """What a configuration, or else one of its sub-configurations, sets an attribute to."""
    return next((v for c in _parts(config) if (v := getattr(c, key, None)) is not None), default)


def text_inputs(config: PretrainedConfig, takes: set[str]) -> dict[str, Tensor]:
    """Token ids that avoid the special ones, and what else a text model requires."""
    used = {v for c in _parts(config) for k, v in vars(c).items() if TOKEN.fullmatch(k) and isinstance(v, int)}
    free = torch.tensor([i for i in range(4, min(_find(config, "vocab_size", VOCAB), VOCAB)) if i not in used])
    inputs = {"input_ids": free[torch.randint(len(free), (2, LENGTH))]}
    if config.is_encoder_decoder and isinstance(eos := _find(config, "eos_token_id"), int):
        inputs["input_ids"][:, -1] = eos  # BART-like heads pool at the end-of-sentence token
    if "attention_mask" in takes:
        inputs["attention_mask"] = torch.ones(2, LENGTH, dtype=torch.long)
    if "bbox" in takes:
        inputs["bbox"] = torch.randint(0, 30, (2, LENGTH, 2)).repeat(1, 1, 2) + torch.tensor([0, 0, 20, 10])
    if "visual_feats" in takes:
        inputs["visual_feats"] = torch.randn(2, 6, _find(config, "visual_feat_dim"))
        inputs["visual_pos"] = torch.rand(2, 6, _find(config, "visual_pos_dim"))
    return inputs


def image_inputs(config: PretrainedConfig, takes: set[str], side: int) -> dict[str, Tensor]:
    """Pixels, or what a model of images takes instead or besides."""
    if "pixel_values" not in takes:
        return text_inputs(config, takes)
    channels, patch, rows = _find(config, "num_channels", 3), _find(config, "patch_size"), side // 16
    if "spatial_shapes" in takes:
        patches = torch.randn(2, rows**2, channels * patch**2)
        mask = torch.ones(2, rows**2, dtype=torch.long)
        return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": torch.full((2, 2), rows)}
    # smooth, because noise averages out over the positions and all of its samples look alike
    pixels = nn.functional.interpolate(torch.randn(2, channels, 4, 4), side, mode="bilinear")
    inputs = {"pixel_values": pixels + 0.2 * torch.randn_like(pixels)}
    if "input_ids" in takes:
        inputs |= text_inputs(config, takes)
        inputs["input_ids"][:, : _find(config, "mm_tokens_per_image")] = _find(config, "image_token_id")
    return inputs


def padded(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The inputs with two padded positions in sample 1, where the model answers as it does for the shorter sample."""
    if "attention_mask" not in inputs:
        return None
    short, pad = LENGTH - 2, {k: v.clone() for k, v in inputs.items()}
    pad["input_ids"][1, short - 1] = inputs["input_ids"][1, -1]
    pad["input_ids"][1, short:] = _find(model.config, "pad_token_id", 0)
    pad["attention_mask"][1, short:] = 0
    alone = {k: v[1:, :short] if v.shape[1] == LENGTH else v[1:] for k, v in pad.items()}
    try:
        together, expected = (next(iter(outputs(model, x).values())) for x in (pad, alone))
        return pad if torch.allclose(together[1:, : expected.shape[1]], expected, atol=1e-4) else None
    except Exception:
        return None


def candidates(model: nn.Module, head: str) -> Iterator[tuple[dict[str, Tensor], str]]:
    """Inputs to try in turn, with a note on each."""
    config, takes = model.config, set(inspect.signature(model.forward).parameters)
    if head == "image-classification":
        size = _find(config, "image_size", 64)
        for side in dict.fromkeys([size if isinstance(size, int) else size[-1], 64, 128, 224]):
            inputs = image_inputs(config, takes, side)
            yield inputs, f"{side} px" if set(inputs) == {"pixel_values"} else " ".join(inputs)
    elif head == "audio-classification":
        bins, frames = _find(config, "num_mel_bins", 80), 2 * _find(config, "max_source_positions", 64)
        features = [(_find(config, "max_length", 64), bins), (bins, frames)]
        key = "input_values" if "input_values" in takes else "input_features"
        for shape in [(3200,), *features, (16, _find(config, "feature_projection_input_dim", 1))]:
            yield {key: torch.randn(2, *shape)}, f"{key} {shape}"
    else:
        inputs = text_inputs(config, takes)
        if head == "question-answering" and (separator := _find(config, "sep_token_id")) is not None:
            inputs["input_ids"][:, [3, 4, -1]] = separator  # question, context
        if (with_pad := padded(model, inputs)) is not None:
            yield with_pad, ""
        yield inputs, "without padding"
        if books := _find(config, "num_codebooks"):
            ids = torch.cat([inputs["input_ids"]] * books)
            yield inputs | {"input_ids": ids}, f"{books} codebooks in the batch dimension"


def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The float tensors that a model returns, by name."""
    with torch.no_grad():
        return {k: v for k, v in model(**inputs).items() if isinstance(v, Tensor) and v.is_floating_point()}


def check(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Raises unless the outputs are finite, differ between the samples and come out the same again."""
    out = outputs(model, inputs)
    first = next(iter(out.values()))
    if not all(v.isfinite().all() for v in out.values()):
        raise ValueError("outputs are not finite")
    if len(first) < 2 or (first[0] - first[-1]).abs().max() < 1e-3 * first.abs().median():
        raise ValueError("outputs of two samples are equal")
    if not torch.equal(first, next(iter(outputs(model, inputs).values()))):
        raise ValueError("outputs are random")


def _merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return a | {k: _merged(a.get(k, {}), v) if isinstance(v, dict) else v for k, v in b.items()}


def _attempt(head: str, kind: str, groups: set[str]) -> nn.Module:
    """The model of one rung of the ladder, its weights as the library initialises them."""
    config_class = transformers.CONFIG_MAPPING[kind]
    config = config_class(**_merged(shrunk(config_class(), groups), PER_TYPE.get(kind, {})))
    config.num_labels = 2 if head == "question-answering" else LABELS
    if head == "causal-lm" and hasattr(config, "is_decoder"):
        config.is_decoder = True  # else the layers of an encoder look ahead
    for part in _parts(config):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    for key in ("pad_token_id", "decoder_start_token_id"):  # for heads that pool a batch, for shifted inputs
        if getattr(config, key, None) is None:
            setattr(config, key, _find(config, key, 0))
    model_class = HEADS[head]._model_mapping[config_class]
    model_class = model_class[0] if isinstance(model_class, (list, tuple)) else model_class
    config = next((part for part in _parts(config) if type(part) is model_class.config_class), config)  # its text part
    with torch.device("meta"):
        count = sum(p.numel() for p in model_class._from_config(config).parameters())
    if count > MAX_PARAMETERS:
        raise ValueError(f"{count / 1e6:.0f} M parameters")
    return model_class._from_config(config).eval().float()


def build(name: str, seed: int = 0) -> tuple[nn.Module, dict[str, Tensor], str]:
    """A tiny model in eval mode, keyword inputs for a batch of two different samples, and a note."""
    head, kind = name.split("/")
    if kind not in transformers.CONFIG_MAPPING or kind in NOT_TRIED:
        raise NotTried(NOT_TRIED.get(kind, "not an Auto config"))
    errors: list[str] = []
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rung, groups in LADDER.items():
            torch.manual_seed(seed)
            try:
                model = _attempt(head, kind, groups)
                randomise(model)
                for inputs, note in candidates(model, head):
                    try:
                        calibrate(model, inputs)
                        check(model, inputs)
                        return model, inputs, "; ".join(filter(None, [note, rung]))
                    except Exception as error:
                        errors.append(_one_line(error))
            except ImportError as error:
                raise NotTried(_one_line(error)) from None
            except Exception as error:
                errors.append(_one_line(error))
    raise RuntimeError(" | ".join(dict.fromkeys(errors)))


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name")
    parser.add_argument("--head", choices=HEADS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    totals: collections.Counter[str] = collections.Counter()
    for name in [args.name] if args.name else [n for n in names() if args.head in (None, family(n))]:
        start = time.perf_counter()
        try:
            model, inputs, note = build(name)
            shapes = " ".join(f"{k}{list(v.shape)}" for k, v in outputs(model, inputs).items())
            verdict, text = "ok", f"{sum(p.numel() for p in model.parameters()):,} parameters, {shapes}"
            text += f" ({note})" if note else ""
        except NotTried as reason:
            verdict, text = "NotTried", str(reason)
        except Exception as error:
            verdict, text = "FAILED", str(error)
        totals[f"{family(name)}: {verdict}"] += 1
        print(f"{name}: {verdict} {time.perf_counter() - start:.1f} s, {text}", flush=True)
    print(*(f"{key} {count}" for key, count in totals.items()), sep="\n")


if __name__ == "__main__":
    main()
