"`advice`: each finding comes where its fault is and stays away where it is not, says its numbers, and what was not checked is said."
import json

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, fresh, uri_of

import bioai_esol as esol
from bioai_esol.analysis.advice import CODES, describe_advice, sweep_advice
from bioai_esol.chem.dataset import load_esol, load_table
from bioai_esol.errors import BioaiError, ConfigError
from bioai_esol.store.client import connect
from bioai_esol.store.runs import load_histories, load_predictions, load_runs
from bioai_esol.store.writer import Writer
from bioai_esol.sweep.grid import blocks, Grid
from bioai_esol.training.engine import make_task, train
from bioai_esol.training.lineage import lineage


def swept_here(uri, grid, dataset):
    "A sweep of one split as `run_sweep` writes it, trained in this process."
    store, configs = connect(uri, create=True), grid.configs()
    task = make_task(dataset, configs[0])
    tags = dict(run_tag=grid.run_tag, kind='run') | lineage(task.dataset, task.split)
    parent = store.client.create_run(store.experiment_id, tags=tags | dict(kind='sweep'), run_name=f'sweep {grid.run_tag}').info.run_id
    writer = Writer(store, task, tags, parent)
    for block in blocks(configs, 1):
        task = make_task(dataset, block[0], task.molecules)
        for config, result in zip(block, train(block, task)): writer.close(writer.open(writer.draft(config)), result)
    store.client.set_terminated(parent, 'FINISHED')


def table(folder, name, frame, **reading):
    frame.to_csv(folder / f'{name}.csv', index=False)
    return load_table(folder / f'{name}.csv', **reading)


@pytest.fixture(scope='module')
def uri(tmp_path_factory):
    "A store with small sweeps: networks with seeds and ridge regression, one epoch, molecules twice, another property."
    folder = tmp_path_factory.mktemp('advice')
    fresh(folder)
    uri, some = uri_of(folder), load_esol().frame[['smiles', 'log_solubility']].iloc[::3]
    mine = table(folder, 'mine', some)
    common = dict(batch_size=64, dropout=0)
    swept_here(uri, Grid(architecture=('gcn', 'ridge'), hidden_dim=8, lr=(1e-3, 1e-2), weight_decay=(0, 1e-30), seed=(1, 2, 3, 4, 5), epochs=8,
                         run_tag='many', **common), mine)
    swept_here(uri, Grid(hidden_dim=8, lr=1e-4, weight_decay=0, epochs=1, run_tag='short', **common), mine)
    twice = table(folder, 'twice', pd.concat([some.head(80)] * 2))
    swept_here(uri, Grid(architecture='ridge', split='random', run_tag='leaking'), twice)
    swept_here(uri, Grid(architecture='ridge', split='scaffold', run_tag='whole'), table(folder, 'whole', some))
    logd = table(folder, 'logd', some.rename(columns=dict(log_solubility='binding')), property='binding', unit='kcal/mol', target='binding')
    swept_here(uri, Grid(architecture=('gcn', 'ridge'), hidden_dim=8, lr=1e-2, weight_decay=0, epochs=2, run_tag='binding', **common), logd)
    return uri


@pytest.fixture(scope='module')
def many(uri): return load_runs('many', tracking_uri=uri)


@pytest.fixture(scope='module')
def predictions(uri, many):
    "By the lowest run, ridge regression."
    return load_predictions(many.nsmallest(1, 'best_val_rmse').run_id.iloc[0], tracking_uri=uri)


def codes(given): return [finding.code for finding in given]


def found(code, *args, **kwargs):
    "The findings of one check; a check that could not be made fails the test."
    given = esol.advice(*args, muted=[c for c in CODES if c != code], **kwargs)
    assert not given.unchecked, given.unchecked
    assert set(codes(given)) <= {code}
    return list(given)


def why_not(code, *args, **kwargs): return esol.advice(*args, **kwargs).unchecked[code]


def networks(runs): return runs[runs.architecture == 'gcn']


def by(runs, axis, value):
    "The runs as if their validation error depended on one axis alone."
    return runs.assign(best_val_rmse=1 + runs[axis].map(value))


def test_leak(uri, predictions, many):
    [finding] = found('leak', load_runs('leaking', tracking_uri=uri))
    n = int(load_runs('leaking', tracking_uri=uri).split_leakage[0])
    assert f'{n} molecules are in more than one part' in finding.sentence
    assert not found('leak', load_runs('whole', tracking_uri=uri))
    assert not found('leak', many, predictions=predictions)
    doubled = pd.concat([predictions, predictions.head(10)])
    [finding] = found('leak', many, predictions=doubled)
    assert f'20 of {len(predictions) + 10} test rows' in finding.sentence


def test_baseline_on_descriptors(many):
    ridge, network = many[many.architecture == 'ridge'].iloc[0], networks(many).nsmallest(1, 'best_val_rmse').iloc[0]
    [finding] = found('baseline', many)
    for number in (ridge.best_val_rmse, network.best_val_rmse): assert f'{number:.3f}' in finding.sentence
    assert f'{1 - ridge.best_val_rmse / network.best_val_rmse:.0%} below' in finding.sentence and 'log10 units' in finding.sentence
    better_network = many.assign(best_val_rmse=many.best_val_rmse.where(many.architecture == 'ridge', .99 * ridge.best_val_rmse), best_val_r2=.5)
    assert not found('baseline', better_network)
    assert not found('baseline', many[many.architecture == 'ridge'])
    assert 'no model on descriptors' in why_not('baseline', networks(many).assign(best_val_r2=.5))
    elsewhere = many.assign(split_digest=many.split_digest.where(many.architecture == 'gcn', 'other'))
    assert 'no model on descriptors' in why_not('baseline', elsewhere)  # other validation molecules


def test_baseline_of_the_mean(uri, many, predictions):
    short = load_runs('short', tracking_uri=uri)
    assert short.best_val_r2[0] < 0
    [finding] = found('baseline', short)
    assert f'{short.best_val_r2[0]:.3f}' in finding.sentence
    only_ridge = many[many.architecture == 'ridge']
    constant = predictions.assign(predicted=predictions.log_solubility.mean() + 1)
    [finding] = found('baseline', only_ridge, predictions=constant)
    assert 'not shown to be better' in finding.sentence
    assert not found('baseline', only_ridge, predictions=predictions)


def test_kind(many, predictions):
    for factor in (3, 1 / 3):
        far = many.assign(test_rmse=many.best_val_rmse * factor)
        for given in (dict(predictions=predictions), {}):
            [finding] = found('kind', far, **given)
            assert f'{factor:.2f} times the validation error' in finding.sentence and 'go on choosing by validation' in finding.remedy
    near = many.assign(test_rmse=many.best_val_rmse * 1.1)
    assert not found('kind', near, predictions=predictions) and not found('kind', near)
    assert 'test_rmse' in why_not('kind', many.assign(test_rmse=np.nan))


def test_more_molecules_excuse_less(many, predictions):
    "The same ratio is chance with ten test molecules, and a difference in kind with many."
    apart = many.assign(test_rmse=many.best_val_rmse * 1.3)
    assert not found('kind', apart, predictions=predictions.head(10))
    assert found('kind', apart, predictions=pd.concat([predictions] * 20))


def test_intervals(many, predictions):
    assert not found('intervals', many, predictions=predictions)
    narrow = predictions.assign(low=predictions.predicted - .05, high=predictions.predicted + .05)
    held = int(((predictions.log_solubility - predictions.predicted).abs() <= .05).sum())
    [finding] = found('intervals', many, predictions=narrow)
    assert f'{held} of {len(predictions)}' in finding.sentence and 'fewer than promised' in finding.sentence
    assert not found('intervals', many, predictions=predictions.assign(low=-99., high=99.))
    assert why_not('intervals', many) == 'no predictions were given: predictions=esol.load_predictions(run_id)'
    assert 'no intervals' in why_not('intervals', many, predictions=predictions.assign(low=np.nan))


def test_few(many, predictions):
    [finding] = found('few', many, predictions=predictions.head(5))
    assert finding.sentence.startswith('5 test molecules') and 'improvement of 2%' in finding.sentence
    assert not found('few', many, predictions=pd.concat([predictions] * 5))
    assert not found('few', many, esol.Policy(require_significance=True), predictions=predictions.head(5))
    assert not found('few', many, esol.Policy(min_improvement=.9), predictions=predictions.head(5))
    assert why_not('few', many) == 'no predictions were given: predictions=esol.load_predictions(run_id)'


def test_noise(many):
    "No weight decay and one of 1e-30 give the same runs; which of the two stands on top is luck."
    [finding] = found('noise', many)
    assert 'over 5 seeds' in finding.sentence and 'of 3 other configurations' in finding.sentence and '+0.000' in finding.sentence
    apart = by(networks(many), 'lr', {1e-3: .5, 1e-2: 0.})
    assert not found('noise', apart[apart.weight_decay == 0])
    assert 'one seed' in why_not('noise', many[many.seed == 1])
    assert why_not('noise', many[many.seed < 3]) == '2 seeds per configuration, and 3 are needed'
    assert 'depend on a seed' in why_not('noise', many[many.architecture == 'ridge'])
    named = [f'{name} s1' for name in ('ridge', 'gaussian-process')]
    two = pd.concat([many[many.architecture == 'ridge']] * 2).assign(run_name=named)
    assert 'depend on a seed' in why_not('noise', two) and 'one seed' in why_not('noise', two.assign(split='random'))


def test_seeds_disagree(many):
    runs = networks(many)
    alike = runs.assign(best_val_rmse=1 + runs.lr + runs.weight_decay.map({0: 0, 1e-30: .001}))
    assert not found('seeds-disagree', alike)
    turned = alike.assign(best_val_rmse=alike.best_val_rmse.where(alike.seed % 2 == 0, 2 - alike.best_val_rmse))
    [finding] = found('seeds-disagree', turned)
    assert 'rank correlation is -0.20 (pairs of seeds from -1.00 to 1.00)' in finding.sentence
    assert 'one seed' in why_not('seeds-disagree', many[many.seed == 1])
    assert '2 configurations' in why_not('seeds-disagree', many[many.weight_decay == 0])


def test_gap(many):
    ridge = many[many.architecture == 'ridge']
    gap = float(ridge.generalisation_gap.iloc[0])
    [finding] = found('gap', ridge, esol.Policy(gap_threshold=gap * 1.05))
    assert 'takes none' in finding.sentence and f'{gap * 1.05:.3g} takes {ridge.run_name.iloc[0]}' in finding.sentence
    assert not found('gap', ridge, esol.Policy(gap_threshold=gap * 2)) and not found('gap', ridge, esol.Policy(gap_threshold=gap / 2))
    assert 'generalisation_gap' in why_not('gap', many.assign(generalisation_gap=np.nan))


def test_falling(many):
    [finding] = found('falling', networks(many)[networks(many).lr == 1e-3])  # eight epochs at a low rate
    assert 'best 10 networks' in finding.sentence and 'of 8 epochs' in finding.sentence and '16 epochs' in finding.remedy
    runs = networks(many).sort_values('best_val_rmse', kind='stable')
    def late(n): return runs.assign(best_epoch=[8] * n + [4] * (len(runs) - n))
    assert found('falling', late(5)) and not found('falling', late(4))
    assert 'constant learning rate' in why_not('falling', many.assign(schedule='cosine'))
    assert 'constant learning rate' in why_not('falling', networks(many).assign(epochs=4))
    assert why_not('falling', many[many.architecture == 'ridge']) == 'no network is among these runs'


def test_edge(many):
    [finding] = found('edge', by(many, 'lr', {1e-3: .5, 1e-2: 0.}))
    assert 'The best lr, 0.01, is the highest' in finding.sentence and '-0.500 log10 units' in finding.sentence and '10 pairs' in finding.sentence
    assert finding.remedy == 'Try lr 0.03 as well.'
    [finding] = found('edge', by(many, 'lr', {1e-3: 0., 1e-2: .5}))
    assert 'lr, 0.001, is the lowest' in finding.sentence and 'lr 0.0003 ' in finding.remedy
    assert not found('edge', by(many, 'lr', {1e-3: .001, 1e-2: 0.}))  # not worth a sweep
    assert not found('edge', by(many, 'weight_decay', {0: 0., 1e-30: .5}))  # a natural end
    assert 'weight_decay' in found('edge', by(many, 'weight_decay', {0: .5, 1e-30: 0.}))[0].sentence
    assert 'pairs of runs' in why_not('edge', many.groupby('architecture').head(2))


@pytest.mark.parametrize('best, edges', [(8, ['batch_size, 8']), (16, []), (32, ['batch_size, 32'])])
def test_a_best_value_in_the_middle_is_no_edge(many, best, edges):
    "Three values, made of real runs of which each stands for one value of another axis."
    runs = networks(many)
    three = pd.concat([runs.assign(batch_size=size, best_val_rmse=1 + .1 * abs(np.log2(size / best))) for size in (8, 16, 32)])
    sentences = [finding.sentence for finding in found('edge', three)]
    assert len(sentences) == len(edges) and all(edge in sentence for edge, sentence in zip(edges, sentences))


def test_no_effect(many):
    [finding] = found('no-effect', many)
    assert finding.sentence.startswith('weight_decay has no effect') and '10 pairs' in finding.sentence
    assert finding.remedy.endswith('10 runs instead of 20.')
    both = by(many, 'weight_decay', {0: .5, 1e-30: 0.})
    assert [f.sentence.split()[0] for f in found('no-effect', both)] == ['lr']
    noisy = networks(many).assign(best_val_rmse=1 + np.random.default_rng(0).normal(0, .3, 20))
    assert not found('no-effect', noisy)  # wide intervals show nothing
    assert '10 pairs' in why_not('no-effect', many[many.seed == 1])


def test_last_epoch(uri, many):
    histories = load_histories(many, tracking_uri=uri)
    assert not found('last-epoch', many, histories=histories)
    cut = histories[(histories.metric != 'train_rmse') | (histories.epoch == 8) | ~histories.run_id.isin(networks(many).run_id.head(3))]
    [finding] = found('last-epoch', many, histories=cut)
    assert 'train_rmse (3 of 20 runs)' in finding.sentence
    assert why_not('last-epoch', many) == 'no histories were given: histories=esol.load_histories(runs)'
    assert 'no history' in why_not('last-epoch', many, histories=histories.head(0))


def test_the_most_serious_comes_first_and_the_frames_stay_as_they_are(uri, many, predictions):
    histories = load_histories(many, tracking_uri=uri)
    before = many.copy(), predictions.copy(), histories.copy()
    given = esol.advice(many, predictions=predictions, histories=histories)
    for frame, copy in zip((many, predictions, histories), before): pd.testing.assert_frame_equal(frame, copy)
    assert codes(given) == sorted(codes(given), key=CODES.index) and {'baseline', 'noise', 'no-effect'} <= set(codes(given))
    assert given.table.code.tolist() == codes(given) and list(given.table) == ['code', 'sentence', 'remedy', 'page']
    assert len(repr(given).splitlines()) <= 3 and '21 runs' in repr(given)
    for finding in given:
        assert any(c.isdigit() for c in finding.sentence) and finding.remedy.endswith('.') and 'nan' not in finding.sentence
        assert finding.sentence in str(given) and finding.remedy in str(given) and f'**{finding.code}**' in describe_advice(given)


def test_muted(many):
    whole, quiet = esol.advice(many), esol.advice(many, muted=['noise', 'edge', 'noise'])
    assert codes(quiet) == [c for c in codes(whole) if c not in ('noise', 'edge')]
    assert '2 muted' in repr(quiet) and 'muted: noise, edge' in str(quiet) and 'muted' not in repr(whole)
    assert esol.advice(many, muted='noise').muted == ('noise',)
    with pytest.raises(ConfigError, match=r"'egde', did you mean 'edge'\? \(codes: leak, .*last-epoch\)"): esol.advice(many, muted='egde')


def test_nothing_to_find(uri):
    given = sweep_advice('whole', tracking_uri=uri, muted=['kind', 'few', 'gap'])
    assert repr(given).startswith('none of 3 checks finds anything on whole (1 run); 6 checks could not be made; 3 muted')
    assert 'falling, edge, no-effect, last-epoch (no network is among these runs)' in describe_advice(given)
    assert 'none of 3 checks' in given._repr_html_().lower() and not len(given.table)
    assert 'unknown' not in esol.advice(load_runs('whole', tracking_uri=uri), muted=CODES).summary


def test_what_is_not_finished(many):
    running = many.assign(status=np.where(many.seed > 3, 'RUNNING', 'FINISHED'))
    unfinished = int((running.status == 'RUNNING').sum())
    given = esol.advice(running)
    assert f'21 runs, {21 - unfinished} finished' in given.summary
    done = esol.advice(running[running.status == 'FINISHED'])
    assert given.findings == done.findings
    with pytest.raises(BioaiError, match='none of 21 runs is finished'): esol.advice(many.assign(status='RUNNING'))


def test_another_property_has_its_unit(uri):
    given = sweep_advice('binding', esol.Policy(min_improvement=0.), tracking_uri=uri)
    assert 'kcal/mol' in str(given) and 'log10' not in str(given)


def test_a_run_whose_predictions_are_gone(uri, many, monkeypatch):
    from bioai_esol.analysis import advice as module
    from bioai_esol.errors import StoreError
    def gone(*args, **kwargs): raise StoreError('run 1 has no artifact')
    monkeypatch.setattr(module, 'load_predictions', gone)
    given = module.sweep_advice('many', tracking_uri=uri)
    assert given.unchecked['intervals'] == given.unchecked['few'] == 'run 1 has no artifact'


def test_every_finding_has_its_section():
    cells = json.loads((ROOT / 'nbs/analysis/10_advice.ipynb').read_text(encoding='utf-8'))['cells']
    sections = [part for c in cells if c['cell_type'] == 'markdown' for part in ''.join(c['source']).split('\n### ')[1:]]
    sections += [''.join(c['source'])[4:] for c in cells if ''.join(c['source']).startswith('### ')]
    by_code = {part.splitlines()[0]: part for part in sections}
    assert set(by_code) == set(CODES)
    for code, text in by_code.items():
        meaning, _, remedy = text.partition('*What to do:*')
        assert len(meaning.split()) > 25 and len(remedy.split()) > 5, code


def test_on_the_command_line(uri, here):
    done = here('advice', '--run-tag', 'many', '--tracking-uri', uri)
    assert done.returncode == 0, done.stderr
    stored = sweep_advice('many', tracking_uri=uri)
    lines = done.stdout.splitlines()
    assert lines[0] == stored.summary and set(codes(stored)) <= set(lines)
    flat = ' '.join(done.stdout.split())
    for finding in stored: assert finding.sentence in flat
    assert max(map(len, lines)) <= 140
    quiet = here('advice', '--run-tag', 'many', '--tracking-uri', uri, '--mute', 'noise', 'no-effect')
    assert quiet.returncode == 0 and '2 muted' in quiet.stdout and not {'noise', 'no-effect'} & set(quiet.stdout.splitlines())
    wrong = here('advice', '--run-tag', 'many', '--tracking-uri', uri, '--mute', 'egde')
    assert wrong.returncode == 2 and "did you mean 'edge'" in wrong.stderr and len(wrong.stderr.splitlines()) == 1


def test_remedies_are_options_and_json_is_whole(uri, here):
    leaking = here('advice', '--run-tag', 'leaking', '--tracking-uri', uri)
    assert '--split scaffold' in leaking.stdout and '--duplicates mean' in leaking.stdout
    record = json.loads(here('advice', '--run-tag', 'leaking', '--tracking-uri', uri, '--json', '--mute', 'gap').stdout)
    assert list(record) == ['summary', 'findings', 'not_checked', 'muted'] and record['muted'] == ['gap']
    [leak] = [f for f in record['findings'] if f['code'] == 'leak']
    assert leak['page'] == 'analysis/advice.html#leak' and "split='scaffold'" in leak['remedy']
    few = here('advice', '--run-tag', 'leaking', '--tracking-uri', uri, '--require-significance')
    assert 'few\n' not in few.stdout
