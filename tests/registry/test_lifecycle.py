"""Random lives of a registry, against a real SQLite store and a model of a few lines: whatever people do in whatever order, and wherever it is
interrupted, what must always hold does. `make test` runs a few sequences, `make test-long` five hundred."""
import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from helpers import copied, sweep_here
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

import bioai_esol.monitoring.observations as observations
from bioai_esol.chem.dataset import load_esol
from bioai_esol.chem.molecules import canonical_smiles
from bioai_esol.chem.split import scaffold_split
from bioai_esol.errors import BioaiError, StoreError
from bioai_esol.monitoring.observations import load_observations, observe
from bioai_esol.monitoring.watch import acknowledge, evidence_about, life_of, watch
from bioai_esol.registry.journal import history, snapshot
from bioai_esol.registry.policy import GO_BACK, KEEP, NOT_TRUSTED, Policy
from bioai_esol.registry.promotion import promote
from bioai_esol.registry.versions import archive, check, restore, rollback, set_alias, status
from bioai_esol.serving.predictor import load_champion
from bioai_esol.store.client import connect
from bioai_esol.store.runs import runs_table, search, whole_tag
from quick import EASY, blow_after

SEQUENCES = int(os.environ.get('BIOAI_SEQUENCES', 8))
FREE = ('shadow', 'baseline')
GONE = ('archived', 'failed_in_monitoring')
LOOSE = Policy(false_alarm=0.5, min_observations=3)  # so that a few molecules decide
WRITES = 4  # of an observation; the last one makes it count


@cache
def pool():
    "Thirty molecules to observe: (SMILES, logS, was every version trained on it?)."
    esol = load_esol()
    split = scaffold_split(esol.smiles)
    taught = {canonical_smiles(esol.smiles[i]) for part in (split.train, split.val) for i in part}
    rows = esol.frame.iloc[[*split.test[::4][:26], *split.train[::200][:4]]]
    return [(canonical_smiles(r.smiles), r.log_solubility, canonical_smiles(r.smiles) in taught) for r in rows.itertuples()]


@dataclass(frozen=True)
class Measured:
    "What the store should hold of a molecule."
    value: float      # measured last
    life: tuple       # (version, how often it had been promoted) when the molecule was first observed
    sequence: int     # of the call that observed it first


@dataclass(frozen=True)
class Model:
    "What the registry should hold."
    status: dict = field(default_factory=dict)    # version -> status
    sweep: dict = field(default_factory=dict)     # version -> run tag
    previous: dict = field(default_factory=dict)  # version -> champion before it
    aliases: dict = field(default_factory=dict)
    promotions: dict = field(default_factory=dict)    # version -> how often it became champion by a promotion
    distrusted: frozenset = frozenset()
    acknowledged: dict = field(default_factory=dict)  # version -> the last observation that is settled
    measured: dict = field(default_factory=dict)      # SMILES -> Measured
    sequence: int = 0                                 # of the last call that observed anything new

    @property
    def registry(self):
        "What must be found there."
        return self.status, self.aliases, self.distrusted, self.acknowledged

    @property
    def life(self):
        "That of the champion."
        champion = self.aliases['champion']
        return champion, self.promotions[champion]

    def lived(self):
        "The molecules in the life of the champion that are not settled."
        since = self.acknowledged.get(self.aliases['champion'], 0)
        return [m for m, found in self.measured.items() if found.life == self.life and found.sequence > since]

    def observed(self, table):
        "After a table of SMILES and values."
        news = {m: v for m, v in table.items() if m not in self.measured or self.measured[m].value != v}
        number = self.sequence + bool(news)
        found = {m: replace(self.measured[m], value=v) if m in self.measured else Measured(v, self.life, number) for m, v in news.items()}
        return replace(self, measured=self.measured | found, sequence=number)

    def watched(self, action):
        "After a look; nothing else may change."
        if action == GO_BACK: return self.rolled_back()
        if action == NOT_TRUSTED: return replace(self, distrusted=self.distrusted | {self.aliases['champion']})
        return self

    def trusted_again(self):
        champion = self.aliases['champion']
        return replace(self, distrusted=self.distrusted - {champion}, acknowledged=self.acknowledged | {champion: self.sequence})

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
        new = replace(new, promotions=self.promotions | {version: self.promotions.get(version, 0) + 1})
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
    templates = ()  # two folders: without a champion, and with one and its predecessor
    actions = Counter()

    @initialize(crowned=st.sampled_from(['', 'ab', 'ab']))
    def begin(self, crowned):
        self.folder = Path(tempfile.mkdtemp())
        self.uri = copied(self.templates[bool(crowned)], self.folder)
        self.model, self.entries, self.store = Model(), 0, connect(self.uri)
        self.figures, self.looks = {}, []
        for tag in 'abc':
            self.remember(tag)
        for tag in crowned:
            self.model = self.expected(tag, False)[2][-1]
        blow_after(None)

    def teardown(self):
        blow_after(None)
        if hasattr(self, 'folder'):
            try:
                for look in self.looks[-3:]:
                    self.replay(*look)
            finally:
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
        return round(-worse('test_rmse'), 9) >= 0.02 and round(worse('test_mae'), 9) <= 0.5 and round(old['test_r2'] - new['test_r2'], 9) <= 0.5

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
        back = rollback('drift', tracking_uri=self.uri)
        assert back.approved == possible
        if possible:
            self.model = self.model.rolled_back()
        assert back.champion == self.model.aliases.get('champion')

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

    # what they measure, and what follows from it

    tables = st.sampled_from([(None,), (None, -11.), (None, 1.5), (-11.,), (1.5,)]).flatmap(
        lambda values: st.dictionaries(st.integers(0, 29), st.sampled_from(values), min_size=1, max_size=20))  # logS; None: the real one
    crowned = precondition(lambda self: self.model.aliases.get('champion'))

    def table(self, rows):
        "SMILES and measured values of some molecules of the pool."
        return {pool()[i][0]: pool()[i][1] if value is None else value for i, value in rows.items()}

    def observe_now(self, table):
        frame = pd.DataFrame(dict(smiles=list(table), logS=list(table.values())))
        return observe(frame, tracking_uri=self.uri)

    @rule(rows=tables, then=st.sampled_from(['', 'dry', 'watch', 'watch']))
    @crowned
    def observe(self, rows, then):
        self.observe_table(rows)
        if then:
            self.look(then == 'dry')

    def observe_table(self, rows):
        table, known = self.table(rows), {m for m, _, taught in pool() if taught}
        new = [m for m in table if m not in self.model.measured]
        corrected = [m for m in table if m not in new and self.model.measured[m].value != table[m]]
        found = self.observe_now(table)
        assert found.champion == self.model.aliases['champion'] and found.repeated == len(table) - len(new) - len(corrected)
        assert (found.new, len(found.corrected), found.known) == (len(new), len(corrected), len(known.intersection(new)))
        self.model = self.model.observed(table)

    def everything(self):
        "All that a look could change."
        seen = snapshot(self.store)
        return {v: version.tags for v, version in seen.versions.items()}, seen.aliases, seen.entries, seen.claims, len(search(self.store))

    def decision(self):
        "What a look would decide. Looking alone changes nothing."
        before = self.everything()
        look = watch(LOOSE, dry_run=True, tracking_uri=self.uri)
        assert self.everything() == before and not look.changed
        champion, lived = self.model.aliases['champion'], self.model.lived()
        assert (look.evidence.champion, look.evidence.former) == (champion, self.model.before())
        assert look.life.molecule.tolist() == lived
        assert look.evidence.judged == len(lived) - sum(look.apart.values())
        assert look.apart['of its training set'] == sum(taught and m in lived for m, _, taught in pool())
        seen = snapshot(self.store)
        since = int(seen.at(f'version/{champion}/acknowledged') or 0)
        self.looks.append((seen.at(f'version/{champion}/promoted_at'), since, self.model.sequence, look.evidence))
        return look

    def replay(self, promoted, since, sequence, evidence):
        "The observations until then give the same evidence, to the bit, whatever came later."
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(observations, 'search', lambda *asked, **tags: [r for r in search(*asked, **tags) if whole_tag(r, 'sequence') <= sequence])
            kept = load_observations(connect(self.uri))
        life = life_of(kept, evidence.champion, promoted, since)
        again, _ = evidence_about(life, kept, evidence.champion, evidence.former, LOOSE)
        assert json.dumps(asdict(again)) == json.dumps(asdict(evidence))

    @rule(dry=st.booleans())
    def watch(self, dry):
        if 'champion' not in self.model.aliases:
            with pytest.raises(BioaiError, match='there is no champion'):
                watch(LOOSE, dry_run=dry, tracking_uri=self.uri)
            return
        self.look(dry)

    def look(self, dry):
        expected = self.decision()
        if dry:
            return
        before, look = self.model, watch(LOOSE, tracking_uri=self.uri)
        assert look.action == expected.action and json.dumps(asdict(look.evidence)) == json.dumps(asdict(expected.evidence))
        self.model = before.watched(look.action)
        self.actions[look.action] += 1
        assert look.changed == (self.model != before)
        assert look.champion == self.model.aliases['champion'] and look.trusted == (look.champion not in self.model.distrusted)

    @rule()
    @crowned
    def acknowledge(self):
        if self.model.aliases['champion'] in self.model.distrusted:
            acknowledge('we know why', tracking_uri=self.uri)
            self.model = self.model.trusted_again()
            return
        with pytest.raises(BioaiError, match='nothing to acknowledge'):
            acknowledge('we know why', tracking_uri=self.uri)

    # and what goes wrong

    @rule(rows=tables, writes=st.integers(1, WRITES))
    @crowned
    def crash_in_observe(self, rows, writes):
        "Only what was written to its end counts."
        table = self.table(rows)
        after = self.model.observed(table)
        blow_after(writes)
        try:
            self.observe_now(table)
            assert after == self.model  # nothing was new
        except StoreError as e:
            assert 'the store is gone' in str(e)
        finally:
            blow_after(None)
        self.model = after if writes == WRITES else self.model

    @rule(rows=tables, writes=st.integers(1, 14))
    @crowned
    def crash_in_watch(self, rows, writes):
        self.observe_table(rows)
        states = [self.model, self.model.watched(self.decision().action)]
        self.crashed(lambda: watch(LOOSE, tracking_uri=self.uri), writes, states)

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
        assert found in [m.registry for m in states], (found, states)
        self.model = next(m for m in states if m.registry == found)

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
        marks = {v: seen.at(f'version/{v}/acknowledged') for v in seen.versions}
        distrusted = frozenset(v for v in seen.versions if seen.at(f'version/{v}/distrusted'))
        return {v: seen.status(v) for v in seen.versions}, seen.aliases, distrusted, {v: int(n) for v, n in marks.items() if n}

    @invariant()
    def as_the_model_says(self):
        if not hasattr(self, 'model'):
            return
        assert self.found() == self.model.registry

    @invariant()
    def each_molecule_counts_once(self):
        if not hasattr(self, 'model') or not self.model.sequence:
            return
        kept = load_observations(self.store)
        assert kept.molecules.molecule.tolist() == list(self.model.measured) and kept.sequence == self.model.sequence
        expected = [(m.value, m.life[0], m.sequence) for m in self.model.measured.values()]
        assert list(zip(kept.molecules.measured, kept.molecules.champion, kept.molecules.sequence)) == expected
        assert not kept.answers.duplicated(['molecule', 'version']).any()

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


@pytest.fixture(scope='module')
def crowned(template, quick, tmp_path_factory):
    "The template, in which `a` and then `b` became champion."
    folder = tmp_path_factory.mktemp('crowned')
    uri = copied(template, folder)
    assert [promote(tag, EASY, tracking_uri=uri).champion for tag in 'ab'] == ['1', '2']
    return folder


@pytest.mark.parametrize('half', [0, 1])  # two, so that two cores share them
def test_random_lives(template, crowned, quick, faulty, half):
    Lives.templates = template, crowned
    run_state_machine_as_test(Lives, settings=settings(
        max_examples=(SEQUENCES + half) // 2, stateful_step_count=12, deadline=None, database=None, print_blob=True,
        phases=[Phase.generate],  # a life is twelve steps at most and readable as it is; making it shorter took longer than CI waits
        suppress_health_check=list(HealthCheck)))
    print(dict(Lives.actions))
    assert SEQUENCES < 40 or {GO_BACK, NOT_TRUSTED, KEEP} <= set(Lives.actions)

