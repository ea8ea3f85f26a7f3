"""Observing is several writes, and so is what watching decides: what is left when it ends between two of them, and when two of them meet. The
stream is real: two champions that were taught ESOL's more soluble molecules, of which the first errs less on the others."""
import multiprocessing as mp
import os
import shutil
import signal
from multiprocessing.forkserver import ensure_running

import pandas as pd
import pytest
from helpers import ROOT, copied, fresh, sweep_here

import bioai_esol.monitoring.watch as watching
import mlflow
from bioai_esol.chem.dataset import load_esol, load_table
from bioai_esol.errors import StoreError
from bioai_esol.monitoring.observations import KIND, load_observations, observe
from bioai_esol.monitoring.watch import evidence_about, life_of, watch
from bioai_esol.registry.journal import history, snapshot, turn
from bioai_esol.registry.policy import Policy
from bioai_esol.registry.promotion import promote
from bioai_esol.registry.versions import check
from bioai_esol.serving.predictor import load_champion
from bioai_esol.store.client import connect
from bioai_esol.store.runs import search
from quick import Faulty, blow_after

FORKS = mp.get_context('forkserver')
NEAR = -3  # logS: the molecules above it are taught, those below come in afterwards
ANY = Policy(gap_threshold=9, r2_tolerance=0.99)
TYPES = dict(first='ridge', second='gradient-boosting', third='gaussian-process')


@pytest.fixture(scope='module', autouse=True)
def forkserver():
    "See tests/registry/test_crash.py."
    FORKS.set_forkserver_preload(['warm', 'bioai_esol.monitoring.watch'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', str(ROOT / 'tests'))
        ensure_running()


def less_soluble(every=1):
    "ESOL's molecules at or below `NEAR`, from the most to the least soluble."
    frame = load_esol().frame
    far = frame[frame.log_solubility <= NEAR].sort_values('log_solubility', ascending=False, kind='stable', ignore_index=True)
    return far[['smiles', 'log_solubility']][::every].reset_index(drop=True)


@pytest.fixture(scope='module')
def two_champions(quick, tmp_path_factory):
    "A store in which `first` was champion and `second` is; `third` is better on the molecules of the test set."
    folder = tmp_path_factory.mktemp('two_champions')
    uri, frame = fresh(folder), load_esol().frame
    frame[frame.log_solubility > NEAR][['smiles', 'log_solubility']].to_csv(folder / 'near.csv', index=False)
    for tag, architecture in TYPES.items():
        sweep_here(uri, tag, dataset=load_table(folder / 'near.csv'), architecture=architecture, split='random')
    for tag, version in (('first', '1'), ('second', '2')):
        assert promote(tag, ANY, tracking_uri=uri).champion == version
    return folder


@pytest.fixture(scope='module')
def broken(two_champions, tmp_path_factory):
    "The same with the observations that break the promise of the champion."
    folder = tmp_path_factory.mktemp('broken')
    found = observe(less_soluble(14), tracking_uri=copied(two_champions, folder))
    assert (found.champion, found.new, found.known) == ('2', 39, 0)
    return folder


def sound(uri):
    "Everything that must always hold, after whatever happened."
    found = check(tracking_uri=uri)
    assert found.holds.all(), found[~found.holds].to_string()
    store = connect(uri)
    with turn(store):
        pass
    seen = snapshot(store)
    assert not seen.open and not seen.claims
    assert load_champion(tracking_uri=uri).version == seen.aliases['champion']
    return seen


def state(uri):
    "The registry without the moments at which it was written."
    seen = snapshot(connect(uri))
    tags = {v: {k: t for k, t in version.tags.items() if k not in ('since', 'demoted_at')} for v, version in seen.versions.items()}
    return tags, seen.aliases


def decisions(uri):
    "What the journal has beside registrations and promotions."
    told = history(tracking_uri=uri)
    told = told[~told.action.isin(['register', 'candidate', 'promote'])]
    return list(zip(told.action, told.version, told.outcome))


def test_the_stream_breaks_the_promise_and_the_first_champion_errs_less(broken, tmp_path):
    "The decision, what it changes, and that the evidence of the failed version stays what it was, to the bit."
    uri = copied(broken, tmp_path)
    before = state(uri)
    planned = watch(dry_run=True, tracking_uri=uri)
    assert (planned.action, planned.changed, planned.champion) == ('go back', False, '2')
    assert (state(uri), decisions(uri)) == (before, [])
    look = watch(tracking_uri=uri)
    assert (look.action, look.changed, look.champion, look.trusted) == ('go back', True, '1', True)
    assert look.evidence == planned.evidence and look.decision == planned.decision
    assert look.evidence.judged >= 20 and look.evidence.missed / look.evidence.judged > 0.5 > look.evidence.promised
    assert decisions(uri) == [('rollback', '2', 'done')] and state(uri)[0]['2']['status'] == 'failed_in_monitoring'
    kept, promoted = load_observations(connect(uri)), sound(uri).at('version/2/promoted_at')
    assert evidence_about(life_of(kept, '2', promoted), kept, '2', '1', Policy())[0] == planned.evidence
    again = watch(tracking_uri=uri)
    assert (again.action, again.changed, again.evidence.champion, again.evidence.judged) == ('keep', False, '1', 0)
    assert decisions(uri) == [('rollback', '2', 'done')]


# observing

def table():
    "Twenty molecules of `observed_before` with five values corrected, and twenty more."
    frame = less_soluble(14)
    frame.loc[:4, 'log_solubility'] -= 0.25
    return frame


@pytest.fixture(scope='module')
def observed_before(two_champions, tmp_path_factory):
    folder = tmp_path_factory.mktemp('observed_before')
    assert observe(less_soluble(14)[:20], tracking_uri=copied(two_champions, folder)).new == 20
    return folder


def counted(uri):
    "What counts, without what differs between two stores."
    found = load_observations(connect(uri))
    return found.molecules.drop(columns=['time', 'who']), found.answers, found.versions, found.sequence


def equal(one, other):
    for a, b in zip(one, other):
        if isinstance(a, pd.DataFrame): pd.testing.assert_frame_equal(a, b, check_exact=True)
        else: assert a == b
    return True


@pytest.fixture(scope='module')
def counted_once(observed_before, tmp_path_factory):
    "What counts when nothing goes wrong."
    uri = copied(observed_before, tmp_path_factory.mktemp('counted_once'))
    found = observe(table(), tracking_uri=uri)
    assert (found.new, len(found.corrected), found.repeated) == (19, 5, 15)
    return counted(uri)


def observed_again(uri, before, counted_once):
    "After a call that ended too early: nothing of it counts, and the same command counts all of it."
    assert equal(counted(uri), before)
    found = observe(table(), tracking_uri=uri)
    assert (found.new, len(found.corrected), found.repeated) == (19, 5, 15)
    assert equal(counted(uri), counted_once)


def test_an_observation_that_fails_after_any_single_write(observed_before, counted_once, tmp_path, faulty):
    blow_after(None)
    before = counted(copied(observed_before, tmp_path / 'whole'))
    observe(table(), tracking_uri=copied(observed_before, tmp_path / 'whole'))
    total = Faulty.written
    assert total == 4  # the run, its tags, the tables, its end
    for n in range(1, total):
        uri = copied(observed_before, tmp_path / str(n))
        blow_after(n)
        with pytest.raises(StoreError, match='the store is gone'):
            observe(table(), tracking_uri=uri)
        blow_after(None)
        assert len(search(connect(uri), kind=KIND)) == 2  # the one before, and what was begun
        observed_again(uri, before, counted_once)


def test_an_observation_whose_tables_arrive_in_part(observed_before, counted_once, tmp_path, monkeypatch):
    "The store takes two of three tables; what it says of the third comes too late."
    uri = copied(observed_before, tmp_path)
    before, real = counted(uri), mlflow.MlflowClient.log_artifacts

    def part(self, run_id, folder, path=None):
        os.remove(f'{folder}/{KIND}/versions.csv')
        real(self, run_id, folder, path)
        raise OSError('no space left')
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, 'log_artifacts', part)
        with pytest.raises(StoreError, match='no space left'):
            observe(table(), tracking_uri=uri)
    observed_again(uri, before, counted_once)


def test_the_end_of_an_observation_that_nobody_heard_of(observed_before, counted_once, tmp_path, faulty):
    "The last write arrives and its answer does not: it counts, and the same command counts nothing again."
    uri = copied(observed_before, tmp_path)
    blow_after(4)
    with pytest.raises(StoreError, match='the store is gone'):
        observe(table(), tracking_uri=uri)
    blow_after(None)
    assert equal(counted(uri), counted_once)
    found = observe(table(), tracking_uri=uri)
    assert (found.new, found.corrected, found.repeated) == (0, (), 39)
    assert equal(counted(uri), counted_once)


# watching

def test_a_watch_that_fails_after_any_single_write(broken, tmp_path, faulty):
    "The next one ends with the decision of an undisturbed one, made once."
    blow_after(None)
    undisturbed = copied(broken, tmp_path / 'whole')
    assert watch(tracking_uri=undisturbed).champion == '1'
    total, expected = Faulty.written, state(undisturbed)
    assert total > 10  # a claim, the journal, an artifact, an alias, tags of two versions
    unfinished = 0
    for n in range(1, total):
        uri = copied(broken, tmp_path / str(n))
        blow_after(n)
        with pytest.raises(StoreError, match='the store is gone'):
            watch(tracking_uri=uri)
        blow_after(None)
        assert load_champion(tracking_uri=uri).version in ('1', '2')  # before anything is repaired
        look = watch(tracking_uri=uri)
        unfinished += look.action == 'go back'
        assert (look.action, look.changed, look.champion) in [('go back', True, '1'), ('keep', False, '1')]
        assert decisions(uri) == [('rollback', '2', 'done')]
        assert state(uri) == expected
        if n % 3 == 0:
            sound(uri)
        shutil.rmtree(tmp_path / str(n))
    assert 0 < unfinished < total - 1


def forked(target, *args):
    p = FORKS.Process(target=target, args=args, daemon=True)
    p.start()
    return p


def ended(*processes):
    for p in processes:
        p.join(180)
        assert p.exitcode == 0


def killed(process, reached):
    assert reached.wait(120)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def stopped(act, uri, writes, reached):
    "The main function of a process that stands still right after a given number of writes, and waits for its end."
    mlflow.MlflowClient = Faulty
    blow_after(None)
    Faulty.stop = (writes, reached)
    if act == 'watch': watch(tracking_uri=uri)
    else: observe(table(), tracking_uri=uri)


def test_a_watch_killed_at_any_of_ten_moments(broken, tmp_path, faulty):
    "SIGKILL, at moments spread over the writes."
    blow_after(None)
    undisturbed = copied(broken, tmp_path / 'whole')
    watch(tracking_uri=undisturbed)
    total, expected = Faulty.written, state(undisturbed)
    moments = sorted({1 + i * (total - 2) // 9 for i in range(10)})
    assert len(moments) == 10
    for n in moments:
        uri, reached = copied(broken, tmp_path / str(n)), FORKS.Event()
        killed(forked(stopped, 'watch', uri, n, reached), reached)
        assert load_champion(tracking_uri=uri).version in ('1', '2')
        assert watch(tracking_uri=uri).champion == '1'
        assert decisions(uri) == [('rollback', '2', 'done')]
        assert state(uri) == expected
    sound(uri)


def test_an_observation_killed_before_its_last_write(observed_before, counted_once, tmp_path):
    "Its tables are all there and do not count; the lock of the dead is in nobody's way."
    uri, reached = copied(observed_before, tmp_path), FORKS.Event()
    before = counted(uri)
    killed(forked(stopped, 'observe', uri, 3, reached), reached)
    observed_again(uri, before, counted_once)
    sound(uri)


# two at once

def run_watch(uri, told, looked, go):
    "The main function of a process that waits between its first look and what follows from it."
    look = watching._look

    def then_wait(*args):
        seen = look(*args)
        looked.set()
        assert go.wait(120)
        return seen
    watching._look = then_wait
    done = watch(tracking_uri=uri)
    told.put((done.evidence.champion, done.action, done.changed, done.champion))


def watcher(uri, told):
    looked, go = FORKS.Event(), FORKS.Event()
    return forked(run_watch, uri, told, looked, go), looked, go


def test_two_watches_at_once(broken, tmp_path):
    "Both decide to go back, and one does; the other waited, and looks at the champion that is there now."
    uri, told = copied(broken, tmp_path), FORKS.Queue()
    both = [watcher(uri, told) for _ in range(2)]
    for _, looked, _ in both:
        assert looked.wait(120)
    with turn(connect(uri)):  # so that both wait
        for _, _, go in both:
            go.set()
        both[0][0].join(1.5)
        assert [p.is_alive() for p, _, _ in both] == [True, True] and told.empty()
    ended(*(p for p, _, _ in both))
    assert sorted(told.get(timeout=60) for _ in both) == [('1', 'keep', False, '1'), ('2', 'go back', True, '1')]
    assert decisions(uri) == [('rollback', '2', 'done')] and sound(uri).status('2') == 'failed_in_monitoring'


def test_two_observations_at_once(observed_before, counted_once, tmp_path):
    "The same table: one waits, and finds that everything was observed before."
    uri, told = copied(observed_before, tmp_path), FORKS.Queue()
    both = [forked(run_observe, uri, told) for _ in range(2)]
    ended(*both)
    assert sorted(told.get(timeout=60) for _ in both) == [(0, 0, 39), (19, 5, 15)]
    assert equal(counted(uri), counted_once)


def run_observe(uri, told):
    found = observe(table(), tracking_uri=uri)
    told.put((found.new, len(found.corrected), found.repeated))


def test_a_promotion_between_a_look_and_what_follows_from_it(broken, tmp_path, quick):
    "The champion that was found wanting is none any more: nothing happens to the new one, which starts from nothing."
    uri, told = copied(broken, tmp_path), FORKS.Queue()
    process, looked, go = watcher(uri, told)
    assert looked.wait(120)
    assert promote('third', ANY, tracking_uri=uri).champion == '3'
    before = state(uri)
    go.set()
    ended(process)
    assert told.get(timeout=60) == ('3', 'keep', False, '3')
    assert (state(uri), decisions(uri)) == (before, [])
    assert watch(dry_run=True, tracking_uri=uri).evidence.judged == 0


def run_promote(uri, told):
    told.put(promote('third', ANY, tracking_uri=uri).champion)


def test_a_promotion_and_a_watch_at_once(broken, tmp_path):
    "Whoever is first, the new version is champion in the end; it is judged against the champion that is there at its turn."
    uri, told, promoted = copied(broken, tmp_path), FORKS.Queue(), FORKS.Queue()
    process, looked, go = watcher(uri, told)
    assert looked.wait(120)
    with turn(connect(uri)):
        promotion = forked(run_promote, uri, promoted)
        go.set()
        promotion.join(8)  # it has retrained by then, and waits for its turn
        assert process.is_alive() and promotion.is_alive()
    ended(process, promotion)
    look, seen = told.get(timeout=60), sound(uri)
    assert promoted.get(timeout=60) == seen.aliases['champion'] == '3'
    if decisions(uri):
        assert decisions(uri) == [('rollback', '2', 'done')]
        assert look == ('2', 'go back', True, '1') and seen.status('2') == 'failed_in_monitoring'
        assert seen.at('version/3/previous_champion') == '1'
    else:
        assert look == ('3', 'keep', False, '3') and seen.status('2') == 'archived'
        assert seen.at('version/3/previous_champion') == '2'
