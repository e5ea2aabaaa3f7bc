"""The numerics of the linear rules, against automatic differentiation, dense algebra and naive searches."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from edgeseg.rewrite import solve
from edgeseg.rewrite.features import Blocks, Mixed, MixedOnce
from edgeseg.rewrite.moments import Moments, Summing, of_weights
from edgeseg.rewrite.solve import Features, best_ridge, cholesky, minimise, principal, problem_of, project, vary
from edgeseg.rewrite.values import Fitted

N, TAPS, OUT = 6, 4, 5
FEATURES: list[tuple[Features, int]] = [
    (Blocks(N, 2, TAPS), N * 2 * TAPS),
    (Mixed(N, TAPS, 3), 3 * N),
    (MixedOnce(N, TAPS, 7), 7 * (N + TAPS)),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram_of(size: int, seed: int = 0) -> Tensor:
    factor = random(size, size + 3, seed=seed) * torch.logspace(0, -1, size, dtype=torch.float64)[:, None]
    return factor @ factor.T


def formed(features: Features, theta: Tensor) -> Tensor:
    """F (q, D), one feature at a time, from loops."""
    rows = []
    if isinstance(features, Blocks):
        filters = theta.view(features.n, features.m, features.t)
        for i in range(features.n):
            for b in range(features.m):
                row = torch.zeros(features.n, features.t, dtype=theta.dtype)
                row[i] = filters[i, b]
                rows.append(row)
    elif isinstance(features, Mixed):
        mixing = theta.view(features.r, features.n)
        for a in range(features.r):
            for s in range(features.t):
                row = torch.zeros(features.n, features.t, dtype=theta.dtype)
                row[:, s] = mixing[a]
                rows.append(row)
    else:
        assert isinstance(features, MixedOnce)
        mixing = theta[: features.r * features.n].view(features.r, features.n)
        filters = theta[features.r * features.n :].view(features.r, features.t)
        rows = [torch.outer(mixing[a], filters[a]) for a in range(features.r)]
    return torch.stack([row.flatten() for row in rows])


@pytest.mark.parametrize(("features", "size"), FEATURES)
def test_features_multiply_as_their_matrix_does(features: Features, size: int) -> None:
    theta, gram, rows = random(size), gram_of(N * TAPS), random(8, N * TAPS, seed=1)
    matrix = formed(features, theta)
    last = random(OUT, len(matrix), seed=2)
    assert features.of_gram(theta, gram) == pytest.approx(matrix @ gram)
    assert features.of_rows(theta, rows) == pytest.approx(rows @ matrix.T)
    assert features.expand(theta, last) == pytest.approx(last @ matrix)


@pytest.mark.parametrize(("features", "size"), FEATURES)
def test_features_pull_gradients_as_autograd_does(features: Features, size: int) -> None:
    theta = random(size).requires_grad_(True)
    matrix = formed(features, theta)
    last, residual = random(OUT, len(matrix), seed=1), random(OUT, N * TAPS, seed=2)
    (last @ matrix * residual).sum().backward()  # type: ignore[no-untyped-call]
    assert theta.grad is not None
    assert features.pull(theta.detach(), last, residual) == pytest.approx(theta.grad)


@pytest.mark.parametrize(("features", "size"), FEATURES)
def test_preconditioners_are_symmetric_and_positive(features: Features, size: int) -> None:
    theta = random(size)
    weight = random(OUT, N, 2, 2, seed=3)
    moments = Moments(9, torch.zeros(N * TAPS), torch.zeros(OUT), gram_of(N * TAPS), random(OUT, N * TAPS), random(OUT))
    last = random(OUT, len(formed(features, theta)), seed=1)
    apply = features.precondition(theta, last, problem_of(moments, weight))
    matrix = torch.stack([apply(row) for row in torch.eye(size, dtype=torch.float64)])
    assert matrix == pytest.approx(matrix.T, rel=1e-6, abs=1e-9)
    assert float(torch.linalg.eigvalsh(matrix)[0]) > 0


@pytest.mark.parametrize("rank", [None, 1, 3, OUT])
def test_project_solves_least_squares(rank: int | None) -> None:
    """Against torch.linalg.lstsq on rows, and with a rank against its truncated SVD of the fitted values."""
    x, y = random(200, 7), random(200, OUT, seed=1) + random(200, 7) @ random(7, OUT, seed=2)
    found = project(x.T @ x / 200, y.T @ x / 200, float(y.square().sum()) / 200, rank)
    wanted = torch.linalg.lstsq(x, y).solution
    if rank is not None:
        v = torch.linalg.svd(x @ wanted, full_matrices=False)[2][:rank]
        wanted = wanted @ v.T @ v
    assert found.last == pytest.approx(wanted.T, abs=1e-8)
    lost = float((y - x @ wanted).square().sum() / y.square().sum())
    assert found.lost == pytest.approx(lost, abs=1e-9)
    assert len(found.core) == (rank or OUT)


def test_project_bears_features_of_any_scale_and_twice_the_same() -> None:
    x = random(100, 4)
    x = torch.cat([x * torch.tensor([1e-6, 1.0, 1e6, 1.0]), x[:, :1] * 1e-6, torch.zeros(100, 1)], 1)
    y = x @ random(6, OUT, seed=1)
    found = project(x.T @ x, y.T @ x, float(y.square().sum()))
    assert float((x @ found.last.T - y).norm() / y.norm()) < 1e-4


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(("features", "size"), FEATURES)
def test_vary_reaches_what_descent_by_autograd_reaches(features: Features, size: int, rank: int | None) -> None:
    """The same function, formed and differentiated automatically, by torch's own L-BFGS; in the mean over some starts,
    because both may end in local optima."""
    gram, weight = gram_of(N * TAPS), random(OUT, N, 2, 2, seed=5)
    flat = weight.flatten(1)
    power = ((flat @ gram) * flat).sum(1)
    zeros = torch.zeros(N * TAPS, dtype=torch.float64)
    moments = Moments(9, zeros, torch.zeros(OUT), gram, flat @ gram, power, ridge=1e-6)
    problem = problem_of(moments, weight)

    def lost(theta: Tensor) -> Tensor:
        matrix = formed(features, theta)
        k, b = matrix @ problem.gram @ matrix.T, problem.cross @ matrix.T
        explained = b @ torch.linalg.solve(k, b.T)
        kept = torch.linalg.eigvalsh(explained)[-rank:] if rank else explained.diagonal()
        explained_share: Tensor = kept.sum() / problem.power
        return 1 - explained_share

    wanted, reached = [], []
    for seed in range(4):
        start = random(size, seed=seed)
        theta = start.clone().requires_grad_(True)
        descent = torch.optim.LBFGS([theta], max_iter=40, line_search_fn="strong_wolfe")

        def closure(theta: Tensor = theta, descent: torch.optim.Optimizer = descent) -> Tensor:
            descent.zero_grad()
            value = lost(theta)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        descent.step(closure)  # type: ignore[no-untyped-call]
        wanted.append(float(lost(theta.detach())))
        found_theta, found = vary(features, problem, start, 40, rank)
        reached.append(found.lost)
        assert found.lost == pytest.approx(float(lost(found_theta)), abs=1e-8)
        assert found.lost < float(lost(start))
        assert len(found.core) == (rank or OUT)
    assert sum(reached) <= 1.1 * sum(wanted) + 4 * solve.ENOUGH, (reached, wanted)


def test_minimise_finds_the_bottom_of_a_bent_valley() -> None:
    """Rosenbrock's function; and the value never rises on the way."""
    seen: list[float] = []

    def valley(x: Tensor) -> tuple[float, Tensor]:
        x = x.detach().requires_grad_(True)
        value = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2 + 1e-3
        value.backward()  # type: ignore[no-untyped-call]
        assert x.grad is not None
        return float(value.detach()), x.grad

    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    for steps in range(0, 45, 4):
        seen.append(valley(minimise(valley, start, steps))[0])
    assert seen == sorted(seen, reverse=True)
    assert minimise(valley, start, 100) == pytest.approx(torch.ones(2), abs=0.1)
    assert torch.equal(minimise(valley, start, 0), start)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_minimise_keeps_the_start_where_nothing_is_better(broken: float) -> None:
    start = torch.ones(3, dtype=torch.float64)

    def cliff(x: Tensor) -> tuple[float, Tensor]:
        return (1.0 if torch.equal(x, start) else broken), torch.ones(3, dtype=torch.float64)

    assert torch.equal(minimise(cliff, start, 5), start)
    assert torch.equal(minimise(lambda x: (0.0, torch.zeros_like(x)), start, 5), start)


def test_cholesky_bears_singular_and_refuses_broken_matrices() -> None:
    ones = torch.ones(5, 5, dtype=torch.float64)
    factor = cholesky(ones)
    assert factor @ factor.T == pytest.approx(ones, abs=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        cholesky(torch.full((3, 3), float("nan"), dtype=torch.float64))


def test_principal_loses_least() -> None:
    """No other projection of the same rank loses less of the output's variance, and by itself it whitens."""
    gram, factor = gram_of(6), random(4, 6, seed=1)
    rows, carried = principal(factor.T @ factor, gram)
    assert rows @ gram @ rows.T == pytest.approx(torch.eye(6), abs=1e-5)
    assert carried.tolist() == sorted(carried.tolist(), reverse=True)

    def lost(mixing: Tensor) -> float:
        best = factor @ gram @ mixing.T @ torch.linalg.inv(mixing @ gram @ mixing.T) @ mixing
        return float(((factor - best) @ gram @ (factor - best).T).trace())

    assert lost(rows[:2]) == pytest.approx(float(carried[2:].sum()), rel=1e-5)
    assert all(lost(rows[:2]) <= lost(random(2, 6, seed=seed)) for seed in range(50))


def pair(depth: int = 8, noise: float = 0.0, rows: int = 300) -> tuple[Moments, Tensor]:
    sums, weight = Summing(), random(3, depth // 4, 2, 2, seed=1).float()
    x = random(rows, depth, seed=2).float()
    sums.add(x, x @ weight.flatten(1).T + noise * random(rows, 3, seed=3).float())
    return sums.moments(), weight


def test_problem_is_kept_for_one_gram_and_gone_with_it() -> None:
    moments, weight = pair()
    first = problem_of(moments, weight)
    assert problem_of(moments, weight.clone()) is first
    factor = torch.full((3,), 2.0, dtype=torch.float64)
    scaled = problem_of(moments.scaled(factor), weight * 2)
    assert scaled is not first
    assert scaled.gram is first.gram
    assert problem_of(moments.scaled(factor), weight * 2) is scaled
    assert problem_of(replace(moments, ridge=0.1), weight).share == pytest.approx(10 * first.share)
    del moments
    gc.collect()
    assert solve._last._kept is None


@pytest.mark.parametrize("depth", [8, solve.DOUBLE + 4])
def test_ridge_draws_to_the_layers_own_weights(depth: int) -> None:
    """As the formula of ridge regression around a prior says, solved densely."""
    moments, weight = pair(depth, rows=50)
    moments = replace(moments, ridge=0.1)
    problem = problem_of(moments, weight)
    assert problem.gram.dtype == (torch.float64 if depth == 8 else torch.float32)
    assert problem.weight.double() == pytest.approx(weight.flatten(1).double(), rel=1e-3, abs=1e-5)
    found = project(problem.gram, problem.cross, problem.power).last
    assert found == pytest.approx(weight.flatten(1).double(), abs=1e-3)  # although 50 rows cannot tell


def test_best_ridge_depends_on_how_much_the_frames_say() -> None:
    """Many clean rows: trust them. A few that are mostly noise: stay near the layer."""
    moments, weight = pair(noise=3.0, rows=12)
    held, _ = pair(rows=2000)

    def dense(of: Moments) -> Callable[[float], Fitted]:
        def fit(ridge: float) -> Fitted:
            problem = problem_of(replace(of, ridge=ridge), weight)
            return Fitted((), project(problem.gram, problem.cross, problem.power).last)

        return fit

    assert best_ridge(dense(moments), held) == max(solve.RIDGES)
    # The target is another kernel now, and the frames know which.
    other = replace(moments, gram=held.gram, cross=-held.cross + 0.5 * held.gram[:3], power=held.power * 4)
    target = replace(held, cross=other.cross, power=other.power)
    assert best_ridge(dense(other), target) == min(solve.RIDGES)


def test_moments_without_data_are_the_weights() -> None:
    weight = random(4, 3, 3, 3).float()
    problem = problem_of(of_weights(weight, None), weight)
    assert problem.weight == pytest.approx(weight.flatten(1).double())
    found = project(problem.gram, problem.cross, problem.power)
    assert found.last == pytest.approx(weight.flatten(1).double(), abs=1e-9)
    assert abs(found.lost) < 1e-9
