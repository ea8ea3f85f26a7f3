"""From a hyperparameter sweep to a champion that predicts aqueous solubility, and back again when it fails.

    import bioai_esol as esol

    result = esol.run_sweep(esol.Grid(hidden_dim=(32, 64), epochs=50, run_tag='try1'))
    esol.promote('try1')
    esol.load_champion().predict('CCO')
"""
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {  # public name: the module that defines it
    'Dataset': 'chem.dataset', 'load_esol': 'chem.dataset', 'load_table': 'chem.dataset',
    'Grid': 'sweep.grid', 'Race': 'sweep.race', 'run_race': 'sweep.race',
    'run_sweep': 'sweep.runner', 'run_preset': 'sweep.ensemble', 'best_ensemble': 'sweep.ensemble',
    'sweeps': 'store.runs', 'load_runs': 'store.runs', 'load_histories': 'store.runs', 'load_predictions': 'store.runs',
    'look': 'analysis.look', 'explore': 'analysis.interactive', 'advice': 'analysis.advice',
    'leaderboard': 'analysis.effects', 'effects': 'analysis.effects', 'stability': 'analysis.effects',
    'compare_sweeps': 'analysis.sweep_comparison',
    'PolicyExplorer': 'analysis.explorer', 'RunBrowser': 'analysis.run_browser', 'LiveSweep': 'analysis.live_sweep',
    'Policy': 'registry.policy', 'choose_candidate': 'registry.policy',
    'promote': 'registry.promotion',
    'rollback': 'registry.versions', 'archive': 'registry.versions', 'restore': 'registry.versions',
    'set_alias': 'registry.versions', 'status': 'registry.versions', 'check': 'registry.versions',
    'history': 'registry.journal',
    'load_champion': 'serving.predictor', 'load_version': 'serving.predictor',
    'observe': 'monitoring.observations', 'watch': 'monitoring.watch', 'acknowledge': 'monitoring.watch',
    'follow': 'monitoring.follow',
    'compare': 'serving.comparison', 'SolubilityModel': 'serving.endpoint',
    'write_report': 'analysis.report',
}

_LAB = ('anywidget', 'ipywidgets', 'itables')  # what only the extra `lab` installs

_FORMERLY = {  # work, and are offered no more: module and name
    'load_csv': ('chem.dataset', 'load_table'), 'Repeats': ('sweep.grid', 'Repeats')}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    "Import a public name when it is first asked for: PyTorch, RDKit and MLflow take seconds."
    from importlib import import_module
    if name in _FORMERLY:
        module, now = _FORMERLY[name]
        return getattr(import_module(f'{__name__}.{module}'), now)
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        value = getattr(import_module(f'{__name__}.{_HOME[name]}'), name)
    except ModuleNotFoundError as e:
        package = (e.name or '').partition('.')[0]
        if package not in _LAB:
            raise
        raise ImportError(f"{name} needs {package}, of the extra `lab`: pip install 'bioai-esol[lab]'") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


if TYPE_CHECKING:  # what editors and type checkers read
    from .analysis.advice import advice as advice
    from .analysis.effects import effects as effects, leaderboard as leaderboard, stability as stability
    from .analysis.explorer import PolicyExplorer as PolicyExplorer
    from .analysis.interactive import explore as explore
    from .analysis.live_sweep import LiveSweep as LiveSweep
    from .analysis.look import look as look
    from .analysis.report import write_report as write_report
    from .analysis.run_browser import RunBrowser as RunBrowser
    from .analysis.sweep_comparison import compare_sweeps as compare_sweeps
    from .chem.dataset import Dataset as Dataset, load_esol as load_esol, load_table as load_table
    from .monitoring.follow import follow as follow
    from .monitoring.observations import observe as observe
    from .monitoring.watch import acknowledge as acknowledge, watch as watch
    from .registry.journal import history as history
    from .registry.policy import choose_candidate as choose_candidate, Policy as Policy
    from .registry.promotion import promote as promote
    from .registry.versions import archive as archive, check as check, restore as restore, rollback as rollback
    from .registry.versions import set_alias as set_alias, status as status
    from .serving.comparison import compare as compare
    from .serving.endpoint import SolubilityModel as SolubilityModel
    from .serving.predictor import load_champion as load_champion, load_version as load_version
    from .store.runs import load_histories as load_histories, load_predictions as load_predictions
    from .store.runs import load_runs as load_runs, sweeps as sweeps
    from .sweep.ensemble import best_ensemble as best_ensemble, run_preset as run_preset
    from .sweep.grid import Grid as Grid
    from .sweep.race import Race as Race, run_race as run_race
    from .sweep.runner import run_sweep as run_sweep
