"""What makes whole promotions cheap enough to be repeated a hundred times: the ESOL table is packed and split once for a process and all
that are forked from it, and the code version is a fixed clean one. Nothing of what is tested is replaced."""
import time

import bioai_esol.sweep.ensemble
import bioai_esol.registry.journal
import bioai_esol.registry.promotion
import bioai_esol.training.lineage
import mlflow
import bioai_esol.training.engine
from bioai_esol.registry.policy import Policy
from bioai_esol.training.config import split_key

EASY = Policy(gap_threshold=3.0, r2_tolerance=0.99, regression_tolerance=0.5)
_tasks, real_make_task = {}, bioai_esol.training.engine.make_task


def make_task(dataset, config, molecules=None):
    key = (dataset.version, split_key(config), config.architecture)
    if key not in _tasks:
        _tasks[key] = real_make_task(dataset, config, molecules)
    return _tasks[key]


def code_version(package=None):
    return dict(code_version='c0ffee', git_commit='c0ffee', git_dirty='false')


def install(patch=setattr):
    for module in (bioai_esol.training.engine, bioai_esol.sweep.ensemble):
        patch(module, 'make_task', make_task)
    for module in (bioai_esol.training.lineage, bioai_esol.registry.journal, bioai_esol.registry.promotion):
        patch(module, 'code_version', code_version)


class Faulty(mlflow.MlflowClient):
    "A client whose store goes away right after a given number of writes, and stays away until `fuse` is reset."
    fuse, stop, written = None, None, 0
    WRITES = ('create_run', 'log_batch', 'log_inputs', 'set_tag', 'set_terminated', 'log_artifacts', 'log_dict', 'create_registered_model',
              'create_model_version', 'set_registered_model_tag', 'delete_registered_model_tag', 'set_model_version_tag',
              'delete_model_version_tag', 'set_registered_model_alias', 'delete_registered_model_alias')


def _faulty(name):
    real = getattr(mlflow.MlflowClient, name)

    def write(self, *args, **kwargs):
        if Faulty.fuse is not None and Faulty.written >= Faulty.fuse:
            raise OSError('the store is gone')
        done = real(self, *args, **kwargs)
        Faulty.written += 1
        if Faulty.stop and Faulty.written == Faulty.stop[0]:
            Faulty.stop[1].set()
            time.sleep(600)
        if Faulty.fuse is not None and Faulty.written >= Faulty.fuse:
            raise OSError('the store is gone')
        return done
    return write


for _name in Faulty.WRITES:
    setattr(Faulty, _name, _faulty(_name))


def blow_after(writes):
    Faulty.fuse, Faulty.written = writes, 0
