"Measured molecules, from a table to a decision: ESOL's soluble half trains, its other half is what the weeks after bring."
import json
import math
import re
import subprocess

import pandas as pd
import pytest
from helpers import PROGRAM, copied, fresh, sweep_here, uri_of, words_of

import bioai_esol as esol
from bioai_esol.chem.dataset import load_esol
from bioai_esol.errors import BioaiError, DataError
from bioai_esol.monitoring.observations import load_observations
from bioai_esol.monitoring import observations
from bioai_esol.monitoring.watch import observe_folder
from bioai_esol.registry import versions
from bioai_esol.registry.journal import snapshot
from bioai_esol.serving.requests import RequestLog, load_requests
from bioai_esol.store.client import connect
from bioai_esol.store.runs import search

LENIENT = ['--allow-dirty', '--gap-threshold', '9', '--r2-tolerance', '0.99']


def halves():
    "ESOL above and below a logS of −3, each molecule once."
    frame = load_esol().frame[['name', 'smiles', 'log_solubility']].drop_duplicates('smiles')
    soluble = frame.log_solubility > -3
    return frame[soluble], frame[~soluble].sort_values('log_solubility', ascending=False, kind='stable')


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    "A folder in which ridge was champion and gradient boosting is, both trained on the soluble half."
    folder = tmp_path_factory.mktemp('watched')
    fresh(folder)
    halves()[0].to_csv(folder / 'soluble.csv', index=False)
    for kind in ('ridge', 'gradient-boosting'):
        for command in (['train', '--architecture', kind, '--data', 'soluble.csv', '--split', 'random', '--run-tag', kind],
                        ['promote', '--run-tag', kind, *LENIENT]):
            done = subprocess.run([PROGRAM, *command], cwd=folder, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def folder(original, tmp_path):
    copied(original, tmp_path)
    return tmp_path


@pytest.fixture
def uri(folder):
    return uri_of(folder)


def reported(here, folder):
    "The report of the latest sweep, without its pictures."
    done = here('report', '--output', 'page.html', cwd=folder)
    assert done.returncode == 0, done.stderr
    return words_of((folder / 'page.html').read_text())


def test_a_molecule_counts_once(uri):
    "Given again, corrected, measured twice in one table, and one of the training set."
    soluble, later = halves()
    week = later[:6]
    first = esol.observe(week, tracking_uri=uri)
    assert (first.new, first.repeated, first.corrected, first.known) == (6, 0, (), 0)
    again = esol.observe(week, tracking_uri=uri)
    assert (again.new, again.repeated) == (0, 6) and len(search(connect(uri), kind='observations')) == 1  # nothing new, no run
    changed = week.assign(log_solubility=[-3.5, *week.log_solubility[1:]])
    corrected = esol.observe(changed, tracking_uri=uri)
    assert corrected.new == 0 and len(corrected.corrected) == 1 and corrected.corrected[0].endswith('→ -3.5')
    twice = pd.DataFrame(dict(smiles=[later.smiles.iloc[8]] * 3 + [soluble.smiles.iloc[0]], logS=[-4., -5., -9., -1.]))
    more = esol.observe(twice, tracking_uri=uri)
    seen = load_observations(connect(uri))
    assert more.new == 2 and seen.molecules.molecule.is_unique and len(seen.molecules) == 8
    by = seen.molecules.set_index('smiles')
    assert by.measured[week.smiles.iloc[0]] == -3.5 and by.corrected[week.smiles.iloc[0]]
    assert by.measured[later.smiles.iloc[8]] == -5.  # the median
    look = esol.watch(dry_run=True, tracking_uri=uri)
    assert look.apart['of its training set'] == more.known  # it may be one of the test set
    assert set(seen.answers.version) == {'1', '2'} and seen.answers.groupby('molecule').version.nunique().eq(2).all()


def test_it_goes_back_when_that_helps(folder, uri, here):
    "The whole path on the command line, the record, and the life that goes on."
    halves()[1].iloc[::9].to_csv(folder / 'week.csv', index=False)
    done = here('observe', 'week.csv', cwd=folder)
    assert done.returncode == 0 and 'new molecules; champion: version 2' in done.stdout, done.stderr
    done = here('watch', '--dry-run', '--json', cwd=folder)
    said = json.loads(done.stdout)
    assert done.returncode == 1 and (said['action'], said['champion'], said['changed']) == ('go back', '2', False)
    done = here('watch', cwd=folder)
    assert done.returncode == 1 and 'watch over version 2: go back' in done.stdout and 'champion: version 1' in done.stdout
    registry = snapshot(connect(uri))
    assert registry.aliases['champion'] == '1' and registry.status('2') == 'failed_in_monitoring'
    [back] = [entry for entry in registry.entries if entry.action == 'rollback']
    again = here('promote', '--version', '2', *LENIENT, cwd=folder)
    assert again.returncode == 1 and 'failed in monitoring' in again.stdout and 'registered as candidate' not in again.stdout
    assert back.outcome == 'done' and back.reason.startswith('found by watching: ') and 'e-value' in back.reason
    assert here('status', '--check', cwd=folder).returncode == 0
    page = reported(here, folder)
    counts = re.search(r'\d+ of \d+ measured values', back.reason)[0]
    assert f'the champion went back from version 2: {counts}' in page and 'class="warning"' not in page
    assert 'No measured molecule says yet whether it is still right' in page  # of version 1, whose life goes on
    done = here('watch', cwd=folder)
    assert done.returncode == 0 and 'watch over version 1: keep' in done.stdout and 'nothing was changed' in done.stdout
    assert len([e for e in snapshot(connect(uri)).entries if e.action == 'rollback']) == 1


def test_it_is_not_trusted_where_nobody_is_better(folder, uri, here):
    "Version 1 alone, its promise broken: every answer says so, until a person acknowledges it."
    assert here('rollback', '--reason', 'to have no predecessor', cwd=folder).returncode == 0
    week = halves()[1].iloc[200::9]
    week.assign(log_solubility=week.log_solubility - 3).to_csv(folder / 'week.csv', index=False)  # mol/L taken for mmol/L
    assert here('observe', 'week.csv', cwd=folder).returncode == 0
    done = here('watch', cwd=folder)
    assert done.returncode == 1 and 'watch over version 1: not trusted' in done.stdout and 'version 1, not trusted' in done.stdout
    assert snapshot(connect(uri)).aliases['champion'] == '1'
    done = here('predict', 'CCO', '--json', cwd=folder)
    [row] = json.loads(done.stdout)
    assert row['trusted'].startswith('no: ') and 'lie outside their 90 % interval' in row['trusted']
    counts = re.search(r'(\d+) of \1', row['trusted'])[0]  # all of them
    assert 'version 1 is not trusted' in done.stderr
    assert 'not trusted: ' in here('status', cwd=folder).stdout
    page = reported(here, folder)
    assert 'Champion is version 1, not trusted: ridge' in page and f'class="warning">Not trusted: {counts} measured values' in page
    assert f'version 1 was found not to be trusted: {counts}' in page and 'finds its promise broken, and no former' in page
    entries = len(snapshot(connect(uri)).entries)
    assert here('watch', cwd=folder).returncode == 1 and len(snapshot(connect(uri)).entries) == entries  # once is enough
    done = here('acknowledge', '--reason', 'the assay was in mmol/L', cwd=folder)
    assert done.returncode == 0 and 'acknowledge' in done.stdout
    assert 'acknowledged: the assay was in mmol/L' in here('status', cwd=folder).stdout
    page = reported(here, folder)
    assert 'class="warning"' not in page and re.search('version 1 was acknowledged by [^:]+: the assay was in mmol/L', page)
    assert here('watch', cwd=folder).returncode == 0  # what was observed is settled
    assert json.loads(here('predict', 'CCO', '--json', cwd=folder).stdout)[0]['trusted'] == 'yes'
    with pytest.raises(BioaiError, match='version 1 is trusted'):
        esol.acknowledge('again', tracking_uri=uri)


def test_the_report_says_what_was_observed(folder, uri, here):
    "Before anybody looked: what watching would decide, why, the figures, the worst molecules, and that it is not carried out yet."
    nothing = reported(here, folder)
    assert nothing.count('bioai-esol observe FILE') == 2  # on the first screen and in the section
    esol.observe(halves()[1].iloc[::9], tracking_uri=uri)
    look = esol.watch(dry_run=True, tracking_uri=uri)
    page = reported(here, folder)
    section = page.split('>Watching</h2>')[1].split('<h2')[0]
    assert 'decides now: go back.' in section and 'Not counted, because' in section and f"{look.apart['outside its domain']} outside its domain" in section
    assert section.count('<img ') == 2 and section.count('<tr>') == 1 + 3 + 1 + 2 + 1 + 6 and section.index('promise') < section.index('observations')
    assert f'the champion before it better: {look.evidence.judged} new molecules' in page and 'carries that out' in page
    [table] = (folder / 'mlartifacts').rglob('observations/molecules.csv')
    table.write_text(table.read_text().replace('-3', '-2'))
    assert reported(here, folder).count('altered or cut short') == 2  # said, and the rest of the report is there


def test_only_molecules_apart_are_no_evidence(folder, uri, here):
    "Of the training set: the report has the worst of them, and no figure of evidence."
    esol.observe(halves()[0].iloc[:40], tracking_uri=uri)
    page = reported(here, folder)
    section = page.split('>Watching</h2>')[1].split('<h2')[0]
    known = esol.watch(dry_run=True, tracking_uri=uri).apart['of its training set']
    assert known and f'{known} of its training set' in section and '<td class="text">no</td>' in section


def test_a_challenger_is_followed(folder, uri, here):
    "On all that was observed; the former champion answered every molecule, and is the better one here."
    halves()[1].iloc[::4].to_csv(folder / 'week.csv', index=False)
    assert here('compare', '1', '2', '--follow', cwd=folder).stdout.startswith('0 observed molecules were answered')
    assert here('observe', 'week.csv', cwd=folder).returncode == 0
    found = esol.follow('1', 'champion', tracking_uri=uri)
    assert found.better == '1' and 50 <= found.decided_at < found.fixed + 200 and len(found.course) == len(halves()[1].iloc[::4])
    said = here('compare', '1', 'champion', '--follow', '--output', 'course.csv', cwd=folder).stdout
    assert 'version 1 is better; measuring could stop after' in said and len(pd.read_csv(folder / 'course.csv')) == len(found.course)
    assert here('compare', '1', '2', '--follow', '--data', 'week.csv', cwd=folder).returncode == 2
    with pytest.raises(BioaiError, match='are the same version'):
        esol.follow('2', 'champion', tracking_uri=uri)


def test_a_second_promotion_is_a_second_life(uri):
    week = halves()[1].iloc[::9]
    esol.observe(week, tracking_uri=uri)
    assert esol.watch(tracking_uri=uri).action == 'go back'
    policy = esol.Policy(gap_threshold=9, r2_tolerance=.99)
    assert esol.promote(version='2', policy=policy, allow_dirty=True, force=True, tracking_uri=uri).champion == '2'
    assert esol.watch(tracking_uri=uri).evidence.judged == 0  # and not rolled back at once: somebody wanted it
    assert esol.observe(week, tracking_uri=uri).new == 0


def test_bad_tables_leave_nothing(folder, uri, here):
    (folder / 'bad.csv').write_text('smiles,logS\nCCCCCC,-2.5\nC1CC,1\nCCCCCCC,x\n')
    done = here('observe', 'bad.csv', cwd=folder)
    assert done.returncode == 2 and 'bad.csv line 3' in done.stderr and 'bad.csv line 4' in done.stderr and '--skip-bad-rows' in done.stderr
    assert len(load_observations(connect(uri)).molecules) == 0
    done = here('observe', 'bad.csv', '--skip-bad-rows', cwd=folder)
    assert done.returncode == 0 and '1 new molecule;' in done.stdout and 'rows left out: 2' in done.stdout
    with pytest.raises(DataError, match='has logD, and the champion predicts'):
        esol.observe(pd.DataFrame(dict(smiles=['CCO'], logD=[1.])), property='logD', tracking_uri=uri)
    with pytest.raises(DataError, match='9000'):
        esol.observe(pd.DataFrame(dict(smiles=['CCO', 'CCC'], logS=[9000., 5.])), tracking_uri=uri)


def test_no_champion_is_said(tmp_path, here):
    sweep_here(fresh(tmp_path), 'a', 1)
    (tmp_path / 'week.csv').write_text('smiles,logS\nCCCCCC,-2.5\n')
    for command in (['observe', 'week.csv'], ['watch'], ['acknowledge', '--reason', 'x']):
        done = here(*command)
        assert done.returncode == 2 and 'there is no champion' in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_inbox(folder, uri, here):
    "Each file is observed once and put away, a bad one with its reason; what is hidden, and a folder, stay."
    inbox = folder / 'inbox'
    (inbox / 'done').mkdir(parents=True)
    halves()[1].iloc[:4].to_csv(inbox / 'a.csv', index=False)
    (inbox / 'b.csv').write_text('smiles,logS\nCCO,oops\n')
    (inbox / '.c.csv.swp').write_text('x')
    done = here('watch', '--folder', 'inbox', cwd=folder)
    assert done.returncode == 0 and 'a.csv: 4 new molecules' in done.stdout and 'b.csv refused' in done.stdout
    names = sorted(str(p.relative_to(inbox)) for p in inbox.rglob('*') if p.is_file())
    assert names == ['.c.csv.swp', 'done/a.csv', 'refused/b.csv', 'refused/b.reason.txt']
    assert 'oops' in (inbox / 'refused/b.reason.txt').read_text()
    assert list(observe_folder(inbox, uri)) == []
    done = here('watch', '--folder', 'absent', cwd=folder)
    assert done.returncode == 2 and 'cannot look into absent' in done.stderr
    done = here('watch', '--every', 'soon', cwd=folder)
    assert done.returncode == 2 and 'give 90s, 10m, 1h or 1d' in done.stderr


def test_files_that_were_altered_are_no_evidence(folder, uri):
    esol.observe(halves()[1].iloc[:4], tracking_uri=uri)
    [table] = (folder / 'mlartifacts').rglob('observations/molecules.csv')
    table.write_text(table.read_text().replace('-3', '-2'))
    with pytest.raises(BioaiError, match='altered or cut short'):
        esol.watch(tracking_uri=uri)


def test_other_questions_warn_and_name_what_to_measure(folder, uri, here):
    "Noted by `predict`; the champion's own kind of molecules does not warn, others do, and no alias moves."
    champion, (soluble, later) = esol.load_champion(tracking_uri=uri), halves()
    strange = later[(champion.predict(later.smiles.tolist()).domain == 'outside').to_numpy()]
    for name, table in (('usual.csv', soluble.iloc[::5]), ('strange.csv', strange)):
        table.to_csv(folder / name, index=False)
    done = here('predict', '--input', 'usual.csv', '--output', 'out.csv', '--note-requests', 'requests.csv', cwd=folder)
    assert done.returncode == 0 and len(load_requests(folder / 'requests.csv')) == len(soluble.iloc[::5]), done.stderr
    quiet = here('watch', '--requests', 'requests.csv', cwd=folder)
    assert quiet.returncode == 0 and '✓ questions' in quiet.stdout and 'watch over version 2: keep' in quiet.stdout
    here('predict', '--input', 'strange.csv', '--output', 'out.csv', '--note-requests', 'requests.csv', cwd=folder)
    warned = here('watch', '--requests', 'requests.csv', '--json', cwd=folder)
    said = json.loads(warned.stdout)
    assert warned.returncode == 0 and (said['action'], said['champion'], said['changed']) == ('measure more', '2', False)
    assert said['questions']['outside'] >= len(strange) and 1 <= len(said['worth_measuring']) <= 5
    relatives = [row['relatives'] for row in said['worth_measuring']]
    assert relatives == sorted(relatives, reverse=True) and {row['domain'] for row in said['worth_measuring']} == {'outside'}
    assert not any(column in row for row in said['worth_measuring'] for column in ('log_solubility', 'measured'))
    assert esol.watch(tracking_uri=uri).action == 'keep'  # without the requests


def test_in_doubt_the_versions_that_disagree_say_what_to_measure(folder, uri):
    "An e-value between a doubt and an alarm; what was measured already is not named again."
    champion, later = esol.load_champion(tracking_uri=uri), halves()[1]
    log = RequestLog(folder / 'requests.csv')
    log.note(champion.predict(later.smiles.iloc[:200].tolist()))
    for row in range(250, 350, 3):  # one by one, until there is a doubt
        esol.observe(later.iloc[row:row + 1], tracking_uri=uri)
        if esol.watch(tracking_uri=uri, dry_run=True).evidence.log_against > math.log(10): break
    look = esol.watch(requests=log.path, tracking_uri=uri)
    assert look.action == 'measure more' and math.log(10) < look.evidence.log_against < math.log(100)
    best = look.to_measure
    former = esol.load_version('1', tracking_uri=uri).predict(best.smiles.tolist()).log_solubility
    assert len(best) == 5 and set(best.domain) == {'inside'} and best.difference.is_monotonic_decreasing
    assert (best.former - former).abs().max() < 1e-9 and (best.difference - (best.champion - best.former).abs()).abs().max() == 0
    assert not set(best.smiles) & set(load_observations(connect(uri)).molecules.molecule)
    assert 'worth measuring:\n  ' + best.smiles[0] in str(look)
    digests = RequestLog(folder / 'digests.csv', digests_only=True)
    digests.note(champion.predict(later.smiles.iloc[:200].tolist()))
    assert not len(esol.watch(requests=digests.path, tracking_uri=uri).to_measure)  # nobody can say which


def test_two_processes_note_into_one_file(folder):
    "No line is lost or torn."
    asked = halves()[1].smiles.iloc[:30].tolist()
    command = [PROGRAM, 'predict', *asked, '--output', '/dev/null', '--note-requests', 'requests.csv']
    processes = [subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
    noted = load_requests(folder / 'requests.csv')
    assert len(noted) == 60 and noted.smiles.nunique() == 30 and noted.version.unique().tolist() == ['2']


def test_a_file_of_somebody_else_is_left_alone(folder, here):
    "Refused before anything is predicted, and by `watch`, too."
    before = (folder / 'soluble.csv').read_bytes()
    for command in (['predict', 'CCO', '--note-requests', 'soluble.csv'], ['watch', '--requests', 'soluble.csv'],
                    ['serve', '--note-requests', 'soluble.csv']):
        done = here(*command, cwd=folder)
        assert done.returncode == 2 and done.stdout == '' and 'soluble.csv is not a file of noted requests' in done.stderr
    assert (folder / 'soluble.csv').read_bytes() == before


@pytest.mark.parametrize('jump_s', [-86_400, 0])
def test_a_clock_that_jumps_mixes_no_lives(uri, monkeypatch, jump_s):
    "Promoted again at a moment that is not after the first promotion; and what was observed keeps its order."
    week, champion = halves()[1].iloc[::9], snapshot(connect(uri)).aliases['champion']
    esol.observe(week, tracking_uri=uri)
    before = snapshot(connect(uri)).at(f'version/{champion}/promoted_at')
    assert esol.watch(tracking_uri=uri).action == 'go back'
    jumped = (pd.Timestamp(before) + pd.Timedelta(seconds=jump_s)).strftime('%Y-%m-%dT%H:%M:%SZ')
    monkeypatch.setattr(versions, 'utc_text', lambda: jumped)
    policy = esol.Policy(gap_threshold=9, r2_tolerance=.99)
    assert esol.promote(version=champion, policy=policy, allow_dirty=True, force=True, tracking_uri=uri).champion == champion
    assert snapshot(connect(uri)).at(f'version/{champion}/promoted_at') > before
    assert esol.watch(tracking_uri=uri).evidence.judged == 0
    monkeypatch.setattr(observations, 'utc_text', lambda: jumped)
    assert esol.observe(halves()[1].iloc[1::9], tracking_uri=uri).new
    assert load_observations(connect(uri)).molecules.sequence.is_monotonic_increasing
    assert esol.watch(tracking_uri=uri).evidence.judged > 0
