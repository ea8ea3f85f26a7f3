"The two promises of the K axis, on ESOL itself."
import numpy as np
import pytest
import torch
from conftest import fresh
from safetensors.torch import load_file
from torch_geometric.data import Batch as PyGBatch

from bioai_esol.chem.dataset import load_esol
from bioai_esol.chem.graphs import cut_graphs, featurise
from bioai_esol.models.architectures import ARCHITECTURES
from bioai_esol.training.config import TrainConfig
from bioai_esol.models.gcn import from_pyg, GCN, to_pyg
from bioai_esol.models.kaxis import BlockDropout, generator, init_theta, one_thread, predict_batch
from bioai_esol.sweep.grid import Grid
from bioai_esol.sweep.runner import run_sweep
from bioai_esol.store.client import connect
from bioai_esol.store.runs import fetch_artifacts
from bioai_esol.training.engine import make_task, train

CONFIGS = [TrainConfig(hidden_dim=32, batch_size=32, lr=lr, dropout=dropout, weight_decay=wd)
           for lr, dropout, wd in [(1e-2, 0, 0), (1e-3, .2, 1e-4), (3e-3, .5, 0), (3e-3, 0, 1e-5), (1e-2, .5, 1e-4), (1e-3, .2, 0)]]


@pytest.fixture(scope='module')
def task():
    return make_task(load_esol(), TrainConfig())


def equal(a, b):
    assert a.config == b.config and a.summary == b.summary and a.history.equals(b.history)
    assert a.weights.keys() == b.weights.keys()
    for name in a.weights:
        assert torch.equal(a.weights[name], b.weights[name]), name
    np.testing.assert_array_equal(a.test_predictions, b.test_predictions)


@pytest.fixture(scope='module')
def together(task):
    return train(CONFIGS, task)


def test_six_whole_trainings_alone_and_together(task, together):
    "Promise 2, 200 epochs: every configuration alone (K = 1) equals itself in the block of six, bit for bit."
    for config, result in zip(CONFIGS, together, strict=True):
        assert len(result.history) == 200
        equal(train([config], task)[0], result)


def test_any_order_and_block_size(task, together):
    order = [4, 1, 5, 0, 3, 2]
    for rows in (order[:4], order[4:]):
        for k, result in zip(rows, train([CONFIGS[k] for k in rows], task), strict=True):
            equal(result, together[k])


def test_one_worker_or_two(task, tmp_path):
    "Promise 2 through `run_sweep`, six configurations: a block of six, two blocks of three, and here without any worker. Whole trainings are above."
    grids = [Grid(hidden_dim=32, batch_size=32, lr=(1e-2, 3e-3), dropout=dropout, weight_decay=1e-4, epochs=30, run_tag=f'by{workers}',
                  workers=workers)
             for workers, dropout in [(1, (0, .2, .5)), (2, (.5, 0, .2))]]
    here = {r.config.digest(task.dataset.version): r for r in train(grids[0].configs(), task)}
    uri = fresh(tmp_path)
    for grid in grids:
        runs = run_sweep(grid, tracking_uri=uri).runs.set_index('config_digest')
        assert set(runs.index) == set(here) and set(runs.status) == {'FINISHED'}
        for digest, expected in here.items():
            folder = tmp_path / grid.run_tag / digest
            folder.mkdir(parents=True)
            weights = load_file(fetch_artifacts(connect(uri), runs.run_id[digest], folder, 'weights.safetensors'))
            assert weights.keys() == expected.weights.keys()
            assert all(torch.equal(weights[name], expected.weights[name]) for name in weights)
            assert {key: runs.loc[digest, key] for key in expected.summary} == expected.summary


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_every_architecture_alone_and_together(task, architecture):
    "Promise 2 and reproducibility: trained twice, in two different blocks, each configuration gives the same weights, figures and intervals, bit for bit."
    settings = [dict(lr=2e-3), dict(lr=5e-4, dropout=.2), dict(lr=2e-3, dropout=.2, weight_decay=1e-4)]
    configs = list(dict.fromkeys(TrainConfig(architecture=architecture, hidden_dim=32, epochs=4, **s) for s in settings))
    for config, result in zip(configs, train(configs, task), strict=True):
        [alone] = train([config], task)
        equal(alone, result)
        assert result.ok and len(result.history) == config.epochs
        np.testing.assert_array_equal(alone.half_widths, result.half_widths)


def test_every_architecture_in_a_process_of_its_own(task, tmp_path):
    "Reproducibility through `run_sweep`: the weights in the store, trained by two workers, are those of a training here."
    grid = Grid(architecture=tuple(ARCHITECTURES), hidden_dim=16, lr=2e-3, batch_size=64, dropout=0, weight_decay=0, epochs=3, run_tag='kinds', workers=2)
    uri = fresh(tmp_path)
    runs = run_sweep(grid, tracking_uri=uri).runs.set_index('architecture')
    assert set(runs.index) == set(ARCHITECTURES) and set(runs.status) == {'FINISHED'}
    for config in grid.configs():
        [expected] = train([config], task)
        folder = tmp_path / config.architecture
        folder.mkdir()
        weights = load_file(fetch_artifacts(connect(uri), runs.run_id[config.architecture], folder, 'weights.safetensors'))
        assert weights.keys() == expected.weights.keys()
        assert all(torch.equal(weights[name], expected.weights[name]) for name in weights)
        assert {key: runs.loc[config.architecture, key] for key in expected.summary} == expected.summary


@pytest.mark.parametrize('hidden_dim', [32, 64, 128])
@pytest.mark.parametrize('batch_size', [16, 32])
def test_blocks_of_every_size_of_the_grid(task, hidden_dim, batch_size):
    "Promise 2 at the shapes of the specification's grid: 27 together, 3 together, 1 alone."
    configs = [TrainConfig(hidden_dim=hidden_dim, batch_size=batch_size, lr=lr, dropout=d, weight_decay=wd, epochs=1)
               for lr in (1e-2, 1e-3, 3e-3) for d in (0, .2, .5) for wd in (0, 1e-5, 1e-4)]
    block = train(configs, task)
    for rows in ([0], [13], [26], [1, 12, 25]):
        for k, result in zip(rows, train([configs[k] for k in rows], task), strict=True):
            equal(result, block[k])


def test_equals_pyg_over_a_training(task):
    "Promise 1: forward and gradients equal `GCNConv`'s at every step of two epochs of a training with weight decay."
    model, rows = GCN(64), torch.from_numpy(task.split.train)
    graphs = [featurise(task.dataset.smiles[i]) for i in task.split.train]
    theta = init_theta(model, generator(42, 'init'))[None].clone()
    with one_thread():
        adam = torch.optim.Adam([theta.requires_grad_()], lr=3e-3, weight_decay=1e-4)
        for _ in range(2):
            for i, batch in enumerate(cut_graphs(task.graphs, rows, 64)):
                loss = ((predict_batch(model, theta, batch) - batch.y) ** 2).mean()
                theta.grad, = torch.autograd.grad(loss, theta)
                plain = to_pyg(model, theta[0].detach())
                theirs = ((plain(PyGBatch.from_data_list(graphs[i * 64:(i + 1) * 64])) - batch.y) ** 2).mean()
                theirs.backward()
                np.testing.assert_allclose(loss.item(), theirs.item(), rtol=2e-5)
                scale = float(theta.grad.abs().max())
                np.testing.assert_allclose(theta.grad[0], from_pyg(model, plain, grad=True), rtol=1e-3, atol=2e-5 * scale)
                adam.step()


def test_dropout_has_the_right_rate_and_scale(task):
    "With dropout the expected activation is unchanged: the mean over many draws approaches evaluation."
    model = GCN(16)
    batch = next(cut_graphs(task.graphs, torch.arange(64), 64))
    theta, dropout = init_theta(model, generator(0, 'init'))[None], BlockDropout([0.5], generator(0, 'dropout'))
    with torch.no_grad():
        draws = [float(predict_batch(model, theta, batch, dropout).mean()) for _ in range(400)]
        plain = float(predict_batch(model, theta, batch).mean())
    error = np.std(draws) / 20
    assert abs(np.mean(draws) - plain) < 5 * error + 0.05 * abs(plain)


def test_methane(task):
    "One atom, no bonds: trained on, predicted, and nowhere a division by zero."
    row = task.dataset.smiles.index('C')
    batch = next(cut_graphs(task.graphs, torch.tensor([row]), 1))
    assert batch.n_atoms == 1 and batch.adjacency.weight.tolist() == [1.0]
    model = GCN(32)
    theta = init_theta(model, generator(42, 'init'))[None].requires_grad_()
    out = predict_batch(model, theta, batch)
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(theta.grad).all()


def test_the_engine_runs_on_the_device_it_is_given():
    "Every tensor of the network's forward and backward pass is made where its inputs are: shapes on the `meta` device, which computes nothing."
    from bioai_esol.chem.graphs import pack_graphs
    model = GCN(16)
    batch = next(cut_graphs(pack_graphs(['CCO', 'C', 'c1ccccc1']), torch.arange(3), 3)).to('meta')
    theta = torch.empty(4, model.n_params, device='meta', requires_grad=True)
    out = predict_batch(model, theta, batch)
    assert out.shape == (4, 3) and out.device.type == 'meta'
    grad, = torch.autograd.grad(out.sum(), theta)
    assert grad.shape == theta.shape and grad.device.type == 'meta'
