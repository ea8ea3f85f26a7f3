"""Random lives of a registry, against a real SQLite store and a model of a few lines: whatever people do in whatever order, and wherever it is
interrupted, what must always hold does. `make test` runs a few sequences, `make test-long` five hundred."""
import os
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from conftest import copied, sweep_here
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from bioai_esol.errors import BioaiError
from bioai_esol.registry.journal import history, snapshot
from bioai_esol.registry.promotion import promote
from bioai_esol.registry.versions import archive, check, restore, rollback, set_alias, status
from bioai_esol.serving.predictor import load_champion
from bioai_esol.errors import StoreError
from bioai_esol.store.client import connect
from bioai_esol.store.runs import runs_table
from quick import EASY, blow_after

SEQUENCES = int(os.environ.get('BIOAI_SEQUENCES', 8))
FREE = ('shadow', 'baseline')
GONE = ('archived', 'failed_in_monitoring')


@dataclass(frozen=True)
class Model:
    "What the registry should hold."
    status: dict = field(default_factory=dict)    # version -> status
    sweep: dict = field(default_factory=dict)     # version -> run tag
    previous: dict = field(default_factory=dict)  # version -> champion before it
    aliases: dict = field(default_factory=dict)

    def with_status(self, version, status): return replace(self, status=self.status | {version: status})
    def with_alias(self, name, version):
        rest = {k: v for k, v in self.aliases.items() if k != name}
        return replace(self, aliases=rest | ({name: version} if version else {}))

    def registered(self, version, tag): return replace(self.with_status(version, 'registered'), sweep=self.sweep | {version: tag})

    def candidate(self, version):
        old = self.aliases.get('candidate')
        new = self.with_alias('candidate', version).with_status(version, 'candidate')
        return new.with_status(old, 'archived') if old and old != version else new

    def champion(self, version):
        old = self.aliases.get('champion')
        new = replace(self.with_alias('champion', version).with_status(version, 'champion'), previous=self.previous | {version: old})
        if old and self.status[old] != 'failed_in_monitoring':
            new = new.with_status(old, 'archived')
        return new.with_alias('candidate', None) if new.aliases.get('candidate') == version else new

    def before(self):
        "The former champion to go back to."
        met, version = set(), self.aliases.get('champion')
        while version and version not in met:
            met.add(version)
            version = self.previous.get(version)
            if version and version not in met and self.status[version] != 'failed_in_monitoring':
                return version
        return None

    def rolled_back(self):
        now, back = self.aliases['champion'], self.before()
        new = self.with_alias('champion', back).with_status(now, 'failed_in_monitoring').with_status(back, 'champion')
        return new.with_alias('candidate', None) if new.aliases.get('candidate') == back else new


class Lives(RuleBasedStateMachine):
    template = None  # a folder

    @initialize()
    def begin(self):
        self.folder = Path(tempfile.mkdtemp())
        self.uri = copied(self.template, self.folder)
        self.model, self.entries, self.store = Model(), 0, connect(self.uri)
        self.figures = {}
        for tag in 'abc':
            self.remember(tag)
        blow_after(None)

    def teardown(self):
        blow_after(None)
        if hasattr(self, 'folder'):
            shutil.rmtree(self.folder)

    def remember(self, tag):
        [self.figures[tag]] = runs_table(self.store, tag).to_dict('records')

    # what should happen

    def failed(self, tag):
        "Has the latest version with these settings failed?"
        digest = self.figures[tag]['config_digest']
        same = [v for v, t in self.model.sweep.items() if self.figures[t]['config_digest'] == digest]
        return bool(same) and self.model.status[max(same, key=int)] == 'failed_in_monitoring'

    def better(self, tag):
        champion = self.model.aliases.get('champion')
        if champion is None:
            return True
        new, old = self.figures[tag], self.figures[self.model.sweep[champion]]
        def worse(key): return (new[key] - old[key]) / abs(old[key])
        return round(-worse('test_rmse'), 9) >= 0.02 and round(worse('test_mae'), 9) <= 0.5 and round(-worse('test_r2'), 9) <= 0.5

    def states(self, version, tag, known):
        "What a promotion goes through, from here to its end."
        steps = [self.model]
        if not known:
            steps.append(steps[-1].registered(version, tag))
        steps.append(steps[-1].candidate(version))
        return [*steps, steps[-1].champion(version)] if self.better(tag) else steps

    def reusable(self, tag):
        "A version of this very run that is neither archived nor failed."
        return [v for v, t in self.model.sweep.items() if t == tag and self.model.status[v] not in GONE]

    def next_number(self): return str(len(self.model.status) + 1)

    # what people do

    tags = st.runner().flatmap(lambda self: st.sampled_from(sorted(self.figures)))
    versions = st.runner().flatmap(lambda self: st.sampled_from(sorted(self.model.status, key=int)))
    some = precondition(lambda self: self.model.status)

    @rule(epochs=st.integers(1, 6), hidden_dim=st.sampled_from([4, 8]))
    @precondition(lambda self: len(self.figures) < 5)
    def sweep(self, epochs, hidden_dim):
        tag = f's{len(self.figures)}'
        sweep_here(self.uri, tag, epochs, hidden_dim)
        self.remember(tag)

    def expected(self, tag, force):
        "(`done.approved`, `done.already`, the states on the way) of a promotion from a sweep."
        champion = self.model.aliases.get('champion')
        if self.failed(tag) and not force:
            return False, False, [self.model]
        if champion and self.model.sweep[champion] == tag:
            return True, True, [self.model]
        known = self.reusable(tag)
        states = self.states(known[-1] if known else self.next_number(), tag, bool(known))
        return self.better(tag), False, states

    @rule(tag=tags, force=st.booleans())
    def promote(self, tag, force):
        approved, already, states = self.expected(tag, force)
        done = promote(tag, EASY, tracking_uri=self.uri, force=force)
        assert (done.approved, done.already) == (approved, already), done.reason
        self.model = states[-1]

    @rule(version=versions, force=st.booleans())
    @some
    def promote_version(self, version, force):
        before = self.model.status[version]
        if before == 'archived':
            with pytest.raises(BioaiError, match='is archived'):
                promote(version=version, policy=EASY, tracking_uri=self.uri, force=force)
            return
        tag = self.model.sweep[version]
        done = promote(version=version, policy=EASY, tracking_uri=self.uri, force=force)
        if before == 'champion':
            assert done.already
        elif self.failed(tag) and not force:
            assert not done.approved and 'failed in monitoring' in done.reason
        else:
            self.model = self.states(version, tag, True)[-1]
            assert done.approved == (self.model.aliases.get('champion') == version), done.reason

    @rule()
    def rollback(self):
        possible = bool(self.model.aliases.get('champion') and self.model.before())
        decision, champion = rollback('drift', tracking_uri=self.uri)
        assert decision.approved == possible
        if possible:
            self.model = self.model.rolled_back()
        assert champion == self.model.aliases.get('champion')

    @rule(name=st.sampled_from(FREE), version=versions)
    @some
    def alias(self, name, version):
        set_alias(name, version, tracking_uri=self.uri)
        self.model = self.model.with_alias(name, version)

    @rule(name=st.sampled_from(FREE))
    def remove_alias(self, name):
        if name in self.model.aliases:
            set_alias(name, None, tracking_uri=self.uri)
            self.model = self.model.with_alias(name, None)
        else:
            with pytest.raises(BioaiError, match='there is no alias'):
                set_alias(name, None, tracking_uri=self.uri)

    @rule(version=versions)
    @some
    def archive(self, version):
        if self.model.status[version] in (*GONE, 'champion'):
            with pytest.raises(BioaiError):
                archive(version, 'not needed', tracking_uri=self.uri)
            return
        archive(version, 'not needed', tracking_uri=self.uri)
        self.model = self.model.with_status(version, 'archived')
        if self.model.aliases.get('candidate') == version:
            self.model = self.model.with_alias('candidate', None)

    @rule(version=versions)
    @some
    def restore(self, version):
        if self.model.status[version] != 'archived':
            with pytest.raises(BioaiError):
                restore(version, 'needed after all', tracking_uri=self.uri)
            return
        restore(version, 'needed after all', tracking_uri=self.uri)
        self.model = self.model.with_status(version, 'registered')

    # and what goes wrong

    def crashed(self, act, writes, states):
        "The store goes away in the middle; afterwards, one of the states on the way holds."
        blow_after(writes)
        try:
            act()
        except StoreError as e:
            assert 'the store is gone' in str(e)
        finally:
            blow_after(None)
        status(tracking_uri=self.uri)
        found = self.found()
        assert found in [(m.status, m.aliases) for m in states], (found, states)
        self.model = next(m for m in states if (m.status, m.aliases) == found)

    @rule(tag=tags, writes=st.integers(1, 40), force=st.booleans())
    def crash_in_promote(self, tag, writes, force):
        self.crashed(lambda: promote(tag, EASY, tracking_uri=self.uri, force=force), writes, self.expected(tag, force)[2])

    @rule(writes=st.integers(1, 14))
    def crash_in_rollback(self, writes):
        possible = bool(self.model.aliases.get('champion') and self.model.before())
        states = [self.model, *([self.model.rolled_back()] if possible else [])]
        self.crashed(lambda: rollback('drift', tracking_uri=self.uri), writes, states)

    # what must always hold

    def found(self):
        seen = snapshot(self.store)
        return {v: seen.status(v) for v in seen.versions}, seen.aliases

    @invariant()
    def as_the_model_says(self):
        if not hasattr(self, 'model'):
            return
        assert self.found() == (self.model.status, self.model.aliases)

    @invariant()
    def nothing_is_broken(self):
        if not hasattr(self, 'model') or not self.model.status:
            return
        found = check(tracking_uri=self.uri)
        assert found.holds.all(), found[~found.holds].to_string()
        if champion := self.model.aliases.get('champion'):
            assert load_champion(tracking_uri=self.uri).version == champion
        told = history(tracking_uri=self.uri)
        assert len(told) >= self.entries and told.time.is_monotonic_increasing and 'begun' not in set(told.outcome)
        self.entries = len(told)


@pytest.mark.parametrize('half', [0, 1])  # two, so that two cores share them
def test_random_lives(template, quick, faulty, half):
    Lives.template = template
    phases = [Phase.generate, *([Phase.shrink] if SEQUENCES < 100 else [])]
    run_state_machine_as_test(Lives, settings=settings(
        max_examples=(SEQUENCES + half) // 2, stateful_step_count=10, deadline=None, database=None, phases=phases, print_blob=True,
        suppress_health_check=list(HealthCheck)))
