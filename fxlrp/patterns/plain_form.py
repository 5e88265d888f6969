"""The graph passes that canonicalize a model into the few forms that have rules, in their order."""

from __future__ import annotations

from fxlrp.patterns.attention import expand_attention
from fxlrp.patterns.batch_norm import fold_batch_norm
from fxlrp.patterns.bias import join_bias
from fxlrp.patterns.centring import join_sigmoid, join_softmax, mark_centring
from fxlrp.patterns.complex_numbers import split_complex
from fxlrp.patterns.elementwise import fuse_elementwise
from fxlrp.patterns.masks import mark_masks
from fxlrp.patterns.powers import name_powers
from fxlrp.patterns.take_apart import take_apart

PLAIN_FORM = (
    expand_attention,
    fold_batch_norm,
    take_apart,
    join_bias,
    mark_masks,
    split_complex,
    name_powers,
    mark_centring,
    join_softmax,
    join_sigmoid,
    fuse_elementwise,
)
