"""Physics and derivatives, complex numbers and spectra."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.situation_models import Case, Net, case, mlp, param, randn


@case("physics")
def ode_by_euler() -> Case:
    """A neural ODE, five steps of Euler's method"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            for i in range(5):
                t = x.new_full((x.shape[0], 1), i / 5)
                x = x + 0.2 * self.field(torch.cat([x, t], 1))
            return self.head(x)

    return Case(M(field=mlp(5, 8, 4, act=nn.Tanh), head=nn.Linear(4, 3)), (randn(3, 4),))


@case("physics")
def ode_by_runge_kutta() -> Case:
    """A neural ODE by Runge and Kutta's fourth order, its step size an argument"""

    class M(Net):
        def forward(self, x: Tensor, step: float) -> Tensor:
            f = self.field
            for _ in range(2):
                a = f(x)
                b = f(x + step / 2 * a)
                c = f(x + step / 2 * b)
                x = x + step / 6 * (a + 2 * b + 2 * c + f(x + step * c))
            return self.head(x)

    return Case(M(field=mlp(4, 8, 4, act=nn.Tanh), head=nn.Linear(4, 3)), (randn(3, 4), 0.1))


@case("physics")
def sines_of_coordinates() -> Case:
    """SIREN: sines of coordinates, one number a point"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = torch.sin(3 * layer(x))
            return self.head(x)

    layers = nn.ModuleList([nn.Linear(2, 8), nn.Linear(8, 8)])
    return Case(M(layers=layers, head=nn.Linear(8, 1)), (randn(3, 2),))


@case("physics")
def branch_and_trunk() -> Case:
    """DeepONet: a product of a function's network and a place's, places shared by all samples"""

    class M(Net):
        def forward(self, u: Tensor, places: Tensor) -> Tensor:
            return torch.einsum("bp,np->bn", self.branch(u), self.trunk(places))

    model = M(branch=mlp(5, 8, 4), trunk=mlp(2, 8, 4))
    return Case(model, (randn(2, 5), randn(6, 2)), axis={"0": 0, "1": None})


@case("physics")
def convex_in_its_input() -> Case:
    """An input-convex network: weights kept positive by softplus at every call"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            z = F.softplus(self.first(x))
            return F.softplus(F.linear(z, F.softplus(self.w)) + self.skip(x)).sum(1)

    return Case(M(first=nn.Linear(4, 6), skip=nn.Linear(4, 5), w=param(5, 6)), (randn(3, 4),))


@case("physics")
def fixed_point() -> Case:
    """A deep equilibrium: iterated until its change is small"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            z = torch.zeros(len(x), 6).to(x)
            for _ in range(30):
                new = torch.tanh(self.w(z) / 4 + self.u(x))
                if (new - z).abs().max() < 1e-12:
                    break
                z = new
            return self.head(z)

    return Case(M(w=nn.Linear(6, 6), u=nn.Linear(4, 6), head=nn.Linear(6, 3)), (randn(1, 4),))


@case("physics")
def linear_solve() -> Case:
    """A layer that solves a linear system made of the input, by Cholesky factors"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x).view(-1, 3, 3)
            factor = torch.linalg.cholesky(a @ a.mT + torch.eye(3).to(a))
            return self.head(torch.cholesky_solve(self.b(x).unsqueeze(-1), factor).squeeze(-1))

    return Case(M(a=nn.Linear(5, 9), b=nn.Linear(5, 3), head=nn.Linear(3, 2)), (randn(2, 5),))


@case("physics")
def kernel_of_known_points() -> Case:
    """A Gaussian process: a kernel between the input and points that are known, and a solved system"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            known = torch.exp(-torch.cdist(self.points, self.points).pow(2)) + 0.1 * torch.eye(5).to(x)
            k = torch.exp(-torch.cdist(x, self.points).pow(2))
            return k @ torch.linalg.solve(known, self.values)

    return Case(M(points=param(5, 3), values=param(5, 2)), (randn(2, 3),))


@case("physics")
def eigenvalues() -> Case:
    """The eigenvalues of a symmetric matrix made of the input"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x).view(-1, 4, 4)
            return self.head(torch.linalg.eigvalsh(a + a.mT))

    return Case(M(a=nn.Linear(5, 16), head=nn.Linear(4, 3)), (randn(2, 5),))


@case("physics")
def finite_differences() -> Case:
    """Derivatives of a field by shifted slices and rolled copies, a step of the heat equation"""

    class M(Net):
        def forward(self, u: Tensor) -> Tensor:
            lap = -4 * u + sum(u.roll(s, d) for s in (-1, 1) for d in (2, 3))
            gx = (u[..., 2:] - u[..., :-2]) / 2
            return self.head(F.relu(self.conv(torch.cat([u + 0.1 * lap, F.pad(gx, (1, 1))], 1))).mean((2, 3)))

    return Case(M(conv=nn.Conv2d(2, 4, 3), head=nn.Linear(4, 3)), (randn(2, 1, 6, 6),))


@case("physics")
def splines_on_edges() -> Case:
    """A Kolmogorov–Arnold layer: B-splines of every input by the recursion of de Boor"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            g, z = self.grid, x.tanh().unsqueeze(-1)
            b = ((z >= g[:-1]) & (z < g[1:])).to(x.dtype)
            for k in (1, 2):
                left = (z - g[: -(k + 1)]) / (g[k:-1] - g[: -(k + 1)]) * b[..., :-1]
                b = left + (g[k + 1 :] - z) / (g[k + 1 :] - g[1:-k]) * b[..., 1:]
            return F.silu(x) @ self.base + torch.einsum("big,igo->bo", b, self.spline)

    grid = torch.linspace(-2, 2, 9)
    return Case(M(grid=grid, base=param(4, 3), spline=param(4, 6, 3)), (randn(3, 4),))


@case("physics")
def batched_by_vmap() -> Case:
    """A function of one sample mapped over the batch by torch.func.vmap"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.func.vmap(lambda one: torch.outer(one, one).triu().sum(0))(F.relu(self.first(x))))

    return Case(M(first=nn.Linear(4, 5), head=nn.Linear(5, 3)), (randn(3, 4),))


@case("physics")
def ensemble_of_stacked_weights() -> Case:
    """An ensemble of networks by torch.func.functional_call under vmap, weights stacked"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            weights = {"weight": self.w, "bias": self.b}
            one = lambda p, v: torch.func.functional_call(self.layer, p, (v,))  # noqa: E731
            return torch.func.vmap(one, in_dims=(0, None))(weights, x).relu().mean(0)

    return Case(M(layer=nn.Linear(4, 3), w=param(5, 3, 4), b=param(5, 3)), (randn(3, 4),))


@case("spectral")
def spectrogram() -> Case:
    """Sound: a spectrogram with a window, mel filters, logarithms, convolutions"""

    class M(Net):
        def forward(self, wave: Tensor) -> Tensor:
            s = torch.stft(wave, 16, 8, window=self.window, return_complex=True)
            mel = torch.log(self.mel @ s.abs().pow(2) + 1e-3)
            return self.head(F.relu(self.conv(mel)).mean(2))

    parts = {"window": torch.hann_window(16), "mel": torch.rand(6, 9)}
    return Case(M(conv=nn.Conv1d(6, 4, 3), head=nn.Linear(4, 3), **parts), (randn(2, 64),))


@case("spectral")
def fourier_operator() -> Case:
    """A Fourier neural operator: the lowest frequencies times complex weights, written into zeros"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.lift(x)
            f = torch.fft.rfft(h)
            out = torch.zeros_like(f)
            out[:, :, :3] = torch.einsum("bim,iom->bom", f[:, :, :3], torch.view_as_complex(self.w))
            return self.head(F.gelu(torch.fft.irfft(out, n=x.shape[-1]) + self.skip(h)).mean(2))

    parts = {"lift": nn.Conv1d(1, 4, 1), "skip": nn.Conv1d(4, 4, 1), "w": param(4, 4, 3, 2)}
    return Case(M(head=nn.Linear(4, 3), **parts), (randn(2, 1, 12),))


@case("spectral")
def complex_input() -> Case:
    """Complex numbers as the input, a complex linear layer, magnitudes"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(x).abs())

    mix = nn.Linear(4, 6, dtype=torch.complex128)
    x = torch.complex(randn(2, 4), randn(2, 4)).to(torch.complex128)
    return Case(M(mix=mix, head=nn.Linear(6, 3).double()), (x,), double=False)


@case("spectral")
def fourier_mixing() -> Case:
    """FNet: the real part of a Fourier transform over tokens and features instead of attention"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x + torch.fft.fftn(x, dim=(-2, -1)).real)
            return self.head((x + self.mlp(x)).mean(1))

    return Case(M(norm=nn.LayerNorm(6), mlp=mlp(6, 12, 6, act=nn.GELU), head=nn.Linear(6, 3)), (randn(2, 5, 6),))


@case("spectral")
def masks_in_the_spectrum() -> Case:
    """Separation of sound: a mask times the spectrum, and back to a wave"""

    class M(Net):
        def forward(self, wave: Tensor) -> Tensor:
            w = torch.hann_window(16, dtype=wave.dtype)
            s = torch.stft(wave, 16, 4, window=w, return_complex=True)
            mask = self.net(s.abs().transpose(1, 2)).sigmoid().transpose(1, 2)
            return torch.istft(s * mask, 16, 4, window=w, length=wave.shape[-1])

    return Case(M(net=mlp(9, 8, 9)), (randn(2, 64),), target=lambda y: y[:, 10:20].pow(2).sum(1))


@case("spectral")
def phase_and_polar_form() -> Case:
    """Amplitude and phase taken apart, and put together with torch.polar"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            f = torch.fft.rfft2(x)
            f = torch.polar(f.abs() * self.gain.exp(), f.angle())
            return self.head(torch.fft.irfft2(f, s=x.shape[-2:]).relu().flatten(1))

    return Case(M(gain=param(6, 4), head=nn.Linear(36, 3)), (randn(2, 6, 6),))


@case("spectral")
def long_convolution() -> Case:
    """A convolution as long as the sequence, by Fourier transforms, with an implicit kernel"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[-1]
            k = self.kernel(torch.linspace(0, 1, n).to(x).unsqueeze(1)).T * torch.exp(-torch.arange(n).to(x) / 4)
            y = torch.fft.irfft(torch.fft.rfft(x, n=2 * n) * torch.fft.rfft(k, n=2 * n), n=2 * n)[..., :n]
            return self.head((F.gelu(y) * x).mean(-1))

    return Case(M(kernel=mlp(1, 8, 4, act=nn.SiLU), head=nn.Linear(4, 3)), (randn(2, 4, 10),))


@case("spectral")
def wavelets() -> Case:
    """Haar wavelets by strided slices, twice, soft thresholds"""

    class M(Net):
        def forward(self, x: Tensor) -> Tensor:
            parts = []
            for _ in range(2):
                low, high = (x[..., ::2] + x[..., 1::2]) / math.sqrt(2), (x[..., ::2] - x[..., 1::2]) / math.sqrt(2)
                parts.append(F.softshrink(high, 0.1))
                x = low
            return self.head(torch.cat([*parts, x], -1))

    return Case(M(head=nn.Linear(12, 3)), (randn(2, 12),))
