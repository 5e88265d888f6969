"""Recurrent networks, packed sequences and attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence, unpack_sequence

from benchmarks.situation_models import Case, Net, case, ids, mlp, param, randn

LENGTHS = torch.tensor([3, 5])


@case("recurrent")
def lstm() -> Case:
    """LSTM, two layers in both directions, read at its last step"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    rnn = nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True, dropout=0.3)
    return Case(M(rnn=rnn, head=nn.Linear(12, 3)), (randn(2, 5, 4),))


@case("recurrent")
def gru_sequence_first() -> Case:
    """GRU as torch lays it out, [T, B, F], read at its last state"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[1][-1])

    return Case(M(rnn=nn.GRU(4, 6), head=nn.Linear(6, 3)), (randn(5, 2, 4),), axis=1)


@case("recurrent")
def lstm_given_its_state() -> Case:
    """LSTM that is given its first state, and returns its last"""

    class M(Net):
        def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
            out, state = self.rnn(x, state)
            return self.head(out[:, -1]), state

    model = M(rnn=nn.LSTM(4, 6, batch_first=True), head=nn.Linear(6, 3))
    state = (randn(1, 2, 6), randn(1, 2, 6))
    return Case(model, (randn(2, 5, 4), state), axis={"0": 0, "1.0": 1, "1.1": 1})


@case("recurrent")
def cells_in_a_loop() -> Case:
    """LSTMCell in a loop over time, states from zeros, outputs stacked"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = c = x.new_zeros(x.shape[0], 6)
            seen = []
            for step in x.unbind(1):
                h, c = self.cell(step, (h, c))
                seen.append(h)
            return self.head(torch.stack(seen, 1).mean(1))

    return Case(M(cell=nn.LSTMCell(4, 6), head=nn.Linear(6, 3)), (randn(2, 5, 4),))


@case("recurrent")
def decoder_with_attention() -> Case:
    """Encoder and decoder of GRUs, additive attention and greedy feedback of the last word"""

    class M(Net):
        def forward(self, tokens: Tensor) -> Tensor:
            seen, state = self.encoder(self.embed(tokens))
            word, h, said = self.start.expand(len(tokens), -1), state[0], []
            for _ in range(3):
                w = self.score(torch.tanh(self.keys(seen) + self.query(h)[:, None])).softmax(1)
                h = self.cell(torch.cat([word, (w * seen).sum(1)], 1), h)
                said.append(self.head(h))
                word = self.embed(said[-1].argmax(1))
            return torch.stack(said, 1)[:, 2]

    parts = {"embed": nn.Embedding(20, 4), "encoder": nn.GRU(4, 6, batch_first=True), "cell": nn.GRUCell(10, 6)}
    parts |= {"keys": nn.Linear(6, 5), "query": nn.Linear(6, 5), "score": nn.Linear(5, 1), "head": nn.Linear(6, 20)}
    return Case(M(start=param(4), **parts), (ids(20, 2, 5),))


@case("recurrent")
def temporal_convolutions() -> Case:
    """Causal dilated convolutions with weight norm, cut by a negative slice, and residual sums"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            for conv, d in zip(self.convs, (1, 2, 4), strict=True):
                x = x + F.relu(conv(x)[..., : -2 * d])
            return self.head(x[..., -1])

    convs = (nn.Conv1d(4, 4, 3, padding=2 * d, dilation=d) for d in (1, 2, 4))
    norm = torch.nn.utils.parametrizations.weight_norm
    return Case(M(convs=nn.ModuleList(map(norm, convs)), head=nn.Linear(4, 3)), (randn(2, 4, 9),))


@case("recurrent")
def gated_state_space() -> Case:
    """Selective state space, a scan in Python with exponentials of the input (as Mamba's)"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            u, gate = self.into(x).chunk(2, -1)
            dt, b, c = F.softplus(self.dt(u)), self.b(u), self.c(u)
            h, seen = u.new_zeros(len(u), 6, 3), []
            for t in range(u.shape[1]):
                decay = torch.exp(-dt[:, t, :, None] * self.a.exp())
                h = decay * h + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
                seen.append((h * c[:, t, None]).sum(-1))
            return self.head((torch.stack(seen, 1) * F.silu(gate)).mean(1))

    parts = {"into": nn.Linear(4, 12), "dt": nn.Linear(6, 6), "b": nn.Linear(6, 3), "c": nn.Linear(6, 3)}
    return Case(M(a=param(6, 3), head=nn.Linear(6, 3), **parts), (randn(2, 5, 4),))


@case("recurrent")
def minimal_gru_by_cumsum() -> Case:
    """Recurrence in parallel, by cumulative sums of logarithms"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            gate, new = self.gate(x), self.new(x)
            keep, take = -F.softplus(gate), -F.softplus(-gate)
            a = keep.cumsum(1)
            return self.head((a + torch.logcumsumexp(take + F.logsigmoid(new) - a, 1)).exp()[:, -1])

    return Case(M(gate=nn.Linear(4, 6), new=nn.Linear(4, 6), head=nn.Linear(6, 3)), (randn(2, 5, 4),))


class Packed(Net):
    def forward(self, x: Tensor, lengths: Any) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        _, (h, _) = self.rnn(packed)
        return self.head(h[-1])


@case("packed")
def packed_lstm() -> Case:
    """LSTM over padded rows packed by a tensor of lengths"""
    return Case(Packed(rnn=nn.LSTM(4, 6, batch_first=True), head=nn.Linear(6, 3)), (randn(2, 5, 4), LENGTHS))


@case("packed")
def packed_by_a_list() -> Case:
    """GRU packed by a list of lengths, in order, and padded again before a mean"""

    class M(Net):
        def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
            out, _ = self.rnn(pack_padded_sequence(x, lengths, batch_first=True))
            out, n = pad_packed_sequence(out, batch_first=True)
            return self.head(out.sum(1) / n[:, None].to(out))

    model = M(rnn=nn.GRU(4, 6, batch_first=True, bidirectional=True), head=nn.Linear(12, 3))
    return Case(model, (randn(2, 5, 4), [5, 3]), axis=None, score=lambda y: y.gather(1, y.argmax(1, True)))


@case("packed")
def packed_sequence_as_input() -> Case:
    """A PackedSequence as the argument, as a collate function makes it"""

    class M(Net):
        def forward(self, x: Any) -> Tensor:
            return self.head(self.rnn(x)[1][-1])

    x = pack_sequence([randn(3, 4), randn(5, 4)], enforce_sorted=False)
    model = M(rnn=nn.GRU(4, 6), head=nn.Linear(6, 3))
    return Case(model, (x,), axis=None, score=lambda y: y.gather(1, y.argmax(1, True)))


@case("packed")
def sequences_in_a_list() -> Case:
    """Sequences of several lengths in a list, padded inside"""

    class M(Net):
        def forward(self, xs: list[Tensor]) -> Tensor:
            x, n = pad_sequence(xs, batch_first=True), torch.tensor([len(v) for v in xs])
            out, _ = pad_packed_sequence(self.rnn(pack_padded_sequence(x, n, True, False))[0], batch_first=True)
            return self.head(out[torch.arange(len(xs)), n - 1])

    model = M(rnn=nn.RNN(4, 6, batch_first=True), head=nn.Linear(6, 3))
    return Case(model, ([randn(3, 4), randn(5, 4)],), axis="list")


@case("packed")
def last_step_by_gather() -> Case:
    """The state at each row's last step, by `gather` with the lengths"""

    class M(Net):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            out = self.rnn(x)[0]
            return self.head(out.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, out.shape[2])).squeeze(1))

    return Case(M(rnn=nn.GRU(4, 6, batch_first=True), head=nn.Linear(6, 3)), (randn(2, 5, 4), LENGTHS))


@case("packed")
def masked_mean_and_maximum() -> Case:
    """Pooling over what a mask made of the lengths keeps: a mean and a maximum with −∞ filled in"""

    class M(Net):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            keep = (torch.arange(x.shape[1]) < lengths[:, None]).unsqueeze(-1)
            h = F.relu(self.mix(x))
            mean = (h * keep).sum(1) / keep.sum(1)
            return self.head(torch.cat([mean, h.masked_fill(~keep, -math.inf).amax(1)], 1))

    return Case(M(mix=nn.Linear(4, 6), head=nn.Linear(12, 3)), (randn(2, 5, 4), LENGTHS))


@case("packed")
def packed_bidirectional_with_states() -> Case:
    """Both directions' last states of a packed LSTM, put beside each other after a transpose"""

    class M(Net):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=False)
            h = self.rnn(packed)[1][0].view(2, 2, len(x), 6)[-1]
            return self.head(h.transpose(0, 1).reshape(len(x), -1))

    rnn = nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True)
    model = M(embed=nn.Embedding(20, 4, padding_idx=0), rnn=rnn, head=nn.Linear(12, 3))
    return Case(model, (torch.tensor([[3, 9, 4, 0, 0], [7, 2, 5, 11, 3]]), LENGTHS))


@case("packed")
def rows_unpacked_again() -> Case:
    """The steps of a packed sequence taken apart again, each row's mean"""

    class M(Net):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed, _ = self.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
            return self.head(torch.stack([row.mean(0) for row in unpack_sequence(packed)]))

    return Case(M(rnn=nn.GRU(4, 6, batch_first=True), head=nn.Linear(6, 3)), (randn(2, 5, 4), LENGTHS))


@case("attention")
def multihead_attention_sequence_first() -> Case:
    """nn.MultiheadAttention in torch's own layout, [T, B, F]"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0].mean(0))

    return Case(M(attention=nn.MultiheadAttention(8, 2), head=nn.Linear(8, 3)), (randn(5, 2, 8),), axis=1)


@case("attention")
def encoder_with_padding() -> Case:
    """nn.TransformerEncoder, batch first, with a padding mask, whose fast path torch takes by itself"""

    class M(Net):
        def forward(self, tokens: Tensor) -> Tensor:
            pad = tokens == 0
            h = self.encoder(self.embed(tokens), src_key_padding_mask=pad).masked_fill(pad[..., None], 0)
            return self.head(h.sum(1) / (~pad).sum(1, keepdim=True))

    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = M(embed=nn.Embedding(20, 8, padding_idx=0), encoder=nn.TransformerEncoder(layer, 2), head=nn.Linear(8, 3))
    return Case(model, (torch.tensor([[3, 9, 4, 0, 0], [7, 2, 5, 11, 3]]),))


@case("attention")
def transformer_both_sides() -> Case:
    """nn.Transformer with encoder and decoder in torch's own layout, a causal mask for the second"""

    class M(Net):
        def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(len(tgt), dtype=tgt.dtype)
            return self.head(self.net(src, tgt, tgt_mask=mask)[-1])

    model = M(net=nn.Transformer(8, 2, 1, 1, 16), head=nn.Linear(8, 3))
    return Case(model, (randn(5, 2, 8), randn(4, 2, 8)), axis=1)


@case("attention")
def attention_weights_returned() -> Case:
    """Cross attention that returns its weights beside the answer"""

    class M(Net):
        def forward(self, query: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
            out, weights = self.attention(query, memory, memory, average_attn_weights=False)
            return self.head(out[:, 0]), weights

    model = M(attention=nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=6), head=nn.Linear(8, 3))
    return Case(model, (randn(2, 3, 8), randn(2, 5, 6)))


@case("attention")
def causal_language_model() -> Case:
    """A small GPT: fused scaled_dot_product_attention, is_causal, tied head, read at the last token"""

    class M(Net):
        def forward(self, tokens: Tensor) -> Tensor:
            b, t = tokens.shape
            x = self.embed(tokens) + self.place(torch.arange(t))
            q, k, v = self.qkv(self.norm(x)).view(b, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
            x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, 8)
            return F.linear(x + self.mlp(x), self.embed.weight)[:, -1]

    parts = {"embed": nn.Embedding(20, 8), "place": nn.Embedding(9, 8), "qkv": nn.Linear(8, 24)}
    return Case(M(norm=nn.LayerNorm(8), mlp=mlp(8, 16, 8, act=nn.GELU), **parts), (ids(20, 2, 5),))


@case("attention")
def rotary_and_grouped() -> Case:
    """Rotary positions, grouped query heads and RMS norm, written out"""

    class M(Net):
        def turn(self, x: Tensor) -> Tensor:
            a = torch.arange(x.shape[2])[:, None] * torch.tensor([1.0, 0.1]).to(x)
            one, two = x.chunk(2, -1)
            return torch.cat([one * a.cos() - two * a.sin(), one * a.sin() + two * a.cos()], -1)

        def forward(self, x: Tensor) -> Tensor:
            b, t, _ = x.shape
            h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale
            q = self.turn(self.q(h).view(b, t, 4, 4).transpose(1, 2))
            k = self.turn(self.k(h).view(b, t, 2, 4).transpose(1, 2)).repeat_interleave(2, 1)
            v = self.v(h).view(b, t, 2, 4).transpose(1, 2).repeat_interleave(2, 1)
            out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            return self.head(x + out).mean(1)

    parts = {"q": nn.Linear(16, 16), "k": nn.Linear(16, 8), "v": nn.Linear(16, 8), "head": nn.Linear(16, 3)}
    return Case(M(scale=param(16), **parts), (randn(2, 5, 16),))


@case("attention")
def linear_attention_by_cumsum() -> Case:
    """Causal linear attention: products summed up by `cumsum`, normed by their own sum"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = F.elu(self.q(x)) + 1, F.elu(self.k(x)) + 1, self.v(x)
            kv = torch.einsum("btd,bte->btde", k, v).cumsum(1)
            norm = torch.einsum("btd,btd->bt", q, k.cumsum(1))
            return self.head((torch.einsum("btd,btde->bte", q, kv) / norm[..., None])[:, -1])

    return Case(M(q=nn.Linear(6, 4), k=nn.Linear(6, 4), v=nn.Linear(6, 4), head=nn.Linear(4, 3)), (randn(2, 5, 6),))


@case("attention")
def relative_positions_and_a_window() -> Case:
    """Attention by hand in an Einstein sum, biases of relative positions from a table, a band mask, fp32 softmax"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            b, t, _ = x.shape
            q, k, v = (self.qkv(x).reshape(b, t, 3, 2, 4)[:, :, i] for i in range(3))
            i = torch.arange(t)
            far = (i[:, None] - i).clamp(-3, 3) + 3
            scores = torch.einsum("bihd,bjhd->bhij", q, k) / 2 + self.table(far).permute(2, 0, 1)
            scores = scores.masked_fill((i[:, None] - i).abs() > 2, torch.finfo(scores.dtype).min)
            return self.head(torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).reshape(b, t, 8).mean(1))

    return Case(M(qkv=nn.Linear(6, 24), table=nn.Embedding(7, 2), head=nn.Linear(8, 3)), (randn(2, 6, 6),))


@case("attention")
def perceiver_latents() -> Case:
    """Learned latents that attend to the input, expanded to the batch, and slots normed over the queries"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            z = self.latents.expand(len(x), -1, -1)
            for _ in range(2):
                scores = self.q(z) @ self.k(x).transpose(1, 2) / 8**0.5
                w = scores.softmax(1)
                w = w / w.sum(-1, keepdim=True)
                z = self.norm(z + w @ self.v(x))
            return self.head(z.flatten(1))

    parts = {"q": nn.Linear(8, 8), "k": nn.Linear(6, 8), "v": nn.Linear(6, 8), "norm": nn.LayerNorm(8)}
    return Case(M(latents=param(3, 8), head=nn.Linear(24, 3), **parts), (randn(2, 7, 6),))


@case("attention")
def keys_and_values_given() -> Case:
    """One step of decoding with the keys and values of the steps before given in a tuple"""

    class M(Net):
        def forward(self, x: Tensor, past: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            k, v = torch.cat([past[0], self.k(x)], 1), torch.cat([past[1], self.v(x)], 1)
            out = F.scaled_dot_product_attention(self.q(x), k, v)
            return self.head(out[:, -1]), (k, v)

    model = M(q=nn.Linear(6, 4), k=nn.Linear(6, 4), v=nn.Linear(6, 4), head=nn.Linear(4, 3))
    return Case(model, (randn(2, 1, 6), (randn(2, 4, 4), randn(2, 4, 4))))


@case("attention")
def top_k_attention() -> Case:
    """Sparse attention: the scores below the k-th largest are dropped"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            scores = self.q(x) @ self.k(x).mT / 2
            least = scores.topk(3, -1).values[..., -1:]
            w = torch.where(scores >= least, scores, float("-inf")).softmax(-1)
            return self.head((w @ self.v(x)).amax(1))

    model = M(q=nn.Linear(6, 4), k=nn.Linear(6, 4), v=nn.Linear(6, 4), head=nn.Linear(4, 3))
    return Case(model, (randn(2, 6, 6),))
