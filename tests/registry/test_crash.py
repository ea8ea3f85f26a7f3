"A registration or promotion is several writes: what is left when it ends between two of them, and when two of them meet."
import multiprocessing as mp
import os
import shutil
import signal
import socket
import tempfile
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import pytest
from helpers import ROOT, copied, fresh, sweep_here

import mlflow
from bioai_esol.registry import journal
from bioai_esol.store.runs import run_row, runs_table, search
from bioai_esol.registry.journal import history, snapshot, turn
from bioai_esol.registry.promotion import promote
from bioai_esol.registry.versions import check, rollback, set_alias, status
from bioai_esol.serving.predictor import load_champion
from bioai_esol.errors import StoreError
from bioai_esol.store.client import connect
from quick import EASY, Faulty, blow_after, real_make_task
from stores import mlflow_server

FORKS = mp.get_context('forkserver')


@pytest.fixture(scope='module', autouse=True)
def forkserver():
    "A process that has everything imported and packed, from which the others are forked; Python 3.11 does not tell it our sys.path."
    FORKS.set_forkserver_preload(['warm'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', str(ROOT / 'tests'))
        ensure_running()


@pytest.fixture(scope='module')
def one_champion(template, quick, tmp_path_factory):
    "A store in which `a` is champion; `b` and `c` are better."
    folder = tmp_path_factory.mktemp('one_champion')
    uri = copied(template, folder)
    assert promote('a', EASY, tracking_uri=uri).champion == '1'
    return folder


@pytest.fixture
def uri(one_champion, tmp_path):
    return copied(one_champion, tmp_path / 'store')


def sound(uri):
    "Everything that must always hold, after whatever happened."
    found = check(tracking_uri=uri)
    assert found.holds.all(), found[~found.holds].to_string()
    store = connect(uri)
    with turn(store):  # nobody's claim is in the way; looking alone leaves a dead one where it is
        pass
    seen = snapshot(store)
    assert not seen.open and not seen.claims
    assert load_champion(tracking_uri=uri).version == seen.aliases['champion']
    return seen


def test_a_promotion_that_fails_after_any_single_write(one_champion, tmp_path, faulty):
    "The champion is complete at every moment; the next command finishes or undoes, whichever command it is."
    uri = copied(one_champion, tmp_path / 'whole')
    blow_after(None)
    assert promote('b', EASY, tracking_uri=uri).champion == '2'
    total = Faulty.written
    assert total > 30  # runs, artifacts, version, tags, aliases, journal
    outcomes = []
    for n in range(1, total):
        uri = copied(one_champion, tmp_path / str(n))
        blow_after(n)
        with pytest.raises(StoreError, match='the store is gone'):
            promote('b', EASY, tracking_uri=uri)
        blow_after(None)
        assert load_champion(tracking_uri=uri).version in ('1', '2')  # before anything is repaired
        if n % 3 == 0:
            status(tracking_uri=uri)
        elif n % 3 == 1:
            promote('b', EASY, tracking_uri=uri)
        else:
            set_alias('shadow', '1', tracking_uri=uri)
        seen = sound(uri)
        outcomes.append(seen.aliases['champion'])
        assert len(seen.versions) <= 2  # a registration that was begun is finished, not made again
        assert n % 3 != 1 or seen.aliases['champion'] == '2'
        shutil.rmtree(tmp_path / str(n))
    assert set(outcomes) == {'1', '2'}


@pytest.mark.parametrize('what', ['rollback', 'alias', 'candidate'])
def test_a_rollback_and_an_alias_that_fail_after_any_single_write(one_champion, tmp_path, faulty, what):
    whole = copied(one_champion, tmp_path / 'whole')
    assert promote('b', EASY, tracking_uri=whole).champion == '2'
    if what == 'candidate':
        assert promote('a', EASY, tracking_uri=whole).champion == '2'
    act = dict(rollback=lambda uri: rollback('drift', tracking_uri=uri), alias=lambda uri: set_alias('shadow', '1', tracking_uri=uri),
               candidate=lambda uri: promote('c', EASY, tracking_uri=uri))[what]
    blow_after(None)
    act(copied(tmp_path / 'whole', tmp_path / 'counted'))
    for n in range(1, Faulty.written, 1 if what != 'candidate' else 4):
        uri = copied(tmp_path / 'whole', tmp_path / str(n))
        blow_after(n)
        with pytest.raises(StoreError, match='the store is gone'):
            act(uri)
        blow_after(None)
        status(tracking_uri=uri)
        seen = sound(uri)
        if what == 'rollback':
            assert (seen.aliases['champion'], seen.status('2')) in (('2', 'champion'), ('1', 'failed_in_monitoring'))
        shutil.rmtree(tmp_path / str(n))


def run_promote(uri, tag, ready=None, go=None, host=None, tmp=None):
    "The main function of a process; `host` and `tmp` let it believe to be on a machine of its own."
    if host:
        socket.gethostname = lambda: host
        tempfile.tempdir = tmp
    if ready:
        ready.set()
        go.wait()
    done = promote(tag, EASY, tracking_uri=uri)
    print(done.reason, flush=True)


def process(*args, **kwargs):
    p = FORKS.Process(target=run_promote, args=args, kwargs=kwargs, daemon=True)
    p.start()
    return p


def stopped_promotion(uri, writes, reached):
    "The main function of a process that stands still right after a given number of writes, and waits for its end."
    mlflow.MlflowClient = Faulty
    blow_after(None)
    Faulty.stop = (writes, reached)
    promote('b', EASY, tracking_uri=uri)


def test_a_promotion_killed_at_any_of_ten_moments(one_champion, tmp_path, faulty):
    "SIGKILL, at moments spread over the writes of a promotion (the first is that of the retraining); the next command repairs."
    blow_after(None)
    promote('b', EASY, tracking_uri=copied(one_champion, tmp_path / 'whole'))
    total, champions = Faulty.written, []
    for i in range(10):
        uri, reached = copied(one_champion, tmp_path / str(i)), FORKS.Event()
        p = FORKS.Process(target=stopped_promotion, args=(uri, 1 + i * (total - 2) // 9, reached), daemon=True)
        p.start()
        assert reached.wait(120)
        os.kill(p.pid, signal.SIGKILL)
        p.join()
        assert p.exitcode == -signal.SIGKILL
        assert load_champion(tracking_uri=uri).version in ('1', '2')
        if i % 2:
            champions.append(rollback('drift', tracking_uri=uri).champion)
        else:
            assert promote('b', EASY, tracking_uri=uri).champion == '2'
            assert not [r for r in search(connect(uri), kind='retraining') if r.info.status == 'RUNNING']
        sound(uri)
    assert set(champions) == {'1'}  # there was nobody to go back to, or the promotion was finished first and then rolled back


def test_what_was_begun_is_finished_and_said(uri, faulty, caplog):
    blow_after(None)
    promote('b', EASY, tracking_uri=copied(Path(uri.removeprefix('sqlite:///')).parent, Path(tempfile.mkdtemp())))
    blow_after(Faulty.written - 3)  # the crown is on, its tags are not all written
    with pytest.raises(StoreError):
        promote('b', EASY, tracking_uri=uri)
    blow_after(None)
    status(tracking_uri=uri)
    assert 'the promote of' in caplog.text and 'was not finished: done now' in caplog.text
    last = history(tracking_uri=uri).iloc[-1]
    assert (last.action, last.outcome) == ('promote', 'done') and last.reason.endswith('finished by the next command')


def run_two(uri, tags, **machines):
    both = []
    for i, tag in enumerate(tags):
        more = {k: v[i] for k, v in machines.items()}
        ready, go = FORKS.Event(), FORKS.Event()
        both.append((process(uri, tag, ready, go, **more), ready, go))
    for _, ready, _ in both:
        assert ready.wait(120)
    for _, _, go in both:
        go.set()
    for p, _, _ in both:
        p.join(180)
        assert p.exitcode == 0


@pytest.mark.parametrize('tags', [('b', 'c'), ('c', 'b'), ('c', 'c')], ids='-'.join)
def test_two_promotions_at_once(uri, tags):
    "One champion, at most one candidate, and a history of both; the second is judged against the first."
    run_two(uri, tags)
    seen = sound(uri)
    champion = run_row(connect(uri), seen.holder('champion').run_id)
    assert champion['run_tag'] == 'c'
    told = history(tracking_uri=uri)
    promotions = told[(told.action == 'promote') & (told.version != '1')]
    assert len(promotions) == 2
    if tags == ('c', 'c'):
        assert sorted(promotions.outcome) == ['done', 'refused'] and len(seen.versions) == 2
        assert 'has just become champion' in promotions.reason.iloc[-1]
    elif promotions.outcome.iloc[-1] == 'refused':  # `c` was first
        assert 'improve' not in promotions.reason.iloc[0] and seen.aliases.get('candidate') == '3'
    else:
        assert promotions.moves.iloc[-1].startswith('champion: 2 → 3') and 'candidate' not in seen.aliases


def test_two_machines_at_once_on_a_server(one_champion, tmp_path):
    "No lock file is shared: each believes to be on a machine of its own. And a claim of a machine that died does not block for ever."
    copied(one_champion, tmp_path)
    for name in ('one', 'two'):
        (tmp_path / name).mkdir()
    with mlflow_server(tmp_path) as server:
        uri = server.url
        run_two(uri, ('b', 'c'), host=['one', 'two'], tmp=[str(tmp_path / 'one'), str(tmp_path / 'two')])
        seen = sound(uri)
        assert run_row(connect(uri), seen.holder('champion').run_id)['run_tag'] == 'c'
        promotions = history(tracking_uri=uri).query("action == 'promote' and version != '1'")
        assert len(promotions) == 2 and promotions.who.str.split('@').str[1].nunique() == 2
        store = connect(uri)
        store.client.set_registered_model_tag(journal.MODEL, 'claim.dead', '{"who": "x@three", "host": "three", "pid": 1, "time": "long ago"}')
        lease = journal.LEASE_S
        try:
            journal.LEASE_S = 3.
            set_alias('shadow', '1', tracking_uri=uri)
        finally:
            journal.LEASE_S = lease
        assert 'claim.dead' not in store.client.get_registered_model(journal.MODEL).tags
        sound(uri)


def test_a_live_claim_of_another_machine_is_waited_for(uri):
    store = connect(uri)
    store.client.set_registered_model_tag(journal.MODEL, 'claim.live', '{"who": "x@three", "host": "three", "pid": 1, "time": "now"}')
    import threading
    gone = threading.Event()

    def release():
        gone.set()
        connect(uri).client.delete_registered_model_tag(journal.MODEL, 'claim.live')
    threading.Timer(1.5, release).start()
    with turn(store) as t:
        assert gone.is_set()
        assert list(t.registry.claims) and 'live' not in t.registry.claims


def test_a_hand_that_takes_no_turn_wins(uri, monkeypatch):
    "Somebody moves `champion` in MLflow's pages between the decision and the first write: refused, recorded, and theirs stays."
    import bioai_esol.registry.promotion as promotion
    set_alias('shadow', '1', tracking_uri=uri)
    assert promote('b', EASY, tracking_uri=uri).champion == '2'

    def crown(t, *args):
        t.store.client.set_registered_model_alias(journal.MODEL, 'champion', '1')
        return journal_crown(t, *args)
    journal_crown = promotion.crown
    monkeypatch.setattr(promotion, 'crown', crown)
    done = promote('c', EASY, tracking_uri=uri)
    assert not done.approved and done.champion == '1' and 'champion is version 1 now, not 2' in done.reason
    last = history(tracking_uri=uri).iloc[-1]
    assert (last.action, last.outcome) == ('promote', 'refused') and 'somebody moved it meanwhile' in last.reason
    found = check(tracking_uri=uri).set_index('invariant')
    assert 'it was moved without bioai-esol' in found.findings['every move of champion is on record']


def test_quick_is_what_it_says(quick):
    "The shortcut of these tests gives the numbers of the real thing."
    folder = Path(tempfile.mkdtemp())
    store = sweep_here(fresh(folder), 'x', 2)
    [row] = runs_table(store, 'x').to_dict('records')
    from bioai_esol.chem.dataset import load_esol
    from bioai_esol.training.config import config_from
    from bioai_esol.training.engine import train
    config = config_from(row)
    [result] = train([config], real_make_task(load_esol(), config))
    assert result.summary['best_val_rmse'] == row['best_val_rmse']
