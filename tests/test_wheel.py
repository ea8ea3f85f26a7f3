"The wheel holds every wing: built, installed into an environment of its own, it sweeps, promotes and predicts."
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT

ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'MLFLOW_TRACKING_URI')}


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built from a copy of what git knows: a build leaves folders behind."
    folder = tmp_path_factory.mktemp('wheel')
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard', 'bioai_esol', 'pyproject.toml', 'README.md', 'LICENSE'],
                            cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split('\0')):
        if (ROOT / name).exists():
            (folder / 'source' / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / 'source' / name)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', folder, folder / 'source'], check=True)
    [file] = folder.glob('*.whl')
    return file


def test_the_wheel_holds_what_the_package_holds(wheel):
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith('bioai_esol/')}
    here = {str(p.relative_to(ROOT)) for p in (ROOT / 'bioai_esol').rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    assert inside == here
    assert {'bioai_esol/py.typed', 'bioai_esol/chem/esol.csv', 'bioai_esol/models/pretrained-1.safetensors',
            'bioai_esol/registry/promotion.py'} <= inside


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    "A new environment with the wheel alone; the libraries that it needs are taken from the present one, our own package is not."
    folder = tmp_path_factory.mktemp('installed')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder / 'env'], check=True)
    site = Path(subprocess.run([folder / 'env/bin/python', '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'],
                               capture_output=True, text=True, check=True).stdout.strip())
    (site / 'libraries.pth').write_text(sysconfig.get_path('purelib') + '\n')  # a path in a .pth file: that folder's own .pth files are not read
    subprocess.run([sys.executable, '-m', 'pip', '--python', folder / 'env/bin/python', 'install', '-q', '--no-deps', '--force-reinstall', wheel], check=True)
    return folder


def test_an_installed_wheel_sweeps_promotes_and_predicts(installed):
    def run(*args):
        done = subprocess.run([installed / 'env/bin/bioai-esol', *args], cwd=installed, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout
    where = subprocess.run([installed / 'env/bin/python', '-c', 'import bioai_esol; print(bioai_esol.__file__)'], cwd=installed, env=ENVIRONMENT,
                           capture_output=True, text=True, check=True).stdout
    assert str(installed) in where
    assert '2 trained' in run('sweep', '--run-tag', 'two', '--hidden-dim', '8', '--lr', '1e-2', '--batch-size', '128', '--dropout', '0',
                              '--weight-decay', '0,1e-4', '--epochs', '3')
    assert 'champion: version 1' in run('promote', '--run-tag', 'two', '--gap-threshold', '9', '--r2-tolerance', '0.99')
    assert '"model_version": "1"' in run('predict', 'CCO', '--json')
