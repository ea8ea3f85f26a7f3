"A column that is hardly a solubility is said to be one of another property, with the options that name it."
import pytest

from bioai_esol import look, load_esol


@pytest.mark.parametrize('header, values, words, option', [
    ('logD', [x % 3 for x in range(30)], "'logd' stands in its header", '--property logD'),
    ('expt', [-20. + x for x in range(30)], 'hardly possible in log10(mol/L)', '--property NAME --unit UNIT')])
def test_another_property_is_proposed(tmp_path, header, values, words, option):
    rows = [f"{'C' * (n + 30)}N,{value + .5}" for n, value in enumerate(values)]  # none of them is in ESOL
    path = tmp_path / 'mine.csv'
    path.write_text(f'smiles,{header}\n' + '\n'.join(rows))
    found = look(path, target=header, tracking_uri=f'sqlite:///{tmp_path}/mlflow.db')
    assert words in found.summary(10_000)
    first, second = found.suggestions
    assert option in first.command
    confirmed = "bioai-esol look" in second.command and second.command.endswith(" --unit 'log10(mol/L)'")
    assert confirmed and "say unit='log10(mol/L)'" in found.summary(10_000)


def test_it_is_logs_all_the_same(tmp_path):
    rows = [f"{'C' * (n + 30)}N,{n % 3 + .5}" for n in range(30)]
    (tmp_path / 'mine.csv').write_text('smiles,logD\n' + '\n'.join(rows))
    store = f'sqlite:///{tmp_path}/mlflow.db'
    found = look(tmp_path / 'mine.csv', unit='log10(mol/L)', tracking_uri=store)
    assert 'hardly a solubility' not in found.summary(10_000)
    assert not any('--property' in s.command for s in found.suggestions)
    assert any(s.command.startswith('bioai-esol train ') for s in found.suggestions)


def test_a_solubility_is_believed(tmp_path):
    path = tmp_path / 'logD.csv'
    load_esol().frame.head(60).to_csv(path, index=False)
    assert '--property' not in ''.join(s.command for s in look(path, tracking_uri=f'sqlite:///{tmp_path}/m.db').suggestions)
