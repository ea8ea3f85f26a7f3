"Two sweeps: only what both have is compared, each with itself, and what else differs is said."
import numpy as np
import pandas as pd
import pytest
from helpers import fresh, sweep_here, uri_of

import bioai_esol as esol
from bioai_esol.errors import BioaiError
from bioai_esol.stats.metrics import bootstrap_mean


def sweep(tag, errors, **fixed):
    "Finished runs by hand: errors[(hidden_dim, lr, seed)] = best_val_rmse."
    rows = [dict(hidden_dim=h, lr=lr, seed=s, best_val_rmse=e, run_id=f'{tag} {h} {lr} {s}') for (h, lr, s), e in errors.items()]
    table = pd.DataFrame(rows).assign(run_tag=tag, status='FINISHED', epochs=50, val_rmse=lambda r: r.best_val_rmse + .25,
                                      generalisation_gap=.5, val_r2=lambda r: 1 - r.best_val_rmse / 4, seconds=2.)
    return table.assign(run_name=table.run_id, config_digest=table.run_id, **fixed)


BEFORE = {(32, .1, 42): 1., (32, .2, 42): 2., (64, .1, 42): 3., (64, .2, 42): 4.}
AFTER = {(32, .1, 42): 1.5, (32, .2, 42): 2.25, (64, .1, 42): 3.5, (128, .1, 42): .5}


def test_the_arithmetic():
    moved = esol.compare_sweeps(sweep('first', BEFORE), sweep('second', AFTER))
    expected = bootstrap_mean([.5, .25, .5])
    table = moved.table.set_index('metric')
    row = table.loc['best_val_rmse']
    assert (row.before, row.after, row.pairs) == (2., pytest.approx(7.25 / 3), 3)
    assert (row.difference, row.low, row.high) == pytest.approx((expected.value, expected.low, expected.high))
    half = 4.302653 * .1443376 / 3 ** .5  # Student's t with two degrees of freedom, by hand
    assert row.verdict == 'worse'
    assert (row.low, row.high) == pytest.approx((.4166667 - half, .4166667 + half), abs=1e-5)
    assert table.difference['val_r2'] == pytest.approx(-expected.value / 4) and table.verdict['val_r2'] == 'worse'  # higher is better there
    assert table.verdict['seconds'] == 'no difference shown'
    assert moved.pairs.best_val_rmse_difference.tolist() == [.5, .25, .5]
    assert moved.only == (1, 1) and moved.rank_agreement == 1
    assert moved.settings[['setting', 'before', 'after']].values.tolist() == [['hidden_dim', '32, 64', '32, 64, 128']]
    by_value = moved.by_value.set_index(['axis', 'value']).difference
    assert by_value['hidden_dim', '32'] == .375 and by_value['lr', '0.1'] == .5
    assert moved.winners.run_name.tolist() == ['first 32 0.1 42', 'second 128 0.1 42']
    assert moved.winners.in_the_other[0] == 1.5 and moved.winners.place_there[0] == 2 and pd.isna(moved.winners.place_there[1])


def test_the_other_way_round_is_the_negative():
    a, b = sweep('first', BEFORE), sweep('second', AFTER)
    there, back = esol.compare_sweeps(a, b), esol.compare_sweeps(b, a)
    assert sorted(there.pairs.best_val_rmse_difference) == sorted(-back.pairs.best_val_rmse_difference)
    assert set(back.table.verdict) == {'better', 'no difference shown'}


def test_seeds_that_both_have_are_compared_and_others_are_not():
    "Seed 1 is shared and moves by 0.1; seeds 2 and 3 are of another level, and would hide it."
    before = {(32, lr, s): lr + s for lr in (.1, .2) for s in (1, 2)}
    after = {(32, lr, s): lr + s + .1 + 5 * (s == 3) for lr in (.1, .2) for s in (1, 3)}
    moved = esol.compare_sweeps(sweep('first', before), sweep('second', after))
    assert len(moved.pairs) == 2 and moved.pairs.shared_seeds.tolist() == [1, 1]
    assert moved.pairs.best_val_rmse_difference.tolist() == pytest.approx([.1, .1])


def test_without_a_shared_seed_means_are_compared():
    before = {(32, lr, s): lr + s for lr in (.1, .2) for s in (1, 2)}
    after = {(32, lr, s): lr + s for lr in (.1, .2) for s in (3, 5)}
    moved = esol.compare_sweeps(sweep('first', before), sweep('second', after))
    assert moved.pairs.best_val_rmse_difference.tolist() == pytest.approx([4 - 1.5] * 2)
    assert any('of 2 configurations no seed is shared' in note for note in moved.notes)


def test_many_seeds_are_one_pair():
    "Twenty seeds of one configuration do not become twenty observations."
    before, after = ({(32, .1, s): 1 + .01 * s + shift for s in range(20)} for shift in (0, .1))
    [row] = esol.compare_sweeps(sweep('first', before), sweep('second', after)).table.head(1).itertuples()
    assert row.pairs == 1 and np.isinf(row.high) and row.verdict == 'not known from one pair'


def test_a_setting_without_a_shared_value_is_averaged_over():
    before = {(32, lr, 42): lr for lr in (.1, .3)} | {(64, lr, 42): 2 * lr for lr in (.1, .3)}
    after = {(32, .2, 42): 1.2, (64, .2, 42): 1.4}
    moved = esol.compare_sweeps(sweep('first', before), sweep('second', after))
    assert moved.pairs.best_val_rmse_difference.tolist() == pytest.approx([1, 1])
    assert 'averaged over lr (0.1, 0.3) in first' in moved.notes


def test_no_shared_combination():
    "Each value is in both sweeps, no configuration is: one of the two settings is let go, and that is said."
    moved = esol.compare_sweeps(sweep('first', {(32, .1, 1): 1., (64, .2, 1): 2.}), sweep('second', {(32, .2, 1): 1.5, (64, .1, 1): 2.5}))
    assert moved.notes[0] == 'no configuration stands in both sweeps: the runs of a pair may differ in hidden_dim'
    assert moved.pairs.best_val_rmse_difference.tolist() == [1.5, -.5]  # paired on lr


@pytest.mark.parametrize('changed, said', [
    (dict(split='random'), 'the split is not the same (split scaffold → random)'),
    (dict(dataset='mine', dataset_version='b' * 64), 'the data set is not the same (dataset esol → mine; dataset_version aaaaaaaaaaaa → bbbbbbbbbbbb)')])
def test_other_data_are_named(changed, said):
    same = dict(split='scaffold', dataset='esol', dataset_version='a' * 64)
    moved = esol.compare_sweeps(sweep('first', BEFORE, **same), sweep('second', AFTER, **same | changed))
    assert moved.notes[0].startswith(said) and 'of the data as well' in moved.notes[0]
    assert said[:20] in moved._repr_html_() and said[:20] in repr(moved)


def test_code_and_machine_are_named():
    moved = esol.compare_sweeps(sweep('first', BEFORE, code_version='c' * 40, device='cpu'), sweep('second', BEFORE, code_version='d' * 40, device='cuda'))
    assert moved.settings.set_index('setting').kind.to_dict() == dict(code_version='code', device='machine')
    assert 'code_version cccccccccccc → dddddddddddd' in repr(moved) and 'different machines (device)' in repr(moved)


def test_repeats_of_the_best_do_worse_by_luck():
    before = {(h, lr, 42): h + lr for h in range(8, 18) for lr in (.1, .2)}
    repeated = {(h, lr, 7): e + .3 for (h, lr, _), e in list(before.items())[:3]}
    moved = esol.compare_sweeps(sweep('first', before), sweep('second', repeated))
    assert any('among the best 20% of first' in note for note in moved.notes)
    assert not any('luck' in note for note in esol.compare_sweeps(sweep('first', before), sweep('second', before | {(99, .1, 42): 9.})).notes)


def test_missing_hyperparameters_are_a_value():
    "A ridge regression has no width: it is paired with a ridge regression, not with a network."
    def mixed(tag, shift):
        ridge = sweep(tag, {(np.nan, np.nan, 1): 2. + shift}, architecture='ridge')
        return pd.concat([ridge, sweep(tag, {(32, .1, 1): 1. + shift}, architecture='gcn')], ignore_index=True)
    moved = esol.compare_sweeps(mixed('first', 0), mixed('second', .5))
    assert moved.pairs.best_val_rmse_difference.tolist() == [.5, .5] and moved.only == (0, 0)


def test_a_metric_that_one_sweep_lacks():
    moved = esol.compare_sweeps(sweep('first', BEFORE), sweep('second', AFTER).drop(columns='val_r2'))
    assert moved.table.set_index('metric').verdict['val_r2'] == 'not measured in both'
    assert 'val_r2' not in repr(moved) and moved._repr_html_()


def test_parts_of_one_sweep():
    runs = sweep('first', BEFORE)
    moved = esol.compare_sweeps(runs[runs.lr == .1], runs[runs.lr == .2])
    assert moved.names == ('before', 'after') and moved.pairs.best_val_rmse_difference.tolist() == [1, 1]


def test_html_is_escaped_and_fits_the_cell():
    moved = esol.compare_sweeps(sweep('<b>', BEFORE), sweep('a&b', AFTER))
    assert '<b>' not in moved._repr_html_() and '&lt;b&gt;' in moved._repr_html_() and 'max-width: 100%' in moved._repr_html_()
    assert len(moved.figure().axes) == 2


@pytest.mark.parametrize('other, said', [
    (sweep('first', BEFORE), "the sweep 'first' would be compared with itself"),
    (sweep('second', AFTER).assign(status='FAILED'), 'second: none of 4 runs is finished'),
    (sweep('second', AFTER).assign(hidden_dim=1, lr=9.), 'no value of any hyperparameter in common')])
def test_what_cannot_be_compared(other, said):
    with pytest.raises(BioaiError, match=said):
        esol.compare_sweeps(sweep('first', BEFORE), other)


def test_real_sweeps(template, tmp_path):
    "Forty epochs against one, from a store; and the same on a random split."
    uri = uri_of(template)
    moved = esol.compare_sweeps('a', 'c', tracking_uri=uri)
    best = [esol.load_runs(tag, tracking_uri=uri).best_val_rmse[0] for tag in 'ac']
    assert moved.table.difference[0] == pytest.approx(best[1] - best[0]) and 'epochs 1 → 40' in repr(moved)
    assert moved.notes == ()
    with pytest.raises(BioaiError, match=r"no sweep with the run tag 'd' in .* \(run tags: a, b, c\)"):
        esol.compare_sweeps('a', 'd', tracking_uri=uri)
    with pytest.raises(BioaiError, match="the sweep 'a' would be compared with itself"):
        esol.compare_sweeps('a', 'a', tracking_uri=uri)
    other = fresh(tmp_path)
    sweep_here(other, 'random', split='random')
    across = esol.compare_sweeps(esol.load_runs('a', tracking_uri=uri), esol.load_runs('random', tracking_uri=other))
    assert across.notes[0].startswith('the split is not the same (split scaffold → random; split_digest')
